"""The gate on a real registry: what it reads, and what nobody can make it believe (C8 to C10, C12, D4, D7)."""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace

import pytest

from components.platform import approved, reference, signing
from components.platform.lineage import licences
from components.platform.lineage.licences import ALLOWED
from components.platform.tracking import Tracking
from components.preflight import step as preflight
from components.promote import gate
from model import manifest
from model.config import Promotion, Purpose
from model.errors import ConfigError, RefusedError
from model.evaluation.decision import gate_digest
from model.evaluation.results import read_items, read_report, write
from tests.components.promotions import GATE
from tests.pipelines import micro

WEAKER = {**GATE, "min_items": 1}


def refused(registry, happened, *args, **options):
    """What a promotion that must end with 77 says; no alias moves."""
    before = registry.aliases()
    with pytest.raises(SystemExit) as stopped:
        registry.promote(*args, **options)
    assert stopped.value.code == 77
    assert registry.aliases() == before
    last = happened(types_only=False)[-1]
    return f"{last.message} {last.hint}"


@pytest.fixture
def champion(registry):
    """A registry whose version 1 is champion, and whose version 2 is a better candidate."""
    for name, right in (("a", 15), ("b", 18)):
        registry.candidate(name, right)
        registry.register(name)
    registry.promote("a")
    return registry


def rewrite(registry, name, change):
    """Replace the report of a candidate as somebody would who may write the store: report, manifest and references fit."""
    ref = reference.read(registry.path(name, "report"), registry.store.root)
    whole, items = read_report(ref.folder), read_items(ref.folder)
    old = manifest.read(ref.folder)
    shutil.rmtree(ref.folder)
    with manifest.commit(ref.folder, old.kind, old.parents, old.facts) as folder:
        write(folder, *change(whole, items))
    changed = reference.Reference.to(ref.folder, manifest.read(ref.folder))
    changed.write(registry.out / f"{name}-report.json", registry.store.root)
    return changed


def perfect(whole, items):
    """Every answer right, and every number as the answers say."""
    result = whole.benchmarks[0]
    sure = {"value": 1.0, "low": 1.0, "high": 1.0}
    metric = result.metrics[0].model_copy(update={"model": result.metrics[0].model.model_copy(update=sure)})
    changes = {"metrics": (metric,), "image_gain": result.image_gain.model_copy(update=sure)}
    better = [item.model_copy(update={"scores": {"closed_accuracy": 1.0}}) for item in items]
    return whole.model_copy(update={"benchmarks": (result.model_copy(update=changes),)}), better


def test_a_report_that_was_rewritten_after_it_was_signed_is_refused(champion, happened):
    rewrite(champion, "b", perfect)
    assert "is not signed" in refused(champion, happened, "b", rival="a")


def test_the_champions_report_is_verified_too(champion, happened):
    rewrite(champion, "a", lambda whole, items: (whole, items[::-1]))
    assert "is not signed" in refused(champion, happened, "b", rival="a")


def test_numbers_and_tags_in_mlflow_are_not_what_is_decided_from(champion, store):
    champion.candidate("c", right=3)
    receipt = champion.register("c")
    client = Tracking(store).client
    number, model_id = str(receipt.facts["version"]), str(receipt.facts["model_id"])
    run = client.get_model_version("mini", number).run_id
    client.log_metric(run, "closed_accuracy", 1.0, model_id=model_id)
    client.set_model_version_tag("mini", number, "biovlm.decision", "promote")
    client.set_model_version_tag("mini", number, "biovlm.report", "f" * 64)
    assert champion.promote("c", rival="a")["verdict"] == "hold"
    assert champion.aliases()["champion"] == "1"


def test_a_report_of_another_version_of_the_benchmark_is_refused(champion, happened):
    def newer(whole, items):
        return whole.model_copy(update={"benchmarks": (whole.benchmarks[0].model_copy(update={"version": 2}),)}), items

    made = rewrite(champion, "a", newer)
    signing.ensure(champion.store, champion.settings, champion.store.uri(made.folder))
    assert "version is 1 for the candidate and 2 for the champion" in refused(champion, happened, "b", rival="a")


def test_a_weaker_gate_is_refused_until_somebody_approves_it(champion, happened, monkeypatch, tmp_path):
    assert "the approved list does not name it" in refused(champion, happened, "b", rival="a", gate=WEAKER)
    line = {
        "digest": gate_digest(Promotion.model_validate(WEAKER)),
        "by": "Ada",
        "since": "2026-01-01",
        "reason": "a smaller set",
    }
    path = tmp_path / "gates.yaml"
    path.write_text(json.dumps({"gates": [line | {"until": "2026-01-02"}]}))
    monkeypatch.setenv("BIOVLM_APPROVED_GATES", str(path))
    assert "does not name it" in refused(champion, happened, "b", rival="a", gate=WEAKER)  # its approval has ended
    path.write_text(json.dumps({"gates": [line]}))
    assert champion.promote("b", rival="a", gate=WEAKER)["verdict"] == "promote"
    assert champion.aliases()["champion"] == "2"


