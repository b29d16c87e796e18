"""The lineage of a version on a real registry: written by every step, found in MLflow, shown, exported, proved."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from functools import partial

import pytest
import yaml

from components.platform import champion, exports, versions
from components.platform.lineage import auditing, card, licences, openlineage, page, steps, text, tracked
from components.platform.lineage.graph import Kind
from components.platform.lineage.licences import Terms
from components.platform.mirror import Mirror
from components.platform.settings import Settings
from components.platform.tracking import DIGEST_CHARS, Tracking
from model import manifest
from model.errors import BiovlmError, MissingInputError
from tests.components import tampering
from tests.components.chain import Chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory, empty_store):
    """A promoted version in a home of this module; opening MLflow takes seconds, so the tests share it and leave it as it was."""
    home = tmp_path_factory.mktemp("lineage")
    shutil.copy(empty_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "BIOVLM_HOME": str(home),
            "BIOVLM_RUN_ID": "run-1",
            "BIOVLM_MIRRORED": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        }.items():
            patch.setenv(name, value)
        for name in ("BIOVLM_EVENTS", "MLFLOW_EXPERIMENT_NAME", "BIOVLM_TRIGGER"):
            patch.delenv(name, raising=False)
        made = Chain(Settings.from_environment(), home / "refs")
        patch.setattr(exports, "ensure", made.export)  # the real one needs a model; tests/pipelines has one
        made.make()
        Mirror(made.settings).pump()
        yield made


@pytest.fixture(scope="module")
def version(chain):
    return versions.find(chain.settings, "models:/mini@champion")


@pytest.fixture(scope="module")
def document(chain, version):
    return auditing.read(chain.settings, version)


def verified(chain, version):
    return auditing.verify(chain.settings, version)


def test_every_step_leaves_its_lineage_beside_its_result_and_in_mlflow(chain):
    tracking = Tracking(chain.settings)
    for name, kind in (("data", "data"), ("align", "train"), ("task", "train"), ("evaluate", "evaluate")):
        key = chain.read(name).folder.name
        document = steps.read(chain.store, kind, key)
        run = tracking.find({"biovlm.step": name})
        assert tracking.client.get_run(run).data.tags[tracked.LINEAGE_TAG] == document.digest
        assert tracking.kept(run, tracked.LINEAGE_FILE).encode() == document.to_bytes()


def test_the_graph_answers_what_an_auditor_asks(document):
    kinds = {kind: len(document.of(kind)) for kind in Kind}
    assert (kinds[Kind.CHECKPOINT], kinds[Kind.SET], kinds[Kind.BASE], kinds[Kind.STEP]) == (2, 2, 2, 6)
    for kind in (Kind.RUN, Kind.COMMIT, Kind.CODE, Kind.LOCK, Kind.MACHINE, Kind.SLICE, Kind.RECIPE, Kind.EXPORT, Kind.DECISION):
        assert kinds[kind], kind
    edges = {(edge.source.partition(":")[0], edge.role, edge.target.partition(":")[0]) for edge in document.edges}
    for edge in (
        ("version", "weights of", "checkpoint"),
        ("checkpoint", "continues", "checkpoint"),
        ("checkpoint", "learned from", "set"),
        ("base", "under", "licence"),
        ("report", "asked", "set"),
        ("version", "decided by", "decision"),
        ("version", "signed by", "signature"),
        ("version", "moved by", "move"),
    ):
        assert edge in edges
    task = next(node for node in document.of(Kind.CHECKPOINT) if node.name == "task")
    assert (task.facts["seed"], task.facts["world_sizes"]) == (7, [[0, 1]])
    (decision,) = document.of(Kind.DECISION)
    assert decision.facts["verdict"] == "promote"


def test_mlflow_finds_the_model_by_a_data_set_it_learned_from_and_by_one_it_was_only_asked(chain):
    client = Tracking(chain.settings).client
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "biovlm")
    for name in ("mini", "asked"):
        wanted = [{"dataset_name": name, "dataset_digest": chain.facts[name]["digest"][:DIGEST_CHARS]}]
        found = client.search_logged_models([experiment], datasets=wanted)
        assert [model.name for model in found] == ["mini"], name
        metrics = {metric.key for metric in found[0].metrics if metric.dataset_name == name}
        assert (tracked.LEARNED in metrics, tracked.ASKED in metrics) == (name == "mini", name == "asked")
        assert ("closed_accuracy" in metrics) == (name == "asked"), "a figure stands beside the set that it was measured on"
    assert json.loads(found[0].tags["mlflow.modelVersions"]) == [{"name": "mini", "version": "1"}], "what MLflow's page links"
    none = [{"dataset_name": "mini", "dataset_digest": "0" * DIGEST_CHARS}]
    assert not client.search_logged_models([experiment], datasets=none)


def test_the_strictest_licence_of_what_was_learned_from_decides(document, version):
    taint = licences.strictest(document)
    assert (taint.terms, taint.strictest) == (Terms.ACCEPTABLE_USE, "llama3")
    assert taint.licences == ("CC0-1.0", "MIT", "llama3")
    assert taint.only_asked == ("CC-BY-NC-4.0",)  # what was only asked does not taint the weights
    assert (version.tags["biovlm.strictest_licence"], version.tags["biovlm.terms"]) == ("llama3", "acceptable_use")


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("CC0-1.0", Terms.FREE),
        ("MIT", Terms.ATTRIBUTION),
        ("CC-BY-4.0", Terms.ATTRIBUTION),
        ("CC-BY-SA-4.0", Terms.SHARE_ALIKE),
        ("Llama 3.1 Community", Terms.ACCEPTABLE_USE),
        ("CC-BY-NC-SA-4.0", Terms.NON_COMMERCIAL),
        ("cc-by-nc-nd-4.0", Terms.RESEARCH_ONLY),
        ("PhysioNet Credentialed Health Data License 1.5.0", Terms.RESEARCH_ONLY),
        ("unknown", Terms.UNKNOWN),
        ("", Terms.UNKNOWN),
        ("MIT-like", Terms.UNKNOWN),
    ],
)
def test_a_licence_is_read_by_its_name_and_an_unknown_one_allows_nothing(licence, terms):
    assert licences.terms(licence) is terms


def test_the_tree_fits_eighty_columns_and_shows_each_thing_once(document):
    lines = text.render(document).splitlines()
    assert max(map(len, lines)) <= 80
    whole = "\n".join(lines)
    for words in ("version mini/1", "checkpoint task", "continues: checkpoint align", "licence llama3", "verdict promote"):
        assert words in whole
    assert whole.count("data/mini at revision") <= 1
    assert whole.count("holds: set mini") == 1


def test_the_page_draws_every_edge_stands_alone_and_escapes_what_it_shows(document):
    shown = page.render(document)
    nodes, edges = page.drawing.drawn(document)
    for picture in (page.drawing.wide(document), page.drawing.narrow(document)):
        assert {box.node.id for box in picture.boxes} == set(nodes)
        assert len(picture.lines) == len(edges) > 10
        assert all(box.x >= 0 and box.x + box.width <= picture.width for box in picture.boxes)
        assert all(box.y + page.drawing.HIGH <= picture.height for box in picture.boxes)
        corners = {(box.x, box.y) for box in picture.boxes}
        assert len(corners) == len(nodes)  # none upon another
    assert shown.count("<path class=") == 2 * len(edges) + 3  # and three in the legend
    assert "src=" not in shown
    assert "http" not in shown.replace("http-equiv", "")
    evil = document.model_copy(
        update={"nodes": tuple(n.model_copy(update={"facts": {"use": "<script>x</script>"}}) for n in document.nodes)}
    )
    assert "<script>" not in page.render(evil)


def test_openlineage_reads_a_start_and_an_end_of_every_step(document):
    client = pytest.importorskip("openlineage.client.event_v2", reason="openlineage-python is not installed")
    events = [json.loads(line) for line in openlineage.lines(document).splitlines()]
    assert len(events) == 2 * len(document.of(Kind.STEP))
    for event in events:
        client.RunEvent(  # refuses times, ids and types that the specification does not allow
            eventType=client.RunState[event["eventType"]],
            eventTime=event["eventTime"],
            producer=event["producer"],
            run=client.Run(runId=event["run"]["runId"]),
            job=client.Job(event["job"]["namespace"], event["job"]["name"]),
            inputs=[client.InputDataset(one["namespace"], one["name"]) for one in event["inputs"]],
            outputs=[client.OutputDataset(one["namespace"], one["name"]) for one in event["outputs"]],
        )


def test_openlineage_events_hold_what_the_specification_requires(document):
    events = list(openlineage.events(document))
    facets = [f for event in events for f in (*event["run"]["facets"].values(), *event["job"]["facets"].values())]
    facets += [f for event in events for one in (*event["inputs"], *event["outputs"]) for f in one["facets"].values()]
    assert all({"_producer", "_schemaURL"} <= facet.keys() for facet in facets)
    ended = {event["job"]["name"]: event for event in events if event["eventType"] == "COMPLETE"}
    assert {one["name"] for one in ended["task"]["inputs"]} >= {"checkpoint/align", "set/mini", "base/tower", "base/language"}
    (made,) = ended["task"]["outputs"]
    assert made["name"] == "checkpoint/task"
    assert list(openlineage.events(document)) == events  # sent again, they are the same


def test_the_model_card_says_what_the_hub_reads_and_where_the_model_is_weak(chain, document):
    shown = card.render(document, auditing.report_of(chain.settings, document))
    head = yaml.safe_load(shown.split("---\n")[1])
    assert (head["license"], head["license_name"]) == ("other", "llama3")
    assert (head["datasets"], head["base_model"]) == (["mini"], ["language", "tower"])
    (result,) = head["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]}["closed_accuracy"] == 0.9
    for words in ("Research use only", "Intended use", "0.900 | 0.800 | 1.000", "CC-BY-NC-4.0", "is not known"):
        assert words in shown
    hub = pytest.importorskip("huggingface_hub")
    loaded = hub.ModelCard(shown)
    assert loaded.data.model_name == "mini/1"
    assert {one.metric_type for one in loaded.data.eval_results} >= {"closed_accuracy", "image_gain"}


def test_an_untouched_version_is_whole(chain, version):
    found = auditing.verify(chain.settings, version)
    assert found.broken == []
    assert {"completeness", "the version's lineage as the union of its steps'"} <= set(found.whole)


def test_a_changed_byte_is_found_wherever_it_is_and_its_place_is_named(chain, version):
    draw, all_places = random.Random(5), tampering.places(chain.settings, version)
    parts = {place.part for place in all_places}
    assert parts >= {
        "weights",
        "data",
        "base models",
        "report",
        "lineage",
        "record",
        "receipt",
        "decision",
        "signature",
        "ledger",
        "served",
    }
    for part in sorted(parts):
        for place in draw.sample([one for one in all_places if one.part == part], 1 + (part in ("lineage", "record"))):
            with tampering.one_byte(place.path, draw) as at:
                text = tampering.said(chain.settings, version)
            assert place.named in text, (part, str(place.path), at, text)
    assert tampering.said(chain.settings, version) == ""


@contextlib.contextmanager
def replaced(path, content):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def broken(chain, version):
    return dict(auditing.verify(chain.settings, version).broken)


def test_a_manifest_that_says_the_same_in_other_bytes_is_found(chain, version):
    path = chain.read("task").folder / manifest.FILE_NAME
    with replaced(path, path.read_bytes().replace(b"\n ", b"\n\t", 1)):
        assert "other bytes" in broken(chain, version)[f"steps/train/{path.parent.name}"]


def test_a_step_s_lineage_that_tells_other_facts_than_its_record_is_found_with_the_fact(chain, version):
    name = steps.name_of("train", chain.read("align").folder.name)
    said = chain.store.small(name)
    assert said.count(b'"seed": 7') == 2  # of the checkpoint, and of the step
    with replaced(chain.store.root / name, said.replace(b'"seed": 7', b'"seed": 8', 1)):
        assert "seed is not what the record and the result say" in broken(chain, version)[name]


@contextlib.contextmanager
def without_edge(chain, role):
    """Inside, the version's lineage lacks the first edge of a role, and the receipt is sealed as if it had been made so; gives the edge."""
    folder = chain.read("receipt of task").folder
    said = steps.parse((folder / "lineage.json").read_bytes(), "lineage")
    edge = next(edge for edge in said.edges if edge.role == role)
    less = said.model_copy(update={"edges": tuple(one for one in said.edges if one is not edge)})
    old = manifest.read(folder)
    with replaced(folder / "lineage.json", less.to_bytes()), replaced(folder / manifest.FILE_NAME, b""):
        (folder / manifest.FILE_NAME).unlink()
        manifest.seal(folder, old.kind, old.parents, old.facts)
        yield edge


