"""Registration and promotion on a real registry: one version a checkpoint, and an alias that moves once."""

from __future__ import annotations

import json
import shutil

import pytest

from components.platform import champion, code, exports, lineage, reference
from components.platform.reference import Reference
from components.platform.store import Source, StepRecord, Store
from components.platform.tracking import Tracking
from components.promote import step as promote
from components.register import step as register
from model import manifest
from tests.components.reports import write_report

REGISTER = json.dumps({"registered_model": "mini", "recipe": "micro", "recipe_digest": "f" * 64})
GATE = {"min_items": 10, "min_image_gain": -1.0, "max_loss_to_champion": 0.01}


class Registry:
    """Candidates with reports, and the two steps on them."""

    def __init__(self, settings, folder):
        self.settings, self.out = settings, folder / "out"
        self.store = Store(settings.store)
        self.data = self._artifact(
            "data", "data", facts={"sets": {"mini": self.facts("mini")}, "bases": {"tower": self.facts("t")}}
        )
        Reference(kind="none").write(self.out / "nobody.json", settings.store)

    @staticmethod
    def facts(name):
        digest = manifest.digest_of(name)
        return {
            "uri": f"data/{name}",
            "digest": digest,
            "revision": "c0ffee" * 6,
            "dvc_path": name,
            "md5": "m",
            "licence": "CC0-1.0",
        }

    def _record(self, kind, name, key, **inputs):
        sources = {
            role: Source(kind=r.kind, uri=lineage.relative(self.store, r.folder), digest=r.digest) for role, r in inputs.items()
        }
        parts = {"piece": {}, "identity": {}, "code": code.digest(kind), "revision": {"commit": "abc", "dirty": True}}
        self.store.write_record(StepRecord(key=key, kind=kind, name=name, run_id="r", inputs=sources, started=0.0, **parts))

    def _artifact(self, kind, content, facts=None, **inputs):
        step_kind = {"checkpoint": "train"}.get(kind, kind)
        key = manifest.digest_of([kind, content])
        folder = self.store.folder(step_kind, key)
        with manifest.commit(folder, kind, {role: r.digest for role, r in inputs.items()}, facts) as aside:
            (aside / "content").write_text(content)
        self._record(step_kind, content, key, **inputs)
        return Reference.to(folder, manifest.read(folder))

    def candidate(self, name, right):
        """Paths of the references of a checkpoint and its report."""
        made = self._artifact("checkpoint", name, data=self.data)
        folder = write_report(
            self.store.folder("evaluate", manifest.digest_of(["report", name, right])), right, checkpoint=made.digest
        )
        report = Reference.to(folder, manifest.read(folder))
        self._record("evaluate", "evaluate", folder.name, data=self.data, checkpoint=made)
        for role, ref in (("checkpoint", made), ("report", report), ("data", self.data)):
            ref.write(self.out / f"{name}-{role}.json", self.store.root)
        return name

    def path(self, *parts):
        return str(self.out / f"{'-'.join(parts)}.json")

    def register(self, name):
        paths = (self.path(name, role) for role in ("data", "checkpoint", "report", "receipt"))
        register.run(REGISTER, "store", *paths)
        return reference.read(self.path(name, "receipt"), self.store.root)

    def promote(self, name, rival=None, gate=GATE):
        """Promote as a run does that starts now: against whoever is champion, whose name is `rival`."""
        found, _ = champion.present(self.settings, "mini")
        found.write(self.out / "champion.json", self.store.root)
        against = self.path(rival, "report") if rival else self.path("nobody")
        piece = json.dumps({"registered_model": "mini", "promotion": gate})
        roles = (
            self.path(name, "receipt"),
            self.path(name, "report"),
            self.path("champion"),
            against,
            self.path(name, "decision"),
        )
        promote.run(piece, "store", *roles)
        return reference.read(self.path(name, "decision"), self.store.root).facts

    def aliases(self):
        return {str(k): str(v) for k, v in Tracking(self.settings).client.get_registered_model("mini").aliases.items()}


@pytest.fixture
def registry(store, tmp_path, monkeypatch):
    made = Registry(store, tmp_path)

    def export(checkpoint, bases, store):
        folder = store.root / "exports" / checkpoint.digest
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(exports, "ensure", export)  # the real one needs a model; tests/pipelines has one
    return made


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
    node = lineage.Node.model_validate_json((receipt.folder / "lineage.json").read_text())
    text = lineage.render(node)
    for words in (
        "version mini 1",
        "report evaluate",
        "checkpoint a",
        "set mini",
        "dvc=mini@c0ffee",
        "commit=abc  dirty=true",
        "base tower",
    ):
        assert words in text
    assert text.count("set mini") == 1  # what was shown once is not repeated
    assert "recipe_digest=" + "f" * 64 in text


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


def test_a_new_gate_is_a_new_decision(registry, happened):
    registry.candidate("a", right=18)
    registry.register("a")
    registry.promote("a")
    stricter = registry.promote("a", rival="a", gate={**GATE, "min_closed_accuracy": 0.95})
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
