"""The one pass over records and images."""

from __future__ import annotations

import pytest

from model.config import Data
from model.data.check import check
from model.data.dataset import open_dataset
from model.data.strict_json import Flaw
from model.errors import DataError, RefusedError
from tests.model.data.conftest import Writer
from tests.model.data.tiny_data import question

LENIENT = Data(sets={}, max_quarantined=0.9, max_image_pixels=100)


def test_a_good_set_has_no_findings_and_a_digest_for_every_image(write_set: Writer) -> None:
    report = check(write_set({"train": [question("a"), question("b", "images/b.png")]}, {"a.png": 1, "b.png": 2}), Data(sets={}))
    assert report.ok
    assert report.kept == report.records == {"train": 2}
    assert sorted(report.pixels) == ["images/a.png", "images/b.png"]
    assert report.excluded == []
    report.refuse()


def test_every_bad_image_sets_its_records_aside_with_reason_file_line_and_id(write_set: Writer) -> None:
    images = {"a.png": 1, "cut.png": b"\x89PNG\r\n\x1a\n123", "text.png": b"hello", "zero.png": b""}
    lines = [
        question("fine"),
        question("cut", "images/cut.png"),
        b"{",
        question("text", "images/text.png"),
        question("cut again", "images/cut.png"),
        question("zero", "images/zero.png"),
        question("gone", "images/gone.png"),
    ]
    report = check(write_set({"train": lines}, images), LENIENT)
    assert [(f.flaw, f.line, f.record_id) for f in report.findings] == [
        (Flaw.IMAGE_BROKEN, 2, "cut"),
        (Flaw.JSON, 3, ""),
        (Flaw.IMAGE_FORMAT, 4, "text"),
        (Flaw.IMAGE_BROKEN, 5, "cut again"),
        (Flaw.IMAGE_FORMAT, 6, "zero"),
        (Flaw.IMAGE_MISSING, 7, "gone"),
    ]
    assert report.excluded == ["cut", "cut again", "gone", "text", "zero"]
    assert report.facts()["set_aside"] == {"image_broken": 2, "image_format": 2, "image_missing": 1, "json": 1}
    assert any("records/train.jsonl:5: image_broken (cut again): images/cut.png" in line for line in report.lines())


def test_the_limit_of_pixels_is_the_recipes(write_set: Writer) -> None:
    folder = write_set({"train": [question("a"), question("b", "images/b.png")]}, {"a.png": 1})
    with pytest.raises(DataError, match=r"2 of 2 records are set aside .*: 1 image_too_large, 1 image_missing"):
        check(folder, Data(sets={}, max_image_pixels=63)).refuse()
    assert check(folder, Data(sets={}, max_image_pixels=64)).findings[0].flaw is Flaw.IMAGE_MISSING


def test_too_many_bad_images_stop_with_counts(write_set: Writer) -> None:
    lines = [question("fine"), question("cut", "images/cut.png")]
    folder = write_set({"train": lines}, {"a.png": 1, "cut.png": b"\x89PNG\r\n\x1a\n"})
    with pytest.raises(
        DataError, match=r"^set/records/train.jsonl: 1 of 2 records are set aside \(50.0%, the limit is 2.0%\): 1 image_broken"
    ):
        check(folder, Data(sets={})).refuse()


def test_an_empty_split_is_refused(write_set: Writer) -> None:
    report = check(write_set({"train": []}), LENIENT)
    assert not report.ok
    with pytest.raises(DataError, match="is empty"):
        report.refuse()


def test_a_data_set_without_any_record_is_refused_by_its_name(write_set: Writer) -> None:
    with pytest.raises(DataError, match="^set has no records"):
        check(write_set({}), Data(sets={})).refuse()


def test_what_a_check_excludes_later_readers_leave_out(write_set: Writer) -> None:
    folder = write_set({"train": [question("fine"), question("cut", "images/cut.png")]}, {"a.png": 1, "cut.png": b"BM"})
    dataset = open_dataset(folder, max_quarantined=0.9, exclude=check(folder, LENIENT).excluded)
    assert [record.id for record in dataset.records("train")] == ["fine"]


def test_a_folder_is_verified_first(write_set: Writer) -> None:
    folder = write_set({"train": [question("a")]})
    (folder / "added.txt").write_text("x")
    with pytest.raises(RefusedError, match="1 added"):
        check(folder, LENIENT)
