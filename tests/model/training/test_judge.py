from __future__ import annotations

import json
import math

import pytest

from model.config import Guard
from model.training.judge import Judge, Verdict

NOISY = [1.0 + 0.1 * ((7 * number) % 5 - 2) for number in range(16)]
"""Median 1, median deviation 0.1."""


def judge(losses: list[float] | None = None, **limits: object) -> Judge:
    found = Judge(Guard.model_validate({"window": 16, **limits}))
    for number, loss in enumerate(NOISY if losses is None else losses):
        assert found.record(number, loss, 1.0) is Verdict.TAKEN
    return found


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_step_that_is_not_finite_is_never_taken_not_even_the_first(loss: float, norm: float) -> None:
    fresh = Judge(Guard())
    assert fresh.record(0, loss, norm, [3]) is Verdict.SKIPPED
    assert (fresh.num_skips, fresh.last_skips[0].suspects) == (1, [3])


def test_the_window_ignores_what_is_not_finite_and_the_next_good_step_is_taken() -> None:
    before = judge()
    window = before.state()["window"]
    assert before.record(16, math.nan, math.nan) is Verdict.SKIPPED
    assert before.state()["window"] == window
    assert before.record(17, 1.05, 1.0) is Verdict.TAKEN
    assert before.num_skips == 1


def test_a_spike_is_not_taken_and_not_remembered_as_normal() -> None:
    found = judge(spike=8.0)
    assert found.objection(1.0 + 7.9 * 0.14826) == ""
    assert found.record(16, 1.0 + 8.1 * 0.14826, 1.0) is Verdict.SKIPPED
    assert "8.1 robust standard deviations above the last 16" in found.last_skips[0].why
    assert max(found.state()["window"]) < 1.3


def test_nothing_is_a_spike_before_a_quarter_of_the_window_is_known_or_when_nobody_wants_it() -> None:
    assert judge(NOISY[:3]).objection(1e6) == ""
    assert judge(NOISY[:4]).objection(1e6) != ""
    assert judge(spike=None).objection(1e6) == ""


def test_equal_losses_divide_by_nothing_and_a_little_more_is_no_spike() -> None:
    for level in (0.0, 2.0):
        flat = judge([level] * 16)
        assert flat.objection(level) == ""
        assert flat.objection(level * 1.4) == ""
        assert flat.objection(level * 3 + 1) != ""


def test_a_slow_rise_is_told_once_a_window_and_taken() -> None:
    rising = judge([1.0] * 8)
    told = []
    for number in range(8, 60):
        assert rising.record(number, 1.0 + 0.03 * (number - 8), 1.0) is Verdict.TAKEN
        told.append(rising.drifting(number))
    assert told[0] is False
    assert 1 <= sum(told) <= 4
    assert not any(judge().drifting(number) for number in range(16, 40))


def test_too_many_skips_roll_back_once_and_then_give_up() -> None:
    found = judge(max_skips=2, skip_window=10)
    verdicts = [found.record(number, math.nan, 1.0) for number in (20, 24, 29)]
    assert verdicts == [Verdict.SKIPPED, Verdict.SKIPPED, Verdict.ROLL_BACK]
    assert [skip.number for skip in found.last_skips] == [20, 24, 29]
    found.jump(20, 30)
    assert [found.behind(number) for number in (19, 20, 29, 30)] == [19, 30, 30, 30]
    assert [found.record(number, math.nan, 1.0) for number in (40, 41, 42)][-1] is Verdict.GIVE_UP


def test_skips_far_apart_are_forgiven() -> None:
    found = judge(max_skips=2, skip_window=10)
    assert {found.record(number, math.nan, 1.0) for number in range(20, 100, 5)} == {Verdict.SKIPPED}
    assert found.num_skips == 16


def test_with_no_skip_allowed_the_first_one_rolls_back() -> None:
    assert judge(max_skips=0).record(20, math.nan, 1.0) is Verdict.ROLL_BACK


def test_a_judge_from_its_state_decides_the_same_to_the_last_bit() -> None:
    losses = [1.0 + 0.1 * math.sin(number) for number in range(40)] + [9.0, math.nan, 1.0, 8.0, 1.1, 1.2]
    whole, parted = Judge(Guard(window=16)), Judge(Guard(window=16))
    for number, loss in enumerate(losses):
        parted = Judge(Guard(window=16), json.loads(json.dumps(parted.state())))  # as a checkpoint carries it
        assert parted.record(number, loss, 1.0, [number]) is whole.record(number, loss, 1.0, [number])
        assert parted.drifting(number) is whole.drifting(number)
        assert parted.state() == whole.state()
    assert whole.num_skips == 3
