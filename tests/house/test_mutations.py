"""The table of controls and their tests (benchmarks/mutations.py) still fits the code; whether each test turns red is measured there."""

from __future__ import annotations

import pytest

from benchmarks.mutations import TABLE


@pytest.mark.parametrize("mutation", TABLE, ids=[mutation.control for mutation in TABLE])
def test_each_control_can_be_taken_away_and_has_a_test(mutation, root):
    assert (root / mutation.file).read_text().count(mutation.before) == 1
    assert mutation.before != mutation.after
    file, _, test = mutation.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (root / file).read_text()


def test_no_control_stands_twice():
    assert len({mutation.control for mutation in TABLE}) == len(TABLE)
