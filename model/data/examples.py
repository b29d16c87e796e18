"""Mixtures of data sets to tokenised examples.

1. `examples(mixtures, ...)` takes the records that each mixture names, one by one, and renders them once with the prompter.
2. An example longer than the context is never cut: half an answer teaches a wrong end, half an image nothing. By the recipe's
   `too_long` it is set aside and counted, a dialogue is divided between its turns, or the run is refused.
3. Token ids, targets and names go to columns on disk (columns), so that a run holds no list of them. `Examples` reads one when asked.
4. Each example carries its mixture's weight, and the numbers from which a plan is made without looking at it again (`metadata`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from model.batch import IGNORE
from model.config import Mixture, TooLong
from model.data.columns import Texts, TextWriter, Writer
from model.data.dataset import DataSet
from model.data.packing import Ints, Metadata
from model.data.records import Record, Turn
from model.data.templates import Prompter, Rendered
from model.errors import DataError, MissingInputError


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation, tokenised. T tokens."""

    record_id: str
    input_ids: np.ndarray
    """(T,) int32; every image stands as placeholders in a row."""
    labels: np.ndarray
    """(T,) int32; the token itself where it is a target, else IGNORE."""
    images: tuple[Path, ...]
    """Image files in order of appearance."""
    trunk: int = 0
    """Length up to and with the last image placeholder; 0 without images."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss; the first has no predecessor and never does."""
        return int((self.labels[1:] != IGNORE).sum())


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """All examples of a stage, in the order of the mixtures and of their records."""

    names: Texts
    """Record ids."""
    weights: np.ndarray
    """How often an epoch shows each."""
    num_targets: Ints
    """Tokens of each that count in the loss."""
    metadata: Metadata
    set_aside: dict[str, int]
    """Name of a data set and split (`phantom/train`) -> number of records that are longer than the context."""
    _ids: Ints
    _ends: Ints
    _targets: np.ndarray
    _images: Texts
    _image_ends: Ints

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start, end = (int(self._ends[number - 1]) if number else 0), int(self._ends[number])
        ids = np.array(self._ids[start:end])
        labels = np.where(self._targets[start:end], ids, np.int32(IGNORE))
        return Example(self.names[number], ids, labels, self.images(number), int(self.metadata.trunk[number]))

    def images(self, index: int) -> tuple[Path, ...]:
        """Image files of an example, in order of appearance."""
        first, last = (int(self._image_ends[index - 1]) if index else 0), int(self._image_ends[index])
        return tuple(Path(self._images[place]) for place in range(first, last))


def examples(
    mixtures: Sequence[Mixture],
    sets: Mapping[str, DataSet],
    prompter: Prompter,
    context_tokens: int,
    too_long: TooLong = TooLong.SET_ASIDE,
) -> Examples:
    """Tokenise the records of every mixture.

    Args:
        mixtures: What to take; at least one.
        sets: Opened data sets by the names that the mixtures use.
        prompter: Tokenizer and template.
        context_tokens: Longest sequence in tokens, image tokens included.
        too_long: What happens to a longer one.

    Raises:
        MissingInputError: A mixture names a data set that is not in `sets`, or a split that the set lacks.
        DataError: A mixture has no record of its kinds, or all of them are longer than the context; or one is, and `too_long` is
            REFUSE; or a record holds a reserved token of this tokenizer.
        CannotWriteError: The disk for temporary files is full.
    """
    columns = _Columns(prompter.image_token_id)
    set_aside: Counter[str] = Counter()
    for mixture in mixtures:
        if mixture.set not in sets:
            raise MissingInputError(f"no data set {mixture.set!r} among {sorted(sets)}", "name it under data.sets of the recipe")
        dataset = sets[mixture.set]
        name = f"{mixture.set}/{mixture.split}"
        before, lengths = len(columns), _Lengths()
        set_aside[name] += 0
        for record in dataset.stream(mixture.split, mixture.kinds):
            parts = _parts(record, prompter, context_tokens, too_long)
            images = [dataset.path(image) for image in record.images]
            for part in parts:
                lengths.see(len(part.input_ids), record.id)
                if len(part.input_ids) <= context_tokens:
                    columns.append(record.id, part, images, mixture.weight)
                else:
                    set_aside[name] += 1
        if too_long is TooLong.REFUSE and set_aside[name]:
            raise _refused(name, set_aside[name], lengths, context_tokens)
        if len(columns) == before:
            raise _none(name, mixture, lengths, context_tokens)
    return columns.close(dict(set_aside))


