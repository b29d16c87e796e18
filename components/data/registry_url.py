"""The data registry that a run reads: its own, or one of a team at a Git URL (BIOVLM_DATA), which it only follows.

1. `open_registry(settings)` gives the one or the other; both answer the same questions.
2. A followed registry is cloned when it is first asked, without old contents of files (`--filter=blob:none`). All commits come, because
   the revision of a set is the commit that last changed it, and a shallow clone would not know that.
3. `ensure` brings the newest commits: at the begin of a run's data step, and never in the middle of one.
4. The bytes come from the DVC remote that the registry's own `.dvc/config` names. A registry whose sets are made with
   BIOVLM_DVC_REMOTE=s3://BUCKET/PREFIX keeps them there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from components.data.registry import Registry
from components.data.registry_dvc import Progress
from components.platform.locks import held
from components.platform.origin import without_login
from components.platform.settings import Settings
from model.errors import InternalError, MissingInputError, UsageError


def open_registry(settings: Settings) -> Registry:
    """The registry of the settings."""
    if settings.data_url:
        return FollowedRegistry(settings.home, settings.data_url)
    return Registry(settings.home, remote=settings.dvc_remote_url)


class FollowedRegistry(Registry):
    """A registry that others write; nothing is built or imported here.

    Args:
        home: Where its clone is kept.
        url: Of its Git repository.
    """

    def __init__(self, home: Path, url: str) -> None:
        super().__init__(home)
        self._url = url
        self.root = home / "registries" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.git.root = self.root

    def build(self, progress: Progress = lambda line: None) -> str:
        raise self._refusal()

    def add(self, name: str, make: Callable[[Path], object], message: str, progress: Progress = lambda line: None) -> str:
        raise self._refusal()

    def ensure(self, names: Iterable[str], progress: Progress = lambda line: None) -> None:
        self._follow()

    def fresh(self, names: Iterable[str]) -> bool:
        return False  # only its server knows

    def is_built(self, names: Iterable[str]) -> bool:
        return self.exists()

    def resolve(self, revision: str) -> str:
        if not self.exists():
            self._follow()
        return super().resolve(revision)

    def _follow(self) -> None:
        """Clone it, or bring the newest commits. MissingInputError: its server does not give it."""
        with held(self.root.with_suffix(".lock")):
            try:
                self.git.follow(self._url)
            except InternalError:  # Git's words may quote the URL, and that a password
                raise MissingInputError(
                    f"the data registry at {without_login(self._url)} cannot be read",
                    "check BIOVLM_DATA, the network and the credentials that `git ls-remote` would need",
                ) from None

    def _refusal(self) -> UsageError:
        return UsageError(
            f"the data registry at {without_login(self._url)} is only read from here",
            "build or import where it is written, push its commits, and run again; or unset BIOVLM_DATA",
        )
