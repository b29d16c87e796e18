"""What is lost when a training process is killed: kill -9 at random moments, in three settings, against an undisturbed run.

    python -m benchmarks.crash loop --trials 500     one process, forked from a warm parent
    python -m benchmarks.crash zero --trials 20      two DeepSpeed ranks, one of them killed
    python -m benchmarks.crash ray --trials 10       two workers of a local Ray, one of them killed

1. A run of the real loop on a toy network (tests/toy_run.py) is started and killed at a random moment; it is started again, and may
   be killed again, until it is done. `trials` counts kills.
2. A kill is a failure if the next start takes up more than one checkpoint interval and one step behind the last finished one, sets a
   checkpoint aside (nothing here damages any), or the run ends with other bytes than the undisturbed one: weights, moments, random
   numbers.
3. Printed: trials, failures, the seed, the 95 % upper bound 3/n of the rate of failures where there is none, and the seconds from a
   start (under Ray: from the last step before) to the first new step.

A step lasts `STEP_SECONDS` at least, so that writing a checkpoint is short beside it, as it is in real training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from model.config import Resources, Strategy
from model.errors import BiovlmError, ExitCode
from model.training.optimizer import Group
from model.training.ranks import Ranks, ending_together
from model.training.reporter import ListReporter
from model.training.sharing import Sharing
from tests.fault_plan import Fault, FaultPlan
from tests.forks import start
from tests.toy_run import Toy, finish, toy_training

EVERY, STEPS, STEP_SECONDS = 5, 30, 0.02
MOST_KILLS = 4
"""In one run; then it may finish."""
MODES = ("loop", "zero", "ray")


@dataclass
class Result:
    """What happened in all trials."""

    trials: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, float]:
        """Figures for the log."""
        seconds = sorted(self.recovery_seconds) or [0.0]
        return {
            "trials": float(self.trials),
            "runs": float(self.runs),
            "failures": float(len(self.failures)),
            "failure_rate_upper_95": 3 / max(1, self.trials) if not self.failures else float("nan"),
            "most_lost_steps": float(max(self.lost, default=0)),
            "mean_lost_steps": sum(self.lost) / max(1, len(self.lost)),
            "recovery_seconds_p50": seconds[len(seconds) // 2],
            "recovery_seconds_p95": seconds[int(len(seconds) * 0.95)],
        }


class Marks(ListReporter):
    """Writes each finished step down at once, with its time; steps last a while."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def metrics(self, step: int, total: int, values: Any) -> None:
        _append(self._path, {"step": step})
        time.sleep(STEP_SECONDS)

    def resumed(self, step: int) -> None:
        _append(self._path, {"resumed": step})

    def note(self, text: str) -> None:
        _append(self._path, {"note": text})


def measure() -> dict[str, float]:
    """All three, with few trials where they are slow."""
    counts = {"loop": 500, "zero": 12, "ray": 5}
    found = {mode: trials(mode, count, seed=0).numbers() for mode, count in counts.items()}
    return {f"{mode}_{name}": value for mode, numbers in found.items() for name, value in numbers.items()}


def trials(mode: str, count: int, seed: int) -> Result:
    """Run until `count` processes were killed.

    Args:
        mode: One of MODES.
        count: Kills.
        seed: Of the moments.
    """
    torch.set_num_threads(1)
    result, draw = Result(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="crash-") as name:
        root = Path(name)
        if mode == "ray":
            _under_ray(root, result, draw, count)
            return result
        world_size = 2 if mode == "zero" else 1
        _warm(root / "warm", mode)
        acts = _acts(root / "whole", world_size)
        began = time.monotonic()
        _wait([start(act) for act in acts], None)
        length = time.monotonic() - began
        expected = (root / "whole" / "digest").read_text()
        while result.trials < count:
            _run(root / f"run-{result.runs}", world_size, length, expected, result, draw)
            if result.runs % 20 == 0:
                print(f"{mode}: {result.trials} kills, {len(result.failures)} failures", file=sys.stderr, flush=True)
    return result


def _warm(folder: Path, mode: str) -> None:
    """Import what the children would: torch loads half of itself at the first step of an optimizer."""
    finish(toy_training(folder)[0])
    if mode == "zero":
        from model.training.zero import _import_deepspeed

        _import_deepspeed(Strategy.ZERO2, torch.device("cpu"))


def _run(folder: Path, world_size: int, length: float, expected: str, result: Result, draw: random.Random) -> None:
    """One run, killed until it is done."""
    kills = 0
    while not (folder / "digest").exists():
        before = _last(folder / "marks", "step")
        began = time.time()
        kill_after = draw.uniform(0.0, length * 1.1) if kills < MOST_KILLS else None
        killed = _wait([start(act) for act in _acts(folder, world_size)], kill_after, draw.randrange(world_size))
        rows = [row for row in _rows(folder / "marks") if row["time"] >= began]
        if kills and rows:
            _judge(rows, before, began, result, f"{folder.name}, kill {kills}")
        kills += killed
        result.trials += killed
    result.runs += 1
    if (folder / "digest").read_text() != expected:
        result.failures.append(f"{folder.name}: other bytes at the end")


