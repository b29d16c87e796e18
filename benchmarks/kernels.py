"""Compiled kernels of a CPU beside torch's: attention, SwiGLU and RMSNorm forward and backward, by turns, least seconds on one thread.

1. Attention of documents of 660 tokens (C1), of 2,048, and of one image with eleven questions (600 + 11 x 20), 8 heads of 64, from
   projections as they lie to the input of the output projection: rotary positions are in it.
2. torch is given what `packed.attend` gives it: each document alone, branches with a mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from model.architecture import fused
from model.architecture.heads import attended
from model.architecture.packed import Layout, attend, branch_mask
from model.batch import Document

ROUNDS, HEADS, WIDTH = 7, 8, 64
CASES = {
    "c1": tuple(Document(660 * number, 660) for number in range(4)),
    "long": (Document(0, 2048),),
    "shared_image": (Document(0, 600, (20,) * 11),),
}
TOKENS, INNER = 2640, 1408

Way = Callable[[], tuple[torch.Tensor, Sequence[torch.Tensor]]]
"""Computes an output, and names the inputs that gradients are wanted of."""


def measure() -> dict[str, float]:
    """Milliseconds of both ways and their ratio, forward and backward together."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ways = {name: _attention(documents) for name, documents in CASES.items()} | {"swiglu": _gate(), "rms_norm": _norm()}
        found: dict[str, float] = {}
        for name, (ours, theirs) in ways.items():
            seconds = _by_turns({"ours": ours, "torch": theirs})
            found |= {f"{name}_{which}_milliseconds": each * 1e3 for which, each in seconds.items()}
            found[f"{name}_ratio"] = seconds["torch"] / seconds["ours"]
        return found
    finally:
        torch.set_num_threads(before)


def _by_turns(ways: Mapping[str, Way]) -> dict[str, float]:
    least = dict.fromkeys(ways, float("inf"))
    for number in range(ROUNDS + 1):  # the first one compiles
        for name, way in ways.items():
            began = time.process_time()
            output, inputs = way()
            torch.autograd.grad(output, inputs, torch.ones_like(output))
            if number:
                least[name] = min(least[name], time.process_time() - began)
    return least


def _attention(documents: tuple[Document, ...]) -> tuple[Way, Way]:
    tokens = documents[-1].end
    asking, keys, values = given = [torch.randn(tokens, HEADS * WIDTH, requires_grad=True) for _ in range(3)]
    angles = torch.rand(tokens, WIDTH // 2).mul(6).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    layout = Layout(documents, tuple(map(branch_mask, documents)))

    def theirs() -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        by_head = [each.view(1, tokens, HEADS, WIDTH).transpose(1, 2) for each in given]
        query, key = apply_rotary_pos_emb(by_head[0], by_head[1], cos[None], sin[None])
        return attend(torch.nn.Module(), query, key, by_head[2], None, layout=layout)[0].reshape(tokens, -1), given

    return lambda: (attended(asking, keys, values, cos, sin, documents, WIDTH**-0.5), given), theirs


def _gate() -> tuple[Way, Way]:
    given = [torch.randn(TOKENS, INNER, requires_grad=True) for _ in range(2)]
    return lambda: (fused.gated(*given), given), lambda: (functional.silu(given[0]) * given[1], given)


def _norm() -> tuple[Way, Way]:
    plain, ours = (LlamaRMSNorm(HEADS * WIDTH).requires_grad_(False) for _ in range(2))
    fused.install(torch.nn.Sequential(ours))
    given = torch.randn(TOKENS, HEADS * WIDTH, requires_grad=True)
    return lambda: (ours(given), [given]), lambda: (plain(given), [given])
