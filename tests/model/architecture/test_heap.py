"""Freed memory goes back to the system, or stays for the next tensors: each asked of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from components.platform.settings import CHECKOUT

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
HELD = """
from pathlib import Path
from model.architecture import heap

def mib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024
"""
SMALL = "blocks = [bytes([1]) * 100_000 for _ in range(1_000)]; last = bytes([1]) * 100_000; del blocks\n"
"""100 MB below a block that stays: glibc alone gives back only what lies at the end."""
LARGE = "block = bytearray(b'1') * (64 << 20); del block\n"


def held(program: str) -> list[int]:
    """What the program printed."""
    done = subprocess.run((sys.executable, "-c", HELD + program), capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return [int(word) for word in done.stdout.split()]


def test_what_was_freed_goes_back_to_the_system() -> None:
    kept, after = held(f"start = mib()\n{SMALL}print(mib() - start)\nheap.give_back()\nprint(mib() - start)\n")
    assert kept > 80
    assert after < 20


def test_what_a_step_frees_stays_for_the_next() -> None:
    usual, kept = held(f"start = mib()\n{LARGE}print(mib() - start)\nheap.keep()\n{LARGE}print(mib() - start)\n")
    assert usual < 10
    assert kept > 50