def _judge(rows: Sequence[dict[str, Any]], before: int, began: float, result: Result, where: str) -> None:
    """What the start after a kill took up, by what it wrote down; `before` was the last finished step."""
    resumed = next((row["resumed"] for row in rows if "resumed" in row), 0)
    steps = [row for row in rows if "step" in row]
    if steps:
        result.lost.append(max(0, before - resumed))
        result.recovery_seconds.append(steps[0]["time"] - began)
        if before - resumed > EVERY + 1:
            result.failures.append(f"{where}: {before - resumed} steps lost")
    if any("set aside" in row.get("note", "") for row in rows):
        result.failures.append(f"{where}: a checkpoint did not verify")


def _acts(folder: Path, world_size: int) -> list[Callable[[], int]]:
    """The processes of one attempt."""
    folder.mkdir(exist_ok=True)
    meet = folder / f"meet-{len(list(folder.glob('meet-*')))}"
    return [lambda rank=rank: _attempt(folder, meet, rank, world_size) for rank in range(world_size)]  # type: ignore[misc]


def _attempt(folder: Path, meet: Path, rank: int, world_size: int) -> int:
    def make(toy: Toy, groups: Sequence[Group], ranks: Ranks) -> Sharing:
        from model.training.zero import Zero

        return Zero(Strategy.ZERO2, [toy.network], groups, (0.9, 0.999), 0.0, torch.device("cpu"), ranks)

    if world_size > 1:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the other rank's end is told at length, each time)
        distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world_size)
    else:
        meet.touch()
    marks = Marks(folder / "marks") if rank == 0 else ListReporter()

    @ending_together
    def run() -> str:
        ranks = Ranks.current(torch.device("cpu"), 30.0)
        sharing = make if world_size > 1 else None
        training, _ = toy_training(folder / "work", marks, None, ranks, sharing, every=EVERY, steps=STEPS)
        return finish(training)

    try:
        digest = run()
    except BiovlmError as error:
        return int(error.exit_code)
    if rank == 0:
        (folder / "digest.tmp").write_text(digest)
        (folder / "digest.tmp").rename(folder / "digest")
    return int(ExitCode.DONE)


def _wait(processes: Sequence[int], kill_after: float | None, victim: int = 0) -> bool:
    """Wait for all; whether the victim was killed while it ran."""
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(processes[victim], signal.SIGKILL)  # not yet waited for, so the id is still this process's
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return codes[victim] == -signal.SIGKILL


def _under_ray(root: Path, result: Result, draw: random.Random, count: int) -> None:
    """Each run loses one of two workers at a random step; Ray starts both again."""
    from components.platform import launch
    from components.platform.settings import Settings

    os.environ["OMP_NUM_THREADS"] = "1"
    home = Settings.from_environment({"BIOVLM_HOME": str(root)})
    head = launch.start(home, 3)
    settings = Settings.from_environment({"BIOVLM_HOME": str(root), "BIOVLM_RAY": str(head.address_file)})
    resources = Resources(workers=2, cpus_per_worker=0.5, max_failures=1)
    expected = ""
    try:
        while result.trials < count:
            folder = root / f"run-{result.runs}"
            step = draw.randint(1, 24)
            faults = [Fault("kill", draw.randrange(2), step)] if expected else []
            plan = FaultPlan(folder / "plan", faults).write()
            job = {name: str(folder / name) for name in ("attempts", "stop", "marks", "digest")}
            job |= {"scratch": str(folder), "plan": str(plan.folder), "run_id": "crash"}
            launch.run_workers("tests.components.ray_worker.train", job, folder.name, folder / "ray", resources, settings)
            plan.assert_all_fired()
            digest = (folder / "digest").read_text()
            result.runs += 1
            if faults:
                _count_restart(folder, step, result)
                if digest != expected:
                    result.failures.append(f"{folder.name}: other bytes at the end")
            expected = expected or digest
    finally:
        head.stop()


def _count_restart(folder: Path, step: int, result: Result) -> None:
    """The two attempts stand behind each other in the marks; the second begins where the numbers fall or time passed."""
    rows = [line.split() for line in (folder / "marks").read_text().splitlines()]
    before, after = rows[step - 2] if step > 1 else None, rows[step - 1]
    lost = step - int(after[0])
    result.trials += 1
    result.lost.append(lost)
    if before:
        result.recovery_seconds.append(float(after[1]) - float(before[1]))
    if lost > 4 + 1:  # the toy's interval under Ray, and one step
        result.failures.append(f"{folder.name}: {lost} steps lost")


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**row, "time": time.time()}) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _last(path: Path, name: str) -> int:
    return max((row[name] for row in _rows(path) if name in row), default=0)


def main() -> int:
    """Run one mode, print its figures, and end with 1 if a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for all that was measured, as JSON")
    options = parser.parse_args()
    result = trials(options.mode, options.trials, options.seed)
    print(f"mode {options.mode}, seed {options.seed}")
    for name, value in result.numbers().items():
        print(f"  {name:<28} {value:>12.4f}")
    for failure in result.failures:
        print(f"  FAILED {failure}")
    if options.out:
        options.out.write_text(json.dumps({"mode": options.mode, "seed": options.seed, **asdict(result)}, indent=1))
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
