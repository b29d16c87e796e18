"""Registration and promotion on a real registry: one version a checkpoint, and an alias that moves once."""

from __future__ import annotations

import json
import shutil

import pytest

from components.platform import champion
from components.platform.lineage import version
from components.platform.lineage.graph import Kind
from components.platform.store import Store
from components.platform.tracking import Tracking
from model.config import Promotion
from model.evaluation.decision import gate_digest
from tests.components.promotions import GATE


def test_a_candidate_has_one_version_however_often_it_is_registered(registry):
    registry.candidate("a", right=18)
    first = registry.register("a")
    assert registry.register("a") == first  # reused
    shutil.rmtree(first.folder)  # as if the step was killed after MLflow and before its receipt
    again = registry.register("a")
    assert (again.facts["version"], again.facts["model_id"]) == ("1", first.facts["model_id"])
    assert again.digest == first.digest
    registry.candidate("b", right=18)
    assert registry.register("b").facts["version"] == "2"


def test_a_version_says_what_it_was_made_from(registry, store):
    registry.candidate("a", right=18)
    receipt = registry.register("a")
    client = Tracking(store).client
    tags = client.get_model_version("mini", "1").tags
    assert tags["biovlm.checkpoint"] == receipt.facts["checkpoint"]
    assert (tags["biovlm.commit"], tags["biovlm.dirty"], tags["biovlm.licences"]) == ("abc", "true", "CC0-1.0")
    assert "research only" in tags["biovlm.use"]
    logged = client.get_logged_model(receipt.facts["model_id"])
    assert {metric.key: metric.value for metric in logged.metrics}["closed_accuracy"] == 0.9
    document = version.read(Store(store.store), receipt.folder.name)
    assert document.digest == tags[version.LINEAGE_TAG]
    assert {node.name for node in document.of(Kind.SET)} == {"mini"}
    assert {node.name for node in document.of(Kind.COMMIT)} == {"abc+changes"}
    (recipe,) = document.of(Kind.RECIPE)
    assert (recipe.name, recipe.digest) == ("micro", "f" * 64)


def test_the_first_good_candidate_becomes_champion_and_a_repeated_run_reuses_the_decision(registry, happened):
    registry.candidate("a", right=18)
    registry.register("a")
    first = registry.promote("a")
    assert (first["verdict"], first["champion_before"], registry.aliases()) == ("promote", "none", {"champion": "1"})
    # The next run finds `a` itself as champion, evaluated by the same step.
    assert registry.promote("a", rival="a") == first
    assert happened()[-1] == "reused"


def test_a_better_candidate_takes_over_and_a_worse_one_does_not(registry, store):
    for name, right in (("a", 15), ("b", 18), ("c", 10)):
        registry.candidate(name, right)
        registry.register(name)
    registry.promote("a")
    assert registry.promote("b", rival="a")["verdict"] == "promote"
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    worse = registry.promote("c", rival="b")
    assert worse["verdict"] == "hold"
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert Tracking(store).client.get_model_version("mini", "3").tags["biovlm.decision"] == "hold"


def test_a_new_gate_is_a_new_decision(registry, happened, monkeypatch, tmp_path):
    registry.candidate("a", right=18)
    registry.register("a")
    registry.promote("a")
    gate = {**GATE, "min_closed_accuracy": 0.95}
    approval = {"digest": gate_digest(Promotion.model_validate(gate)), "by": "Ada", "since": "2026-01-01", "reason": "stricter"}
    (tmp_path / "gates.yaml").write_text(json.dumps({"gates": [approval]}))
    monkeypatch.setenv("BIOVLM_APPROVED_GATES", str(tmp_path / "gates.yaml"))
    stricter = registry.promote("a", rival="a", gate=gate)
    assert (stricter["verdict"], happened()[-1]) == ("hold", "finished")
    assert registry.aliases() == {"champion": "1"}


def test_a_champion_that_changed_during_the_run_is_a_refusal(registry, happened, monkeypatch):
    for name, right in (("a", 15), ("b", 18)):
        registry.candidate(name, right)
        registry.register(name)
    seen_by_preflight = champion.present(registry.settings, "mini")
    registry.promote("b")
    monkeypatch.setattr(champion, "present", lambda *_: seen_by_preflight)
    with pytest.raises(SystemExit) as stopped:
        registry.promote("a")
    assert stopped.value.code == 77
    assert "is version 2 now" in happened(types_only=False)[-1].message
    assert registry.aliases() == {"champion": "2"}
