"""A store that steps on different machines share: the truth is a bucket, the folder of each machine a verified cache of it.

    s3://BUCKET/PREFIX/URI/manifest.json       the artifact at URI (steps/KIND/KEY, data/NAME-DIGEST, exports/DIGEST) is whole
    s3://BUCKET/PREFIX/files/DIGEST/PATH       its files, below the digest of its manifest
    s3://BUCKET/PREFIX/steps/KIND/KEY.json     the record of a step

1. `publish` puts files first and the manifest last, conditionally. Files lie below the digest of their manifest, so of two machines
   that make the same thing neither touches the other's files: the first manifest stands, and the second machine takes that artifact.
2. `lookup` asks for the manifest and the sizes of the files: a reused step downloads nothing. What is not whole is set aside, and the
   step runs again.
3. `fetch` uses the local folder if every byte verifies. Else it downloads; a file whose SHA-256 is not the manifest's is downloaded
   once more, then the artifact is refused. Processes of one machine wait for each other, and one of them downloads.
4. A result that is here and not in the bucket (a process was killed before it had published, or the bucket is new) is published when
   it is looked up.

The files of an artifact that came second stay in the bucket below their own digest; nothing reads them. A lost bucket is a letter
(components/platform/objects.py), never a reason to set something aside.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from components.platform.locks import held
from components.platform.objects import Objects, place_of, side_by_side
from components.platform.store import KEY_DIGITS, StepRecord, Store
from model import manifest
from model.errors import CannotWriteError, DataError, MissingInputError, RefusedError
from model.manifest import FILE_NAME, FileEntry, Manifest

FILES = "files"
DOWNLOADS = 2
"""Tries for a file before its artifact is refused: a byte can be hurt on the way, but not twice the same."""


class SharedStore(Store):
    """A store whose folder is a cache of a bucket."""

    def __init__(self, root: Path, where: str) -> None:
        """`where` is `s3://BUCKET/PREFIX`; ConfigError if it is not."""
        super().__init__(root)
        self.objects = Objects(*place_of(where, "BIOVLM_STORE", "a shared store"))

    # ------------------------------------------------------------------------------------------------------------ reading

    def lookup(self, kind: str, key: str, on_bad: Callable[[str], object]) -> Manifest | None:
        uri = self.uri(self.folder(kind, key))
        mine = super().lookup(kind, key, on_bad)
        theirs = self._published(uri)
        if mine is not None and (theirs is None or theirs.digest == mine.digest):
            if theirs is None or not self._whole(theirs):
                return self.publish(uri, super().record(kind, key))
            return mine
        if theirs is None or self._whole(theirs):
            return theirs
        aside = self._set_aside_published(uri)
        on_bad(f"a published result lacked some of its files and is set aside as {aside}")
        return None

    def fetch(self, uri: str, digest: str | None = None) -> Path:
        folder = self._inside(uri)
        if Path(uri).is_absolute():
            return super().fetch(uri, digest)
        with self._one_of_this_machine(uri):
            try:
                manifest.verify(folder, digest)
            except (RefusedError, DataError, MissingInputError):
                self._download(uri, digest)
        return folder

    def manifest_of(self, uri: str) -> Manifest:
        found = self._published(uri)
        if found is None:
            raise MissingInputError(
                f"no artifact at {self.objects.label}/{uri}", "the step that makes it did not finish; run the command again"
            )
        return found

    def names(self, folder: str) -> list[str]:
        found = (name.removeprefix(f"{folder}/").split("/") for name in self.objects.names(f"{folder}/"))
        return sorted(parts[0] for parts in found if parts[1:] == [FILE_NAME])

    def moved(self) -> tuple[int, int]:
        return self.objects.received, self.objects.sent

    def holds(self, uri: str, digest: str) -> bool:
        found = self._published(uri)
        return found is not None and found.digest == digest and self._whole(found)

    def record(self, kind: str, key: str) -> StepRecord | None:
        content = self.objects.find(self._record_name(kind, key))
        if content is None:
            return super().record(kind, key)
        with contextlib.suppress(ValidationError):
            return StepRecord.model_validate_json(content)
        return None

    def small(self, name: str) -> bytes | None:
        content = self.objects.find(name)
        return super().small(name) if content is None else content

    def keys(self, kind: str) -> list[str]:
        names = self.objects.names(f"steps/{kind}/")
        there = {name.removesuffix(".json").rpartition("/")[2] for name in names if name.count("/") == 2}
        return sorted({key for key in there if len(key) == KEY_DIGITS} | set(super().keys(kind)))

    # ------------------------------------------------------------------------------------------------------------ writing

    def keep(self, name: str, content: bytes) -> None:
        super().keep(name, content)
        self.objects.put(name, content)

    def publish(self, uri: str, record: StepRecord | None = None) -> Manifest:
        folder = self._inside(uri)
        if not (folder / FILE_NAME).is_file():  # made on another machine, which published it
            if record:
                self.objects.put_new(self._record_name(record.kind, record.key), _bytes(record))
            return self.manifest_of(uri)
        mine = manifest.read(folder)
        theirs = self._published(uri)
        if theirs is None or theirs.digest == mine.digest:
            self._upload(folder, mine, everything=theirs is None)
            if record:
                self.objects.put_new(self._record_name(record.kind, record.key), _bytes(record))
            if self.objects.put_new(f"{uri}/{FILE_NAME}", (folder / FILE_NAME).read_bytes()):
                if record:  # one of an attempt that did not get so far may stand there
                    self.objects.put(self._record_name(record.kind, record.key), _bytes(record))
                return mine
            theirs = self.manifest_of(uri)
        if theirs.digest != mine.digest:
            with self._one_of_this_machine(uri):
                self._download(uri, theirs.digest)
        return theirs

    def check(self) -> None:
        """Whether the bucket takes, gives and keeps: its conditional put must not replace what is there.

        Raises:
            CannotWriteError: It does not. InternalError: It does not answer.
        """
        name = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            first, second = self.objects.put_new(name, b"first"), self.objects.put_new(name, b"second")
            if not first or second or self.objects.get(name) != b"first":
                raise CannotWriteError(
                    f"{self.objects.label}: a conditional put (If-None-Match) replaced an object",
                    "use a store that supports it: two runs could overwrite each other's results",
                )
        finally:
            self.objects.delete([name])

    # ------------------------------------------------------------------------------------------------------------ between

    def _published(self, uri: str) -> Manifest | None:
        """The manifest in the bucket; None if there is none."""
        content = self.objects.find(f"{uri}/{FILE_NAME}")
        try:
            return None if content is None else Manifest.model_validate_json(content)
        except ValidationError:
            raise DataError(
                f"{self.objects.label}/{uri}/{FILE_NAME} is not a manifest", "remove it, and run the command again"
            ) from None

    def _lacking(self, found: Manifest) -> list[FileEntry]:
        """Files of the artifact that the bucket has not, or in another size."""
        start = f"{FILES}/{found.digest}/"
        sizes = self.objects.sizes(start)
        return [entry for entry in found.files if sizes.get(start + entry.path) != entry.size_bytes]

    def _whole(self, found: Manifest) -> bool:
        return not self._lacking(found)

    def _upload(self, folder: Path, mine: Manifest, everything: bool) -> None:
        wanted = mine.files if everything else self._lacking(mine)
        side_by_side(lambda entry: self.objects.upload(folder / entry.path, f"{FILES}/{mine.digest}/{entry.path}"), wanted)

    def _download(self, uri: str, digest: str | None) -> None:
        """Bring the artifact into the local folder; what stood there goes."""
        found, folder = self.manifest_of(uri), self._inside(uri)
        where = f"{self.objects.label}/{uri}"
        if digest is not None and found.digest != digest:
            raise RefusedError(
                f"{where} is {found.digest[:12]}, expected {digest[:12]}", "it was made again meanwhile; run the command again"
            )
        aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            aside.mkdir(parents=True)
            side_by_side(lambda entry: self._download_file(found, entry, aside), found.files)
            manifest.write_durably(aside / FILE_NAME, manifest.as_text(found).encode())
            manifest.publish(aside, folder)
        except OSError as error:
            raise manifest.failed_write(folder, error) or error from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _download_file(self, found: Manifest, entry: FileEntry, aside: Path) -> None:
        name, path = f"{FILES}/{found.digest}/{entry.path}", manifest.safe_join(aside, entry.path)
        for _ in range(DOWNLOADS):
            self.objects.download(name, path)
            if path.stat().st_size == entry.size_bytes and manifest.sha256_file(path) == entry.sha256:
                return
        raise RefusedError(
            f"{self.objects.label}/{name} is not what the manifest says, {DOWNLOADS} times downloaded",
            "it was changed after it was published; remove it, and run the step that makes it again",
        )

    def _set_aside_published(self, uri: str) -> str:
        """Rename a manifest in the bucket, so that no reader finds the artifact; its new place."""
        parent, _, name = uri.rpartition("/")
        aside = f"{parent}/bad-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}-{name[:16]}"
        self.objects.copy(f"{uri}/{FILE_NAME}", f"{aside}/{FILE_NAME}")
        self.objects.delete([f"{uri}/{FILE_NAME}"])
        return aside

    @contextlib.contextmanager
    def _one_of_this_machine(self, uri: str) -> Iterator[None]:
        """Inside, no other process of this machine brings the same artifact."""
        with held(self.root / "work" / "fetch" / f"{uri.replace('/', '--')}.lock"):
            yield

    @staticmethod
    def _record_name(kind: str, key: str) -> str:
        return f"steps/{kind}/{key}.json"


def _bytes(record: StepRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()
