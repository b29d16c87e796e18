"""A question put to an index that is up to date, with the pictures that look alike where an image is asked for.

1. `ask(settings, items, tell)` brings the index up to date (`sync`) and answers.
2. An image of no set is looked for by its pixels: the same picture in another file counts as the same image.
3. `alike` are versions that learned from pictures that only look like it: no proof, and told apart. Anatomy repeats itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from components.platform.impact import sync
from components.platform.impact.answer import Answer, alike, find, same_pixels
from components.platform.impact.index import DamagedIndexError, Index
from components.platform.impact.question import Item, Subject
from components.platform.impact.reading import look
from components.platform.settings import Settings
from model.data.audit import MAX_DISTANCE
from model.data.images import MAX_PIXELS


@dataclass(frozen=True)
class Told:
    """An answer, and what only looks like what was asked for."""

    answer: Answer
    alike: Answer | None = None
    """Of images that look like those asked for; None where no image was asked for, or nothing looks like it."""
    alike_images: int = 0


def ask(settings: Settings, items: Sequence[Item], tell: sync.Tell) -> Told:
    """The answer for all versions that the registry has now.

    Raises:
        MissingInputError: The registry does not answer. CannotWriteError: The index cannot be written.
    """
    versions = sync.registered(settings)
    try:
        with Index.reading(sync.folder(settings)) as index:
            if not sync.is_stale(index, versions):
                return told(index, items)  # the file is hashed once for a question
    except DamagedIndexError as error:
        tell(error.message)
    sync.update(settings, versions, tell)
    with Index.reading(sync.folder(settings)) as index:
        return told(index, items)


def told(index: Index, items: Sequence[Item]) -> Told:
    """The answer of an open index."""
    answer = find(index, items)
    exact: set[int] = set()
    near: set[int] = set()
    same: list[int] = []
    missing = set(answer.nowhere)
    for item in items:
        if item.subject is Subject.IMAGE:
            exact.add(index.hashed(item.value))
            pixels, looks = _looks(index, item)
            found = same_pixels(index, pixels) if pixels else []
            if item in missing and found:
                same += found
                missing.discard(item)
            exact.update(found)
            near.update(alike(index, looks, MAX_DISTANCE) if looks is not None else ())
    if same:
        # The items that stand nowhere by their bytes are asked for by their pixels; those of both ways are one answer.
        answer = find(index, [item for item in items if item not in set(answer.nowhere)], same)
    answer = replace(answer, nowhere=tuple(item for item in items if item in missing))
    near -= exact
    return Told(answer, find(index, (), sorted(near)) if near else None, len(near))


def _looks(index: Index, item: Item) -> tuple[str, int | None]:
    """Digest of the pixels and perceptual hash of an image: from its file, else as the index knows it."""
    if item.file is not None:
        found = look(Path(item.file), MAX_PIXELS)
        return found or ("", None)
    row = index.database.execute("SELECT look FROM pictures WHERE image = ?", (index.hashed(item.value),)).fetchone()
    return "", (int(row[0]) % 2**64 if row and row[0] is not None else None)
