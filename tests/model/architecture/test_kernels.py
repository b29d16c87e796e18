"""Compiled kernels compute what their formulas say, in double precision beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from model.architecture.heads import attended
from model.architecture.kernels import compiling, pointwise, products, thin, tile
from model.architecture.packed import allowed
from model.batch import Document
from model.errors import InternalError

WIDTH = 24
"""Of a head: a line and a half."""
CLOSE = 1e-5
"""Relative to the largest value, of sums over a thousand float32 numbers."""
CASES = {
    "one token": [Document(0, 1)],
    "blocks and one more or less": [Document(0, 63), Document(63, 65), Document(128, 385)],
    "longer than two blocks of keys": [Document(0, 900)],
    "branches": [Document(0, 40, (5, 3)), Document(48, 20)],
    "branches over blocks of rows and of keys": [Document(0, 395, (70, 1, 130)), Document(596, 7)],
    "a trunk that ends with a block of keys": [Document(0, 384, (10, 20))],
}


def drawn(tokens: int, heads: int, groups: int) -> list[torch.Tensor]:
    """Queries, keys, values, cosines and sines."""
    draw = torch.Generator().manual_seed(tokens)
    given = [torch.randn(tokens, count * WIDTH, generator=draw, requires_grad=True) for count in (heads, groups, groups)]
    angles = torch.randn(tokens, WIDTH // 2, generator=draw).repeat(1, 2)
    return [*given, angles.cos(), angles.sin()]


def by_formula(given: list[torch.Tensor], documents: list[Document], scale: float) -> torch.Tensor:
    """softmax(q k') v of every token with those that it may see, in double precision."""
    asking, keys, values = (each.double().view(len(each), -1, WIDTH).transpose(0, 1) for each in given[:3])
    cos, sin = (each.double() for each in given[3:])

    def turned(x: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-two, one], dim=-1) * sin

    groups = len(asking) // len(keys)
    keys, values = (each.repeat_interleave(groups, dim=0) for each in (turned(keys), values))
    document, branch = allowed(tuple(documents), len(given[0]))
    sees = (document[:, None] == document) & ((branch == 0) | (branch[:, None] == branch)).tril()
    chances = (turned(asking) @ keys.mT * scale).masked_fill(~sees, -torch.inf).softmax(dim=-1)
    return (chances @ values).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["a key for each head", "shared keys"])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_those_of_the_formula(case: str, heads: tuple[int, int]) -> None:
    documents = CASES[case]
    given = drawn(documents[-1].end, *heads)
    weight = torch.randn(documents[-1].end, heads[0] * WIDTH, generator=torch.Generator().manual_seed(1))
    found, expected = attended(*given, documents, 0.3), by_formula(given, documents, 0.3)
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()
    fast, usual = (torch.autograd.grad((each * weight).sum(), given[:3]) for each in (found, expected))
    largest = max(float(each.abs().max()) for each in usual)  # of one token alone, all but the values' are 0
    for one, other in zip(fast, usual, strict=True):
        assert (one - other).abs().max() <= CLOSE * largest


def test_no_gradient_passes_between_documents_and_branches() -> None:
    documents = [Document(0, 70), Document(70, 30, (40, 50))]
    given = drawn(190, 2, 1)
    second_branch = attended(*given, documents, 0.3)[140:]
    for gradient in torch.autograd.grad(second_branch.pow(2).sum(), given[:3]):
        assert not gradient[:70].any()
        assert not gradient[100:140].any()
        assert gradient[140:].any()


@pytest.mark.parametrize("documents", [[Document(0, 90)], [Document(0, 110)], [Document(0, 40), Document(60, 40)]])
def test_documents_that_do_not_cover_the_batch_are_refused(documents: list[Document]) -> None:
    """Compiled code looks at no bounds."""
    with pytest.raises(InternalError, match="a batch of 100 tokens came with documents of"):
        attended(*drawn(100, 1, 1), documents, 1.0)


def test_scores_of_any_size_make_finite_probabilities() -> None:
    given = [each.detach() * (100.0 if number < 2 else 1.0) for number, each in enumerate(drawn(100, 1, 1))]
    found, expected = attended(*given, [Document(0, 100)], 1.0), by_formula(given, [Document(0, 100)], 1.0)
    assert (found - expected).abs().max() <= 1e-2  # a float32 score of 1e5 is known to 1e-2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen_in_its_document_and_in_no_other(bad: float) -> None:
    given = [each.detach() for each in drawn(120, 2, 2)]
    given[1][10, 3] = bad
    found = attended(*given, [Document(0, 50), Document(50, 70)], 0.3)
    hit = ~found[10:50].isfinite().all(dim=1)
    assert hit.all() if bad != bad else hit.any()  # a score of minus infinity is a chance of 0
    assert found[:10].isfinite().all()
    assert found[50:].isfinite().all()


def test_results_are_the_same_bits_on_any_number_of_threads() -> None:
    documents, before = [Document(0, 130), Document(130, 90)], torch.get_num_threads()
    given = drawn(220, 4, 2)
    outcomes = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = attended(*given, documents, 0.3)
            outcomes.append([found, *torch.autograd.grad(found.pow(2).sum(), given[:3])])
    finally:
        torch.set_num_threads(before)
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


