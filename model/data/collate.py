"""Examples to batches: padded, one a sequence; or packed, behind each other in one sequence.

1. `collate(examples, pixels)` pads token ids on the right; `packed(documents, pixels)` puts documents behind each other: of one example
   each, or of several that begin with the same images, whose beginning then stands once (the trunk) with a branch for each.
2. Targets are listed with the positions that predict them, so that nothing later depends on which token stands before which.
3. `pixels` is asked for the images in order of appearance, each once for all that share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from model.batch import IGNORE, Batch, Document
from model.data.examples import Example
from model.errors import DataError, InternalError

Pixels = Callable[[Sequence[Path]], torch.Tensor]
"""N image paths -> (N, ...): pixels, or what stands for them."""


def collate(examples: Sequence[Example], pixels: Pixels) -> Batch:
    """One batch of B examples, padded on the right to the longest.

    Args:
        examples: At least one example.
        pixels: Gives (N, C, H, W) for N image paths.

    Raises:
        DataError: `pixels` gave another number of images than the examples name.
    """
    # Padding is masked everywhere, so any id will do but the image placeholder's, which is counted: an example's last token is an
    # answer's, and never a placeholder.
    padding = int(examples[0].input_ids[-1])
    longest = max(example.num_tokens for example in examples)
    input_ids = np.full((len(examples), longest), padding, np.int64)
    mask = np.zeros((len(examples), longest), np.int64)
    sources, targets = [], []
    for row, example in enumerate(examples):
        input_ids[row, : example.num_tokens] = example.input_ids
        mask[row, : example.num_tokens] = 1
        places = _targets(example)
        sources.append(places - 1 + row * longest)
        targets.append(example.labels[places])
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask),
        sources=torch.from_numpy(np.concatenate(sources)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        pixel_values=_images([example.images for example in examples], pixels),
        record_ids=tuple(example.record_id for example in examples),
        image_counts=tuple(len(example.images) for example in examples),
    )


def packed(documents: Sequence[Sequence[Example]], pixels: Pixels, length: int = 0) -> Batch:
    """One sequence of D documents.

    Args:
        documents: Examples of each; several share everything up to and with their last image.
        pixels: As in `collate`.
        length: Least length of the sequence; padding stands behind the documents. Compiled kernels want one length for all batches.

    Raises:
        DataError: `pixels` gave another number of images than the documents name.
        InternalError: The examples of a document do not begin alike, or learn what they share: the plan is wrong.
    """
    laid = _Laid()
    for document in documents:
        laid.add(document)
    tokens = laid.documents[-1].end
    laid.pad(length - tokens)
    ids = np.concatenate(laid.ids).astype(np.int64)
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        attention_mask=(torch.arange(len(ids)) < tokens).long()[None],
        sources=torch.from_numpy(np.concatenate(laid.sources)),
        targets=torch.from_numpy(np.concatenate(laid.targets).astype(np.int64)),
        pixel_values=_images([document[0].images for document in documents], pixels),
        record_ids=tuple(document[0].record_id for document in documents),
        image_counts=tuple(len(document[0].images) for document in documents),
        documents=tuple(laid.documents),
        positions=torch.from_numpy(np.concatenate(laid.positions))[None],
    )


class _Laid:
    """Documents laid out behind each other."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.sources: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.documents: list[Document] = []
        self._end = 0

    def add(self, examples: Sequence[Example]) -> None:
        start, trunk = self._end, examples[0].trunk
        if len(examples) == 1:
            self.documents.append(Document(start, examples[0].num_tokens))
            self._put(examples[0], 0, start)
            return
        _check_alike(examples)
        self.documents.append(Document(start, trunk, tuple(example.num_tokens - trunk for example in examples)))
        self._append(examples[0].input_ids[:trunk], 0)
        for example in examples:
            self._put(example, trunk, start)

    def pad(self, count: int) -> None:
        """`count` times the last token, an answer's and so never a placeholder, behind all documents."""
        if count > 0:
            self._append(np.full(count, self.ids[-1][-1]), 0)

    def _put(self, example: Example, first: int, start: int) -> None:
        """The example from `first` on; what stands before is laid out at `start` already."""
        places = _targets(example)
        sources = places - 1 + self._end - first
        # The first token of a branch is predicted from the trunk's end.
        self.sources.append(np.where(places == first, start + first - 1, sources))
        self.targets.append(example.labels[places])
        self._append(example.input_ids[first:], first)

    def _append(self, ids: np.ndarray, position: int) -> None:
        self.ids.append(ids)
        self.positions.append(np.arange(position, position + len(ids)))
        self._end += len(ids)


def _targets(example: Example) -> np.ndarray:
    """Places of the targets; the first token has no predecessor and never is one."""
    return np.flatnonzero(example.labels[1:] != IGNORE) + 1


def _check_alike(examples: Sequence[Example]) -> None:
    first = examples[0]
    beginning = first.input_ids[: first.trunk]
    for example in examples:
        same = example.images == first.images and np.array_equal(example.input_ids[: first.trunk], beginning)
        if not (same and example.trunk == first.trunk and first.trunk) or np.any(example.labels[: first.trunk] != IGNORE):
            raise InternalError(
                f"records {first.record_id!r} and {example.record_id!r} do not share their images and what stands before them",
                "two groups have one digest; train with packing: rows",
            )


def _images(images: Sequence[tuple[Path, ...]], pixels: Pixels) -> torch.Tensor:
    paths = [path for listed in images for path in listed]
    found = pixels(paths)
    if len(found) != len(paths):
        raise DataError(f"the batch names {len(paths)} images and got pixels of {len(found)}", "check the image processor")
    return found
