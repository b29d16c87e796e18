"""Python functions on arrays as machine code: how they are compiled, what they call, on how many threads they run.

1. numba compiles a function at its first call and keeps the code beside the function's file or in the user's cache, as Python keeps
   bytecode: 15 seconds once on a machine. No compiler and no headers are needed. It looks whether that file has changed, and at no other,
   so functions that call each other stand in one.
2. Matrix products are those of torch's own library; `connect` makes them known under `PRODUCT`.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba
import torch

F = TypeVar("F", bound=Callable[..., Any])
PRODUCT = "biovlm_sgemm"
"""BLAS: every argument by reference."""
MATH = {"nsz", "arcp", "contract", "reassoc", "afn"}
"""What the compiler may do as if numbers were real: all but to assume that there is no NaN and no infinity."""


@functools.cache
def connect() -> bool:
    """Make torch's matrix product known to compiled functions; False if its library has none by the usual name."""
    found = getattr(_library(), "sgemm_", None)
    if found is None:
        return False
    llvmlite.binding.add_symbol(PRODUCT, ctypes.cast(found, ctypes.c_void_p).value)
    return True


def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:  # another system's name for it
        return None


def compiled(function: F) -> F:
    """`function` of arrays and numbers as machine code, which runs without Python's lock."""
    settings: dict[str, Any] = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}
    try:
        kept: F = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # nowhere to keep it: each process compiles for itself
        kept = numba.njit(**settings)(function)
    return kept


def share(count: int, work: Callable[[int, int], None], least: int = 1) -> None:
    """Do work(first, last) of ranges that make up [0, count), on as many threads as torch uses; fewer than `least` are worth none."""
    threads = max(1, min(torch.get_num_threads(), count // least))
    if threads == 1:
        work(0, count)
        return
    bounds = [count * number // threads for number in range(threads + 1)]
    list(_pool(os.getpid(), threads).map(work, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process, not of one that it was forked from. Matrix products on its threads take no threads of their own."""
    alone = getattr(_library(), "MKL_Set_Num_Threads_Local", lambda _: None)
    return ThreadPoolExecutor(threads, "kernels", initializer=alone, initargs=(1,))