def test_an_edge_that_is_left_out_is_found_also_if_whoever_did_it_sealed_the_receipt_anew(chain, version):
    with without_edge(chain, "learned from"):
        found = broken(chain, version)
    assert "-learned from-> set" in found["the version's lineage as the union of its steps'"]
    assert "tag biovlm.lineage" in found
    assert any(place.startswith("signature of steps/register") for place in found)


def test_a_lineage_that_does_not_say_on_which_machine_a_step_ran_is_incomplete(chain, version):
    with without_edge(chain, "on"):
        found = broken(chain, version)
    assert "has no edge -on-> machine" in found["completeness"]


def test_a_version_whose_signature_was_taken_away_is_found(chain, version):
    (export,) = (edge.target.partition(":")[2] for edge in stored(chain, version).edges if edge.role == "served as")
    folder = chain.store.root / "signatures" / export
    folder.rename(folder.with_name("away"))
    try:
        found = broken(chain, version)
    finally:
        folder.with_name("away").rename(folder)
    assert f"signature of exports/{chain.read('task').digest}, signatures/{export}" in found


def stored(chain, version):
    return auditing.read(chain.settings, version)


def test_a_ledger_that_lost_its_end_is_found(chain, version):
    (entry,) = (place.path for place in tampering.places(chain.settings, version) if place.part == "ledger")
    content = entry.read_bytes()
    entry.unlink()
    try:
        found = broken(chain, version)
    finally:
        entry.write_bytes(content)
    assert "registry remembers entry 1" in found["ledger of mini"]


