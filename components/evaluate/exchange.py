"""How the workers of an evaluation tell each other what they found. Apart from `worker`, which needs Ray."""

from __future__ import annotations

import torch

from model.training.ranks import Ranks


def exchange(ranks: Ranks, text: str) -> list[str]:
    """Every rank's text, in rank order; as bytes in tensors of one length, because the messages of a group have one shape."""
    content = text.encode()
    lengths = [int(length) for length in ranks.gather(torch.tensor([len(content)], dtype=torch.int64))]
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    parts = ranks.gather(padded)
    return [bytes(part[:length].tolist()).decode() for part, length in zip(parts, lengths, strict=True)]
