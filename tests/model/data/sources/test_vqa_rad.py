"""VQA-RAD: every quirk of the published files on a small hand-made copy, and the real files where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.config import Kind
from model.data.audit import images_and_groups, leakage
from model.data.dataset import DataSet, open_dataset
from model.data.records import AnswerType
from model.data.sources.vqa_rad import IMAGES, PUBLIC, TEST, TRAIN, ImportReport, import_vqa_rad
from model.errors import DataError, MissingInputError

REAL = Path(__file__).resolve().parents[5] / "shared" / "datasets" / "vqa_rad"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real VQA-RAD files are not at {REAL}")


def row(qid: Any, image: str = "a.jpg", **changes: Any) -> dict[str, Any]:
    fields = {
        "qid": qid,
        "phrase_type": "freeform",
        "image_name": image,
        "image_organ": "HEAD",
        "question": f"Is finding {qid} shown?",
        "question_rephrase": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
    }
    return fields | changes


def write(folder: Path, files: dict[str, Any], images: str = "abcdefghij") -> Path:
    (folder / IMAGES).mkdir(parents=True)
    for number, name in enumerate(images):
        Image.linear_gradient("L").rotate(number * 9).resize((48, 32)).save(folder / IMAGES / f"{name}.jpg")
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return folder


def usual_split(train: list[Any], test: list[Any] | None = None) -> dict[str, Any]:
    tests = [row(1000 + number, f"{name}.jpg", phrase_type="test_freeform") for number, name in enumerate("fghij")]
    return {TRAIN: [row(1, "a.jpg"), row(2, "b.jpg"), *train], TEST: tests if test is None else test}


def imported(tmp_path: Path, files: dict[str, Any], images: str = "abcdefghij") -> tuple[ImportReport, DataSet]:
    report = import_vqa_rad(write(tmp_path / "source", files, images), tmp_path / "set")
    return report, open_dataset(tmp_path / "set")


def only(tmp_path: Path, **changes: Any) -> tuple[ImportReport, Any]:
    """Report, and the record that one quirky row became (None if it was set aside)."""
    report, dataset = imported(tmp_path, usual_split([row(77, "c.jpg", **changes)]))
    found = [record for record in dataset.records("train_official") if record.id == "train_official-77"]
    return report, found[0] if found else None


def test_an_answer_that_is_a_number_becomes_text(tmp_path: Path) -> None:
    report, record = only(tmp_path, answer=2, answer_type="OPEN")
    assert (record.answer, record.answer_type) == ("2", AnswerType.OPEN)
    assert report.repairs["number_as_text"] == 1


def test_spaces_are_trimmed_and_counted(tmp_path: Path) -> None:
    report, record = only(tmp_path, answer_type="CLOSED ", answer=" no ", question="Is  it\tlarge? ")
    assert (record.question, record.answer, record.answer_type) == ("Is it large?", "no", AnswerType.CLOSED)
    assert (report.repairs["spaces"], report.repairs["answer_type_spelling"]) == (2, 1)


@pytest.mark.parametrize(
    ("published", "expected", "repair"),
    [
        ("PRES", "presence", None),
        ("ATRIB", "attribute", "question_type_spelling"),
        ("Other", "other", "question_type_spelling"),
        ("PRES, POS", "position+presence", "question_type_order"),
        ("POS, PRES", "position+presence", None),
        ("POS,PRES ", "position+presence", None),
        ("SHAPE", "other", "question_type_unknown"),
        ("", "other", None),
    ],
)
def test_question_types_are_spelled_out_in_one_order(tmp_path: Path, published: str, expected: str, repair: str | None) -> None:
    report, record = only(tmp_path, question_type=published)
    assert record.question_type == expected
    assert set(report.repairs) == ({repair} if repair else set())


def test_a_reserved_token_is_escaped(tmp_path: Path) -> None:
    report, record = only(tmp_path, question="What is <image> here?", answer="a</s>b", answer_type="OPEN")
    assert (record.question, record.answer) == ("What is (image) here?", "a(s)b")
    assert report.repairs["reserved_token_escaped"] == 2


def test_none_is_an_answer_and_null_is_not(tmp_path: Path) -> None:
    assert only(tmp_path / "a", answer="None", answer_type="OPEN")[1].answer == "None"
    report, record = only(tmp_path / "b", answer="NULL", answer_type="OPEN")
    assert record is None
    assert report.set_aside == {"blank_answer": 1}


def test_a_closed_question_may_have_another_answer_than_yes_or_no(tmp_path: Path) -> None:
    report, record = only(tmp_path, answer="left")
    assert (record.answer, record.answer_type) == ("left", AnswerType.CLOSED)
    assert report.closed_beyond_yes_no == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "  "}, "blank_answer"),
        ({"question": ""}, "blank_question"),
        ({"question": "NULL"}, "blank_question"),
        ({"answer": None}, "field_missing"),
        ({"answer": ["yes"]}, "field_missing"),
        ({"answer": True}, "field_missing"),
        ({"answer_type": "MAYBE"}, "answer_type"),
        ({"answer_type": None}, "answer_type"),
        ({"question": "x" * 20_001}, "text_too_long"),
        ({"image_name": "gone.jpg"}, "image_missing"),
        ({"image_name": "broken.jpg"}, "image_unreadable"),
        ({"image_name": "../" + TRAIN}, "unsafe_path"),
        ({"image_name": "/etc/passwd"}, "unsafe_path"),
    ],
)
def test_a_row_whose_meaning_is_not_certain_is_set_aside_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    source = write(tmp_path / "source", usual_split([row(77, "c.jpg") | changes]))
    (source / IMAGES / "broken.jpg").write_bytes((source / IMAGES / "a.jpg").read_bytes()[:-200])
    report = import_vqa_rad(source, tmp_path / "set")
    assert report.set_aside == {reason: 1}
    assert all(record.id != "train_official-77" for record in open_dataset(tmp_path / "set").records("train_official"))


def test_a_row_that_is_no_object_is_set_aside(tmp_path: Path) -> None:
    report, _ = imported(tmp_path, usual_split(["hello", 3]))
    assert report.set_aside == {"not_an_object": 2}


def test_an_image_without_questions_is_counted_and_not_copied(tmp_path: Path) -> None:
    report, dataset = imported(tmp_path, usual_split([]))
    assert report.images_without_questions == 3  # c, d, e
    assert report.images == 7
    assert not (dataset.folder / "images" / "c.jpg").exists()


def test_image_files_are_copied_as_they_are(tmp_path: Path) -> None:
    _, dataset = imported(tmp_path, usual_split([]))
    assert (dataset.folder / "images" / "a.jpg").read_bytes() == (tmp_path / "source" / IMAGES / "a.jpg").read_bytes()


def test_one_number_in_two_files_gives_two_ids_and_twice_in_one_file_a_suffix(tmp_path: Path) -> None:
    files = usual_split([row(1000, "c.jpg"), row(1, "d.jpg"), row("1", "e.jpg")])
    report, dataset = imported(tmp_path, files)
    ids = {record.id for record in dataset.records("train_official")}
    assert {"train_official-1", "train_official-1-2", "train_official-1-3", "train_official-1000"} <= ids
    assert "test-1000" in {record.id for record in dataset.records("test")}
    assert report.repairs["qid_repeated"] == 2


def test_train_shares_no_picture_with_the_disjoint_test_even_under_another_name(tmp_path: Path) -> None:
    training = [row(number, f"{name}.jpg") for number, name in enumerate("abcdefghij", start=10)]
    files = usual_split([*training, row(50, "copy.jpg")])
    source = write(tmp_path / "source", files)
    for name in "fghij":  # a copy of each test image in turn: one of them is held out
        (source / IMAGES / "copy.jpg").write_bytes((source / IMAGES / f"{name}.jpg").read_bytes())
        report = import_vqa_rad(source, tmp_path / f"set-{name}")
        dataset = open_dataset(tmp_path / f"set-{name}")
        found = {split: images_and_groups(dataset, split) for split in ("train", "test_disjoint")}
        assert leakage({s: f[0] for s, f in found.items()}, {s: f[1] for s, f in found.items()}).clean
        assert report.held_out_images == 2
        groups = {record.id: record.group for record in dataset.records("train_official")}
        assert groups["train_official-50"] == "copy.jpg" == groups[f"train_official-{10 + 'abcdefghij'.index(name)}"]


def test_official_splits_stay_as_published(tmp_path: Path) -> None:
    _, dataset = imported(tmp_path, usual_split([row(5, "f.jpg")]))
    kinds = [Kind.QUESTION]
    assert [r.id for r in dataset.records("train_official", kinds)] == [
        "train_official-1",
        "train_official-2",
        "train_official-5",
    ]
    assert len(dataset.records("test")) == 5
    disjoint = {record.id.removeprefix("test_disjoint-") for record in dataset.records("test_disjoint")}
    assert disjoint < {record.id.removeprefix("test-") for record in dataset.records("test")}


def test_freeform_questions_of_an_image_become_one_dialogue_in_training_only(tmp_path: Path) -> None:
    training = [row(3, "a.jpg"), row(4, "a.jpg", phrase_type="para"), row(5, "a.jpg", question="IS FINDING 3 SHOWN?")]
    files = usual_split(training, [row(8, "f.jpg"), row(9, "f.jpg"), row(10, "g.jpg")])
    _, dataset = imported(tmp_path, files)
    (dialogue,) = dataset.records("train", [Kind.DIALOGUE])
    assert [turn.text for turn in dialogue.turns] == ["Is finding 1 shown?", "Yes", "Is finding 3 shown?", "Yes"]
    assert dialogue.images == ("images/a.jpg",)
    assert dataset.records("test", [Kind.DIALOGUE]) == []


def test_the_organ_stands_as_slice(tmp_path: Path) -> None:
    assert only(tmp_path, image_organ="ABD ")[1].modality == "abd"


def test_with_the_public_file_alone_the_split_follows_the_phrase_types(tmp_path: Path) -> None:
    rows = [
        row("0", "a.jpg"),
        row(1, "b.jpg", question_frame="Is there a finding?", phrase_type="para"),
        row(2, "f.jpg", phrase_type="test_freeform", question_frame="Is there another finding?"),
        row(3, "g.jpg", phrase_type="test_para"),
    ]
    report, dataset = imported(tmp_path, {PUBLIC: rows})
    train = {record.id: record.question for record in dataset.records("train_official")}
    assert train == {
        "train_official-0": "Is finding 0 shown?",
        "train_official-1": "Is finding 1 shown?",
        "train_official-1-frame": "Is there a finding?",
    }
    assert {record.id for record in dataset.records("test")} == {"test-2", "test-3"}
    assert report.repairs["frame_added"] == 1


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    files = usual_split([])
    files[TRAIN] = '[\n {"qid": 1},\n {"qid": 2,}\n]'
    with pytest.raises(DataError, match=r"trainset\.json: line 3, column 12"):
        imported(tmp_path, files)
    assert not (tmp_path / "set").exists()


def test_a_document_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a dict, not a list of questions"):
        imported(tmp_path, usual_split([]) | {TRAIN: {"a": 1}})


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="VQA_RAD Dataset Public"):
        imported(tmp_path / "a", {})
    with pytest.raises(MissingInputError, match=r"has trainset\.json but not its other half"):
        imported(tmp_path / "b", {TRAIN: []})
    source = write(tmp_path / "c", usual_split([]))
    (source / IMAGES).rename(source / "elsewhere")
    with pytest.raises(MissingInputError, match=r"no folder .*Image Folder"):
        import_vqa_rad(source, tmp_path / "set")


def test_nothing_usable_is_refused_with_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 training rows and 0 test rows can be used") as caught:
        imported(tmp_path, usual_split([]), images="")
    assert "7 image_missing" in caught.value.hint


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    report, dataset = imported(tmp_path, usual_split([row(7, "c.jpg", answer=3), row(8, "gone.jpg")]))
    facts = dataset.manifest.facts
    assert (facts["name"], facts["licence"], facts["synthetic"]) == ("vqa-rad", "CC0-1.0", False)
    assert facts["repairs"] == {"number_as_text": 1}
    assert facts["set_aside"] == {"image_missing": 1}
    assert facts["splits"]["test"] == {"images": 5, "records": 5, "by_kind": {"question": 5}}
    assert "set aside: 1 image_missing" in report.lines()


def test_the_same_source_gives_the_same_digest(tmp_path: Path) -> None:
    source = write(tmp_path / "source", usual_split([]))
    import_vqa_rad(source, tmp_path / "one")
    import_vqa_rad(source, tmp_path / "two")
    assert open_dataset(tmp_path / "one").manifest.digest == open_dataset(tmp_path / "two").manifest.digest


@needs_real
def test_the_real_files_are_imported_whole(tmp_path: Path) -> None:
    report = import_vqa_rad(REAL, tmp_path / "set")
    assert (report.rows, report.images, report.images_without_questions) == (2459, 219, 1)
    assert report.set_aside == {}
    assert {name: split["records"] for name, split in report.splits.items()} == {
        "train": 1873,
        "train_official": 2341,
        "test": 331,
        "test_disjoint": 86,
    }
    assert report.repairs["number_as_text"] == 6
    assert report.repairs["answer_type_spelling"] == 2
    assert report.repairs["question_type_spelling"] == 4
    assert report.test_questions_in_train == 10
    dataset = open_dataset(tmp_path / "set")
    groups = {split: {record.group for record in dataset.records(split)} for split in dataset.splits}
    assert groups["test"] <= groups["train_official"]
    assert not groups["test_disjoint"] & groups["train"]


@needs_real
def test_real_rows_of_the_public_file_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / IMAGES).symlink_to(REAL / IMAGES)
    rows = json.loads((REAL / PUBLIC).read_text())[:300]
    (tmp_path / "source" / PUBLIC).write_text(json.dumps(rows))
    report = import_vqa_rad(tmp_path / "source", tmp_path / "set")
    tests = sum(row["phrase_type"].startswith("test_") for row in rows)
    assert report.rows == 300
    assert report.splits["test"]["records"] == tests
    assert report.splits["train_official"]["by_kind"]["question"] == 300 - tests + report.repairs["frame_added"]
    assert report.set_aside == {}
