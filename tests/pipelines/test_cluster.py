"""The commands that talk to a Kubeflow server, through the real `kfp.Client`, against a server as strict as the original."""

from __future__ import annotations

import json

import pytest

from pipelines import cli, reap, submit
from tests.standins.kfp import Fault

STEPS = ["preflight", "data", "train", "train-2", "train-3", "evaluate", "evaluate-2", "register", "promote"]
ALL = [dict.fromkeys(STEPS, "SUCCEEDED")]
LOG = "align: the loss is not finite\nhint: lower the learning rate\nfailed to execute component: exit status 79\n"


class Jobs:
    """RayJobs of a namespace, without Kubernetes (the client itself has a stand-in of its own)."""

    def __init__(self):
        self.there = []

    def add(self, name, run_id, made="2020-01-01T00:00:00Z"):
        metadata = {"name": name, "annotations": {"biovlm.io/run-id": run_id}, "creationTimestamp": made}
        self.there.append({"metadata": metadata})

    def jobs(self, selector):
        assert selector == "app.kubernetes.io/managed-by=biovlm"
        return list(self.there)

    def delete(self, job):
        self.there.remove(job)

    @property
    def names(self):
        return [job["metadata"]["name"] for job in self.there]


@pytest.fixture
def jobs(monkeypatch):
    made = Jobs()
    monkeypatch.setattr(reap, "cluster_jobs", lambda namespace: made)
    return made


