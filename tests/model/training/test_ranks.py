"""Two real processes with gloo, against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model import manifest
from model.architecture import tensors
from model.errors import ExitCode
from model.training.reporter import ListReporter
from model.training.stage import StageInputs, run_stage
from tests.model.tiny_stages import piece

ROOT = Path(__file__).parents[3]
DEADLINE_S = 280
LEARNED = ("connector.safetensors", "adapters/1-instruct/adapter_model.safetensors")
WORKER = """
import json, math, sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed
from model.config import TrainSlice
from model.errors import BiovlmError, DataError
from model.training.objective import AnswerObjective
from model.training.reporter import ListReporter
from model.training.stage import StageInputs, run_stage

job = json.loads(sys.argv[1])
rank = int(sys.argv[2])
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{job['meet']}", rank=rank, world_size=2, timeout=timedelta(seconds=250))
given = StageInputs({"phantom": Path(job["phantom"])}, {name: Path(path) for name, path in job["bases"].items()})
original = AnswerObjective.loss_sum
codes = []
for run in job["runs"]:
    reporter, root, asked, passes = ListReporter(), Path(run["root"]), [0], [0]

    def loss_sum(self, micro):
        passes[0] += 1
        if rank == 1 and passes[0] == run["failing_pass"]:
            raise DataError("an image is damaged", "restore it")
        loss = original(self, micro)
        return loss * math.nan if rank == 1 and passes[0] == run["bad_pass"] else loss

    def stop():
        asked[0] += 1
        return rank == run["stopped_rank"] and asked[0] == 2

    AnswerObjective.loss_sum = loss_sum
    try:
        run_stage(TrainSlice.model_validate(run["piece"]), given, root / "work", root / "final", reporter, stop)
        codes.append([0, " ".join(reporter.notes)])
    except BiovlmError as error:
        codes.append([int(error.exit_code), error.message])
    codes[-1].append(len(reporter.rows))
Path(job["answers"], f"{rank}.json").write_text(json.dumps(codes))
distributed.destroy_process_group()
"""


# Without dropout: each worker has random numbers of its own.
CHANGES: dict[str, Any] = {"lora": {"rank": 4, "alpha": 8}, "epochs": 0.4, "micro_batch_tokens": 200}


@dataclass(frozen=True)
class Answers:
    """What two workers did in five runs: plain, stopped by rank 1, going on, with a bad loss and with an error on rank 1."""

    root: Path
    leader: list[list[Any]]
    """Of each run exit code, message, reported steps."""
    other: list[list[Any]]


@pytest.fixture(scope="module")
def answers(phantom: Path, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    root = tmp_path_factory.mktemp("ranks")
    slice_ = piece("instruct", workers=2, **CHANGES).model_dump(mode="json")
    plain = {"root": str(root / "plain"), "piece": slice_, "stopped_rank": -1, "bad_pass": -1, "failing_pass": -1}
    resumed = plain | {"root": str(root / "resumed")}
    bad, failing = plain | {"root": str(root / "bad"), "bad_pass": 3}, plain | {"root": str(root / "failing"), "failing_pass": 3}
    runs = [plain, resumed | {"stopped_rank": 1}, resumed, bad, failing]
    job = {
        "meet": str(root / "meet"),
        "phantom": str(phantom),
        "bases": {name: str(path) for name, path in bases.items()},
        "answers": str(root),
        "runs": runs,
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", WORKER, json.dumps(job)]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=DEADLINE_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return Answers(root, *(json.loads((root / f"{rank}.json").read_text()) for rank in (0, 1)))


def test_two_workers_learn_what_one_learns(inputs: StageInputs, tmp_path: Path, answers: Answers) -> None:
    run_stage(piece("instruct", **CHANGES), inputs, tmp_path / "work", tmp_path / "one", ListReporter())
    for name in LEARNED:
        alone, together = (tensors.read(folder / name) for folder in (tmp_path / "one", answers.root / "plain" / "final"))
        for key, weight in alone.items():
            # Measured 5e-8 after six steps: sums in another order.
            assert (weight - together[key]).abs().max() < 1e-6, key


def test_workers_stop_together_and_go_on_to_the_same_bytes(answers: Answers) -> None:
    total = answers.leader[0][2]
    assert [code for code, _, _ in answers.leader[:3]] == [code for code, _, _ in answers.other[:3]] == [0, ExitCode.PREEMPTED, 0]
    assert [steps for _, _, steps in answers.leader[:3]] == [total, 2, total - 2]
    assert [steps for _, _, steps in answers.other] == [0, 0, 0, 0, 0]  # rank 0 alone reports
    digests = {manifest.read(answers.root / name / "final").digest for name in ("plain", "resumed")}
    assert len(digests) == 1


def test_a_bad_loss_on_one_worker_is_learned_from_by_none(answers: Answers) -> None:
    leader, other = answers.leader[3], answers.other[3]
    assert leader[0] == other[0] == 0
    assert "not taken: the loss is nan; records train-" in leader[1]
    assert manifest.read(answers.root / "bad" / "final").facts["skipped_steps"] == 1


def test_an_error_on_one_worker_soon_ends_the_other_with_its_letter(answers: Answers) -> None:
    """The group's own timeout is far behind that of this test."""
    assert answers.leader[4][:2] == [ExitCode.BAD_DATA, "an image is damaged"]
    assert answers.other[4][:2] == [ExitCode.BAD_DATA, "an image is damaged"]
