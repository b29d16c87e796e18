"""What a cluster is called and how its RayJobs are dressed: everything of a manifest that is not the work or the pool.

The values come from environment variables of the launcher's pod (components/platform/settings.py lists them); secrets by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from components.platform import task_config
from model.errors import ConfigError

RAY_VERSION = "2.60.0"
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL", re.I)
DIGEST = re.compile(r"^[\w.:/-]+@sha256:[0-9a-f]{64}$")
ADDRESS = re.compile(r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*$")


class Submission(StrEnum):
    """How KubeRay hands the entrypoint to Ray; neither way has a submitter pod that could be evicted alone."""

    HTTP = "HTTPMode"
    """The operator asks Ray's Jobs API. Nothing is added to our pods."""
    SIDECAR = "SidecarMode"
    """KubeRay adds a container to the head. It has no security context (KubeRay 1.7, its issue 4197), so a namespace that enforces the
    restricted profile refuses the head's pod."""


@dataclass(frozen=True)
class Owner:
    """The launcher's pod, from the downward API; Kubernetes removes the RayJob with it."""

    name: str
    uid: str


@dataclass(frozen=True)
class Site:
    """One namespace of one cluster."""

    namespace: str
    """Where the RayJobs live."""
    image: str
    """The train image, by digest."""
    store: str
    """The shared store, `s3://BUCKET/PREFIX`."""
    team: str
    """Who pays, for labels."""
    cost_centre: str = "none"
    service_account: str = "biovlm-ray"
    """Of the Ray pods; its token is not mounted."""
    secrets: tuple[str, ...] = ()
    """Secrets whose keys become environment variables of the Ray pods (credentials of the store)."""
    environment: tuple[tuple[str, str], ...] = ()
    """Further variables of the Ray pods that are no secrets, sorted."""
    submission: Submission = Submission.HTTP
    ray_version: str = RAY_VERSION
    head_cpus: int = 2
    head_memory_gib: int = 8
    scratch_gib: int = 100
    """Size of a pod's disk for files that may be lost with it."""
    keep_seconds: int = 600
    """How long the pods of a job that is over stay, for their logs."""
    owner: Owner | None = None
    passed_on: Mapping[str, Any] = field(default_factory=dict)
    """What a platform team set on the pipeline's task for its workers (components/platform/task_config.py)."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Site:
        """Read the variables of the launcher's pod. ConfigError: one is missing or cannot be."""
        env = os.environ if environment is None else environment
        needed = ("BIOVLM_NAMESPACE", "BIOVLM_TRAIN_IMAGE", "BIOVLM_STORE", "BIOVLM_TEAM")
        if missing := [name for name in needed if not env.get(name)]:
            raise ConfigError(f"KubeRay needs {', '.join(missing)}", "the launcher's pod gets them from infra/kubernetes")
        passed = sorted(name for name in env.get("BIOVLM_RAY_ENVIRONMENT", "").split(",") if name and name in env)
        if secret := [name for name in passed if SECRET.search(name)]:
            raise ConfigError(
                f"BIOVLM_RAY_ENVIRONMENT names {secret[0]}, which looks like a secret; its value would stand in the RayJob",
                "put it into a Secret and name that in BIOVLM_RAY_SECRETS",
            )
        secrets = tuple(name for name in env.get("BIOVLM_RAY_SECRETS", "").split(",") if name)
        if own := sorted({*secrets} & {*task_config.LAUNCHERS_OWN}):
            raise ConfigError(
                f"BIOVLM_RAY_SECRETS names {own[0]}, which belongs to the steps: workers would sign, register or write as they do",
                "give Ray pods a Secret of their own, such as biovlm-store-train (infra/README.md)",
            )
        name, uid = env.get("BIOVLM_POD_NAME", ""), env.get("BIOVLM_POD_UID", "")
        return cls(
            namespace=env["BIOVLM_NAMESPACE"],
            image=env["BIOVLM_TRAIN_IMAGE"],
            store=env["BIOVLM_STORE"].rstrip("/"),
            team=env["BIOVLM_TEAM"],
            cost_centre=env.get("BIOVLM_COST_CENTRE") or "none",
            secrets=secrets,
            environment=tuple((name, env[name]) for name in passed),
            submission=_submission(env.get("BIOVLM_RAY_SUBMISSION") or Submission.HTTP),
            owner=Owner(name, uid) if name and uid else None,
            passed_on=task_config.kept(env),
        ).checked()

    def checked(self) -> Site:
        """This site. ConfigError: the image is not named by its digest, or the store has no address that a shell leaves alone."""
        if not DIGEST.match(self.image):
            raise ConfigError(
                f"BIOVLM_TRAIN_IMAGE is {self.image!r}, an image whose content can change",
                "name it by digest, REGISTRY/NAME@sha256:...",
            )
        if not ADDRESS.match(self.store):
            raise ConfigError(f"BIOVLM_STORE is {self.store!r}", "write it as s3://BUCKET/PREFIX, of letters, digits and . _ = -")
        return self


def _submission(text: str) -> Submission:
    try:
        return Submission(text)
    except ValueError:
        known = " or ".join(Submission)
        raise ConfigError(f"BIOVLM_RAY_SUBMISSION is {text!r}", f"give {known}") from None
