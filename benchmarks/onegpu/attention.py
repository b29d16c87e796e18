"""g1: forms of packed attention, their time, memory, error and isolation. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.onegpu.shapes import Row, Sizes, dense_mask, flex, flex_mask, pack, radiology, timed


def g1(sizes: Sizes) -> dict[str, Any]:
    """Forms of packed attention."""
    image_tokens = (sizes.big_tower["image_size"] // sizes.big_tower["patch_size"]) ** 2
    found: dict[str, Any] = {}
    for length in sizes.rows:
        row = pack(radiology(sizes, image_tokens), length)
        found[f"row_{length}"] = {"documents": len(row.documents), **_forms(row, sizes)}
    trunk, answer = image_tokens, sizes.text // 4
    shared = Row(((0, trunk, (answer,) * sizes.questions),), trunk + answer * sizes.questions)
    apart = Row(
        tuple(((trunk + answer) * n, trunk + answer, ()) for n in range(sizes.questions)), (trunk + answer) * sizes.questions
    )
    found["shared_image"] = {name: _one_form(_flex_form(row, sizes), row, sizes, check=name == "shared")
                             for name, row in (("shared", shared), ("separate", apart))}  # fmt: skip
    return found


def _forms(row: Row, sizes: Sizes) -> dict[str, Any]:
    forms = {"flex": _flex_form(row, sizes), "dense": _dense_form(row, sizes), "padded": _padded_form(row)}
    found = {}
    if sizes.device == "cuda":
        forms["varlen"] = _varlen_form(row)
    else:
        found["varlen"] = "not run: varlen_attn is CUDA only"
    return found | {name: _one_form(form, row, sizes, check=True) for name, form in forms.items()}


def _flex_form(row: Row, sizes: Sizes) -> Callable[..., torch.Tensor]:
    mask, kernel = flex_mask(row, sizes), flex(sizes)
    return lambda q, k, v: kernel(q, k, v, block_mask=mask, enable_gqa=True)


def _dense_form(row: Row, sizes: Sizes) -> Callable[..., torch.Tensor]:
    mask = dense_mask(row, sizes.device)[None, None]
    return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def _padded_form(row: Row) -> Callable[..., torch.Tensor]:
    sizes = [trunk for _, trunk, _ in row.documents]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.nn.utils.rnn.pad_sequence([part[0].transpose(0, 1) for part in x.split(sizes, 2)], batch_first=True).transpose(
                1, 2
            )
            for x in (q, k, v)
        )
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return torch.cat([out[n : n + 1, :, :size] for n, size in enumerate(sizes)], 2)

    return attend


def _varlen_form(row: Row) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    sizes = torch.tensor([trunk for _, trunk, _ in row.documents])
    ends = functional.pad(sizes.cumsum(0), (1, 0)).to("cuda", torch.int32)
    longest = int(sizes.max())

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0)).transpose(0, 1)[None]

    return attend


def _one_form(form: Callable[..., torch.Tensor], row: Row, sizes: Sizes, check: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, row.length, sizes.head_dim) for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    q, k, v = (torch.randn(s, generator=generator).to(sizes.device, sizes.dtype).requires_grad_() for s in shapes)
    weight = torch.randn(shapes[0], generator=generator).to(sizes.device, sizes.dtype)

    def step() -> None:
        q.grad = k.grad = v.grad = None
        form(q, k, v).backward(weight)

    found = timed(step, sizes)
    if check:
        with torch.no_grad():
            out = form(q, k, v)
        found["error_vs_float64"] = _error(out, q, k, v, row)
        found["gradient_across_documents"] = _leak(form, q, k, v, row)
    return found


def _error(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: Row) -> float:
    """Largest error of any document against float64, computed alone, over the first two heads; relative to the largest value."""
    group, worst = q.shape[1] // k.shape[1], 0.0
    for start, trunk, branches in row.documents:
        end = start + trunk + sum(branches)
        local = dense_mask(Row(((0, trunk, branches),), end - start), str(q.device))
        for head in range(2):
            query, key, value = (
                x[:, h : h + 1, start:end].detach().double() for x, h in ((q, head), (k, head // group), (v, head // group))
            )
            exact = functional.scaled_dot_product_attention(query, key, value, attn_mask=local)
            worst = max(worst, float((out[:, head : head + 1, start:end] - exact).abs().max() / exact.abs().max()))
    return worst


def _leak(form: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: Row) -> float:
    """Largest gradient of the second document's output by what stands outside it; 0 where documents are isolated."""
    if len(row.documents) < 2:
        return 0.0
    (start, trunk, branches), parts = row.documents[1], [q, k, v]
    end = start + trunk + sum(branches)
    gradients = torch.autograd.grad(form(q, k, v)[:, :, start:end].float().square().sum(), parts)
    return max(float(torch.cat([g[:, :, :start], g[:, :, end:]], 2).abs().max()) for g in gradients)
