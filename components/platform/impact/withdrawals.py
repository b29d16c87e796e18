"""What was withdrawn, and who must not be promoted for it.

1. `withdraw` marks everything that an answer names: each version by a tag in the registry; each checkpoint, export, base model and
   data set by a small artifact in the store, `withdrawn/DIGEST`, that all who share the store see. A mark names the list by its
   SHA-256, never what stands in it, and is never taken back by this program.
2. The list itself stays in the store as hashes (`listed`), so that what comes again with a later import is refused, too.
3. `refuse` asks for the marks of digests; the data step does, so that nothing is trained or evaluated on a withdrawn set again.
4. `withdrawn(settings, tags)` says why a version must not be promoted: its own tag, or the mark of anything it was made from. So a
   version that was trained while the list was on its way is refused as well.

Marking twice changes nothing; a process that died half-way is repaired by the same command.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from components.platform import champion
from components.platform.impact import listed
from components.platform.impact.answer import Answer
from components.platform.impact.question import Item
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from components.platform.tracking import Tracking
from model import manifest
from model.errors import MissingInputError, RefusedError

TAG = "biovlm.withdrawn"
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
        """What the tag says."""
        return f"list {self.list_digest[:SHOWN]} by {self.by}: {self.reason}"


@dataclass(frozen=True)
class Marked:
    """What a withdrawal marked."""

    versions: tuple[tuple[str, str], ...]
    artifacts: int
    sets: int


def withdraw(settings: Settings, items: Iterable[Item], answer: Answer, notice: Notice) -> Marked:
    """Mark all that learned from what was withdrawn, and keep the list for what will be imported.

    Raises:
        CannotWriteError, MissingInputError: As store and registry say; the same command goes on.
    """
    store = open_store(settings)
    listed.keep(store, items, notice.list_digest)
    for digest in (*answer.artifacts, *(found.digest for found in answer.sets)):
        _mark(store, digest, notice)
    versions = tuple((one.model, one.number) for one in answer.learned if not one.gone)
    if not versions:
        return Marked((), len(answer.artifacts), len(answer.sets))
    client = Tracking(settings).client
    for model, number in versions:
        before = str(client.get_model_version(model, number).tags.get(TAG, ""))
        if notice.text not in before.split("; "):
            client.set_model_version_tag(model, number, TAG, "; ".join(filter(None, (before, notice.text))))
    return Marked(versions, len(answer.artifacts), len(answer.sets))


def refuse(store: Store, named: Mapping[str, str]) -> None:
    """RefusedError if something is withdrawn.

    Args:
        store: Where the marks are.
        named: What a reader calls it -> digest.
    """
    for name, digest in named.items():
        reason = _marked(store, digest)
        if reason:
            raise RefusedError(
                f"{name} ({digest[:SHOWN]}) is withdrawn: {reason}",
                "import it again without what was withdrawn, or name an earlier revision that never held it",
            )


def withdrawn(settings: Settings, tags: Mapping[str, str]) -> tuple[str, ...]:
    """Why the version with these tags must not be promoted, sorted; empty if it may.

    Raises:
        MissingInputError: The store does not answer.
    """
    reasons = set(filter(None, tags.get(TAG, "").split("; ")))
    store = open_store(settings)
    for name, digest in _made_from(store, tags):
        reason = _marked(store, digest)
        if reason:
            reasons.add(f"{name} {digest[:SHOWN]}: {reason}")
    return tuple(sorted(reasons))


def _made_from(store: Store, tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(Kind or role, digest) of the checkpoint of a version, and of all that it and the checkpoints before it were made from."""
    uri = tags.get(champion.CHECKPOINT_PATH, "")
    if digest := tags.get(champion.CHECKPOINT_DIGEST, ""):
        yield "checkpoint", digest
    while uri:
        try:
            found = store.manifest_of(uri)
        except MissingInputError:
            return  # `lineage verify` tells; what is left of the chain was asked
        yield from found.parents.items()
        parts = PurePosixPath(uri).parts[-2:]
        record = store.record(*parts) if len(parts) == 2 else None
        uri = record.inputs["parent"].uri if record and "parent" in record.inputs else ""


def _mark(store: Store, digest: str, notice: Notice) -> None:
    uri = _uri(digest)
    if _marked(store, digest):
        return
    facts = {"digest": digest, "list": notice.list_digest, "by": notice.by, "reason": notice.reason, "time": time.time()}
    folder = store.root / uri
    with manifest.commit(folder, KIND, facts=facts) as aside:
        (aside / "notice.txt").write_text(f"{notice.text}\n", encoding="utf-8")
    store.publish(uri)


def _marked(store: Store, digest: str) -> str:
    """What the mark of a digest says; empty without one."""
    try:
        facts = store.manifest_of(_uri(digest)).facts
    except MissingInputError:
        return ""
    return f"list {str(facts.get('list', ''))[:SHOWN]} by {facts.get('by', '')}: {facts.get('reason', '')}"


def _uri(digest: str) -> str:
    return f"withdrawn/{digest}"