def test_a_gate_that_nobody_approved_is_refused_before_anything_is_trained(champion, happened, monkeypatch, tmp_path):
    def check(gate):
        recipe = micro.recipe(registered_model="mini", promotion=gate)
        return preflight.run(recipe.model_dump_json(), str(tmp_path / "present.json"))

    assert check(GATE).promote
    with pytest.raises(SystemExit) as stopped:
        check(WEAKER)
    letter = happened(types_only=False)[-1]
    assert (stopped.value.code, "the approved list does not name it" in letter.message) == (77, True)
    path = tmp_path / "gates.yaml"
    line = {
        "digest": gate_digest(Promotion.model_validate(WEAKER)),
        "by": "Ada",
        "since": "2026-01-01",
        "reason": "a smaller set",
    }
    path.write_text(json.dumps({"gates": [line]}))
    monkeypatch.setenv("BIOVLM_APPROVED_GATES", str(path))
    assert check(WEAKER).promote


def test_a_licence_that_forbids_the_purpose_is_refused(registry, happened):
    registry.use("CC-BY-NC-4.0")
    registry.candidate("a", right=18)
    registry.register("a")
    letter = refused(registry, happened, "a", gate={**GATE, "purpose": "commercial"})
    assert "commercial is not allowed by CC-BY-NC-4.0" in letter
    assert registry.promote("a")["verdict"] == "promote"  # research is


def test_a_version_that_was_registered_unsigned_says_so_and_is_not_promoted_when_signing_is_on(registry, happened, monkeypatch):
    monkeypatch.setenv("BIOVLM_SIGNING", "off")
    registry.candidate("a", right=18)
    receipt = registry.register("a")
    assert {seal["method"] for seal in receipt.facts["seals"].values()} == {"off"}
    assert "signature:off" in (receipt.folder / "lineage.json").read_text()
    monkeypatch.delenv("BIOVLM_SIGNING")
    assert "is not signed" in refused(registry, happened, "a")
    monkeypatch.setenv("BIOVLM_SIGNING", "off")
    assert registry.promote("a")["verdict"] == "promote"


def test_what_biovlm_does_not_make_is_not_registered(registry, monkeypatch):
    registry.candidate("a", right=18)
    checkpoint = reference.read(registry.path("a", "checkpoint"), registry.store.root)
    folder = registry.store.root / "exports" / checkpoint.digest
    bad = {
        "foreign": {"config.json": json.dumps({"model_type": "gpt2"})},
        "inner": {"config.json": json.dumps({"model_type": "llava", "vision_config": {"model_type": "evil"}})},
        "code": {"config.json": json.dumps({"model_type": "llava", "auto_map": {"AutoModel": "x--y.Z"}})},
        "pickle": {"config.json": "{}", "extra.pkl": "x"},
    }
    for name, files in bad.items():
        shutil.rmtree(folder, ignore_errors=True)
        with manifest.commit(folder, "export", {"checkpoint": checkpoint.digest}) as aside:
            for file, text in files.items():
                (aside / file).write_text(text)
        with pytest.raises(SystemExit) as stopped:
            registry.register("a")
        assert stopped.value.code == 77, name
    assert not Tracking(registry.settings).client.search_registered_models()


def test_each_purpose_has_its_strictest_terms():
    allowed = [ALLOWED[purpose] for purpose in (Purpose.RESEARCH, Purpose.SHARING, Purpose.COMMERCIAL)]
    assert allowed == sorted(allowed, reverse=True)
    assert set(ALLOWED) == set(Purpose)
    assert list(licences.forbidden(("CC0-1.0", "nobody knows"), Purpose.RESEARCH)) == ["nobody knows"]


BAD_LISTS = ["gates: 3", "gates: [{digest: abc, by: x, since: 2026-01-01, reason: r}]", "gates: [", "other: []", "- 1"]


@pytest.mark.parametrize("text", BAD_LISTS)
def test_a_list_of_approvals_that_cannot_be_read_approves_nothing(settings, tmp_path, text):
    path = tmp_path / "gates.yaml"
    for content in (text, None):
        path.write_text(content) if content is not None else path.unlink()
        with pytest.raises(ConfigError):
            approved.digests(replace(settings, approved_gates=path))


def test_the_list_of_the_project_can_be_read_and_approvals_begin_and_end(settings, tmp_path):
    assert approved.digests(settings) == frozenset()
    path = tmp_path / "gates.yaml"
    path.write_text(f"gates: [{{digest: {'a' * 64}, by: Ada, since: 2026-02-01, until: 2026-03-01, reason: r}}]")
    for day, there in (("2026-01-31", False), ("2026-02-01", True), ("2026-03-01", True), ("2026-03-02", False)):
        found = approved.digests(replace(settings, approved_gates=path), datetime.date.fromisoformat(day))
        assert bool(found) is there, day


def test_what_was_read_is_the_reports_own_evidence(registry):
    registry.candidate("a", right=18)
    ref = reference.read(registry.path("a", "report"), registry.store.root)
    found = gate.evidence(registry.store, registry.settings, ref)
    assert (found.report.checkpoint, len(found.items)) == (read_report(ref.folder).checkpoint, 20)
    (ref.folder / "report.json").write_text("{}")
    with pytest.raises(RefusedError):
        gate.evidence(registry.store, registry.settings, ref)
