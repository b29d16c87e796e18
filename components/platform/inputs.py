"""Open what a data artifact names: data sets and base models, verified again before they are used.

The data artifact holds no images: its facts name folders in the store by digest. DVC does not re-hash what it hands over, and a
store can be touched by others, so each step that reads them hashes them first.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from components.platform.reference import Reference
from components.platform.store import Source, Store
from model import manifest
from model.errors import MissingInputError

LEARNED = "learned_images.txt"
"""File of a data artifact: SHA-256 of every image file that some stage of its run learns from, one a line."""


def verified(data: Reference, store: Store, names: Collection[str] | None = None) -> dict[str, dict[str, Path]]:
    """`{"sets": {name: folder}, "bases": {name: folder}}` of a data artifact.

    Args:
        data: The data artifact.
        store: Where they are; the artifact's paths are relative to it.
        names: Sets and base models that are needed; all of them, unless given.

    Raises:
        RefusedError: A folder's content is not what the data artifact says.
        MissingInputError: A folder is gone, or a name is not in the artifact.
    """
    found = sources(data, names)
    return {group: {name: store.fetch(entry.uri, entry.digest) for name, entry in part.items()} for group, part in found.items()}


def sources(data: Reference, names: Collection[str] | None = None) -> dict[str, dict[str, Source]]:
    """As `verified`, but only where they are: `{"sets": {name: source}, "bases": {name: source}}`. MissingInputError as there."""
    found: dict[str, dict[str, Source]] = {"sets": {}, "bases": {}}
    for name, group, facts in _entries(data):
        if names is None or name in names:
            found[group][name] = Source(kind=group.removesuffix("s"), uri=facts["uri"], digest=facts["digest"])
    _refuse_missing(names or (), found["sets"].keys() | found["bases"].keys())
    return found


def identity(data: Reference, names: Collection[str]) -> dict[str, str]:
    """The part of a data artifact that a step which reads just these sets and base models depends on: their digests, and the
    records that the audit set aside."""
    found = {name: str(facts["digest"]) for name, _, facts in _entries(data) if name in names}
    _refuse_missing(names, found.keys())
    excluded = audit(data, names)["exclude"]
    return found | {f"excluded {name}": manifest.digest_of(ids) for name, ids in excluded.items()}


def audit(data: Reference, names: Collection[str]) -> dict[str, Any]:
    """What the data step found and allowed, for those who open these sets after it: ids to `exclude` for each set that has some,
    `max_quarantined` and `max_image_pixels`. The limits belong to no key: what is read under them is the same."""
    excluded = {name: ids for name, ids in data.facts.get("excluded", {}).items() if ids and name in names}
    return {"exclude": excluded, **data.facts.get("limits", {})}


def learned_images(folder: Path) -> frozenset[str] | None:
    """SHA-256 of all image files that whoever was trained with this data artifact may have seen; None if it is older than the list."""
    listed = folder / LEARNED
    return frozenset(listed.read_text(encoding="utf-8").split()) if listed.is_file() else None


def _entries(data: Reference) -> list[tuple[str, str, dict[str, str]]]:
    return [(name, group, facts) for group in ("sets", "bases") for name, facts in data.facts.get(group, {}).items()]


def _refuse_missing(names: Collection[str], found: Collection[str]) -> None:
    missing = sorted(set(names) - set(found))
    if missing:
        raise MissingInputError(f"the data artifact has no {', '.join(missing)}", "name it under data.sets of the recipe")
