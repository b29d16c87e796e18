"""A client of a Ray cluster's Jobs API: three requests over HTTP, with the token.

Ray's own client is part of Ray, which weighs more than everything else in the launcher image and has to be of the cluster's version.
This one speaks the published REST API (https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html), names its
methods and errors as Ray's does, and stands in its place. The token is Ray's too: RAY_AUTH_TOKEN, or a file at RAY_AUTH_TOKEN_PATH,
read again for each request, so that one that was renewed is taken.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

TIMEOUT_SECONDS = 30
REFUSED = (401, 403)


class AuthenticationError(Exception):
    """The cluster refuses the token, or wants one."""


class JobsClient:
    """The Jobs API of one cluster.

    Args:
        address: `http://HOST:8265`.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def submit_job(self, *, entrypoint: str, submission_id: str, metadata: Mapping[str, str]) -> str:
        """Start a job; its id. RuntimeError also where there is one of that id already."""
        body = {"entrypoint": entrypoint, "submission_id": submission_id, "metadata": dict(metadata)}
        return str(self._asked("POST", "/api/jobs/", body)["submission_id"])

    def get_job_status(self, job: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED. RuntimeError with `status code 404` if there is no such job."""
        return str(self._asked("GET", f"/api/jobs/{job}")["status"])

    def delete_job(self, job: str) -> bool:
        """Forget a job that has ended."""
        return bool(self._asked("DELETE", f"/api/jobs/{job}")["deleted"])

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer's JSON.

        Raises:
            AuthenticationError: The token is refused. RuntimeError: Any other answer that is not 200.
            requests.RequestException: There is no answer.
        """
        answer = requests.request(
            method, self._address + path, json=body, headers=self._headers(), timeout=TIMEOUT_SECONDS, allow_redirects=False
        )
        if answer.status_code in REFUSED:
            raise AuthenticationError(f"status code {answer.status_code}")
        if answer.status_code != requests.codes.ok:
            raise RuntimeError(f"Request failed with status code {answer.status_code}: {answer.text[-1000:]}")
        return answer.json()

    def _headers(self) -> dict[str, str]:
        token, path = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH", "")
        if not token and path:
            token = Path(path).read_text(encoding="utf-8").strip()
        return {"Authorization": f"Bearer {token}"} if token else {}
