"""What a person can give a cluster wrongly, through the real command: each a letter with its exit code, before anything is started."""

from __future__ import annotations

import pytest

from pipelines import cli, estimate
from tests.standins.kfp import Fault

ENTRY = "schedules: [{{name: monthly, cron: {cron}, recipe: {recipe}, budget_gpu_hours: 4{more}}}]\n"


@pytest.fixture
def refused(kfp, capsys):
    """Runs a command that must fail; its exit code and its letter."""

    def run(*arguments):
        code = cli.call([str(part) for part in arguments])
        err = capsys.readouterr().err
        assert "hint: " in err
        assert "Traceback" not in err
        assert not kfp.played, "nothing is started"
        print(f"{arguments[0]} -> {code}: {err.strip()}")
        return code, err

    return run


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("pool=h10",), "no pool 'h10'; did you mean `h100`"),
        (("pool=mig-3g-40gb", "gpus_per_worker=1", "workers=2"), "slices cannot train together"),
        (("pool=l4", "gpus_per_worker=1", "workers=1024"), "its queue could never admit this"),
        (("pool=l4",), "resources.gpus_per_worker is 0"),
        (("max_failures=3",), "max_failures"),
        (("pool=" + "p" * 99,), "resources.pool"),
    ],
)
def test_what_no_pool_could_do_is_refused_where_it_is_submitted(refused, sets, said):
    code, err = refused("submit", *(part for change in sets for part in ("--set", f"resources.{change}")))
    assert (code, said in err) == (78, True), err


def test_a_deadline_shorter_than_the_estimate_is_refused_where_it_is_submitted(refused, monkeypatch):
    thought = estimate.Estimate({"align": 1.0, "instruct": 80.0, "task": 9.0})
    monkeypatch.setattr(estimate, "of", lambda *_: thought)  # the real one reads a data registry, and has tests of its own
    on_gpu = ("--set", "resources.pool=l4", "--set", "resources.gpus_per_worker=1")
    code, err = refused("submit", *on_gpu, "--set", "resources.deadline_hours=9")
    assert (code, "the stage instruct is thought to take 80.0 h" in err) == (78, True), err
    code, err = refused("submit", *on_gpu, "--set", "resources.deadline_hours=90", "--budget", "40")
    assert (code, "the budget is 40" in err) == (77, True), err


@pytest.mark.parametrize(
    ("cron", "recipe", "more", "said"),
    [
        ("'0 3 1 * *'", "tiny", ", folow_data: []", "did you mean `follow_data`"),
        ("'0 25 1 * *'", "tiny", "", "25"),
        ("'0 3 31 2 *'", "tiny", "", "cron"),
        ("'0 3 1 * *'", "tinny", "", "did you mean `tiny`"),
    ],
)
def test_a_file_of_schedules_with_a_mistake_makes_none(refused, kfp, tmp_path, cron, recipe, more, said):
    path = tmp_path / "schedules.yaml"
    path.write_text(ENTRY.format(cron=cron, recipe=recipe, more=more))
    code, err = refused("schedule", "apply", path)
    assert (code, said in err) == (78, True), err
    assert not kfp.recurring


def test_a_package_that_is_older_than_the_code_and_a_server_of_another_version_are_refused(refused, kfp, tmp_path):
    path = tmp_path / "biovlm.yaml"
    images = [part for name in ("launcher", "train") for part in (f"--{name}-image", f"r.example/{name}@sha256:{'a' * 64}")]
    assert cli.call(["compile", "--out", str(path), *images]) == 0
    path.write_text(path.read_text().replace("name: biovlm", "name: biovlm-of-old", 1))
    code, err = refused("submit", "--package", path)
    assert (code, "older than the code" in err) == (78, True), err
    kfp.tag_name = "1.8.0"
    code, err = refused("submit")
    assert (code, "1.8.0" in err) == (78, True), err


@pytest.mark.parametrize("command", ["submit", "status", "stop run-1", "schedule list"])
def test_an_expired_token_ends_a_command_with_77(refused, kfp, command):
    kfp.faults.append(Fault(".", 401, 99))
    code, err = refused(*command.split())
    assert (code, "token" in err) == (77, True), err
