"""Where the services of a cluster are, for the commands that talk to them; the variables stand in the table of `settings.py`.

Names that the client libraries know already keep those names (`KF_PIPELINES_ENDPOINT`, `KF_PIPELINES_SA_TOKEN_PATH`,
`REQUESTS_CA_BUNDLE`), so that whoever has them set has nothing to set again. A token is a file, never a value: it can be replaced while a
command waits, and does not stand in a process list.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import ConfigError


@dataclass(frozen=True)
class Addresses:
    """What the environment says about the cluster."""

    pipelines: str
    """Address of the KFP API server; empty if none is named."""
    token_file: Path | None
    ca_file: str
    namespace: str
    """Of the profile in a multi-user installation of KFP; empty for a single-user one."""
    jobs_namespace: str
    """Where the Ray jobs live."""
    time_zone: str
    """Zone in which the server reads cron expressions."""
    launcher_image: str
    train_image: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Addresses:
        """Read `environment` (default: this process's)."""
        env = os.environ if environment is None else environment
        return cls(
            pipelines=env.get("KF_PIPELINES_ENDPOINT", "").rstrip("/"),
            token_file=Path(env["KF_PIPELINES_SA_TOKEN_PATH"]) if env.get("KF_PIPELINES_SA_TOKEN_PATH") else None,
            ca_file=env.get("REQUESTS_CA_BUNDLE", ""),
            namespace=env.get("BIOVLM_KFP_NAMESPACE", ""),
            jobs_namespace=env.get("BIOVLM_NAMESPACE") or "biovlm",
            time_zone=env.get("BIOVLM_KFP_TIME_ZONE") or "UTC",
            launcher_image=env.get("BIOVLM_LAUNCHER_IMAGE", ""),
            train_image=env.get("BIOVLM_TRAIN_IMAGE", ""),
        )

    def server(self) -> str:
        """The address of the KFP API server. ConfigError if none is named, or it is no address."""
        if not self.pipelines:
            raise ConfigError(
                "no Kubeflow server is named", "set KF_PIPELINES_ENDPOINT to its address, such as https://kfp.example"
            )
        if not self.pipelines.startswith(("http://", "https://")):
            raise ConfigError(
                f"KF_PIPELINES_ENDPOINT is {self.pipelines!r}", "it begins with https://, or http:// behind a port-forward"
            )
        return self.pipelines