class _Columns:
    """Examples on their way to disk."""

    def __init__(self, image_token_id: int) -> None:
        self._image_token_id = image_token_id
        self._names, self._images = TextWriter(), TextWriter()
        self._ids, self._targets, self._weights = Writer(np.int32), Writer(np.bool_), Writer(np.float64)
        self._ends, self._image_ends, self._trunk, self._group = (Writer(np.int64) for _ in range(4))
        self._tokens, self._num_images, self._num_targets = (Writer(np.int64) for _ in range(3))

    def __len__(self) -> int:
        return len(self._names)

    def append(self, name: str, rendered: Rendered, images: Sequence[Path], weight: float) -> None:
        ids = np.asarray(rendered.input_ids, np.int32)
        targets = np.asarray(rendered.labels, np.int32) != IGNORE
        _check_targets(name, ids[targets], self._image_token_id)
        trunk = trunk_of(ids, self._image_token_id)
        self._names.append(name)
        self._ids.append(ids)
        self._targets.append(targets)
        self._ends.append([len(self._ids)])
        for image in images:
            self._images.append(str(image))
        self._image_ends.append([len(self._images)])
        self._weights.append(np.array([weight]))
        for writer, value in (
            (self._tokens, len(ids)),
            (self._num_images, len(images)),
            (self._num_targets, int(targets[1:].sum())),
            (self._trunk, trunk),
            (self._group, _group(images, ids[:trunk], len(self))),
        ):
            writer.append([value])

    def close(self, set_aside: dict[str, int]) -> Examples:
        metadata = Metadata(*(writer.close() for writer in (self._tokens, self._num_images, self._trunk, self._group)))
        return Examples(
            names=self._names.close(),
            weights=self._weights.close(),
            num_targets=self._num_targets.close(),
            metadata=metadata,
            set_aside=set_aside,
            _ids=self._ids.close(),
            _ends=self._ends.close(),
            _targets=self._targets.close(),
            _images=self._images.close(),
            _image_ends=self._image_ends.close(),
        )


@dataclass
class _Lengths:
    """Shortest and longest of what was seen, for messages."""

    count: int = 0
    shortest: int = 0
    longest: int = 0
    longest_id: str = ""

    def see(self, length: int, record_id: str) -> None:
        self.shortest = length if not self.count else min(self.shortest, length)
        if length > self.longest:
            self.longest, self.longest_id = length, record_id
        self.count += 1


def _check_targets(name: str, targets: np.ndarray, image_token_id: int) -> None:
    """All of the loss lies on text: a placeholder among the targets would drown it."""
    placeholders = int((targets == image_token_id).sum())
    if placeholders or not len(targets):
        what = f"{placeholders} image placeholders among its targets" if placeholders else "no target"
        raise DataError(f"record {name!r} has {what}", "import the data set again")


def trunk_of(ids: np.ndarray, image_token_id: int) -> int:
    """Length up to and with the last image placeholder; 0 if there is none."""
    places = np.flatnonzero(ids == image_token_id)
    return int(places[-1]) + 1 if len(places) else 0


def _group(images: Sequence[Path], trunk: np.ndarray, number: int) -> int:
    """Eight bytes that are equal for examples with the same images and the same trunk; without images, of this example alone."""
    content = "\0".join(map(str, images)).encode() + trunk.tobytes() if images else b"%d" % number
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)


def _parts(record: Record, prompter: Prompter, context_tokens: int, too_long: TooLong) -> list[Rendered]:
    """The record as a whole, or a dialogue that is too long in parts of as many turns as fit, each with the images in front."""
    whole = _rendered(record, record.turns, prompter)
    if too_long is not TooLong.SPLIT or len(whole.input_ids) <= context_tokens or len(record.turns) <= 2:
        return [whole]
    found: list[Rendered] = []
    start = 0
    while start < len(record.turns):
        part, end = _rendered(record, record.turns[start : start + 2], prompter), start + 2
        while end < len(record.turns):
            longer = _rendered(record, record.turns[start : end + 2], prompter)
            if len(longer.input_ids) > context_tokens:
                break
            part, end = longer, end + 2
        found.append(part)
        start = end
    return found


def _rendered(record: Record, turns: Sequence[Turn], prompter: Prompter) -> Rendered:
    rendered = prompter.render(turns, len(record.images), record.id)
    # Counted in each record: in a sum over a batch, one image too many here would hide one too few there.
    found, expected = rendered.input_ids.count(prompter.image_token_id), len(record.images) * prompter.image_tokens
    if found != expected:
        raise DataError(
            f"record {record.id!r} has {len(record.images)} images, {expected} placeholders expected, {found} found",
            "its text yields image placeholders; import the data set again",
        )
    return rendered


def _refused(name: str, count: int, lengths: _Lengths, context_tokens: int) -> DataError:
    return DataError(
        f"{name}: {count:,} of {lengths.count:,} records are longer than the context of {context_tokens} tokens; "
        f"the longest, {lengths.longest_id!r}, has {lengths.longest}",
        "raise model.context_tokens, or set too_long to `split` (dialogues) or `set_aside`",
    )


def _none(name: str, mixture: Mixture, lengths: _Lengths, context_tokens: int) -> DataError:
    if not lengths.count:
        kinds = ", ".join(mixture.kinds) or "any kind"
        return DataError(f"{name} has no record of the kinds asked for ({kinds})", "see `biovlm data check` for what it holds")
    return DataError(
        f"{name}: all {lengths.count:,} records are longer than the context of {context_tokens} tokens; "
        f"the shortest has {lengths.shortest}",
        "raise model.context_tokens, or take a vision tower with fewer image tokens",
    )
