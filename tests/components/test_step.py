"""Keys, reuse, and the ways in which a step can end."""

from __future__ import annotations

import ast
import errno
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.platform import code, events
from components.platform.step import key_of
from model.errors import DivergedError, MissingInputError

PIECE = {"seed": 0, "rate": 0.1}
AGAIN = """
import sys
from components.platform.step import run_step
def never(work):
    raise AssertionError
run_step("train", "align", {"seed": 0, "rate": 0.1}, {}, sys.argv[1] + "/second.json", never)
"""


def folders(settings, pattern):
    return sorted(path.name for path in settings.store.glob(f"steps/train/{pattern}"))


def test_the_same_step_runs_once(step, happened):
    first, second = step(PIECE), step(PIECE)
    assert (step.runs, first) == (1, second)
    assert happened() == ["step_started", "finished", "step_started", "reused"]


def test_another_slice_another_input_or_other_code_makes_another_key():
    keys = {
        key_of("train", PIECE, {"data": "a"}, "code"),
        key_of("train", PIECE | {"seed": 1}, {"data": "a"}, "code"),
        key_of("train", PIECE, {"data": "b"}, "code"),
        key_of("train", PIECE, {"base": "a"}, "code"),
        key_of("train", PIECE, {"data": "a"}, "other"),
        key_of("evaluate", PIECE, {"data": "a"}, "code"),
    }
    assert len(keys) == 6


def test_what_cannot_change_a_result_does_not_change_the_key():
    def key(**resources):
        return key_of("train", PIECE | {"resources": {"workers": 2, "memory_gib": 4, **resources}}, {}, "code")

    assert key() == key(memory_gib=64) == key(max_failures=0)
    assert key() != key(workers=1)
    reordered = {name: PIECE[name] for name in reversed(PIECE)}
    assert key_of("train", PIECE, {}, "c") == key_of("train", reordered, {}, "c")


def test_a_step_that_another_run_is_making_waits_and_is_reused(step, happened):
    made, ends = threading.Event(), []

    def slowly(work):
        made.set()
        while "note" not in happened() and not ends:
            time.sleep(0.01)

    def second():
        made.wait(20)
        ends.append(subprocess.run([sys.executable, "-c", AGAIN, str(step.folder)], cwd=code.ROOT, check=False).returncode)

    step.makes = slowly
    other = threading.Thread(target=second)
    other.start()
    step(PIECE)
    other.join()
    assert (ends, step.runs) == ([0], 1)
    assert happened()[-1] == "reused"


def test_a_result_that_was_changed_by_one_byte_is_set_aside_and_made_again(step, settings, happened):
    first = step(PIECE)
    weights = first.folder / "weights"
    content = bytearray(weights.read_bytes())
    content[3] ^= 1
    weights.write_bytes(content)
    assert step(PIECE).digest == first.digest
    assert step.runs == 2
    assert len(folders(settings, "bad-*")) == 1
    (note,) = [event for event in happened(types_only=False) if event.type == "note"]
    assert "damaged" in note.message


def test_an_input_that_was_changed_is_refused_with_77(step, happened):
    parent = step(PIECE)
    (parent.folder / "weights").write_text("something else")
    with pytest.raises(SystemExit) as stopped:
        step(PIECE, name="instruct", parent=str(step.folder / "out" / "align.json"))
    assert stopped.value.code == 77
    assert "weights" in happened(types_only=False)[-1].message


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (MissingInputError("no set", "import it"), 66, "no set"),
        (DivergedError("loss is nan"), 79, "loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/file"), 73, "cannot write /x/file"),
        (RuntimeError("Error: No space left on device (os error 28)"), 73, "No space left"),
        (KeyboardInterrupt(), 75, "stopped"),
        (KeyError("patient Miller"), 70, "KeyError"),
    ],
)
def test_every_way_of_failing_has_its_exit_code_and_says_so(step, settings, happened, error, exit_code, words, capfd):
    def fail(work):
        raise error

    step.makes = fail
    with pytest.raises(SystemExit) as stopped:
        step(PIECE)
    last = happened(types_only=False)[-1]
    assert (stopped.value.code, last.exit_code, last.type) == (exit_code, exit_code, "failed")
    assert words in last.message
    assert not [name for name in folders(settings, "*") if not name.endswith(".json")]
    assert "Miller" not in capfd.readouterr().err + settings.events.read_text()


def test_a_trace_shows_the_error_only_when_asked(step, monkeypatch, capfd):
    monkeypatch.setenv("BIOVLM_TRACE", "1")
    step.makes = lambda work: {}["patient Miller"]
    with pytest.raises(SystemExit):
        step(PIECE)
    assert "patient Miller" in capfd.readouterr().err


def test_a_failed_step_leaves_the_former_result_untouched(step):
    first = step(PIECE)

    def fail(work):
        raise DivergedError("loss is nan")

    step.makes = fail
    with pytest.raises(SystemExit):
        step(PIECE | {"seed": 1})
    step.makes = None
    assert step(PIECE) == first
    assert step.runs == 2


