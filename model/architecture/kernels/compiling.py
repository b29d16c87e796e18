"""Python functions on arrays as machine code: how they are compiled, where the code is kept, on how many threads they run.

numba compiles a function at its first call and keeps the code beside the function's file or in the user's cache, as Python keeps
bytecode: 15 seconds once on a machine. No compiler and no headers are needed. It looks whether that one file has changed; our functions
call each other across files, so the code is kept under a name that holds a checksum of them all.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numba
import torch

F = TypeVar("F", bound=Callable[..., Any])
MATH = {"nsz", "arcp", "contract", "reassoc", "afn"}
"""What the compiler may do as if numbers were real: all but to assume that there is no NaN and no infinity."""


def compiled(function: F) -> F:
    """`function` of arrays and numbers as machine code, which runs without Python's lock."""
    settings: dict[str, Any] = {"nogil": True, "fastmath": MATH, "error_model": "numpy"}
    function.__qualname__ += f"-{_sources()}"
    try:
        kept: F = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # nowhere to keep it: each process compiles for itself
        kept = numba.njit(**settings)(function)
    return kept


@functools.cache
def _sources() -> str:
    """Checksum of all kernels."""
    contents = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return f"{functools.reduce(lambda checksum, content: zlib.crc32(content, checksum), contents, 0):08x}"


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
    """Of this process, not of one that it was forked from."""
    return ThreadPoolExecutor(threads, "kernels")
