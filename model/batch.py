"""The one type that passes from data to architecture.

B sequences, T tokens in the longest, N images in the batch, C colour channels, H and W in pixels, P image tokens an image,
D features of an image token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

IGNORE = -100
"""Label of a position that is not a target."""


@dataclass(frozen=True)
class Batch:
    """Token ids, targets and images of one forward pass."""

    input_ids: torch.Tensor
    """(B, T) int64. Every image stands as P placeholders in a row."""
    attention_mask: torch.Tensor
    """(B, T) int64; 1 for a token, 0 for padding on the right."""
    labels: torch.Tensor
    """(B, T) int64; the token itself where it is a target, else IGNORE. Not shifted."""
    pixel_values: torch.Tensor
    """(N, C, H, W) float32, in the order in which their placeholders appear. N may be 0. In training (N, P, D): what the frozen
    vision tower gave for them."""
    record_ids: tuple[str, ...] = ()
    """B ids, for messages."""
    image_counts: tuple[int, ...] = ()
    """B numbers of images, summing to N; placeholders are checked against them sequence by sequence."""

    @property
    def num_targets(self) -> int:
        """Positions that count in the loss; position 0 has no predecessor and never does."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens without padding, image tokens included."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            pixel_values=self.pixel_values.to(device),
        )
