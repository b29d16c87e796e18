"""The data registry: every version of every data set and base model, in a Git + DVC repository of its own.

1. `Registry(home)` names it; nothing is made before the first `build` or `add`.
2. `build(progress)` makes the demo data as the checkout's dvc.yaml says (components/data/demo.py). It costs nothing when nothing
   changed.
3. `add(name, make, message)` takes in any other data set: `make` writes the folder.
4. Both end in `_publish`: verify, push the bytes to the remote, then commit. A commit never names bytes that are not in the
   remote.
5. `resolve` and `version` say what a revision holds, from Git alone; `materialise` copies versions into the store and verifies
   them.

The layout of `$BIOVLM_HOME/data`:

    dvc.yaml dvc.lock  stages of the demo data; model/... copies of the sources they depend on
    data/NAME          the newest version of a set (DVC's work tree); data/NAME.dvc for imported ones
    sets/NAME.json     what Git knows of it: digest of its manifest, md5 in DVC, facts

One writer at a time: a lock in `.dvc/tmp`. Readers need none, they read commits. A revision of a set is the commit that last
changed `sets/NAME.json`, so importing another set does not change it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from components.data import demo, registry_dvc
from components.data.registry_dvc import Progress
from components.data.registry_git import Git
from components.platform.settings import CHECKOUT
from model import manifest
from model.errors import DataError, MissingInputError, RefusedError, UsageError
from model.recipe import nearest

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
IGNORED = "/data/.*/\n"
"""What a killed process may leave; DVC itself hides its outputs from Git in data/.gitignore."""


class Version(BaseModel):
    """One version of a data set or base model, as Git knows it (`sets/NAME.json`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: str = Field(description="Kind of its manifest: data or base.")
    digest: str = Field(description="Digest of its manifest.")
    dvc_path: str = Field(description="Path in the registry.")
    md5: str = Field(description="Its name in DVC's cache and remote.")
    files: int = Field(description="Number of files, the manifest not counted.")
    size_bytes: int
    facts: dict[str, Any] = Field(description="The facts of its manifest.")
    revision: str = Field(default="", description="The commit that brought this version.")
    committed: str = Field(default="", description="Time of that commit, ISO 8601.")


@dataclass(frozen=True)
class Materialised:
    """A version that lies in the store, verified."""

    name: str
    path: Path
    digest: str
    revision: str
    """The commit that brought this version; not the one asked for, which may have brought another set."""
    dvc_path: str
    md5: str
    manifest: manifest.Manifest


def _silent(line: str) -> None:
    """Show nothing."""


class Registry:
    """The data registry of one `$BIOVLM_HOME`."""

    def __init__(self, home: Path, code: Path = CHECKOUT, remote: str = "") -> None:
        """`code` is the checkout whose dvc.yaml and sources build the demo data; `remote` the address of DVC's remote."""
        self.root, self.code, self.remote = home / "data", code, remote
        self.git = Git(self.root)

    # ------------------------------------------------------------------------------------------------------------ writing

    def build(self, progress: Progress = _silent) -> str:
        """Make the demo data where it is missing or its sources changed; the registry's head commit.

        Raises:
            BiovlmError: A stage failed, with its own exit code; what was there before is untouched.
        """
        if self.fresh(demo.stages(self.code)):
            return self.git.head()
        with self._writing(progress) as lock:
            names = demo.prepare(self.root, self.code)
            for stages in demo.waves(self.code):
                # DVC builds one stage after the other; what needs nothing of each other is built side by side.
                commands = [("repro", "--single-item", stage) for stage in stages]
                registry_dvc.call(self.root, commands, self.code, progress, (lock,))
            for line in demo.differences(self.root, self.code):
                progress(line)
            head = self._publish(names, "demo data", progress, lock)
            demo.stamp(self.root, self.code)
            return head

    def ensure(self, names: Iterable[str], progress: Progress = _silent) -> None:
        """Build the demo data if `names` asks for any of it. Names that are not demo data are left to `materialise`."""
        if not self.fresh(names):
            self.build(progress)

    def fresh(self, names: Iterable[str]) -> bool:
        """Whether `ensure(names)` would find nothing to do; starts neither DVC nor a build."""
        if not set(names) & set(demo.stages(self.code)):
            return True
        return self.exists() and demo.is_fresh(self.root, self.code) and self.git.is_clean()

    def is_built(self, names: Iterable[str]) -> bool:
        """Whether everything among `names` that is demo data is built from the present sources; looks at no work tree."""
        return not set(names) & set(demo.stages(self.code)) or demo.is_fresh(self.root, self.code)

    def add(self, name: str, make: Callable[[Path], object], message: str, progress: Progress = _silent) -> str:
        """Take in a data set; the revision that holds it, which is the old one if the content is the old one.

        Args:
            name: Its name in recipes.
            make: Writes the artifact folder (model/manifest.py) at the path it is given, which does not exist yet.
            message: Message of the commit.
            progress: Gets one line at a time.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a data set", "use up to 40 of a-z, 0-9, `-` and `_`")
        if name in demo.stages(self.code):
            raise UsageError(
                f"{name!r} is demo data and is built, not imported", "choose another name, or run `biovlm data build`"
            )
        with self._writing(progress) as lock:
            incoming = self._incoming() / name
            make(incoming)
            new = manifest.verify(incoming)
            old = self._version(name, "HEAD") if self.git.head() else None
            if old is not None and old.digest == new.digest:
                return old.revision
            _replace(incoming, self.root / "data" / name)
            registry_dvc.call(self.root, [("add", f"data/{name}")], self.code, progress, (lock,))
            self._publish((name,), message, progress, lock)
            return self.version(name, "HEAD").revision

    def _publish(self, names: Sequence[str], message: str, progress: Progress, lock: int) -> str:
        """Verify what lies in `data/`, push it, and only then let a commit name it."""
        for name in names:
            content = manifest.verify(self.root / "data" / name)
            version = Version(
                name=name,
                kind=content.kind,
                digest=content.digest,
                dvc_path=f"data/{name}",
                md5=self._md5(name),
                files=len(content.files),
                size_bytes=sum(entry.size_bytes for entry in content.files),
                facts=content.facts,
            )
            path = self.root / "sets" / f"{name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(version.model_dump_json(indent=1, exclude={"revision", "committed"}) + "\n", encoding="utf-8")
        registry_dvc.call(self.root, [("push", *(f"data/{name}" for name in names))], self.code, progress, (lock,))
        return self.git.commit(message)

    def _md5(self, name: str) -> str:
        """What DVC calls the content of `data/NAME`, from its own files."""
        own = self.root / "data" / f"{name}.dvc"
        if own.is_file():
            return str(yaml.safe_load(own.read_text(encoding="utf-8"))["outs"][0]["md5"])
        return demo.pinned(self.root)[f"data/{name}"]

    @contextlib.contextmanager
    def _writing(self, progress: Progress) -> Iterator[int]:
        """Hold the lock, in a registry that is whole; gives the lock's file descriptor."""
        scratch = self.root / ".dvc" / "tmp"
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            lock = os.open(scratch / "biovlm.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise manifest.cannot_write(self.root, error) from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("another process writes to the data registry; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # DVC's own lock file of a killed process would stop the next one; under our lock nobody else can hold it.
            (scratch / "rwlock").unlink(missing_ok=True)
            self.git.prepare(registry_dvc.files(self.remote) | {".gitignore": IGNORED})
            yield lock
        except OSError as error:
            if error.errno in manifest.CANNOT_WRITE_ERRNOS:
                raise manifest.cannot_write(self.root, error) from error
            raise
        finally:
            os.close(lock)

    def _incoming(self) -> Path:
        """An empty folder on the registry's disk that neither Git nor DVC looks at."""
        folder = self.root / ".dvc" / "tmp" / "incoming"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    # ------------------------------------------------------------------------------------------------------------ reading

    def exists(self) -> bool:
        """Whether anything was ever committed here."""
        return bool(self.git.head())

    def resolve(self, revision: str) -> str:
        """The commit (40 hex digits) of the registry that `revision` names. MissingInputError if there is none."""
        if not self.exists():
            raise MissingInputError(f"no data registry at {self.root}", IMPORT_HINT)
        return self.git.resolve(revision)

    def version(self, name: str, revision: str = "HEAD") -> Version:
        """The version of the set `name` in `revision`. MissingInputError, with the nearest name, if it has none."""
        commit = self.resolve(revision)
        found = self._version(name, commit)
        if found is not None:
            return found
        known = self._names(commit)
        raise MissingInputError(
            f"the data registry has no data set {name!r} at {commit[:12]}{nearest(name, known)}",
            f"it has {', '.join(known) or 'none'}; {IMPORT_HINT}",
        )

    def list(self, revision: str = "HEAD") -> list[Version]:
        """Every set's version in `revision`, sorted by name; empty if nothing was ever built or imported."""
        if not self.exists():
            return []
        commit = self.resolve(revision)
        return [self.version(name, commit) for name in self._names(commit)]

    def materialise(self, names: Iterable[str], revision: str, store: Path) -> dict[str, Materialised]:
        """Lay the sets `names` of `revision` into `store/data/NAME-DIGEST`, copied and verified.

        Raises:
            MissingInputError: Unknown revision or set, or its bytes are gone.
            RefusedError: A byte is not what the revision says.
        """
        commit = self.resolve(revision)
        versions = [self.version(name, commit) for name in dict.fromkeys(names)]
        return {version.name: self._lay(version, store / "data") for version in versions}

    def _lay(self, version: Version, folder: Path) -> Materialised:
        final = folder / f"{version.name}-{version.digest[:16]}"
        content = _good(final, version.digest) or self._copy(version, final)
        return Materialised(
            name=version.name,
            path=final,
            digest=version.digest,
            revision=version.revision,
            dvc_path=version.dvc_path,
            md5=version.md5,
            manifest=content,
        )

    def _copy(self, version: Version, final: Path) -> manifest.Manifest:
        """Fetch into a folder aside, verify it, rename it. Copies, not hard links: a write to the store must not reach the cache."""
        aside = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            registry_dvc.fetch(self.root, version.revision, version.dvc_path, aside)
            content = self._verified(aside, version)
            _replace(aside, final)
        except OSError as error:
            if error.errno in manifest.CANNOT_WRITE_ERRNOS:
                raise manifest.cannot_write(final, error) from error
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return content

    def _verified(self, folder: Path, version: Version) -> manifest.Manifest:
        """Its manifest; RefusedError, about the registry and not about a folder that is gone in a moment, if a byte is wrong."""
        try:
            return manifest.verify(folder, version.digest)
        except (MissingInputError, DataError, RefusedError) as error:
            found = error.message.replace(str(folder), version.dvc_path)
            raise RefusedError(
                f"the data registry's copy of {version.name} {version.revision[:12]} was changed: {found}",
                f"remove {self.root / '.dvc' / 'cache'}: its content comes again from the remote",
            ) from None

    def _names(self, commit: str) -> Sequence[str]:
        return [Path(path).stem for path in self.git.names(commit, "sets")]

    def _version(self, name: str, commit: str) -> Version | None:
        path = f"sets/{name}.json"
        text = self.git.show(commit, path) if NAME.fullmatch(name) else None
        if text is None:
            return None
        revision, committed = self.git.last_change(commit, path)
        return Version.model_validate_json(text).model_copy(update={"revision": revision, "committed": committed})


IMPORT_HINT = "`biovlm data build` makes the demo data, `biovlm data import vqa-rad --path DIR` takes in VQA-RAD"


def _good(folder: Path, digest: str) -> manifest.Manifest | None:
    """The manifest of a folder that is there and verifies; else None."""
    with contextlib.suppress(MissingInputError, DataError, RefusedError):
        return manifest.verify(folder, digest)
    return None


def _replace(new: Path, final: Path) -> None:
    """Rename `new` to `final`; what stood there is set aside first and removed last."""
    old = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.old"
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)
    shutil.rmtree(old, ignore_errors=True)
