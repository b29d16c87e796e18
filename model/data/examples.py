"""Mixtures of data sets to tokenised examples.

1. `examples(mixtures, ...)` takes the records that each mixture names and renders them once with the prompter.
2. An example longer than the context is set aside and counted, never cut: half an answer teaches a wrong end.
3. Each example carries its mixture's weight; `model.data.sampling.plan` turns weights into how often an epoch shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from model.config import Mixture
from model.data.dataset import DataSet
from model.data.records import Record
from model.data.templates import Prompter
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
    weight: float = 1.0
    """How often an epoch shows it."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """All examples of a stage, in the order of the mixtures and of their records."""

    items: tuple[Example, ...]
    set_aside: dict[str, int]
    """Name of a data set and split (`phantom/train`) -> number of records that are longer than the context."""

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.items[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, for `plan`."""
        return [example.num_tokens for example in self.items]

    @property
    def weights(self) -> list[float]:
        """Weight of each example, for `plan`."""
        return [example.weight for example in self.items]


def examples(mixtures: Sequence[Mixture], sets: Mapping[str, DataSet], prompter: Prompter, context_tokens: int) -> Examples:
    """Tokenise the records of every mixture.

    Args:
        mixtures: What to take; at least one.
        sets: Opened data sets by the names that the mixtures use.
        prompter: Tokenizer and template.
        context_tokens: Longest sequence in tokens, image tokens included.

    Raises:
        MissingInputError: A mixture names a data set that is not in `sets`, or a split that the set lacks.
        DataError: A mixture has no record of its kinds, or all of them are longer than the context; or a record holds a reserved
            token of this tokenizer.
    """
    items: list[Example] = []
    set_aside: Counter[str] = Counter()
    for mixture in mixtures:
        if mixture.set not in sets:
            raise MissingInputError(f"no data set {mixture.set!r} among {sorted(sets)}", "name it under data.sets of the recipe")
        dataset = sets[mixture.set]
        name = f"{mixture.set}/{mixture.split}"
        taken = [_example(record, dataset, prompter, mixture.weight) for record in dataset.records(mixture.split, mixture.kinds)]
        fitting = [example for example in taken if example.num_tokens <= context_tokens]
        if not fitting:
            raise _none(name, mixture, taken, context_tokens)
        set_aside[name] += len(taken) - len(fitting)
        items += fitting
    return Examples(tuple(items), dict(set_aside))


def _example(record: Record, dataset: DataSet, prompter: Prompter, weight: float) -> Example:
    rendered = prompter.render(record.turns, len(record.images), record.id)
    ids = np.asarray(rendered.input_ids, np.int32)
    # Counted in each record: in a sum over a batch, one image too many here would hide one too few there.
    found, expected = int((ids == prompter.image_token_id).sum()), len(record.images) * prompter.image_tokens
    if found != expected:
        raise DataError(
            f"record {record.id!r} has {len(record.images)} images, {expected} placeholders expected, {found} found",
            "its text yields image placeholders; import the data set again",
        )
    images = tuple(dataset.path(image) for image in record.images)
    return Example(record.id, ids, np.asarray(rendered.labels, np.int32), images, weight)


def _none(name: str, mixture: Mixture, taken: Sequence[Example], context_tokens: int) -> DataError:
    if not taken:
        kinds = ", ".join(mixture.kinds) or "any kind"
        return DataError(f"{name} has no record of the kinds asked for ({kinds})", "see `biovlm data check` for what it holds")
    shortest = min(example.num_tokens for example in taken)
    return DataError(
        f"{name}: all {len(taken):,} records are longer than the context of {context_tokens} tokens; the shortest has {shortest}",
        "raise model.context_tokens, or take a vision tower with fewer image tokens",
    )
