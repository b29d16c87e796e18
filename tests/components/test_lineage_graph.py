"""The graph itself: what a document must be, and what two of them say together; where a result was made."""

from __future__ import annotations

import hashlib
import json

import pytest
from pydantic import ValidationError

from components.platform import code, origin
from components.platform.heavy import Result
from components.platform.lineage import complete
from components.platform.lineage.graph import Document, Edge, Kind, Node, document, union
from components.platform.settings import Settings
from components.platform.shared_store import SharedStore
from components.platform.step import _with_there
from components.platform.store import StepRecord
from model.errors import DataError


def pair(**facts):
    """A version that was made from a checkpoint."""
    version, weights = Node.of(Kind.VERSION, "mini/1"), Node.of(Kind.CHECKPOINT, "task", "a" * 64, **facts)
    return document(version, [weights], [Edge(source=version.id, target=weights.id, role="weights of")])


def test_equal_content_has_equal_bytes_whatever_the_order_in_which_it_was_said():
    one, edges = pair(seed=1), pair().edges
    again = document(one.nodes[1], [one.nodes[0], one.nodes[0]], [*edges, *edges])
    assert (again.to_bytes(), again.digest) == (one.to_bytes(), one.digest)
    assert Document.model_validate_json(one.to_bytes()) == one


def test_two_lineages_add_up_and_a_contradiction_is_an_error():
    top = Node.of(Kind.VERSION, "mini/1")
    found = union(top, [pair(seed=1), pair(records=3)])
    assert found.of(Kind.CHECKPOINT)[0].facts == {"records": 3, "seed": 1}
    with pytest.raises(DataError, match="contradict each other about checkpoint.*seed"):
        union(top, [pair(seed=1), pair(seed=2)])


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["nodes"].reverse(),
        lambda said: said["nodes"].pop(),
        lambda said: said["nodes"].append(said["nodes"][-1]),
        lambda said: said.update(schema_version=2),
        lambda said: said.update(about="version:other/1"),
        lambda said: said["nodes"][0].update(id="checkpoint:b"),
        lambda said: said["edges"][0].update(target="set:nothing"),
        lambda said: said.update(more=1),
    ],
)
def test_what_is_not_sorted_closed_and_of_this_schema_is_no_document(change):
    said = json.loads(pair().to_bytes())
    change(said)
    with pytest.raises(ValidationError):
        Document.model_validate(said)


def test_what_is_not_known_is_named_and_not_assumed():
    gaps = list(complete.gaps(pair()))
    assert "checkpoint task has no edge -made by-> step" in gaps
    assert "version mini/1 has no edge -judged by-> report" in gaps


def test_an_origin_names_machine_lock_trigger_and_no_login(tmp_path):
    settings = Settings.from_environment(
        {
            "BIOVLM_HOME": str(tmp_path),
            "BIOVLM_TRIGGER": "schedule:monthly",
            "BIOVLM_DATA": "https://user:secret@git.example/data.git",
        }
    )
    found = origin.here(settings, {"BIOVLM_TRAIN_IMAGE": "registry.example/train@sha256:1"})
    assert (found.trigger, found.images) == ("schedule:monthly", {"train": "registry.example/train@sha256:1"})
    assert found.places == {"registry": "https://git.example/data.git"}
    assert found.machine["cpus"] > 0
    assert "secret" not in found.model_dump_json()
    assert Settings.from_environment(settings.for_children()).trigger == "schedule:monthly"


def test_the_lock_is_that_of_the_checkout_or_of_the_image(tmp_path):
    assert origin.lock(tmp_path) == "unknown"
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "lock.txt").write_text("a==1")
    assert origin.lock(tmp_path) == hashlib.sha256(b"a==1").hexdigest()
    (tmp_path / code.REVISION).write_text(json.dumps({"commit": "c", "dirty": False, "lock": "of the image"}))
    assert origin.lock(tmp_path) == "of the image"
    assert code.revision(tmp_path) == {"commit": "c", "dirty": False}


def test_work_in_a_cluster_is_told_with_the_machine_and_the_job_that_did_it():
    record = StepRecord(key="k", kind="train", name="task", run_id="r", piece={}, identity={}, code="c", started=0.0)
    mine = record.model_copy(update={"origin": origin.Origin(launcher="jobs", machine={"cpus": 2}, lock="mine")})
    there = Result(
        0, tries=3, versions={"torch": "2"}, origin={"machine": {"cpus": 96}, "lock": "theirs", "job": "biovlm-task-1"}
    )
    found = _with_there(mine, there)
    assert found.versions == {"torch": "2"}
    assert (found.origin.machine, found.origin.lock) == ({"cpus": 96}, "theirs")
    assert (found.origin.job, found.origin.tries, found.origin.launcher) == ("biovlm-task-1", 3, "jobs")
    assert _with_there(mine, None) == mine


def test_small_files_are_shared_through_the_bucket(client, shared, tmp_path):
    here, there = SharedStore(tmp_path / "here", shared), SharedStore(tmp_path / "there", shared)
    key = "f" * 64
    here.keep(f"steps/promote/{key}.json", b"a record")
    here.keep(f"steps/promote/{key}.lineage.json", b"a lineage")
    assert there.small(f"steps/promote/{key}.lineage.json") == b"a lineage"
    assert there.keys("promote") == [key]
    assert there.small("steps/promote/none.json") is None