def test_an_alias_that_was_moved_by_hand_is_found_and_named(chain, version):
    client = Tracking(chain.settings).client
    client.delete_registered_model_alias("mini", "champion")
    client.set_registered_model_alias("mini", "previous", "1")
    assert broken(chain, version).keys() == {"alias champion of mini", "alias previous of mini"}
    client.set_registered_model_alias("mini", "champion", "1")
    client.delete_registered_model_alias("mini", "previous")
    assert not broken(chain, version)


def test_an_edited_tag_and_a_lost_artifact_are_found_and_named(chain, version):
    client = Tracking(chain.settings).client
    client.set_model_version_tag("mini", "1", "biovlm.report", "0" * 64)
    assert any("tag biovlm.report" in place for place, _ in verified(chain, refreshed(chain)).broken)
    client.set_model_version_tag("mini", "1", "biovlm.report", version.tags["biovlm.report"])
    lost = chain.store.root / "steps" / "train" / chain.read("align").folder.name
    lost.rename(lost.with_name("lost"))
    try:
        places = [place for place, _ in verified(chain, version).broken]
    finally:
        lost.with_name("lost").rename(lost)
    assert any(lost.name in place for place in places)
    assert verified(chain, refreshed(chain)).broken == []


def test_a_deleted_run_is_found_and_named(chain, version):
    tracking = Tracking(chain.settings)
    run = tracking.run_of("mini", "1")
    tracking.client.delete_run(run)
    try:
        found = verified(chain, version).broken
    finally:
        tracking.client.restore_run(run)
    assert any(run in place and "deleted" in problem for place, problem in found)


