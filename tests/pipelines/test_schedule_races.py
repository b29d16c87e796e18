"""Schedules applied by many at once: one recurring run is left, and at no moment none.

1. `Stage` lets appliers act in a given order, one request at a time, on a server that is a list.
2. Threads apply files to the stand-in over HTTP, with `kfp.Client`.
"""

from __future__ import annotations

import datetime
import itertools
import random
import sys
import threading
import time
import traceback
from types import SimpleNamespace

import pytest
import yaml

from model.errors import InternalError, MissingInputError
from pipelines import cli, cluster, schedule_server, schedules, submit
from pipelines.schedules import Wanted

SECONDS = 90
"""For sixteen appliers that share one core with other work; alone they need three."""
ONE, TWO = (
    Wanted("monthly", f"0 0 {hour} 1 * *", True, {"recipe": "{}", "budget": "40", "trigger": "schedule:monthly"})
    for hour in (4, 5)
)


class Table:
    """The recurring runs of a server, as its client shows them. Times are whole seconds; ids say nothing about the order."""

    def __init__(self, tick: int, seed: int) -> None:
        self.runs: list[SimpleNamespace] = []
        self.clock, self.tick, self.ids = 1_790_000_000, tick, random.Random(seed)

    def add(self, wanted: Wanted, at_once: int = 1) -> None:
        self.clock += self.tick
        made = SimpleNamespace(recurring_run_id=str(self.ids.random()), display_name=wanted.name, description=wanted.description)
        made.trigger = SimpleNamespace(cron_schedule=SimpleNamespace(cron=wanted.cron))
        made.runtime_config = SimpleNamespace(parameters=wanted.parameters)
        made.pipeline_version_reference = SimpleNamespace(pipeline_version_id=None)
        made.created_at, made.status = datetime.datetime.fromtimestamp(self.clock, datetime.UTC), "ENABLED"
        made.no_catchup, made.max_concurrency = True, str(at_once)
        self.runs.append(made)

    def remove(self, identifier: str) -> None:
        self.runs = [run for run in self.runs if run.recurring_run_id != identifier]


class Stage:
    """Appliers in threads of their own, of which only that one acts whose turn it is."""

    def __init__(self, table: Table, specs: tuple[Wanted, ...]) -> None:
        self.table, self.words, self.least = table, [""] * len(specs), len(table.runs)
        self._go = [threading.Semaphore(0) for _ in specs]
        self._parked = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._apply, args=entry, daemon=True) for entry in enumerate(specs)]
        for thread in self._threads:
            thread.start()
            self._wait()

    def _wait(self) -> None:
        assert self._parked.acquire(timeout=SECONDS), "an applier neither asks nor ends"

    def _apply(self, number: int, wanted: Wanted) -> None:
        def turn(act):
            self._parked.release()
            assert self._go[number].acquire(timeout=SECONDS)
            return act()

        def add(experiment, pipeline, enabled, **fields):
            turn(lambda: self.table.add(wanted))

        server = SimpleNamespace(
            schedules=lambda: turn(lambda: list(self.table.runs)),
            add_schedule=add,
            remove_schedule=lambda identifier: turn(lambda: self.table.remove(identifier)),
        )
        try:
            self.words[number] = schedule_server._settle(server, wanted, "pipeline", "experiment").word
        except Exception as error:
            self.words[number] = repr(error)
        self._parked.release()

    def play(self, order) -> None:
        """Each number is a turn of that applier; then all go on to their ends, one after the other."""
        for number in [*order, *(n for n in range(len(self._go)) for _ in range(40))]:
            if self.words[number]:
                continue  # it has ended
            self._go[number].release()
            self._wait()
            if self.table.runs or self.least:
                self.least = min(len(self.table.runs), self.least or 1)


@pytest.fixture
def still(monkeypatch):
    """Pauses pass at once: `still(table)` lets its clock go on instead."""

    def patch(table):
        monkeypatch.setattr(schedule_server, "time", SimpleNamespace(sleep=lambda s: setattr(table, "clock", table.clock + s)))

    return patch


def orders(appliers, turns=5, count=15):
    """Orders of turns, at random."""
    for seed in range(count):
        order = [number for number in range(appliers) for _ in range(turns)]
        random.Random(seed).shuffle(order)
        yield order


@pytest.mark.parametrize("tick", [0, 1], ids=["in one second", "one after the other"])
@pytest.mark.parametrize("specs", [(ONE, ONE), (ONE, TWO), (ONE, TWO, ONE)], ids=["one file", "two files", "three appliers"])
@pytest.mark.parametrize("first", [(), (ONE,), (TWO, ONE)], ids=["nothing there", "one there", "two there"])
def test_in_no_order_of_acts_is_a_schedule_without_a_run_or_left_with_two(still, first, specs, tick):
    for seed, order in enumerate(orders(len(specs))):
        table = Table(tick, seed)
        still(table)
        for wanted in first:
            table.add(wanted)
        stage = Stage(table, specs)
        stage.play(order)
        assert set(stage.words) <= {"make", "replace", "tidy", "same", "lost"}, (order, stage.words)
        assert stage.least >= 1, f"none at some moment: {order}"
        (left,) = schedules.found(table.runs)
        told = {wanted.spec for wanted, word in zip(specs, stage.words, strict=True) if word != "lost"}
        assert left.spec in told, (order, stage.words)


