"""`biovlm doctor --cluster`: all findings at once, each with its remedy."""

from __future__ import annotations

import http.server
import json

import pytest

from components.platform.lineage import licences
from model.config import Purpose, Recipe
from model.errors import ConfigError, RefusedError
from model.training.memory import shapes_of
from pipelines import choice, cli, doctor_cluster, estimate
from tests.pipelines import micro


@pytest.fixture
def look(capsys, monkeypatch):
    """Findings by name, and the exit code. Kubernetes is asked in test_doctor_kubernetes."""
    for name in ("kubernetes", "secrets", "ray job", "queue", "registry of images"):
        monkeypatch.setitem(doctor_cluster.CHECKS, name, lambda ground: iter(()))

    def run(*arguments):
        code = cli.call(["doctor", "--cluster", "--json", *arguments])
        return code, {one["name"]: one for one in json.loads(capsys.readouterr().out)}

    return run


def test_a_good_cluster_is_told_item_by_item(kfp, look):
    code, found = look()
    assert code == 0
    assert {name for name, one in found.items() if one["level"] == "ok"} >= {"kubeflow", "images", "clock", "pool", "cost"}
    assert found["package"]["level"] == "warn"


def test_the_package_of_this_code_is_known_by_its_digest(kfp, look, capsys):
    cli.call(["submit"])
    capsys.readouterr()
    assert look()[1]["package"]["level"] == "ok"


def test_everything_that_is_wrong_is_told_at_once_with_its_remedy(kfp, look, monkeypatch, tmp_path):
    kfp.tag_name = "2.5.0"
    monkeypatch.setenv("BIOVLM_TRAIN_IMAGE", "train:latest")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("extends: tiny\nmodel: {tower: {licence: unknown}}\nresources: {pool: h1000, gpus_per_worker: 1}\n")
    code, found = look("--recipe", str(recipe))
    wrong = {name for name, one in found.items() if one["level"] == "missing"}
    assert (code, wrong) == (66, {"kubeflow", "package", "tracking", "pool", "cost"})
    assert found["tower"]["level"] == "warn", "as in preflight: it may be trained, and is never promoted"
    assert all(one["hint"] for one in found.values() if one["level"] != "ok")


def test_licences_of_weights_and_data_that_forbid_the_purpose_are_told(kfp, look, home, monkeypatch, tmp_path):
    monkeypatch.setenv("BIOVLM_HOME", str(home))
    path = tmp_path / "micro.yaml"
    path.write_text(micro.recipe(promotion={"purpose": "commercial"}).model_dump_json())
    found = look("--recipe", str(path))[1]
    assert [found[name]["level"] for name in ("tower", "language", "data mini")] == ["ok"] * 3
    monkeypatch.setitem(licences.ALLOWED, Purpose.COMMERCIAL, -1)  # a purpose that not even CC0 allows
    code, found = look("--recipe", str(path))
    assert ([found[name]["level"] for name in ("tower", "language", "data mini")], code) == (["missing"] * 3, 66)
    assert "the purpose is commercial" in found["data mini"]["found"]
    assert found["data mini"]["hint"]


def test_a_clock_that_is_off_is_told(kfp, look, monkeypatch):
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "date_time_string", lambda *_: "Sat, 01 Jan 2022 00:00:00 GMT")
    code, found = look()
    assert (code, found["clock"]["level"], "NTP" in found["clock"]["hint"]) == (66, "missing", True)


def test_a_server_that_is_not_there_hides_no_other_finding(look, monkeypatch, tmp_path):
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path))
    code, found = look()
    assert (code, found["kubeflow"]["level"], found["pool"]["level"]) == (66, "missing", "ok")


SHAPES = shapes_of(
    {"num_attention_heads": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000},
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14},
)


def on_gpus(**resources) -> Recipe:
    sets = [f"resources.{name}={value}" for name, value in {"gpus_per_worker": 1, "pool": "h100", **resources}.items()]
    return choice.chosen("tiny", None, sets)


def test_the_estimate_of_a_run_is_of_the_size_that_such_runs_are():
    """LLaVA-1.5's 7B fine-tuning, 665,000 records of at most 2,048 tokens: reported as 20 h on 8 A100, 160 GPU hours."""
    recipe = choice.chosen("tiny", None, ["resources.gpus_per_worker=1", "model.context_tokens=2048"])
    found = estimate.estimate(recipe, {"align": 0.0, "instruct": 665_000.0, "task": 0.0}, SHAPES, 312.0)
    assert 80 < found.total < 500


def test_a_deadline_shorter_than_the_estimate_and_a_budget_below_it_are_refused():
    found = estimate.Estimate({"align": 1.0, "instruct": 80.0, "task": 9.0})
    assert estimate.judge(on_gpus(workers=8, deadline_hours=11), found, 91) is None
    late = estimate.judge(on_gpus(workers=8, deadline_hours=9), found, None)
    assert isinstance(late, ConfigError)
    assert "instruct" in late.message
    assert isinstance(estimate.judge(on_gpus(workers=8), found, 89), RefusedError)


def test_without_gpus_nothing_is_estimated_or_refused():
    recipe = choice.chosen("tiny", None, ())
    assert estimate.estimate(recipe, dict.fromkeys(("align", "instruct", "task"), 1e9), SHAPES, 312.0).total == 0
