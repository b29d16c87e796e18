from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from model import manifest
from model.architecture.assembly import Assistant
from model.architecture.features import Disk, FeatureSource
from model.config import Benchmark, EvaluateSlice, Evaluation, Resources
from model.data.dataset import Audit, DataSet
from model.data.records import Record
from model.errors import DataError, MissingInputError
from model.evaluation.evaluate import evaluate
from model.evaluation.results import ITEMS, REPORT, Figure, read_items, read_report

CHECKPOINT = "c" * 64


def piece(**changes: object) -> EvaluateSlice:
    bench = Benchmark.model_validate({"set": "phantom"} | changes)
    evaluation = Evaluation(benchmarks=(bench,), max_new_tokens=3, bootstrap_samples=100)
    return EvaluateSlice(seed=0, evaluation=evaluation, resources=Resources())


@pytest.fixture(scope="module")
def done(assistant: Assistant, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report"
    evaluate(piece(), assistant, CHECKPOINT, {"phantom": phantom_folder}, out)
    return out


def test_a_report_is_an_artifact_with_every_question_in_it(done: Path, questions: list[Record], phantom: DataSet) -> None:
    found = manifest.verify(done)
    assert found.kind == "report"
    assert found.parents == {"checkpoint": CHECKPOINT, "data:phantom": phantom.manifest.digest}
    report, items = read_report(done), read_items(done)
    result = report.benchmarks[0]
    assert result.items == len(items) == len(questions)
    assert result.groups == 5
    assert result.blind_images == 10
    assert result.seen_items == 0
    assert [item.id for item in items] == [record.id for record in questions]


def test_the_figures_are_the_means_of_the_items(done: Path) -> None:
    result, items = read_report(done).benchmarks[0], read_items(done)
    for metric in result.metrics:
        scores = [item.scores[metric.name] for item in items if metric.name in item.scores]
        assert metric.model.items == len(scores)
        assert metric.model.value == pytest.approx(math.fsum(scores) / len(scores))
    assert result.image_gain is not None
    modality = [part for part in result.slices if part.field == "modality"]
    assert sum(part.items for part in modality) == result.items
    assert {part.value for part in modality} == {item.modality for item in items}


def test_the_same_evaluation_gives_the_same_bytes(assistant: Assistant, phantom_folder: Path, done: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(piece(), assistant, CHECKPOINT, {"phantom": phantom_folder}, tmp_path / "again", progress=lambda *v: seen.append(v))
    assert manifest.read(tmp_path / "again").digest == manifest.read(done).digest
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == 2 * read_report(done).benchmarks[0].items


def test_images_that_also_stand_in_training_are_counted_and_shown_apart(
    assistant: Assistant, phantom: DataSet, questions: list[Record], tmp_path: Path
) -> None:
    digests = {entry.path: entry.sha256 for entry in phantom.manifest.files}
    leaked = {digests[questions[0].images[0]]}
    evaluate(piece(), assistant, CHECKPOINT, {"phantom": phantom.folder}, tmp_path / "r", training_images=leaked)
    result = read_report(tmp_path / "r").benchmarks[0]
    same = [record for record in questions if record.images == questions[0].images]
    assert (result.seen_items, result.seen_images) == (len(same), 1)
    counts = {part.value: part.items for part in result.slices if part.field == "seen_in_training"}
    assert counts == {"yes": len(same), "no": len(questions) - len(same)}
    assert sum(item.seen_in_training for item in read_items(tmp_path / "r")) == len(same)


def test_a_limit_takes_questions_by_digest_and_changes_the_digest_of_the_items(
    assistant: Assistant, phantom_folder: Path, done: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        evaluate(piece(limit=6), assistant, CHECKPOINT, {"phantom": phantom_folder}, tmp_path / name)
    one, two = (read_report(tmp_path / name).benchmarks[0] for name in ("one", "two"))
    assert one.items == 6
    assert one.items_digest == two.items_digest != read_report(done).benchmarks[0].items_digest


def test_nothing_to_ask_is_bad_data(assistant: Assistant, phantom: DataSet, tmp_path: Path) -> None:
    folder = with_records(tmp_path / "set", phantom, lambda record: record["kind"] == "caption")
    with pytest.raises(DataError, match="no records of kind question"):
        evaluate(piece(), assistant, CHECKPOINT, {"phantom": folder}, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_question_without_answer_type_is_bad_data(assistant: Assistant, phantom: DataSet, tmp_path: Path) -> None:
    folder = with_records(tmp_path / "set", phantom, lambda record: record.update(answer_type=None) is None)
    with pytest.raises(DataError, match="no answer_type"):
        evaluate(piece(), assistant, CHECKPOINT, {"phantom": folder}, tmp_path / "r")


def test_a_question_that_the_audit_set_aside_is_not_asked(
    assistant: Assistant, phantom: DataSet, questions: list[Record], tmp_path: Path
) -> None:
    bad = questions[0].images[0]
    folder = with_records(tmp_path / "set", phantom, lambda record: True, {bad: b"no picture"})
    with pytest.raises(DataError, match="not a PNG"):
        evaluate(piece(), assistant, CHECKPOINT, {"phantom": folder}, tmp_path / "r")
    ids = [record.id for record in phantom.records("test") if bad in record.images]
    evaluate(piece(), assistant, CHECKPOINT, {"phantom": folder}, tmp_path / "r", audit=Audit({"phantom": ids}, 0.9))
    assert [item.id for item in read_items(tmp_path / "r")] == [record.id for record in questions if record.id not in ids]


def test_the_recipes_limit_of_pixels_holds_in_evaluation(assistant: Assistant, phantom_folder: Path, tmp_path: Path) -> None:
    sets, audit = {"phantom": phantom_folder}, Audit(max_image_pixels=63)
    with pytest.raises(DataError, match="the limit is 63 pixels"):
        evaluate(piece(), assistant, CHECKPOINT, sets, tmp_path / "r", audit=audit)


def test_a_set_that_was_not_handed_in_is_missing(assistant: Assistant, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="phantom"):
        evaluate(piece(), assistant, CHECKPOINT, {}, tmp_path / "r")


def test_a_figure_that_is_not_finite_or_a_percent_cannot_be_made() -> None:
    for value in (float("nan"), float("inf"), 90.0):
        with pytest.raises(ValidationError):
            Figure(value=value, low=None, high=None, items=1, groups=1)


def test_a_damaged_report_is_named_without_its_content(done: Path, tmp_path: Path) -> None:
    text = (done / ITEMS).read_text().replace('"scores": {', '"scores": {"closed_accuracy": 90, ', 1)
    (tmp_path / ITEMS).write_text(text)
    with pytest.raises(DataError, match=r"predictions.jsonl:1: scores.closed_accuracy"):
        read_items(tmp_path)
    (tmp_path / REPORT).write_text((done / REPORT).read_text()[:-50])
    with pytest.raises(DataError, match=r"report.json"):
        read_report(tmp_path)
    with pytest.raises(MissingInputError):
        read_report(tmp_path / "nowhere")


def with_records(folder: Path, source: DataSet, keep: object, files: Mapping[str, bytes] | None = None) -> Path:
    """The data set with other test records, and other content of some files."""
    with manifest.commit(folder, "data", facts=source.manifest.facts) as aside:
        for entry in source.manifest.files:
            target = aside / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((files or {}).get(entry.path) or source.path(entry.path).read_bytes())
        path = aside / "records" / "test.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [record for record in records if keep(record)]  # type: ignore[operator]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return folder


def test_features_of_an_earlier_evaluation_or_training_are_used_again_and_change_nothing(
    assistant: Assistant, phantom_folder: Path, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Path] = []
    together = FeatureSource._encode_together
    monkeypatch.setattr(FeatureSource, "_encode_together", lambda source, paths: encoded.extend(paths) or together(source, paths))
    disk = Disk(tmp_path / "cache", 2**24)
    counts = []
    for name in ("cold", "warm"):
        encoded.clear()
        evaluate(piece(), assistant, CHECKPOINT, {"phantom": phantom_folder}, tmp_path / name, feature_cache=disk)
        assert manifest.read(tmp_path / name).digest == manifest.read(done).digest
        counts.append(len(encoded))
        for _ in range(1000):  # the last entries are still being written
            if len([path for path in disk.folder.rglob("*") if len(path.name) == 62]) == 5:
                break
            time.sleep(0.01)
    assert counts == [5, 0], "the test images once, and then never"