def test_a_gate_is_right_far_from_zero_and_does_not_hide_nan() -> None:
    gates = np.array([[-200.0, -30.0, -1e-3, 0.0, 2.5, 80.0, 300.0, np.nan]], dtype=np.float32)
    ups, found = np.full_like(gates, 3.0), np.empty_like(gates)
    pointwise.gate(0, 1, gates, ups, found)
    wide = gates.astype(np.float64)
    expected = 3.0 * wide / (1 + np.exp(-wide))
    assert np.isnan(found[0, -1])
    np.testing.assert_allclose(found[0, :-1], expected[0, :-1], rtol=3e-6, atol=1e-30)  # x / ln 2 of 40 is known to 2e-6


def test_gradients_of_a_gate_are_those_of_the_formula() -> None:
    draw = np.random.default_rng(0)
    gates, ups, grad = (draw.normal(scale=3, size=(7, 21)).astype(np.float32) for _ in range(3))
    for_gates, for_ups = np.empty_like(gates), np.empty_like(ups)
    pointwise.gate_back(0, 7, gates, ups, grad, for_gates, for_ups)
    wide = [torch.from_numpy(each).double().requires_grad_() for each in (gates, ups)]
    expected = torch.autograd.grad(
        torch.nn.functional.silu(wide[0]) * wide[1], wide, grad_outputs=torch.from_numpy(grad).double()
    )
    for fast, usual in zip((for_gates, for_ups), expected, strict=True):
        np.testing.assert_allclose(fast, usual.numpy(), rtol=CLOSE, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 6, 12])
@pytest.mark.parametrize("kept", [False, True])
def test_a_tile_is_a_product_of_what_lies_in_any_order(rows: int, kept: bool) -> None:
    """Twelve rows is what a processor with AVX-512 has: the code is the same, its registers are not."""
    made = tile._tile(rows)

    @numba.njit
    def run(left: Any, right: Any, out: Any, kept: bool) -> None:
        made(left, 2, 1, 30, right, 48, 32, out, 16, 40, 7, np.float32(0.5), kept)

    draw = np.random.default_rng(rows)
    left, right, out = (draw.normal(size=shape).astype(np.float32) for shape in ((8, 30), (9, 32), (rows + 1, 40)))
    expected = out.copy()
    product = 0.5 * left[:7, 2 : 2 + rows].T @ right[1:8, 16:32]
    expected[:rows, 16:32] = product + (expected[:rows, 16:32] if kept else 0)
    run(left, right, out, kept)
    np.testing.assert_allclose(out, expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("tokens", [1, 47, 48, 101])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("kept", [False, True])
def test_products_of_panels_are_those_of_the_weight_with_its_update(tokens: int, rank: int, kept: bool) -> None:
    """More terms and more panels than are multiplied at a time; the weight transposed, as a forward pass reads it."""
    terms, columns = products.DEPTH + 20, (products.GROUP + 1) * tile.COLUMNS
    draw = np.random.default_rng(tokens)
    x, weight, left, right, found = (
        draw.normal(size=shape).astype(np.float32)
        for shape in ((tokens, terms), (columns, terms), (rank, terms), (rank, columns), (tokens, columns))
    )
    expected = x.astype(np.float64) @ (weight.T + 2.0 * left.T.astype(np.float64) @ right) + (found if kept else 0)
    panels = np.full((products.GROUP + 1, terms, tile.COLUMNS), np.nan, np.float32)
    for first, last in ((0, 7), (7, len(panels))):
        products.lay(first, last, weight.T, np.float32(2.0), left.T, right, panels)
    for block in range(-(-tokens // products.BLOCK)):
        products.multiply(block, block + 1, x, panels, found, kept)
    assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max()


@pytest.mark.parametrize("tokens", [1, 47, 1024, 2100])
@pytest.mark.parametrize("shape", [(32, 48, 16), (35, 20, 32)], ids=["whole tiles", "what is left over"])
def test_gradients_of_an_adapter_are_those_of_the_formula(tokens: int, shape: tuple[int, int, int]) -> None:
    inputs, outputs, columns = shape
    draw = np.random.default_rng(tokens)
    x, grad, down, up = (
        draw.normal(size=size).astype(np.float32)
        for size in ((tokens, inputs), (tokens, outputs), (inputs, columns), (outputs, columns))
    )
    chunks = -(-tokens // thin.CHUNK)
    for_down, for_up = (np.full((chunks, *each.shape), np.nan, np.float32) for each in (down, up))
    thin.adapt_back(0, chunks, np.float32(2.0), x, grad, down, up, for_down, for_up)
    wide = [each.astype(np.float64) for each in (x, grad, down, up)]
    for found, expected in (
        (for_down, 2.0 * wide[0].T @ (wide[1] @ wide[3])),
        (for_up, 2.0 * wide[1].T @ (wide[0] @ wide[2])),
    ):
        assert np.abs(found.sum(axis=0) - expected).max() <= CLOSE * np.abs(expected).max()


def test_code_kept_of_kernels_that_have_changed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function's own file has not: numba would look no further."""
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "compiling.py"))
    caller = tmp_path / "caller.py"
    caller.write_text("def caller(x):\n    return called(x) + 1\n")
    outcomes = []
    for factor in (2, 3):
        (tmp_path / "called.py").write_text(f"def called(x):\n    return {factor} * x\n")
        compiling._sources.cache_clear()
        there: dict[str, Any] = {"__name__": "kept"}
        for path in (tmp_path / "called.py", caller):
            exec(compile(path.read_text(), str(path), "exec"), there)
            there[path.stem] = compiling.compiled(there[path.stem])
        outcomes.append(there["caller"](10))
    compiling._sources.cache_clear()
    assert outcomes == [21, 31]


def test_without_a_place_for_machine_code_a_function_is_compiled_all_the_same() -> None:
    there: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x\n", there)
    assert compiling.compiled(there["twice"])(4) == 8
