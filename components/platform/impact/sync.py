"""The index, brought up to what registry and store say now.

1. `registered(settings)` lists all versions with their tags; `is_stale` compares them with the index, which costs milliseconds.
2. `update` takes in what is new: the manifests behind each new version, then the records of each data set not read yet. It commits
   and seals after the versions and after each set, so a process that dies costs no more than one set.
3. Two that update at once wait for each other, and the second finds nothing to do. A damaged index is made anew by the same way.

Versions that were deleted in the registry stay: somebody may still have them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.platform import peek
from components.platform.champion import RECEIPT_KEY
from components.platform.impact import reading
from components.platform.impact.gather import NOT_BIOVLM, Gatherer
from components.platform.impact.index import Index
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from components.platform.tracking import Tracking
from components.platform.versions import history, models
from model.errors import BiovlmError

Registered = list[tuple[str, str, dict[str, str]]]
"""Name, number and tags of versions."""
Tell = Callable[[str], object]
FOLDER = "impact"


def folder(settings: Settings) -> Path:
    """Where the index of a home lies."""
    return settings.home / FOLDER


def registered(settings: Settings) -> Registered:
    """All versions of all models. MissingInputError: the registry does not answer."""
    if peek.is_missing(settings.tracking_uri):
        return []
    try:
        return peek.versions(settings.tracking_uri)
    except peek.Unknown:
        Tracking(settings)  # raises the letter of a store that does not answer
        return [(one.name, one.version, one.tags) for name in models(settings) for one in history(settings, name)]


def is_stale(index: Index, versions: Registered) -> bool:
    """Whether the registry names something that the index has not, or something that could not be read may be there by now."""
    execute = index.database.execute
    known = {
        (model, number, receipt)
        for model, number, receipt in execute("SELECT model, number, receipt FROM versions WHERE gone = 0")
    }
    if known != {(model, number, tags.get(RECEIPT_KEY, "")) for model, number, tags in versions}:
        return True
    for question in (
        f"SELECT 1 FROM versions WHERE flaw NOT IN ('', '{NOT_BIOVLM}')",  # noqa: S608 (a constant)
        "SELECT 1 FROM artifacts WHERE flaw != ''",
        "SELECT 1 FROM sets WHERE flaw != ''",
    ):
        if execute(question).fetchone():
            return True
    return False


def update(settings: Settings, versions: Registered, tell: Tell) -> None:
    """Take in what is new; errors of single artifacts are kept in the index as flaws."""
    store = open_store(settings)
    with Index.writing(folder(settings)) as index:
        execute = index.database.execute
        rows = execute("SELECT model, number, receipt FROM versions WHERE flaw IN ('', ?) AND gone = 0", (NOT_BIOVLM,))
        done = set(rows)
        execute("UPDATE versions SET gone = 1")
        gatherer = Gatherer(store, index)
        for number, (model, version, tags) in enumerate(versions, 1):
            if (model, version, tags.get(RECEIPT_KEY, "")) in done and not _flawed(index, model, version):
                execute("UPDATE versions SET gone = 0 WHERE model = ? AND number = ?", (model, version))
                continue
            gatherer.version(model, version, tags)
            if number % 1000 == 0:
                tell(f"lineage of {number:,} of {len(versions):,} versions read")
        index.seal()
        waiting = execute("SELECT id, digest, name, uri FROM sets WHERE flaw != '' ORDER BY id").fetchall()
        for number, digest, name, uri in waiting:
            flaw = _read(index, store, number, digest, name, uri, tell)
            execute("UPDATE sets SET flaw = ? WHERE id = ?", (flaw, number))
            index.seal()


def _flawed(index: Index, model: str, number: str) -> bool:
    """Whether the artifact of a version was not wholly known."""
    question = (
        "SELECT 1 FROM versions v JOIN artifacts a ON a.id = v.artifact WHERE v.model = ? AND v.number = ? AND a.flaw != ''"
    )
    return index.database.execute(question, (model, number)).fetchone() is not None


def _read(index: Index, store: Store, number: int, digest: str, name: str, uri: str, tell: Tell) -> str:
    """Take in the records of a data set; why that could not be done, empty if it was."""
    place = uri or next((store.uri(path) for path in store.root.glob(f"data/*-{digest[:16]}")), "")
    if not place:
        return f"{digest[:12]} is not in the store"
    try:
        lies = store.fetch(place, digest)
        tell(f"reading the records of {name or place} {digest[:12]}")
        reading.read(index, number, name, lies, lambda done, total: tell(f"{done:,} of {total:,} new images looked at"))
    except BiovlmError as error:
        return f"{digest[:12]} cannot be read (exit code {int(error.exit_code)})"
    return ""