def test_no_room_for_the_result_ends_with_73(step, happened):
    """RLIMIT_FSIZE stands for a full disk: the write fails when it is flushed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def big(work):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        work.final.parent.mkdir(parents=True, exist_ok=True)
        (work.final.parent / "big").write_bytes(b"0" * 1_000_000)

    step.makes = big
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stopped:
            step(PIECE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert stopped.value.code == 73
    assert "free some space" in happened(types_only=False)[-1].hint


SLOW_STEP = """
import sys, time
from components.platform.step import run_step
def slow(work):
    print("begun", flush=True)
    time.sleep(60)
run_step("train", "align", {}, {}, sys.argv[1], slow)
"""


def test_sigterm_ends_a_step_with_75_and_nothing_half_written(settings, tmp_path):
    command = [sys.executable, "-c", SLOW_STEP, str(tmp_path / "out.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=code.ROOT)
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    last = events.read(settings.events)[-1]
    assert (process.returncode, last.exit_code) == (75, 75)
    assert not (tmp_path / "out.json").exists()


def test_a_reused_step_imports_nothing_heavy(step, tmp_path):
    step({})
    script = SLOW_STEP + "print(sorted({'torch', 'ray', 'mlflow', 'kfp', 'dvc', 'numpy'} & set(sys.modules)))"
    command = [sys.executable, "-c", script, str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=code.ROOT, check=True)
    assert done.stdout == "[]\n"


def test_after_a_stop_no_further_step_begins(step, settings):
    settings.run_folder.mkdir(parents=True)
    (settings.run_folder / "stop").touch()
    with pytest.raises(SystemExit) as stopped:
        step(PIECE)
    assert (stopped.value.code, step.runs) == (75, 0)


def test_the_record_says_what_the_key_was_made_of(step, settings):
    from components.platform.store import Store

    parent = step(PIECE)
    child = step(PIECE | {"seed": 2}, name="instruct", parent=str(step.folder / "out" / "align.json"))
    record = Store(settings.store).record("train", child.folder.name)
    assert record.piece == {"seed": 2, "rate": 0.1}
    assert record.identity == {"parent": parent.digest}
    assert record.inputs["parent"].uri == f"steps/train/{parent.folder.name}"
    assert record.code == code.digest("train")
    assert record.run_id == "run-1"


# ------------------------------------------------------------------------------------------------------------------ code


def imported(path):
    """First-party modules that a file imports, at any depth of its body."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.startswith(("model", "components"))}


def reachable(starts):
    seen, waiting = set(), list(starts)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(code.ROOT / path):
            candidate = Path(*name.split(".")).with_suffix(".py")
            if (code.ROOT / candidate).is_file():
                waiting.append(candidate)
    return {path.as_posix() for path in seen}


@pytest.mark.parametrize("kind", code.CODE)
def test_the_digest_covers_everything_that_a_step_can_import(kind):
    folder = Path("components", kind)
    starts = [folder / path.name for path in (code.ROOT / folder).glob("*.py")]
    needed = {name for name in reachable(starts) if not name.startswith("components/platform/")}
    assert needed - set(code.files(kind)) <= {name for name in needed if name.startswith(code.LEFT_OUT)}


def test_a_change_of_code_changes_only_the_steps_that_run_it(tmp_path):
    for name in ("model/evaluation/metrics.py", "model/training/loop.py", "components/train/step.py", "model/errors.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")

    def digests():
        code.digest.cache_clear()
        return {kind: code.digest(kind, tmp_path) for kind in code.CODE if kind not in ("promote", "register")}

    def changed_by(name):
        before = digests()
        (tmp_path / name).write_text("x = 2\n")
        after = digests()
        return {kind for kind in before if before[kind] != after[kind]}

    for name in (*code.GROUND, "model/evaluation/decision.py", "components/data/step.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert changed_by("model/evaluation/metrics.py") == {"evaluate"}
    assert changed_by("model/training/loop.py") == {"train"}
    assert changed_by("model/errors.py") == {"data", "train", "evaluate"}


# ---------------------------------------------------------------------------------------------------------------- events


def test_lines_of_many_writers_never_mix(tmp_path):
    path = tmp_path / "events.jsonl"
    script = "import sys; from components.platform.events import *; log = EventLog(Path(sys.argv[1]), sys.argv[2])\n"
    script += "for i in range(200): log.write(EventType.PROGRESS, done=i, metrics={str(k): 1.0 for k in range(40)})"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(n)], cwd=code.ROOT) for n in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert len(events.read(path)) == 600


def test_a_follower_waits_for_whole_lines_and_passes_over_strange_ones(tmp_path):
    path = tmp_path / "events.jsonl"
    log, follower = events.EventLog(path, "align"), events.Follower(path)
    log.write(events.EventType.NOTE, message="one")
    with path.open("a") as stream:
        stream.write('{"type": "from the future", "time": 1}\nnot json\n{"type": "note", "time"')
        stream.flush()
        assert [event.message for event in follower.new()] == ["one"]
        stream.write(': 2.0, "message": "two"}\n')
    assert [event.message for event in follower.new()] == ["two"]
    assert follower.new() == []
    assert path.stat().st_mode & 0o777 == 0o644
