"""What `biovlm serve` proves before anything of a version runs (D7, D9)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from components.platform.impact import marks
from components.platform.impact.marks import Notice
from components.platform.tracking import LOADERS_NOTE, Tracking
from components.register import served, server
from model.errors import MissingInputError, RefusedError

CHAMPION = "models:/mini@champion"


@pytest.fixture
def promoted(registry):
    registry.candidate("a", 18)
    registry.register("a")
    registry.promote("a")
    return registry


def kept(registry):
    """The folder in which MLflow keeps what it serves of version 1."""
    client = Tracking(registry.settings).client
    run = client.get_model_version("mini", "1").run_id
    (model,) = client.search_logged_models([client.get_run(run).info.experiment_id])
    return Path(str(model.artifact_location).removeprefix("file://"))


def empty(folder, name="aside"):
    (folder / name).mkdir()
    return folder / name


def test_a_version_is_laid_as_its_receipt_names_it_also_after_mlflow_left_its_note(promoted, tmp_path):
    (kept(promoted) / LOADERS_NOTE).write_text("model_name: mini\nmodel_version: '1'\n")
    found = server.proved(promoted.settings, CHAMPION, empty(tmp_path))
    laid = sorted(path.name for path in found.folder.iterdir())
    assert found.version.version == "1"
    assert {"MLmodel", "assistant.py"} < set(laid)
    assert LOADERS_NOTE not in laid


HARM = {
    "code": lambda served, store: (served / "assistant.py").write_text("raise SystemExit('it ran')"),
    "a further file": lambda served, store: (served / "sitecustomize.py").write_text(""),
    "a loader": lambda served, store: (served / "MLmodel").write_text((served / "MLmodel").read_text() + "\n"),
    "a lost file": lambda served, store: (served / "requirements.txt").unlink(),
    "weights": lambda served, store: next(store.glob("exports/*/config.json")).write_text("{}"),
    "report": lambda served, store: next(store.glob("steps/evaluate/*/report.json")).write_text("{}"),
}


@pytest.mark.parametrize("name", HARM)
def test_what_is_not_what_was_signed_is_refused_and_nothing_of_it_runs(promoted, tmp_path, name):
    HARM[name](kept(promoted), promoted.settings.store)
    with pytest.raises(RefusedError):
        server.proved(promoted.settings, CHAMPION, empty(tmp_path))


def test_a_withdrawn_version_is_not_served(promoted, tmp_path):
    tags = Tracking(promoted.settings).numbered_tags("mini", "1")
    marks.mark(promoted.store, tags["biovlm.checkpoint"], Notice("a" * 64, "ada", "consent taken back"))
    with pytest.raises(RefusedError, match="withdrawn"):
        server.proved(promoted.settings, CHAMPION, empty(tmp_path))


def test_a_version_whose_logged_model_was_deleted_is_a_letter(promoted, tmp_path):
    client = Tracking(promoted.settings).client
    (model,) = client.search_logged_models([Tracking(promoted.settings).experiment_id])
    client.delete_logged_model(model.model_id)
    with pytest.raises(MissingInputError, match="is gone"):
        server.proved(promoted.settings, CHAMPION, empty(tmp_path))


def test_mlflows_reading_of_the_code_leaves_no_bytecode_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / served.CODE_FILE).write_text(served.CODE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("read_as_mlflow_does", tmp_path / served.CODE_FILE)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert [path.name for path in tmp_path.iterdir()] == [served.CODE_FILE]
