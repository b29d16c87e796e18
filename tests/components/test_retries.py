"""Layers that start a step again, each within its own bound, and the bound over all of them."""

from __future__ import annotations

import itertools

import pytest

from components.platform.retries import MOST_ATTEMPTS, Attempts, again, forgiven
from model.config import Resources
from model.errors import NEVER_RETRIED, ExitCode, RefusedError


def worker(attempts, ends):
    """One attempt: counts itself, and gives the code that it ends with."""
    try:
        attempts.begin()
    except RefusedError as error:
        return int(error.exit_code)
    code = next(ends)
    if code == ExitCode.PREEMPTED:
        attempts.stopped()
    return code


def layer(times, below, attempts):
    """Starts what is below it again, `times` at most, if its end may be tried again."""

    def run():
        for _ in range(1 + times):
            code = below()
            if not again(code, attempts.counted):
                return code
        return code

    return run


def pipeline(tmp_path, ends, pipeline_times=4, job_times=4):
    """KFP over a cluster's job over Ray, with a stub for the training; the codes that attempts ended with."""
    attempts, codes = Attempts(tmp_path / "scratch.attempts", "run-1"), []

    def train():
        code = worker(attempts, ends)
        codes.append(code)
        return code

    def ray():
        return layer(forgiven(4, attempts.counted), train, attempts)()

    end = layer(pipeline_times, layer(job_times, ray, attempts), attempts)()
    return end, codes


def test_all_layers_together_try_three_times_and_not_the_product_of_their_bounds(tmp_path):
    end, codes = pipeline(tmp_path, itertools.repeat(ExitCode.INTERNAL))
    assert codes.count(ExitCode.INTERNAL) == MOST_ATTEMPTS == 3
    assert end in (ExitCode.INTERNAL, ExitCode.REFUSED)


@pytest.mark.parametrize("code", sorted(NEVER_RETRIED))
def test_what_cannot_change_is_tried_once(tmp_path, code):
    assert pipeline(tmp_path, itertools.repeat(code)) == (code, [code])


def test_a_stop_from_outside_is_free(tmp_path):
    ends = iter([ExitCode.PREEMPTED] * 40 + [ExitCode.INTERNAL] * 2 + [ExitCode.DONE])
    end, codes = pipeline(tmp_path, ends, pipeline_times=30)
    assert end == ExitCode.DONE
    assert len(codes) == 43


def test_a_process_that_vanishes_counts_like_one_that_fails():
    assert again(None, MOST_ATTEMPTS - 1)
    assert not again(None, MOST_ATTEMPTS)
    assert not again(ExitCode.DONE, 1)


def test_a_new_run_of_the_pipeline_counts_anew_and_a_used_up_one_begins_no_more(tmp_path):
    path = tmp_path / "a.attempts"
    for _ in range(3):
        Attempts(path, "run-1").begin()
    with pytest.raises(RefusedError, match="tried 3 times in this run, 3 are allowed"):
        Attempts(path, "run-1").begin()
    Attempts(path, "run-2").begin()
    assert (Attempts(path, "run-1").counted, Attempts(path, "run-2").counted) == (3, 1)


def test_a_layer_may_forgive_what_is_left_and_never_more_than_it_wants():
    assert [forgiven(1, attempts) for attempts in range(5)] == [1, 1, 0, 0, 0]
    assert [forgiven(2, attempts) for attempts in range(5)] == [2, 1, 0, 0, 0]
    highest = next(limit.le for limit in Resources.model_fields["max_failures"].metadata if hasattr(limit, "le"))
    assert forgiven(highest, 0) == highest, "what the recipe allows is not cut at the first start"
