"""For all tests, and for the processes that they start.

1. One thread for each torch. The models of the tests are so small that a second thread mostly waits for the first, and on a busy machine
   waits long. Libraries read the variable when they are loaded, so it is set before any test module is.
2. SIGINT is heard. A shell starts what runs in its background (a CI job, `make test &`) with SIGINT ignored, children inherit that, and
   the tests of Ctrl-C would wait for nothing.
3. Files with slow tests come first: run on several cores, the others fill the time beside them, and none waits alone at the end.
"""

from __future__ import annotations

import os
import signal

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that hold a slow test first; the order is else as it was."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