def test_a_promotion_that_was_refused_is_no_decision_and_one_whose_result_is_gone_is_broken(chain, version):
    key = chain.read("decision on task").folder.name
    record, folder = chain.store.record("promote", key), chain.store.folder("promote", key)
    refused = record.model_copy(update={"key": "d" * 64, "seconds": None})
    chain.store.write_record(refused)
    try:
        assert len(stored(chain, version).of(Kind.DECISION)) == 1
        assert broken(chain, version) == {}
        folder.rename(folder.with_name("gone"))
        assert any(key in place for place in broken(chain, version))
    finally:
        folder.with_name("gone").rename(folder)
        (chain.store.root / "steps" / "promote" / f"{refused.key}.json").unlink()


def test_a_foreign_version_has_no_lineage(chain):
    foreign = versions.Version(name="theirs", version="1")
    for ask in (auditing.read, auditing.verify):
        with pytest.raises(MissingInputError, match="biovlm did not register it"):
            ask(chain.settings, foreign)


def test_a_receipt_of_another_version_is_refused(chain, version):
    other = version.model_copy(update={"version": "2"})
    places = [place for place, _ in auditing.verify(chain.settings, other).broken]
    assert f"tag {champion.RECEIPT_KEY}" in places


def test_what_is_no_lineage_is_a_letter(chain):
    read = partial(steps.parse, place="somewhere")
    for content in (None, b"", b"{}", b'{"schema_version": 2, "about": "x", "nodes": [], "edges": []}'):
        with pytest.raises(BiovlmError, match="lineage"):
            read(content)


def refreshed(chain):
    return versions.find(chain.settings, "models:/mini/1")
