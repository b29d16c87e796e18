from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model import manifest
from model.errors import ExitCode
from model.training.__main__ import main
from tests.model.tiny_stages import recipe_text

ROOT = Path(__file__).parents[3]
DEADLINE_S = 280


@pytest.fixture
def arguments(phantom: Path, bases: dict[str, Path], tmp_path: Path) -> list[str]:
    (tmp_path / "short.yaml").write_text(recipe_text())
    return [
        *(str(tmp_path / "short.yaml"), "--stage", "instruct", "--data", f"phantom={phantom}"),
        *("--base", f"tower={bases['tower']}", "--base", f"language={bases['language']}"),
    ]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """`main` takes the signals for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(arguments: list[str], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "model.training", *arguments, "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finished_steps(out: Path) -> int:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((row["step"] for row in map(json.loads, lines) if row["event"] == "metrics"), default=0)


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while finished_steps(out) < step:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_after_sigterm_and_kill_the_same_command_ends_with_the_same_bytes(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == ExitCode.DONE

    out = tmp_path / "resumed"
    process = start(arguments, out)
    wait_for_step(process, out, 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.PREEMPTED, errors
    assert "hint: the same command goes on from there" in errors
    stopped = finished_steps(out)
    assert (out / "work" / "attempt-000001" / f"step-{stopped:06d}").is_dir()

    process = start(arguments, out)
    wait_for_step(process, out, stopped + 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    assert not (out / "checkpoint").exists()

    assert main([*arguments, "--out", str(out)]) == ExitCode.DONE
    digests = {manifest.verify(folder / "checkpoint").digest for folder in (tmp_path / "whole", out)}
    assert len(digests) == 1
    resumes = [
        row["step"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if row["event"] == "resumed"
    ]
    assert resumes[0] == stopped
    # Every second step is saved, and the newest one may have been under way: of three further steps all can be lost, no more.
    assert resumes[1] >= stopped


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (["--stage", "dance"], ExitCode.USAGE, "invalid choice"),
        (["--data", "phantom"], ExitCode.USAGE, "NAME=DIR"),
        (["--set", "stages.instruct.lora.rnk=3"], ExitCode.BAD_CONFIG, "did you mean `rank`"),
        (["--data", "phantom=/nowhere"], ExitCode.MISSING_INPUT, "/nowhere"),
        (["--base", "tower=/nowhere"], ExitCode.MISSING_INPUT, "/nowhere"),
        (["--set", "model.tower.source=/nowhere"], ExitCode.MISSING_INPUT, "no folder /nowhere"),
        (["--out", "/dev/null/out"], ExitCode.CANNOT_WRITE, "cannot write /dev/null/out"),
    ],
)
def test_every_mistake_has_its_exit_code_and_a_hint(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], code: ExitCode, says: str
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out"), *change]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "hint: " in said
