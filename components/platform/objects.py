"""S3 for those who keep something in a bucket: the few requests they need, and the store's ways of failing as letters.

1. `place_of(text)` reads `s3://BUCKET/PREFIX`; `Objects` is that prefix, with boto3's client as the AWS_* variables say.
2. `put_new` is a conditional put: of two that make an object of one name at once, one gets it. Everything that must not be made
   twice rests on it.
3. Requests have timeouts and a few attempts with pauses in between; after that the store counts as lost (InternalError, exit 70).
   What forbids reading or writing is CannotWriteError (exit 73), what is not there MissingInputError (exit 66).
"""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import boto3
import botocore.config
import botocore.exceptions

from model import manifest
from model.errors import CannotWriteError, ConfigError, InternalError, MissingInputError

SCHEME = "s3://"
CONNECT_SECONDS, READ_SECONDS, MOST_TRIES = 10, 60, 5
TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
GONE = frozenset({"NoSuchKey", "404"})
FORBIDDEN = frozenset({"AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "ExpiredToken", "SignatureDoesNotMatch", "403"})
PAGE = 1000
PARTS_FROM_BYTES = 8 * 2**20
AT_ONCE = 16
"""Files of an artifact on their way at the same time: a data set has many small ones, and each costs a round trip."""
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def place_of(where: str, variable: str, purpose: str) -> tuple[str, str]:
    """Bucket and prefix (without slashes at its ends) of `s3://BUCKET/PREFIX`.

    Args:
        where: The text.
        variable: Name of the variable that it comes from.
        purpose: What is kept there, for the letter.

    Raises:
        ConfigError: `where` is nothing of that form.
    """
    bucket, _, prefix = where.removeprefix(SCHEME).partition("/")
    if not where.startswith(SCHEME) or not bucket:
        raise ConfigError(f"{variable}={where!r} is no place for {purpose}", "write it as s3://BUCKET/PREFIX")
    return bucket, prefix.strip("/")


def answered(ask: Callable[P, R]) -> Callable[P, R]:
    """`ask`, with the store's ways of failing as letters."""

    @functools.wraps(ask)
    def asking(*args: P.args, **more: P.kwargs) -> R:
        try:
            return ask(*args, **more)
        except botocore.exceptions.ClientError as error:
            code = _code(error)
            if code in GONE:
                raise MissingInputError(f"an object is gone from the bucket: {code}", "it was removed meanwhile") from None
            if code in FORBIDDEN:
                raise CannotWriteError(
                    f"the bucket refuses: {code}", "check BIOVLM_STORE, BIOVLM_CHECKPOINTS and the AWS_* credentials"
                ) from None
            raise InternalError(f"the bucket fails: {code}", "the same command goes on when it is back") from None
        except (botocore.exceptions.BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise InternalError(
                f"the bucket does not answer: {type(error).__name__}",
                "the same command goes on when it is back; AWS_ENDPOINT_URL_S3 is its address",
            ) from None

    return asking


class Objects:
    """A prefix of a bucket. Every method but `at` raises the letters above.

    Args:
        bucket: Its name.
        prefix: Without slashes at its ends.
        client: boto3's S3 client; by default as the AWS_* variables say.
    """

    def __init__(self, bucket: str, prefix: str, client: Any = None) -> None:
        self._bucket, self._prefix = bucket, prefix
        self.label = f"{SCHEME}{bucket}/{prefix}" if prefix else f"{SCHEME}{bucket}"
        self._client = client or _client()
        self._count = threading.Lock()
        self.received = self.sent = 0
        """Bytes of objects that came and went through this object, for `components.platform.cost`."""

    def at(self, *parts: str) -> Objects:
        """What lies below `parts`, with the same client."""
        return Objects(self._bucket, "/".join(filter(None, (self._prefix, *parts))), self._client)

    @answered
    def sizes(self, start: str) -> dict[str, int]:
        """Names of objects below the prefix that begin with `start` -> bytes."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(start))
        cut = len(self._key(""))
        return {found["Key"][cut:]: int(found["Size"]) for page in pages for found in page.get("Contents", ())}

    def names(self, start: str) -> list[str]:
        """Names of objects below the prefix that begin with `start`."""
        return list(self.sizes(start))

    @answered
    def put_new(self, name: str, content: bytes) -> bool:
        """Make an object, durably; False if there is one of this name."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content, IfNoneMatch="*")
        except botocore.exceptions.ClientError as error:
            if _code(error) in TAKEN:
                return False
            raise
        self._moved(sent=len(content))
        return True

    @answered
    def put(self, name: str, content: bytes) -> None:
        """Make an object, or replace it."""
        self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content)
        self._moved(sent=len(content))

    @answered
    def get(self, name: str) -> bytes:
        """The bytes of an object."""
        content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"].read()
        self._moved(received=len(content))
        return content

    def find(self, name: str) -> bytes | None:
        """The bytes of an object; None if there is none of this name."""
        try:
            return self.get(name)
        except MissingInputError:
            return None

    @answered
    def upload(self, path: Path, name: str) -> None:
        """Make an object of a file, in parts if it is large; for those, boto3 starts threads, which cost a small one most of its time."""
        size = path.stat().st_size
        if size < PARTS_FROM_BYTES:
            with path.open("rb") as stream:
                self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=stream)
        else:
            self._client.upload_file(str(path), self._bucket, self._key(name))
        self._moved(sent=size)

    @answered
    def download(self, name: str, path: Path) -> None:
        """Write an object into a file, whose folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            shutil.copyfileobj(self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"], stream, 2**20)
            self._moved(received=stream.tell())

    @answered
    def copy(self, name: str, to: str) -> None:
        """Copy an object inside the bucket."""
        self._client.copy({"Bucket": self._bucket, "Key": self._key(name)}, self._bucket, self._key(to))

    @answered
    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, manifests first: what is half removed is no artifact."""
        ordered = sorted(names, key=lambda name: (not f"/{name}".endswith(f"/{manifest.FILE_NAME}"), name))
        for start in range(0, len(ordered), PAGE):
            keys = [{"Key": self._key(name)} for name in ordered[start : start + PAGE]]
            answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
            if answer.get("Errors"):
                raise CannotWriteError(
                    f"{len(answer['Errors'])} objects cannot be removed from {self.label}", "remove them by hand"
                )

    def _moved(self, received: int = 0, sent: int = 0) -> None:
        with self._count:  # files are moved side by side
            self.received += received
            self.sent += sent

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


def side_by_side(act: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """`act` on every thing, `AT_ONCE` at a time; the first error ends it."""
    with ThreadPoolExecutor(AT_ONCE, "objects") as pool:
        waiting = [pool.submit(act, thing) for thing in things]
        try:
            return [one.result() for one in waiting]
        finally:
            for one in waiting:
                one.cancel()


def _client() -> Any:
    config = botocore.config.Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"max_attempts": MOST_TRIES, "mode": "standard"},
        max_pool_connections=AT_ONCE,
    )
    return boto3.client("s3", config=config)


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
