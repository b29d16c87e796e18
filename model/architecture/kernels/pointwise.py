"""Numbers one by one: powers of two, SwiGLU and RMSNorm in float32, each one pass over memory, with their backward passes.

Exponentials are powers of two by a polynomial, which becomes instructions on eight numbers at a time. NaN and infinity stay what they
are: a loss that is not finite must be seen.

Arrays are C-contiguous float32. `Any` stands for an array or a float32: the compiler finds the types itself.

N tokens, W width, I inner width of an MLP.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.architecture.kernels.compiling import compiled

F32 = np.float32
F0, F1, HALF = F32(0), F32(1), F32(0.5)
LOG2_E = F32(1.44269504)
P1, P2, P3 = F32(0.693147206), F32(0.240226466), F32(0.05550329)
P4, P5, P6 = F32(0.00961851953), F32(0.00133998604), F32(0.000153375768)
"""Least squares on Chebyshev nodes, relative error 3e-9."""
LEAST, MOST = F32(-126), F32(126)
"""Exponents whose powers of two are normal numbers."""
BIAS, MANTISSA = np.int32(127), np.int32(23)


@compiled
def power(x: Any) -> Any:
    """2^x: a polynomial on [-1/2, 1/2], within 2 units in the last place; no less than 2^-126, no more than 2^126."""
    x = LEAST if x < LEAST else x
    x = MOST if x > MOST else x
    n = np.floor(x + HALF)
    r = x - n
    y = (((((P6 * r + P5) * r + P4) * r + P3) * r + P2) * r + P1) * r + F1
    return y * np.int32((np.int32(n) + BIAS) << MANTISSA).view(np.float32)


@compiled
def gate(first: int, last: int, gates: Any, ups: Any, out: Any) -> None:
    """SwiGLU (Shazeer 2020) of rows [first, last): gates / (1 + exp(-gates)) ups, all (N, I)."""
    for n in range(first, last):
        for j in range(gates.shape[1]):
            x = gates[n, j]
            out[n, j] = x * ups[n, j] / (F1 + power(-x * LOG2_E))


@compiled
def gate_back(first: int, last: int, gates: Any, ups: Any, for_out: Any, for_gates: Any, for_ups: Any) -> None:
    """The gradients of `gate`."""
    for n in range(first, last):
        for j in range(gates.shape[1]):
            x = gates[n, j]
            share = F1 / (F1 + power(-x * LOG2_E))
            for_ups[n, j] = for_out[n, j] * x * share
            for_gates[n, j] = for_out[n, j] * ups[n, j] * share * (F1 + x * (F1 - share))


@compiled
def norm(first: int, last: int, epsilon: Any, x: Any, weight: Any, out: Any, inverses: Any) -> None:
    """RMSNorm (Zhang and Sennrich 2019) of rows [first, last): weight x / sqrt(mean(x^2) + epsilon); (N, W), and 1 / sqrt of each row."""
    for n in range(first, last):
        total = F0
        for j in range(x.shape[1]):
            total += x[n, j] * x[n, j]
        inverse = F1 / np.sqrt(total / np.float32(x.shape[1]) + epsilon)
        inverses[n] = inverse
        for j in range(x.shape[1]):
            out[n, j] = x[n, j] * inverse * weight[j]


@compiled
def norm_back(first: int, last: int, x: Any, weight: Any, inverses: Any, for_out: Any, for_x: Any) -> None:
    """The gradient of `norm` by x."""
    for n in range(first, last):
        along, inverse = F0, inverses[n]
        for j in range(x.shape[1]):
            along += for_out[n, j] * weight[j] * x[n, j]
        along *= inverse * inverse * inverse / np.float32(x.shape[1])
        for j in range(x.shape[1]):
            for_x[n, j] = for_out[n, j] * weight[j] * inverse - x[n, j] * along
