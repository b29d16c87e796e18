"""The data registry's Git: which version of each data set there is, and what its files are called.

1. `Git(root).prepare(files)` makes the repository, or mends one that was left half-made or locked by a killed process.
2. `commit(message)` records the work tree if it changed; `head()` and `resolve(revision)` name commits.
3. `show(revision, path)` reads a file of a commit; `last_change(revision, path)` is the commit that gave it its content.

Git is called as a program. The user's own configuration stays in force except where it could stop a commit: signing, hooks and
line endings are switched off, and variables such as GIT_DIR, set when a Git hook started biovlm, are not passed on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from model.errors import InternalError, MissingInputError

AUTHOR = {
    "GIT_AUTHOR_NAME": "biovlm",
    "GIT_AUTHOR_EMAIL": "biovlm@localhost",
    "GIT_COMMITTER_NAME": "biovlm",
    "GIT_COMMITTER_EMAIL": "biovlm@localhost",
}
SETTINGS = ("commit.gpgSign=false", "core.hooksPath=/dev/null", "core.autocrlf=false", "init.defaultBranch=main", "gc.auto=0")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./~^-]{0,99}")
TIMEOUT_SECONDS = 120
KEPT = (".", ":(exclude,glob)data/*/**")
"""What Git records: all but the data, also where a killed import came to lie before DVC could hide it."""


class Git:
    """A Git repository that biovlm keeps for itself."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, files: Mapping[str, str]) -> None:
        """Make the repository if it is missing, and let `files` (relative path -> text) stand in it.

        The caller holds the registry's lock: a lock file of Git that is there belongs to a process that was killed.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / ".git" / "HEAD").is_file():
            self._call("init", "--quiet")
        for stale in (self.root / ".git").rglob("*.lock"):
            stale.unlink(missing_ok=True)
        for name, text in files.items():
            path = self.root / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")

    def follow(self, url: str) -> None:
        """Be a clone of the repository at `url`, at its newest commit. The caller holds a lock. InternalError: Git could not."""
        if not (self.root / ".git" / "HEAD").is_file():
            shutil.rmtree(self.root, ignore_errors=True)
            aside = self.root.with_suffix(".tmp")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            Git(aside)._call("clone", "--quiet", "--filter=blob:none", "--", url, ".")
            aside.rename(self.root)
            return
        self._call("fetch", "--quiet", "--tags", "--force", "origin", "HEAD")
        self._call("reset", "--quiet", "--hard", "FETCH_HEAD")

    def copy_of(self, source: str, head: str) -> None:
        """Be a copy of the repository at `source` with all its commits, whose HEAD is the commit `head`. InternalError: Git could not."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._call("clone", "--quiet", "--no-checkout", "--", source, ".")
        self._call("checkout", "--quiet", "--detach", head)

    def commit(self, message: str) -> str:
        """Record every change of the work tree, if there is one; the commit that then stands at the head."""
        self._call("add", "--all", "--", *KEPT)
        if not self._unchanged():
            self._call("commit", "--quiet", "--message", message)
        return self.head()

    def is_clean(self) -> bool:
        """Whether the work tree is what the head says."""
        return bool(self.head()) and self._unchanged()

    def head(self) -> str:
        """The commit at the head; empty in a repository without commits, or without repository."""
        return self._commit("HEAD") if (self.root / ".git" / "HEAD").is_file() else ""

    def resolve(self, revision: str) -> str:
        """The commit (40 hex digits) that `revision` names. MissingInputError if none does."""
        commit = self._commit(revision) if REVISION.fullmatch(revision) and self.head() else ""
        if not commit:
            raise MissingInputError(
                f"unknown revision {revision[:100]!r} of the data registry {self.root}",
                "`biovlm data list` shows the revisions there are; HEAD names the newest",
            )
        return commit

    def show(self, revision: str, path: str) -> str | None:
        """The text of `path` in `revision`; None if it has no such file."""
        return self._try("show", f"{revision}:{path}")

    def names(self, revision: str, folder: str) -> list[str]:
        """Paths of the files below `folder` in `revision`, sorted."""
        return self._call("ls-tree", "-r", "--name-only", revision, f"{folder}/").split()

    def last_change(self, revision: str, path: str) -> tuple[str, str]:
        """The last commit up to `revision` that changed `path`, and its time (ISO 8601)."""
        commit, _, when = self._call("log", "-1", "--format=%H %cI", revision, "--", path).strip().partition(" ")
        return commit, when

    def changes(self, path: str) -> list[str]:
        """Every commit up to the head that changed `path`, newest first."""
        return self._call("log", "--format=%H", "HEAD", "--", path).split()

    def _unchanged(self) -> bool:
        return not self._call("status", "--porcelain", "--untracked-files=all", "--", *KEPT)

    def _commit(self, revision: str) -> str:
        return (self._try("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") or "").strip()

    def _try(self, *arguments: str) -> str | None:
        done = self._run(arguments)
        return done.stdout if done.returncode == 0 else None

    def _call(self, *arguments: str) -> str:
        done = self._run(arguments)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise InternalError(
                f"`git {arguments[0]}` failed in the data registry {self.root}: {lines[-1] if lines else done.returncode}",
                f"run `git -C {self.root} status` to see its state",
            )
        return done.stdout

    def _run(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        if shutil.which("git") is None:
            raise MissingInputError(
                "the program `git` is missing", "install Git 2.30 or later; the data registry is a Git repository"
            )
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")} | AUTHOR
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        command = ("git", "-C", str(self.root), *settings, *arguments)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, start_new_session=True
        )
