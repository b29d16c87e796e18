"""Features of images from the frozen tower, computed once where they fit into memory.

The tower never learns, so the features of an image are the same in every epoch. If those of all images of a stage fit into
`BUDGET_BYTES` and images are shown more than once, each is encoded once and kept; else the tower runs in every forward pass.

An image is encoded together with its fixed neighbours, never with whatever else is in the batch: a matrix product of another height
can differ in its last bits, and then a resumed run would not end with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

NEIGHBOURS = 64
BUDGET_BYTES = 2**30


class FeatureSource:
    """Tower features of image files; stands where `collate` asks for pixels.

    Args:
        encode: (N, C, H, W) pixels to (N, P, D) features.
        pixels: N paths to (N, C, H, W).
        paths: The image of every showing of an epoch, in an order that does not change between runs.
        epochs: How often all of them are shown.
        feature_bytes: Memory of one image's features.
        budget_bytes: Largest memory for kept features.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        pixels: Callable[[Sequence[Path]], torch.Tensor],
        paths: Sequence[Path],
        epochs: float,
        feature_bytes: int,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self._encode = encode
        self._pixels = pixels
        self._order = list(dict.fromkeys(paths))
        self._place = {path: index for index, path in enumerate(self._order)}
        self._kept: dict[Path, torch.Tensor] = {}
        self.keeps = len(paths) * epochs > len(self._order) and len(self._order) * feature_bytes <= budget_bytes
        """Whether each image is encoded once."""

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        """(N, P, D) for N paths; without paths an empty tensor."""
        if not paths:
            return torch.zeros(0)
        if not self.keeps:
            return self._encode(self._pixels(paths))
        for path in paths:
            if path not in self._kept:
                start = self._place[path] // NEIGHBOURS * NEIGHBOURS
                group = self._order[start : start + NEIGHBOURS]
                self._kept.update(zip(group, self._encode(self._pixels(group)), strict=True))
        return torch.stack([self._kept[path] for path in paths])