@pytest.fixture
def say(capsys):
    """Runs a command; its exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.call(list(arguments))
        return code, *capsys.readouterr()

    return run


def started(kfp):
    """Id of the newest run."""
    return list(kfp.played)[-1]


def test_submit_uploads_the_package_once_and_starts_a_run_with_the_whole_recipe(kfp, say):
    code, out, err = say("submit", "--set", "seed=7", "--budget", "40")
    assert (code, out.strip(), "started" in err) == (0, started(kfp), True)
    given = kfp.played[started(kfp)].body["runtime_config"]["parameters"]
    assert (json.loads(given["recipe"])["seed"], given["budget"]) == (7, "40")
    say("submit")
    assert [len(kfp.pipelines), len(kfp.versions), len(kfp.experiments), len(kfp.played)] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"BIOVLM_ACTOR": "Dr Weiss"}, "person:Dr-Weiss"),
        ({"CI": "true"}, "ci"),
        ({"CI": "true", "BIOVLM_TRIGGER": "ci:release-7"}, "ci:release-7"),
    ],
)
def test_a_run_says_who_began_it(kfp, say, monkeypatch, environment, told):
    for name in ("CI", "BIOVLM_TRIGGER", "BIOVLM_ACTOR_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert say("submit")[0] == 0
    assert kfp.played[started(kfp)].body["runtime_config"]["parameters"]["trigger"] == told


def test_a_word_that_names_nobody_is_refused_as_who_began_a_run(kfp, say, monkeypatch):
    monkeypatch.setenv("BIOVLM_TRIGGER", "me\n")
    code, _, err = say("submit")
    assert (code, "BIOVLM_TRIGGER" in err, kfp.played) == (78, True, {})


def test_another_image_is_another_version_of_the_same_pipeline(kfp, say, monkeypatch):
    say("submit")
    monkeypatch.setenv("BIOVLM_TRAIN_IMAGE", f"registry.example/biovlm-train@sha256:{'b' * 64}")
    assert say("submit")[0] == 0
    assert [len(kfp.pipelines), len(kfp.versions)] == [1, 2]


def test_waiting_tells_each_state_once_and_ends_with_0(kfp, say):
    kfp.scripts.append([{"preflight": "RUNNING"}, {"preflight": "RUNNING"}, {"preflight": "SUCCEEDED"}, *ALL])
    code, out, err = say("submit", "--wait")
    assert code == 0
    assert err.count("preflight: running") == err.count("preflight: done") == err.count("promote: done") == 1
    assert out.splitlines()[0].split() == ["step", "state", "time", "said"]
    assert max(map(len, out.splitlines())) <= 80


def test_a_failed_run_ends_with_the_letter_and_the_code_that_the_step_wrote(kfp, say):
    kfp.scripts.append([{"preflight": "SUCCEEDED", "train": ("FAILED", "main: Error (exit code 1)")}])
    kfp.logs["train"] = LOG
    code, out, err = say("submit", "--wait", "--logs")
    assert code == 79
    assert err.endswith("error: align: the loss is not finite\nhint: lower the learning rate\n")
    assert err.count("align | hint: lower the learning rate") == 1
    assert "main: Error" in out


def test_without_a_letter_a_failed_run_is_70_and_a_cancelled_one_75(kfp, say, jobs):
    kfp.scripts.append([{"data": ("FAILED", "pod deleted")}])
    code, _, err = say("submit", "--wait")
    assert (code, "data failed: pod deleted" in err) == (70, True)
    kfp.scripts.append([{"data": "RUNNING"}] * 9)
    say("submit")
    say("stop", started(kfp))
    assert say("status", started(kfp), "--wait")[0] == 75


def test_a_server_that_is_away_for_a_while_does_not_end_the_waiting(kfp, say, monkeypatch):
    kfp.scripts.append([*[{"data": "RUNNING"}] * 3, *ALL])
    say("submit")
    look = f"GET /apis/v2beta1/runs/{started(kfp)}"
    assert say("status", started(kfp))[0] == 0
    kfp.faults.append(Fault(look, 503, 99))
    assert say("status", started(kfp), "--wait")[0] == 70  # at the first look nobody knows yet whether there is such a run
    kfp.faults[:] = []
    outages = iter([Fault(look, 503, 4), Fault(look, 0, 9)])
    monkeypatch.setattr(submit, "_pause", lambda: kfp.faults.append(fault) if (fault := next(outages, None)) else None)
    code, _, err = say("status", started(kfp), "--wait")
    assert code == 0
    assert "the server does not answer, waiting on" in err


def test_a_run_is_started_once_even_if_the_answer_is_lost(kfp, say):
    kfp.faults.append(Fault("POST /apis/v2beta1/runs$", 503, 1))
    assert say("submit")[0] == 70
    assert kfp.asked.count("POST /apis/v2beta1/runs") == 1


def test_status_lists_runs_and_shows_one(kfp, say):
    for _ in range(3):
        say("submit", "--wait")
    code, out, _ = say("status", "--last", "2")
    assert (code, len(out.splitlines()), max(map(len, out.splitlines())) <= 80) == (0, 3, True)
    assert [run["state"] for run in json.loads(say("status", "--json")[1])] == ["done"] * 3
    shown = json.loads(say("status", started(kfp), "--json")[1])
    assert [step["name"] for step in shown["steps"]][2:5] == ["align", "instruct", "task"]


def test_stop_terminates_the_run_and_deletes_its_ray_jobs_and_no_others(kfp, say, jobs):
    kfp.scripts += [[{"train": "RUNNING"}] * 99, [{"train": "RUNNING"}] * 99]
    say("submit")
    other = started(kfp)
    say("submit")
    jobs.add("mine", started(kfp))
    jobs.add("theirs", other)
    code, out, _ = say("stop", started(kfp))
    assert (code, out, jobs.names) == (0, "mine\n", ["theirs"])
    assert kfp.played[started(kfp)].body["state"] == "CANCELING"


@pytest.mark.parametrize("frames", range(1, len(STEPS)))
def test_a_run_that_is_stopped_at_any_step_ends_cancelled_and_leaves_no_ray_job(kfp, say, jobs, frames):
    script = [dict.fromkeys(STEPS[:at], "SUCCEEDED") | {STEPS[at]: "RUNNING"} for at in range(frames)]
    kfp.scripts.append([*script, *[script[-1]] * 9])
    say("submit")
    for _ in range(frames):
        kfp.look(started(kfp))
    jobs.add("job", started(kfp))
    assert say("stop", started(kfp))[0] == 0
    assert (kfp.look(started(kfp))["state"], jobs.names) == ("CANCELED", [])


def test_stopping_a_run_that_is_over_still_deletes_its_ray_jobs(kfp, say, jobs):
    say("submit", "--wait")
    jobs.add("left", started(kfp))
    code, _, err = say("stop", started(kfp))
    assert (code, jobs.names, "is over already" in err) == (0, [], True)


def test_retry_goes_on_from_the_failed_step_and_forgets_its_ray_job(kfp, say, jobs):
    kfp.scripts.append([{"preflight": "SUCCEEDED", "data": "SUCCEEDED"}, {"train": ("FAILED", "x")}])
    say("submit", "--wait")
    run = started(kfp)
    jobs.add("failed", run)
    code, _, err = say("retry", run, "--wait")
    assert (code, started(kfp), jobs.names) == (0, run, [])
    assert "align: done" in err
    code, _, err = say("retry", run)
    assert (code, "only a failed or cancelled run" in err) == (78, True)


def test_reap_deletes_the_jobs_of_runs_that_are_over_and_of_no_others(kfp, say, jobs):
    say("submit", "--wait")
    over = started(kfp)
    kfp.scripts.append([{"train": "RUNNING"}] * 99)
    say("submit")
    jobs.add("over", over)
    jobs.add("going", started(kfp))
    jobs.add("gone", "00000000-0000-4000-8000-000000000000")
    jobs.add("new", "00000000-0000-4000-8000-000000000000", "2999-01-01T00:00:00Z")
    jobs.add("laptop", "20260101-120000-tiny-ab12")
    code, out, _ = say("reap", "--json")
    assert (code, sorted(entry["job"] for entry in json.loads(out))) == (0, ["gone", "over"])
    assert jobs.names == ["going", "new", "laptop"]


def test_reap_deletes_nothing_while_the_server_does_not_answer(kfp, say, jobs):
    say("submit", "--wait")
    jobs.add("over", started(kfp))
    kfp.faults.append(Fault("GET /apis/v2beta1/runs/", 0, 99))
    code, _, err = say("reap")
    assert (code, jobs.names, "no Kubeflow server answers" in err) == (66, ["over"], True)


@pytest.mark.parametrize(
    ("arguments", "change", "code", "said"),
    [
        (["status"], {"KF_PIPELINES_ENDPOINT": ""}, 78, "set KF_PIPELINES_ENDPOINT"),
        (["status"], {"KF_PIPELINES_ENDPOINT": "kfp.example"}, 78, "begins with https://"),
        (["status"], {"KF_PIPELINES_ENDPOINT": "http://127.0.0.1:9"}, 66, "no Kubeflow server answers"),
        (["status"], {"KF_PIPELINES_SA_TOKEN_PATH": "/nowhere/token"}, 66, "cannot read the token"),
        (["status", "no-such-run"], {}, 66, "no-such-run not found"),
        (["stop", "no-such-run"], {}, 66, "no-such-run not found"),
        (["submit"], {"BIOVLM_TRAIN_IMAGE": "biovlm-train:latest"}, 78, "no image by digest"),
        (["submit"], {"BIOVLM_LAUNCHER_IMAGE": ""}, 78, "set BIOVLM_LAUNCHER_IMAGE"),
        (["submit", "--package", "nowhere.yaml"], {}, 66, "cannot read nowhere.yaml"),
        (["submit", "--recipe", "tinny"], {}, 78, "did you mean `tiny`"),
        (["submit", "--set", "resources.pool=h1000", "--set", "resources.gpus_per_worker=1"], {}, 78, "did you mean `h100`"),
    ],
)
def test_what_cannot_be_done_is_a_letter(kfp, say, monkeypatch, arguments, change, code, said):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    found, out, err = say(*arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "hint: " in err
    assert "Traceback" not in err


def test_an_expired_token_is_refused_and_a_new_one_in_the_same_file_is_taken(kfp, say, monkeypatch, tmp_path):
    kfp.token = "fresh"
    token = tmp_path / "token"
    token.write_text("stale\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    code, _, err = say("status")
    assert (code, "expired" in err, "stale" in err) == (77, True, False)
    token.write_text("fresh\n")
    assert say("status")[0] == 0


@pytest.mark.parametrize("version", ["2.14.4", "1.8.22", "3.0.0"])
def test_a_server_of_an_unsupported_version_is_refused_before_anything_is_uploaded(kfp, say, version):
    kfp.tag_name = version
    code, _, err = say("submit")
    assert (code, version in err, kfp.versions) == (78, True, {})


def test_a_package_that_is_older_than_the_code_is_refused(kfp, say, tmp_path):
    kept = tmp_path / "kept.yaml"
    images = ["--launcher-image", f"r.example/l@sha256:{'c' * 64}", "--train-image", f"r.example/t@sha256:{'d' * 64}"]
    assert say("compile", "--out", str(kept), *images)[0] == 0
    assert say("submit", "--package", str(kept))[0] == 0
    assert f"r.example/l@sha256:{'c' * 64}" in json.dumps(kfp.versions)
    kept.write_text(kept.read_text().replace("maxRetryCount: 2", "maxRetryCount: 5"))
    code, _, err = say("submit", "--package", str(kept))
    assert (code, "older than the code" in err) == (78, True)


def test_a_recipe_that_is_too_big_for_an_argument_is_refused(kfp, say):
    code, _, err = say("submit", "--set", f"description={'x' * 120_000}")
    assert (code, "bytes" in err, kfp.played) == (78, True, {})


@pytest.mark.parametrize("text", ["it's", '" or True or "', "{{$.inputs}}", "a\nb", "-rf $(id) `id`", "é\u2028"])
def test_text_in_a_recipe_reaches_the_run_as_it_is(kfp, say, text):
    assert say("submit", "--set", f"description={json.dumps(text)}")[0] == 0
    given = kfp.played[started(kfp)].body["runtime_config"]["parameters"]["recipe"]
    assert json.loads(given)["description"] == text


def test_a_server_with_many_users_wants_a_namespace(kfp, say, monkeypatch):
    kfp.multi_user = True
    code, _, err = say("submit")
    assert (code, "BIOVLM_KFP_NAMESPACE" in err) == (78, True)
    monkeypatch.setenv("BIOVLM_KFP_NAMESPACE", "team-a")
    assert say("submit", "--wait")[0] == 0
    assert [found["namespace"] for found in kfp.experiments.values()] == ["team-a"]
