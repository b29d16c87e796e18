"""Checkpoints in an S3 bucket: `model.training.places.Place` over boto3, for pods that lose their disk with their node.

    s3://BUCKET/PREFIX/attempt-000001/claim                        the attempt is taken
    s3://BUCKET/PREFIX/attempt-000001/step-000100/...              as in a folder
    s3://BUCKET/PREFIX/quarantine/attempt-000001-step-000150/...   set aside, with `reason.txt`

1. A claim is a conditional put: of two starts that want the same number one gets it, the other takes the next. A claim stays while
   the run's place does.
2. A checkpoint's files are put first and its manifest last, conditionally: without it there is no checkpoint. Files without one are
   what a killed writer left; later attempts remove them. So `entries` names only what has a manifest.
3. `fetch` downloads into a folder, where the same verification runs as for a folder; S3's own checksums are not relied upon.
4. Requests have timeouts and a few attempts with pauses in between; after that the store counts as lost (InternalError, exit 70), and
   what forbids writing as CannotWriteError (exit 73).

An old attempt that wakes up sees a newer claim before it puts its manifest. In the moment between it can still finish a checkpoint
in its own folder: a whole one, of the same run, which harms nobody.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import boto3
import botocore.config
import botocore.exceptions

from model import manifest
from model.errors import CannotWriteError, ConfigError, InternalError, MissingInputError
from model.training.places import ATTEMPT, QUARANTINE, STEP, Entry, Place, attempt_name, stale

SCHEME = "s3://"
CONNECT_SECONDS, READ_SECONDS, MOST_TRIES = 10, 60, 5
TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
GONE = frozenset({"NoSuchKey", "404"})
FORBIDDEN = frozenset({"AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "ExpiredToken", "SignatureDoesNotMatch", "403"})
PAGE = 1000
P = ParamSpec("P")
R = TypeVar("R")


def open_place(where: str, *parts: str) -> Place:
    """The place for the checkpoints of one step.

    Args:
        where: `s3://BUCKET/PREFIX`.
        parts: Names below the prefix that belong to this step alone.

    Raises:
        ConfigError: `where` is nothing of that form.
    """
    bucket, _, prefix = where.removeprefix(SCHEME).partition("/")
    if not where.startswith(SCHEME) or not bucket:
        raise ConfigError(f"BIOVLM_CHECKPOINTS={where!r} is no place for checkpoints", "write it as s3://BUCKET/PREFIX")
    return Bucket(bucket, "/".join(filter(None, (prefix.strip("/"), *parts))))


def _answered(ask: Callable[P, R]) -> Callable[P, R]:
    """`ask`, with the store's ways of failing as letters."""

    @functools.wraps(ask)
    def asking(*args: P.args, **more: P.kwargs) -> R:
        try:
            return ask(*args, **more)
        except botocore.exceptions.ClientError as error:
            code = _code(error)
            if code in GONE:
                raise MissingInputError(f"an object of a checkpoint is gone: {code}", "it was removed meanwhile") from None
            if code in FORBIDDEN:
                raise CannotWriteError(
                    f"the bucket for checkpoints refuses: {code}", "check BIOVLM_CHECKPOINTS and the AWS_* credentials"
                ) from None
            raise InternalError(f"the bucket for checkpoints fails: {code}", "the same command goes on when it is back") from None
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise InternalError(
                f"the bucket for checkpoints does not answer: {type(error).__name__}",
                "the same command goes on when it is back; AWS_ENDPOINT_URL_S3 is its address",
            ) from None

    return asking


