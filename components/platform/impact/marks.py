"""Marks of what was withdrawn: small artifacts in the store, `withdrawn/DIGEST/WITHDRAWAL`, that all who share it see.

1. `mark(store, digest, notice)` marks a checkpoint, export, base model or data set. A mark names the withdrawal list by its SHA-256,
   never what stands in it. Marking twice changes nothing; each list leaves its own mark, and none is ever removed. It counts until its
   list is taken back (`rounds`).
2. `refuse(store, named)` asks for the marks of digests: the data step does.
3. `reasons(store, uri, digest)` asks for those of a checkpoint and of all that it was made from. So a version is refused that was
   trained while the list was on its way, or from a stage that learned before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from components.platform.impact import rounds
from components.platform.store import Store
from model import manifest
from model.errors import MissingInputError, RefusedError

KIND = "withdrawal"
SHOWN = 12
"""Hex digits of a digest that a reader sees."""


@dataclass(frozen=True)
class Notice:
    """One withdrawal."""

    list_digest: str
    """SHA-256 of the list."""
    by: str
    """Who ordered it."""
    reason: str
    """Why, in words that name no patient: they stand in the registry."""

    @property
    def text(self) -> str:
        """What readers see."""
        return f"list {self.list_digest[:SHOWN]} by {self.by}: {self.reason}"


def mark(store: Store, digest: str, notice: Notice) -> None:
    """Mark an artifact. CannotWriteError: the store does not take it."""
    name = rounds.present(store, notice.list_digest)
    if name in store.names(_folder(digest)):
        return
    uri = f"{_folder(digest)}/{name}"
    facts = {"digest": digest, "list": notice.list_digest, "by": notice.by, "reason": notice.reason, "time": time.time()}
    with manifest.commit(store.root / uri, KIND, facts=facts) as folder:
        (folder / "notice.txt").write_text(f"{notice.text}\n", encoding="utf-8")
    store.publish(uri)


def marked(store: Store, digest: str) -> str:
    """What the marks of a digest say that count; empty without one."""
    found = rounds.holding(store, store.names(_folder(digest)))
    facts = [store.manifest_of(f"{_folder(digest)}/{name}").facts for name in found]
    return "; ".join(Notice(str(one["list"]), str(one["by"]), str(one["reason"])).text for one in facts)


def refuse(store: Store, named: Mapping[str, str]) -> None:
    """RefusedError if something is withdrawn.

    Args:
        store: Where the marks are.
        named: What a reader calls it -> digest.
    """
    for name, digest in named.items():
        said = marked(store, digest)
        if said:
            raise RefusedError(
                f"{name} ({digest[:SHOWN]}) is withdrawn: {said}",
                "import it again without what was withdrawn, or name an earlier revision that never held it",
            )


def refuse_version(store: Store, receipt: str) -> None:
    """RefusedError if the version with this receipt, or anything it was made from, is withdrawn."""
    record = store.record("register", receipt)
    source = record.inputs.get("checkpoint") if record else None
    said = reasons(store, source.uri, source.digest) if source else ()
    if said:
        raise RefusedError(
            f"the version learned from what is withdrawn: {'; '.join(said)}",
            "train again without it; `biovlm lineage impact` says from which stage on",
        )


def reasons(store: Store, uri: str, digest: str) -> tuple[str, ...]:
    """What marks say of a checkpoint and of all that it was made from, sorted.

    Args:
        store: Where both are.
        uri: Place of the checkpoint.
        digest: Of the checkpoint.
    """
    found = {f"{name} {one[:SHOWN]}: {said}" for name, one in _made_from(store, uri, digest) if (said := marked(store, one))}
    return tuple(sorted(found))


def _made_from(store: Store, uri: str, digest: str) -> Iterator[tuple[str, str]]:
    """(Kind or role, digest) of a checkpoint, and of all that it and the checkpoints before it were made from."""
    if digest:
        yield "checkpoint", digest
    while uri:
        try:
            found = store.manifest_of(uri)
        except MissingInputError:
            return  # `lineage verify` tells; what is left of the chain was asked
        yield from found.parents.items()
        record = store.record_of(uri)
        uri = record.inputs["parent"].uri if record and "parent" in record.inputs else ""


def _folder(digest: str) -> str:
    return f"withdrawn/{digest}"