def test_one_that_someone_deletes_meanwhile_and_one_that_the_server_alters_are_told(still):
    table = Table(1, 0)
    still(table)
    server = SimpleNamespace(schedules=lambda: list(table.runs), add_schedule=lambda *given, **fields: None)
    with pytest.raises(MissingInputError, match="vanished while it was made"):
        schedule_server._settle(server, ONE, "pipeline", "experiment")
    server.add_schedule = lambda *given, **fields: table.add(ONE, at_once=5)
    with pytest.raises(InternalError, match="runs at once: 5 instead of 1"):
        schedule_server._settle(server, ONE, "pipeline", "experiment")


# ------------------------------------------------------------------------------------------------------ over HTTP


@pytest.fixture
def write(tmp_path):
    """Writes a file with one schedule at an hour."""

    def make(hour):
        entry = {"name": "monthly", "cron": f"0 {hour} 1 * *", "recipe": "tiny", "follow_data": [], "budget_gpu_hours": 40}
        path = tmp_path / f"{hour}.yaml"
        path.write_text(yaml.safe_dump({"schedules": [entry]}))
        return path

    return make


def apply_at_once(files, kfp):
    """Applies each file in a thread of its own, from the same moment on; the errors. If one does not end, its stack."""
    ready, errors = threading.Barrier(len(files)), []
    package = submit.package(cluster.connect().addresses)

    def one(path):
        try:
            server, wanted = cluster.connect(), schedules.read(path, "UTC")
            ready.wait(SECONDS)
            schedule_server.apply(server, wanted, package, "biovlm")
        except BaseException as error:
            ready.abort()  # the others need not wait for one that does not come
            errors.append(error)

    threads = [threading.Thread(target=one, args=(path,), daemon=True) for path in files]
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), stacks(threads, kfp)
    return errors


def stacks(threads, kfp):
    """Where those stand that did not end, and what the server was asked last."""
    frames = sys._current_frames()
    alive = [traceback.format_stack(frames[thread.ident]) for thread in threads if thread.is_alive() and thread.ident in frames]
    said = "\n".join("".join(stack[-6:]) for stack in alive)
    return f"{len(alive)} of {len(threads)} appliers did not end in {SECONDS} s; asked last: {kfp.asked[-8:]}\n{said}"


def meeting(make):
    """`make`, where the first two wait for each other: both have looked and found nothing, on however slow a machine."""
    turn, first_two = itertools.count(), threading.Barrier(2)

    def made(*given):
        if next(turn) < 2:
            first_two.wait(SECONDS)
        make(*given)

    return made


@pytest.mark.parametrize("tick", [0, 1], ids=["all made in the same second", "one after the other"])
def test_sixteen_at_once_end_with_one_recurring_run(kfp, write, tick, monkeypatch):
    monkeypatch.setattr(schedule_server, "_make", meeting(schedule_server._make))
    kfp.tick, kfp.jitter = tick, 0.2
    assert apply_at_once([write(3)] * 16, kfp) == []
    assert kfp.asked.count("POST /apis/v2beta1/recurringruns") > 1, "nobody ran into anybody: the test shows nothing"
    assert [len(kfp.recurring), len(kfp.pipelines), len(kfp.experiments)] == [1, 1, 1]


def test_sixteen_that_replace_one_at_once_end_with_one(kfp, write):
    assert cli.call(["schedule", "apply", str(write(3))]) == 0
    kfp.jitter = 0.05
    assert apply_at_once([write(4)] * 16, kfp) == []
    assert [run["trigger"]["cron_schedule"]["cron"] for run in kfp.recurring.values()] == ["0 0 4 1 * *"]


def test_two_files_at_once_end_with_the_one_run_of_one_of_them(kfp, write):
    kfp.jitter = 0.05
    assert apply_at_once([write(4), write(5)] * 4, kfp) == []
    (left,) = kfp.recurring.values()
    assert left["trigger"]["cron_schedule"]["cron"] in ("0 0 4 1 * *", "0 0 5 1 * *")


def test_who_lost_to_another_file_is_told_by_the_exit_code_too(kfp, write, monkeypatch, capsys):
    lost = schedule_server.Applied("monthly", "lost", "other", True, ())
    monkeypatch.setattr(schedule_server, "apply", lambda *_: [lost])
    path = write(4)
    assert cli.call(["schedule", "apply", str(path)]) == 65
    told = capsys.readouterr()
    assert "monthly: not made: another file" in told.out
    assert f"biovlm schedule diff {path}" in told.err
