"""A scheduled run's first look, on a real data registry: what is unchanged is skipped by every step, and says so."""

from __future__ import annotations

import datetime
import json

import pytest

from components.data import look
from components.data import step as data_step
from components.evaluate import step as evaluate
from components.platform import reference
from components.platform.events import EventLog
from components.platform.retraining import basis
from components.platform.retraining.decision import Basis, Facts, Verdict
from components.platform.retraining.journal import Journal
from components.platform.retraining.policy import Policy
from components.platform.retraining.question import Question
from components.promote import step as promote
from components.register import step as register
from components.train import step as train
from model import manifest
from model import recipe as recipes
from model.config import DataSlice
from tests.components.published import publish
from tests.pipelines import micro

NOW = datetime.datetime(2026, 5, 1, 3, tzinfo=datetime.UTC)
ALONE = {"tower": {"source": None, "config": {"model_type": "x"}}, "language": {"source": None, "config": {"model_type": "x"}}}
RECIPE = micro.recipe(model=ALONE)
SLICES = recipes.slices(RECIPE)
POLICY = Policy.model_validate(
    {
        "name": "monthly",
        "recipe": "micro",
        "when": {"cron": "0 3 1 * *"},
        "because": {"data_version": False, "drift": {"of": ["question_type", "kind"]}},
        "budget": {"gpu_hours": 40},
        "cool_down_days": 0,
    }
)
WANTED = DataSlice.model_validate(SLICES["data"])


@pytest.fixture
def registry(settings):
    return publish(settings, micro.write_set)


def ask(settings, registry, before=None):
    """Preflight's question, with the data that the last training took."""
    made = basis.wanted(SLICES, before.data, before.bases) if before else None
    last = Basis(version="1", made=made, created=NOW, revisions={"mini": registry.version("mini").revision}) if before else None
    facts = Facts(now=basis.wanted(SLICES, {}, {}), basis=last, asked_by_schedule=True)
    return Question(policy=POLICY, facts=facts, history=tuple(Journal(settings, "monthly").entries()))


def test_a_look_is_kept_once_and_more_of_the_same_mix_is_no_drift(settings, registry, monkeypatch):
    def answer(question, run_id):
        monkeypatch.setenv("BIOVLM_RUN_ID", run_id)
        return look.answer(question, WANTED, type(settings).from_environment(), NOW)

    first = answer(ask(settings, registry), "run-1")
    assert (first.verdict, first.reasons[0].check) == (Verdict.RUN, "first")
    again = answer(ask(settings, registry), "run-1")
    assert (again, len(Journal(settings, "monthly").entries())) == (first, 1), "a step that is started again does not decide anew"

    data = {"mini": registry.version("mini").digest}
    trained = basis.wanted(SLICES, data, {})
    question = ask(settings, registry, trained)
    publish(settings, lambda folder: micro.write_set(folder, (("train", 18), ("test", 6))))
    same = answer(question, "run-2")
    assert same.verdict is Verdict.SKIP
    assert [reason.check for reason in same.reasons] == ["data", "no_reason"], "more of the same mix is no drift"


def test_a_run_that_is_skipped_is_skipped_by_every_step(settings, registry, tmp_path, happened):
    trained = basis.wanted(SLICES, {"mini": registry.version("mini").digest}, {})
    question = ask(settings, registry, trained).model_dump_json()
    places = {
        name: str(tmp_path / f"{name}.json") for name in ("data", "align", "task", "report", "champion", "receipt", "decision")
    }
    real = reference.Reference(kind="checkpoint", uri=str(settings.store / "steps/train/c"), digest="c" * 64)
    real.write(tmp_path / "present.json", settings.store)

    data_step.run(json.dumps(SLICES["data"]), places["data"], question)
    train.run(json.dumps(SLICES["align"]), places["data"], None, places["align"])
    train.run(json.dumps(SLICES["task"]), places["data"], places["align"], places["task"])
    evaluate.run("evaluate", json.dumps(SLICES["evaluate"]), places["data"], places["task"], places["report"])
    evaluate.run("champion", json.dumps(SLICES["evaluate"]), places["data"], str(tmp_path / "present.json"), places["champion"])
    register.run(json.dumps(SLICES["register"]), "store", places["data"], places["task"], places["report"], places["receipt"])
    given = (places["receipt"], places["report"], str(tmp_path / "present.json"), places["champion"])
    promote.run(json.dumps(SLICES["promote"]), "store", *given, places["decision"])

    for place in places.values():
        assert "unchanged: data, base models, recipe and code" in reference.read(place, settings.store).skipped, place
    said = [event.message for event in happened(types_only=False) if event.type == "reused"]
    assert len(said) == 7
    assert {message.split(":")[0] for message in said} == {"skipped"}
    assert not (settings.store / "steps").exists(), "nothing was made"


def test_drift_is_seen_between_the_versions_of_a_registry(settings, registry):
    """Captions only, where there were questions, too."""
    trained = basis.wanted(SLICES, {"mini": registry.version("mini").digest}, {})
    question = ask(settings, registry, trained)

    def captions(folder):
        micro.write_set(folder.parent / "whole", (("train", 60), ("test", 6)))
        _only(folder.parent / "whole", folder, "caption")

    publish(settings, captions)
    entry = look.answer(question, WANTED, settings, NOW)
    assert entry.verdict is Verdict.RUN
    (reason,) = (reason for reason in entry.reasons if reason.effect == "for")
    assert reason.text.startswith("mini: the mix of kind moved by ")


def _only(source, target, kind):
    with manifest.commit(target, "data", facts=manifest.read(source).facts) as aside:
        (aside / "records").mkdir()
        for path in sorted((source / "records").glob("*.jsonl")):
            kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["kind"] == kind]
            (aside / "records" / path.name).write_text("".join(kept))
        (source / "images").rename(aside / "images")


def test_what_is_said_of_a_run_that_goes_on_is_in_its_log(settings, registry, happened):
    log = EventLog(settings.events, "data")
    assert look.skips(ask(settings, registry).model_dump_json(), WANTED, log) == ""
    assert happened(types_only=False)[-1].message == "run: nothing was trained by this recipe yet"