class Bucket:
    """A place that is a prefix of a bucket.

    Args:
        bucket: Its name.
        prefix: Of this run alone, without slashes at its ends.
        client: boto3's S3 client; by default as the AWS_* variables say.
    """

    def __init__(self, bucket: str, prefix: str, client: Any = None) -> None:
        self._bucket, self._prefix = bucket, prefix
        self.label = f"{SCHEME}{bucket}/{prefix}"
        self._client = client or _client()

    @_answered
    def claim(self) -> int:
        attempt = max(self._attempts(), default=0) + 1
        while not self._put_new(f"{attempt_name(attempt)}/claim", b""):
            attempt += 1
        self._sweep(attempt)
        return attempt

    @_answered
    def entries(self) -> list[Entry]:
        return sorted((entry for name in self._names("attempt-") if (entry := _committed(name))), reverse=True)

    @_answered
    def set_aside_before(self) -> list[str]:
        notes = [name for name in self._names(f"{QUARANTINE}/") if name.endswith("/reason.txt")]
        return [f"{name.split('/')[1]}: {self._get(name).decode(errors='replace').strip()}" for name in notes]

    @contextlib.contextmanager
    def stage(self, entry: Entry) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{entry.flat_name}-") as folder:
            yield Path(folder)

    @_answered
    def commit(self, staged: Path, entry: Entry) -> None:
        for file in manifest.read(staged).files:
            self._client.upload_file(str(staged / file.path), self._bucket, self._key(f"{entry.name}/{file.path}"))
        self._check(entry.attempt)
        if not self._put_new(f"{entry.name}/{manifest.FILE_NAME}", (staged / manifest.FILE_NAME).read_bytes()):
            raise stale(self.label, entry.attempt, max(self._attempts(), default=0))

    @contextlib.contextmanager
    def fetch(self, entry: Entry) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{entry.flat_name}-") as folder:
            self._download(entry, Path(folder))
            yield Path(folder)

    @_answered
    def set_aside(self, entry: Entry, reason: str) -> None:
        aside = f"{QUARANTINE}/{entry.flat_name}"
        self._client.put_object(Bucket=self._bucket, Key=self._key(f"{aside}/reason.txt"), Body=reason.encode())
        names = self._names(f"{entry.name}/")
        for name in names:
            source = {"Bucket": self._bucket, "Key": self._key(name)}
            self._client.copy(source, self._bucket, self._key(f"{aside}/{name.removeprefix(entry.name + '/')}"))
        self._delete(names)

    @_answered
    def remove(self, entry: Entry, attempt: int) -> None:
        self._check(attempt)
        self._delete(self._names(f"{entry.name}/"))

    @_answered
    def clear(self) -> None:
        self._delete(self._names(""))

    def _check(self, attempt: int) -> None:
        newest = max(self._attempts(), default=0)
        if newest != attempt:
            raise stale(self.label, attempt, newest)

    def _attempts(self) -> list[int]:
        found = (name.split("/") for name in self._names("attempt-") if name.endswith("/claim"))
        return [int(match.group(1)) for parts in found if (match := ATTEMPT.fullmatch(parts[0]))]

    def _sweep(self, attempt: int) -> None:
        """Remove what killed writers of older attempts left without a manifest.

        Claims stay: a number that is free again would be claimed again. Nothing of a newer attempt is touched, for this one may
        have been asleep since its own claim.
        """
        names = self._names("attempt-")
        whole = {entry.name for entry in (_committed(name) for name in names) if entry}
        self._delete([name for name in names if 0 < _writer(name) < attempt and name.rpartition("/")[0] not in whole])

    @_answered
    def _download(self, entry: Entry, folder: Path) -> None:
        for name in self._names(f"{entry.name}/"):
            path = manifest.safe_join(folder, name.removeprefix(f"{entry.name}/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as stream:
                body = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
                shutil.copyfileobj(body, stream)

    def _names(self, start: str) -> list[str]:
        """Names of objects below the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(start))
        cut = len(self._key(""))
        return [found["Key"][cut:] for page in pages for found in page.get("Contents", ())]

    def _put_new(self, name: str, content: bytes) -> bool:
        """Make an object, durably; False if there is one of this name."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content, IfNoneMatch="*")
        except botocore.exceptions.ClientError as error:
            if _code(error) in TAKEN:
                return False
            raise
        return True

    def _get(self, name: str) -> bytes:
        content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"].read()
        return content

    def _delete(self, names: list[str]) -> None:
        """Manifests first: what is half removed is no checkpoint."""
        ordered = sorted(names, key=lambda name: (not name.endswith(f"/{manifest.FILE_NAME}"), name))
        for start in range(0, len(ordered), PAGE):
            keys = [{"Key": self._key(name)} for name in ordered[start : start + PAGE]]
            answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
            if answer.get("Errors"):
                raise CannotWriteError(
                    f"{len(answer['Errors'])} objects cannot be removed from {self.label}", "remove them by hand"
                )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"


def _client() -> Any:
    config = botocore.config.Config(
        connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"max_attempts": MOST_TRIES, "mode": "standard"}
    )
    return boto3.client("s3", config=config)


def _committed(name: str) -> Entry | None:
    """The checkpoint whose manifest this object is."""
    parts = name.split("/")
    if len(parts) != 3 or parts[2] != manifest.FILE_NAME:
        return None
    attempt, step = ATTEMPT.fullmatch(parts[0]), STEP.fullmatch(parts[1])
    return Entry(int(step.group(1)), int(attempt.group(1))) if attempt and step else None


def _writer(name: str) -> int:
    """The attempt that wrote this file of a checkpoint; 0 for anything else, as a claim."""
    match = ATTEMPT.fullmatch(name.split("/")[0])
    return int(match.group(1)) if match and name.count("/") > 1 else 0


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
