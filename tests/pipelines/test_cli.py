"""How the command ends: exit codes, letters, and what stands on stdout."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model import errors
from model import recipe as recipes
from pipelines import cli, cli_data
from pipelines.choice import RECIPES

ROOT = Path(__file__).resolve().parents[2]
RECORD = "the text of a record"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("BIOVLM_TRACE", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize("kind", errors.BiovlmError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_each_error_ends_with_its_code_and_its_hint(kind, monkeypatch, capsys):
    def fails(*args, **kw):
        raise kind("the oven is cold", "light it")

    monkeypatch.setattr(cli_data, "_show", fails)
    assert cli.call(["data", "list"]) == kind.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: the oven is cold\nhint: light it\n"


def test_a_defect_is_one_line_and_a_log_without_the_errors_text(monkeypatch, capsys, home):
    def fails(*args, **kw):
        raise ZeroDivisionError(RECORD)

    monkeypatch.setattr(cli_data, "_show", fails)
    assert cli.call(["data", "list"]) == errors.ExitCode.INTERNAL
    err = capsys.readouterr().err
    (log,) = (home / "logs").iterdir()
    assert err == f"error: ZeroDivisionError: this is a defect of biovlm; its trace is in {log}\n"
    assert "test_cli.py" in log.read_text()
    assert RECORD not in log.read_text() + err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rum"], 64, "Did you mean 'run'"),
        (["data", "lisst"], 64, "Did you mean 'list'"),
        (["run", "--recipie", "tiny"], 64, "--recipe"),
        (["chat"], 64, "--image"),
        (["data", "import", "vqa-red", "--path", "."], 64, "vqa-rad"),
        (["data", "import", "vqa-rad", "--path", "nowhere"], 66, "no folder nowhere"),
        (["train", "--stage", "alin", "--out", "x"], 64, "align, instruct, task"),
        (["chat", "--image", "nowhere.png", "what?"], 66, "no image at nowhere.png"),
        (["lineage", "show", "biovlm-tiny"], 64, "models:/NAME@champion"),
        (["lineage", "show", "models:/m/1", "--json", "--html", "x"], 64, "choose one"),
        (["plan", "--recipe", "tinny"], 78, "did you mean `tiny`"),
        (["plan", "--set", "stages.task.epoch=2"], 78, "did you mean `epochs`"),
        (["plan", "--set", "epochs"], 78, "--set stages.task.epochs=2"),
        (["plan", "--data", "phantm"], 66, "no data registry"),
    ],
)
def test_what_cannot_be_done_is_said_with_the_way_out(arguments, code, said, capsys):
    assert cli.call(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "hint: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan"], 0),
        (["data", "list"], 0),
        (["registry", "list"], 0),
        (["registry", "history", "biovlm-tiny"], 66),
        (["lineage", "show", "models:/biovlm-tiny@champion"], 66),
        (["lineage", "verify", "models:/biovlm-tiny/1"], 66),
        (["lineage", "export", "models:/biovlm-tiny/1"], 66),
        (["evaluate"], 66),
        (["chat", "--image", str(RECIPES / "tiny.yaml"), "what?"], 65),  # no image, which is told before a model is looked for
    ],
)
def test_a_command_that_only_asks_makes_nothing_in_an_empty_home(arguments, code, home, capsys):
    assert cli.call(arguments) == code
    capsys.readouterr()
    assert not home.exists()


def test_a_full_disk_is_no_defect_wherever_it_is_met(monkeypatch, capsys):
    def fails(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")

    monkeypatch.setattr(cli_data, "_show", fails)
    assert cli.call(["data", "list"]) == errors.ExitCode.CANNOT_WRITE
    assert capsys.readouterr().err.startswith("error: cannot write /somewhere/file: No space left on device\nhint: ")


def test_no_command_at_all_shows_the_help(capsys):
    assert cli.call([]) == errors.ExitCode.USAGE
    assert "Commands:" in capsys.readouterr().err


def test_an_interrupt_says_that_nothing_is_lost(monkeypatch, capsys):
    def stops(*args, **kw):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_data, "_show", stops)
    assert cli.call(["data", "list"]) == errors.ExitCode.PREEMPTED
    assert "hint: nothing is lost" in capsys.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_75(sent):
    code = "import sys, time; from pipelines import cli, cli_data\n"
    code += "def wait(*a): print('here', flush=True); time.sleep(60)\n"
    code += "cli_data._show = wait; sys.argv = ['biovlm', 'data', 'list']; cli.main()"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"here\n"
    running.send_signal(sent)
    assert running.wait(20) == 75


def test_an_empty_registry_lists_nothing_on_stdout(capsys):
    assert cli.call(["data", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "biovlm data build" in err
    assert cli.call(["data", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_doctor_speaks_json_and_writes_nothing_else(capsys, home):
    cli.call(["doctor", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"python", "cores", "memory", "disk", "home", "torch", "kfp", "mlflow", "dvc", "ray", "gpu", "docker", "git"} <= set(
        findings
    )
    assert {finding["level"] for finding in findings.values()} <= {"ok", "warn", "missing"}
    assert all(finding["hint"] for finding in findings.values() if finding["level"] != "ok")
    assert findings["home"] == {"name": "home", "level": "ok", "found": str(home), "hint": ""}
    assert not home.exists()


def test_the_doctor_names_what_is_missing_and_ends_with_66(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "file" / "home"))
    assert cli.call(["doctor"]) == 66
    out, err = capsys.readouterr()
    assert "missing" in out
    assert "set BIOVLM_HOME" in out
    assert "a run cannot work here yet: home" in err


def test_the_schema_in_git_is_that_of_the_recipes():
    kept = json.loads((RECIPES / "schema.json").read_text())
    assert kept == recipes.json_schema(), "run `biovlm schema` and commit pipelines/recipes/schema.json"
