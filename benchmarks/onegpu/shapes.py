"""Shapes, rows and masks of the GPU measurements, and their clock. Needs torch alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


@dataclass(frozen=True)
class Sizes:
    """Everything that a dry run makes small."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    rows: tuple[int, ...] = (8_192, 16_384)
    step_rows: tuple[int, ...] = (4_096, 8_192)
    padded: int = 4
    """Documents of a padded batch."""
    repeats: int = 10
    text: int = 120
    supervised: int = 60
    questions: int = 11
    rank: int = 64
    big_tower: dict[str, int] = field(
        default_factory=lambda: {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                                 "image_size": 336, "patch_size": 14}
    )  # fmt: skip
    big: dict[str, Any] = field(
        default_factory=lambda: {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                                 "num_key_value_heads": 8, "vocab_size": 128_320}
    )  # fmt: skip
    small_tower: dict[str, int] = field(
        default_factory=lambda: {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
                                 "image_size": 384, "patch_size": 14}
    )  # fmt: skip
    small: dict[str, Any] = field(
        default_factory=lambda: {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                                 "num_key_value_heads": 2, "vocab_size": 151_936}
    )  # fmt: skip


TINY_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 512,
}  # fmt: skip
DRY = Sizes(
    device="cpu", dtype=torch.float32, heads=4, kv_heads=2, head_dim=16, rows=(256,), step_rows=(160,), padded=2, repeats=2, text=24,
    supervised=8, questions=3, rank=4, big_tower=TINY_TOWER, big=TINY, small_tower=TINY_TOWER, small=TINY,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A packed row: (start, trunk, branches) of each document; a document without branches is its trunk."""

    documents: tuple[tuple[int, int, tuple[int, ...]], ...]
    length: int

    def numbered(self, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(T,) document, branch (0 is the trunk) and position of every token."""
        document, branch = torch.zeros(self.length, dtype=torch.int64), torch.zeros(self.length, dtype=torch.int64)
        position = torch.zeros(self.length, dtype=torch.int64)
        for number, (start, trunk, branches) in enumerate(self.documents):
            end = start + trunk
            document[start : end + sum(branches)] = number
            position[start:end] = torch.arange(trunk)
            for which, size in enumerate(branches, 1):
                branch[end : end + size], position[end : end + size] = which, torch.arange(trunk, trunk + size)
                end += size
        return document.to(device), branch.to(device), position.to(device)

    def squares(self) -> float:
        """Sum over documents of the pairs that attention needs, as 2 x causal: T^2 of a plain document."""
        total = 0.0
        for _, trunk, branches in self.documents:
            total += trunk**2 + sum(size**2 + 2 * size * trunk for size in branches)
        return total


def sees(row: Row, device: str) -> Callable[..., torch.Tensor]:
    """FlexAttention's mask function of a row."""
    document, branch, _ = row.numbered(device)

    def allowed(_b: Any, _h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (document[q] == document[k]) & ((branch[k] == 0) | (branch[k] == branch[q]))

    return allowed


def dense_mask(row: Row, device: str) -> torch.Tensor:
    """The same as a (T, T) boolean mask."""
    index = torch.arange(row.length, device=device)
    return sees(row, device)(None, None, index[:, None], index[None, :])


def flex(sizes: Sizes) -> Callable[..., torch.Tensor]:
    """FlexAttention; on a CPU, which cannot run its backward, the dense mask stands in for it."""
    if sizes.device == "cuda":
        return torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v, block_mask, **more: functional.scaled_dot_product_attention(q, k, v, attn_mask=block_mask, **more)


def flex_mask(row: Row, sizes: Sizes) -> Any:
    """What `flex` takes."""
    if sizes.device != "cuda":
        return dense_mask(row, sizes.device)
    return create_block_mask(sees(row, sizes.device), None, None, row.length, row.length, device=sizes.device)


def pack(lengths: Iterator[int], room: int) -> Row:
    """Documents behind each other until the next does not fit; the last is cut to fill the row, so that shapes stay fixed."""
    documents, start = [], 0
    while start < room:
        size = min(next(lengths), room - start)
        documents.append((start, size, ()))
        start += size
    return Row(tuple(documents), room)


def radiology(sizes: Sizes, image_tokens: int) -> Iterator[int]:
    """Lengths of the mix: 30 % without image, 45 % one view, 20 % two, 5 % four; as far as they fit half a row."""
    generator = torch.Generator().manual_seed(0)
    while True:
        draw = float(torch.rand((), generator=generator))
        views = 0 if draw < 0.30 else 1 if draw < 0.75 else 2 if draw < 0.95 else 4
        text = max(8, int(sizes.text * torch.exp(0.45 * torch.randn((), generator=generator))))
        yield min(image_tokens * views + text, sizes.rows[0] // 2)


def timed(act: Callable[[], Any], sizes: Sizes) -> dict[str, float]:
    """Median milliseconds of `act` and the most memory in it beyond what was held before, after two rounds of warm-up."""
    for _ in range(2):
        act()
    cuda = sizes.device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held, spent = (torch.cuda.memory_allocated() if cuda else 0), []
    for _ in range(sizes.repeats):
        began = time.perf_counter()
        act()
        if cuda:
            torch.cuda.synchronize()
        spent.append((time.perf_counter() - began) * 1e3)
    peak = torch.cuda.max_memory_allocated() - held if cuda else 0
    return {"ms": statistics.median(spent), "least_ms": min(spent), "extra_mib": peak / 2**20}
