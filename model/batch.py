"""The one type that passes from data to architecture.

B sequences, T tokens in the longest, N images in the batch, C colour channels, H and W in pixels, P image tokens an image,
D features of an image token, S targets.

A *padded* batch holds one example a sequence. A *packed* one holds a single sequence (B = 1) of documents behind each other: each is
a trunk and perhaps branches. A token sees what stands before it in its own branch, and in the trunk of its own document; positions of
a branch go on from the trunk. So every example is computed as if it stood alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

IGNORE = -100
"""Label of a position that is not a target."""


@dataclass(frozen=True)
class Document:
    """A stretch of a packed sequence that no other may see."""

    start: int
    """Its first position."""
    trunk: int
    """Tokens that all its branches see; of a document without branches, all of it."""
    branches: tuple[int, ...] = ()
    """Tokens of each branch, behind the trunk and each other."""

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.start + self.trunk + sum(self.branches)


@dataclass(frozen=True)
class Batch:
    """Token ids, targets and images of one forward pass."""

    input_ids: torch.Tensor
    """(B, T) int64. Every image stands as P placeholders in a row."""
    attention_mask: torch.Tensor
    """(B, T) int64; 1 for a token, 0 for padding on the right."""
    sources: torch.Tensor
    """(S,) int64 positions in B x T, sequence by sequence, from which a target is predicted: the last token that it sees. A trunk's end
    is that of the first token of every branch."""
    targets: torch.Tensor
    """(S,) int64 token ids to predict."""
    pixel_values: torch.Tensor
    """(N, C, H, W) float32, in the order in which their placeholders appear. N may be 0. In training (N, P, D): what the frozen
    vision tower gave for them."""
    record_ids: tuple[str, ...] = ()
    """An id for each sequence, or each document of a packed one, for messages."""
    image_counts: tuple[int, ...] = ()
    """For each of them its number of images, summing to N; placeholders are checked against them one by one."""
    documents: tuple[Document, ...] = ()
    """Of a packed batch, in order, covering it from the start up to padding; empty for a padded one."""
    positions: torch.Tensor | None = None
    """(1, T) int64 of a packed batch: position of each token in its example."""

    @property
    def num_targets(self) -> int:
        """S."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding, image tokens included."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; copies from pinned memory do not wait."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            sources=self.sources.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            pixel_values=self.pixel_values.to(device, non_blocking=True),
            positions=None if self.positions is None else self.positions.to(device, non_blocking=True),
        )
