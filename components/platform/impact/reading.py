"""The records and images of a data set, as an index keeps them.

1. `read(index, set_id, folder)` takes in every split of a set that lies in `folder`: strictly read, as training reads it, so that a
   line which training sets aside is not told as learned.
2. Each image file is looked at once, whatever number of sets hold it: digest of its pixels, which is equal for the same picture in
   another file, and its perceptual hash, which is near for one that was scaled or compressed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from components.platform.impact.index import NO_HASH, Index
from model import manifest
from model.data.dataset import DataSet, open_dataset, split_file
from model.errors import BiovlmError, DataError

EVERYTHING = 1.0
"""Share of bad lines that is allowed: the training that read the set had its own limit."""
IMAGES_AT_ONCE = 256
RECORDS = "records/"


def read(index: Index, set_id: int, name: str, folder: Path, tell: Callable[[int, int], object]) -> None:
    """Take in the data set in `folder`, whose files were verified.

    Args:
        index: Open for writing.
        set_id: Number of the set.
        name: Its name in recipes.
        folder: Where it lies.
        tell: Hears how many images were looked at, and of how many.

    Raises:
        DataError, MissingInputError: It is no data set, or an id stands twice; nothing can have been trained on it.
    """
    dataset = open_dataset(folder, verify=False, max_quarantined=EVERYTHING)
    files = {entry.path: entry.sha256 for entry in dataset.manifest.files}
    images = {path: index.hashed(sha256) for path, sha256 in files.items()}
    pictures = manifest.digest_of({path: sha256 for path, sha256 in files.items() if not path.startswith(RECORDS)})
    for split in dataset.splits:
        content = manifest.digest_of([files[split_file(split)], pictures])
        index.add_split(set_id, name, split, content, _rows(index, dataset, split, images))
    _look(index, dataset, tell)


def _rows(index: Index, dataset: DataSet, split: str, images: Mapping[str, int]) -> Iterator[tuple[int, int, int, int]]:
    kinds: dict[str, int] = {}
    try:
        for record in dataset.stream(split):
            if record.kind not in kinds:
                kinds[record.kind] = index.kind(str(record.kind))
            own = (index.hashed(record.id), index.hashed(record.group))
            for image in record.images or ("",):
                yield (*own, images[image] if image else NO_HASH, kinds[record.kind])
    except DataError:
        # An empty split, or one without a good line, teaches nothing. An id that stands twice is refused before anything learns.
        return


def _look(index: Index, dataset: DataSet, tell: Callable[[int, int], object]) -> None:
    """Decode the images that no set had before. Those that cannot be decoded are kept without looks: nothing learned from them."""
    known = {row[0] for row in index.database.execute("SELECT image FROM pictures")}
    entries = ((index.hashed(entry.sha256), entry.path) for entry in dataset.manifest.files if not entry.path.startswith(RECORDS))
    new = {number: path for number, path in entries if number not in known}
    todo, done = iter(new.items()), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while part := list(islice(todo, IMAGES_AT_ONCE)):
            found = pool.map(lambda item: look(dataset.path(item[1]), dataset.max_image_pixels), part)
            rows = [
                (number, index.hashed(looks[0]) if looks else None, _signed(looks[1]) if looks else None)
                for (number, _), looks in zip(part, found, strict=True)
            ]
            index.database.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?, ?)", rows)
            done += len(part)
            tell(done, len(new))


def look(path: Path, max_pixels: int) -> tuple[str, int] | None:
    """Digest of the pixels and perceptual hash (64 bits) of an image; None if it cannot be decoded."""
    from model.data.audit import perceptual_hash  # imagehash, for those who look at images
    from model.data.images import decode, pixel_digest

    try:
        image = decode(path, max_pixels)
    except BiovlmError:
        return None
    return pixel_digest(image), perceptual_hash(image)


def _signed(number: int) -> int:
    """64 bits as SQLite keeps them."""
    return number - 2**64 if number >= 2**63 else number
