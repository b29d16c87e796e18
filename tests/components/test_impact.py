"""Lineage asked backwards: a small world of data sets, stages and versions, whose answers are known by construction."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal

import pytest
from PIL import Image

from components.platform import peek
from components.platform.impact import ask, question, sync
from components.platform.impact.index import FILE, KEY, DamagedIndexError, Index
from components.platform.impact.question import Item, Subject
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.errors import DataError, MissingInputError, UsageError
from pipelines import cli
from tests.registry_world import CAPTION, QUESTION, World, insert_versions, picture, png, record


def asked(settings, subject, value):
    return ask.ask(settings, [question.item(subject, value)], lambda line: None)


def versions(found):
    return [f"{one.model} {one.number}" for one in found]


EVERY = ["main 1", "main 2", "other 1"]


@pytest.mark.parametrize(
    ("subject", "value", "learned", "evaluated"),
    [
        # A caption: align learned it; it is in the first version only, but the tower learned from the first, and all stand on it.
        (Subject.RECORD, "r0", EVERY, []),
        (Subject.RECORD, "scans/r0", EVERY, []),
        # New in the second version: main 2, and what was made from its export.
        (Subject.RECORD, "r6", ["main 2", "other 1"], []),
        (Subject.PATIENT, "P-6", ["main 2", "other 1"], []),
        (Subject.RECORD, "t0", [], ["main 1", "main 2"]),
        (Subject.PATIENT, "P-9", [], ["main 1", "main 2"]),
        (Subject.RECORD, "x1", ["other 1", "other 2"], []),
        (Subject.DATA, "lone", ["other 1", "other 2"], []),
        (Subject.LICENCE, "nc", ["other 1", "other 2"], []),
        (Subject.LICENCE, "llama3", [*EVERY, "other 2"], []),
        (Subject.BASE, "tower", EVERY, []),
        (Subject.BASE, "merged", ["other 1"], []),
        (Subject.BASE, "plain", ["other 2"], []),
    ],
)
def test_a_question_names_every_version_that_learned_and_apart_those_only_asked(built, subject, value, learned, evaluated):
    answer = asked(built.settings, subject, value).answer
    assert (versions(answer.learned), versions(answer.evaluated)) == (learned, evaluated)
    assert not answer.nowhere
    assert not answer.unknown


def test_what_an_audit_left_out_and_a_kind_that_no_stage_took_are_not_told_as_learned(own):
    world = World(own)
    base = {"fresh": world.base("fresh"), "language": world.base("language", licence="llama3")}
    rows = [
        record("q1", "P-q", ["images/q.png"]),
        record("q2", "P-q", ["images/q.png"]),
        record("c1", "P-c", ["images/q.png"], CAPTION),
    ]
    digest = world.data_set("quiet", {"train": rows}, {"images/q.png": png(picture(60))})
    material = world.material({"quiet": digest}, base, {"quiet": ["q1"]})
    stage = world.stage("align", material, [{"set": "quiet", "kinds": [QUESTION]}], tower="fresh")
    insert_versions(own.home / "mlflow.db", "quiet", [world.version("quiet", stage, material, [])])

    found = {name: versions(asked(own, Subject.RECORD, name).answer.learned) for name in ("q1", "q2", "c1")}
    assert found == {"q1": [], "q2": ["quiet 1"], "c1": []}
    (one,) = asked(own, Subject.PATIENT, "P-q").answer.learned
    assert (one.records, one.through) == (1, ("stage align",))
    assert versions(asked(own, Subject.PATIENT, "P-c").answer.learned) == []


def test_an_image_is_found_by_its_bytes_by_its_pixels_and_pictures_that_look_alike_are_told_apart(built, tmp_path):
    same, scaled, strange = (tmp_path / f"{name}.png" for name in ("same", "scaled", "strange"))
    same.write_bytes(png(picture(6)))
    answer = asked(built.settings, Subject.IMAGE, str(same)).answer
    assert (versions(answer.learned), answer.records) == (["main 2", "other 1"], 1)

    same.write_bytes(png(picture(6), compress_level=1))  # other bytes, equal pixels
    again = asked(built.settings, Subject.IMAGE, str(same))
    assert versions(again.answer.learned) == ["main 2", "other 1"]
    assert again.alike is None

    picture(6).resize((48, 48), Image.Resampling.BICUBIC).save(scaled)
    near = asked(built.settings, Subject.IMAGE, str(scaled))
    assert [item.subject for item in near.answer.nowhere] == [Subject.IMAGE]
    assert not near.answer.learned
    assert (near.alike_images, versions(near.alike.learned)) == (1, ["main 2", "other 1"])

    picture(999).save(strange)
    nothing = asked(built.settings, Subject.IMAGE, str(strange))
    assert (len(nothing.answer.nowhere), nothing.alike) == (1, None)
    with pytest.raises(MissingInputError, match="no image at"):
        question.item(Subject.IMAGE, str(tmp_path / "gone.png"))


def test_the_direct_look_at_the_registry_is_what_mlflow_itself_says(built):
    client = Tracking(built.settings).client
    known = [(one.name, str(one.version), dict(one.tags)) for one in client.search_model_versions()]
    assert peek.versions(built.settings.tracking_uri) == sorted(known)


def test_versions_that_biovlm_did_not_make_or_whose_store_is_gone_make_the_answer_incomplete(own):
    insert_versions(own.home / "mlflow.db", "foreign", [{}])
    answer = asked(own, Subject.RECORD, "r6").answer
    assert answer.unknown == (("foreign", "1", "biovlm did not register it"),)
    assert versions(answer.learned) == ["main 2", "other 1"]

    shutil.rmtree(own.home / "impact")
    shutil.rmtree(next((own.store / "data").glob("lone-*")))
    answer = asked(own, Subject.RECORD, "r6").answer
    assert [one[:2] for one in answer.unknown] == [("foreign", "1"), ("other", "1"), ("other", "2")]
    assert "not in the store" not in answer.unknown[1][2]
    assert [one[:2] for one in asked(own, Subject.BASE, "tower").answer.unknown] == [("foreign", "1")]


def test_new_versions_are_taken_in_and_deleted_ones_are_still_told(own):
    client = Tracking(own).client
    client.delete_model_version("main", "2")
    tags = peek.versions(own.tracking_uri)[0][2]
    insert_versions(own.home / "mlflow.db", "later", [tags])
    answer = asked(own, Subject.RECORD, "r2").answer
    assert [(f"{one.model} {one.number}", one.gone) for one in answer.learned] == [
        ("later 1", False),
        ("main 1", False),
        ("main 2", True),
        ("other 1", False),
    ]


@pytest.mark.parametrize("place", range(6))
def test_an_index_with_a_changed_byte_is_not_believed_and_is_made_anew(own, place):
    path = own.home / "impact" / FILE
    content = bytearray(path.read_bytes())
    content[place * (len(content) - 1) // 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedIndexError), Index.reading(own.home / "impact"):
        pass
    assert versions(asked(own, Subject.RECORD, "r6").answer.learned) == ["main 2", "other 1"]


def test_an_index_is_not_believed_with_another_key_and_holds_no_id_that_could_be_read_or_tried(own):
    index = own.home / "impact"
    content = b"".join(path.read_bytes() for path in index.iterdir() if path.name != KEY)
    assert not [name for name in (b"P-6", b"P-9", b"r6", b"images/6.png") if name in content]
    with Index.reading(index) as opened:
        before = opened.hashed("P-6")
    assert {(path.stat().st_mode & 0o777) for path in (index / FILE, index / KEY)} == {0o600}
    (index / KEY).unlink()
    assert versions(asked(own, Subject.PATIENT, "P-6").answer.learned) == ["main 2", "other 1"]
    with Index.reading(index) as opened:
        assert opened.hashed("P-6") != before


def update(home):
    ask.ask(Settings.from_environment({"BIOVLM_HOME": str(home)}), (), lambda line: None)


def die_before_the_seal(home):
    settings = Settings.from_environment({"BIOVLM_HOME": str(home)})
    with Index.writing(sync.folder(settings)) as index:
        index.database.execute("PRAGMA cache_size = 2")  # so that pages of the unfinished work reach the file
        for number in range(20_000):
            index.add_artifact(f"{number:064x}", "base", "half")
        assert (index.folder / f"{FILE}-journal").stat().st_size > 0
        os.kill(os.getpid(), signal.SIGKILL)


def test_two_writers_wait_for_each_other_and_one_that_is_killed_changes_nothing(own):
    processes = multiprocessing.get_context("fork")
    before = (own.home / "impact" / "seal.json").read_bytes()
    dying = processes.Process(target=die_before_the_seal, args=(own.home,))
    dying.start()
    dying.join()
    assert dying.exitcode == -signal.SIGKILL
    assert (own.home / "impact" / f"{FILE}-journal").exists()
    with Index.reading(own.home / "impact"):
        assert (own.home / "impact" / "seal.json").read_bytes() == before

    shutil.rmtree(own.home / "impact")
    both = [processes.Process(target=update, args=(own.home,)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert versions(asked(own, Subject.RECORD, "r6").answer.learned) == ["main 2", "other 1"]
    with Index.reading(own.home / "impact") as index:
        assert index.database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_second_version_of_a_set_takes_room_only_for_what_changed(built):
    with Index.reading(sync.folder(built.settings)) as index:
        counts = dict(index.database.execute("SELECT name, count(*) FROM seen JOIN series ON series.id = series GROUP BY name"))
    assert counts == {"scans": 8, "lone": 1}  # six records, a seventh in the second version, one of the test split


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", DataError, "names nothing"),
        (b"patient\n", DataError, ":1: not `KIND VALUE`"),
        (b"patient P-1\nperson Jane-Doe\n", DataError, ":2: not `KIND VALUE`"),
        (b"\xff\n", DataError, "not UTF-8"),
        (b"image gone-Jane-Doe.png\n", MissingInputError, "no image at line 1 of the list"),
    ],
)
def test_a_list_that_cannot_be_read_is_a_letter_about_the_line_and_not_about_the_person(tmp_path, content, error, says):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(error) as letter:
        question.read_list(tmp_path / "list.txt")
    assert says in str(letter.value)
    assert "Jane" not in str(letter.value)


def test_what_is_no_question_is_refused():
    with pytest.raises(UsageError, match="--patient is empty"):
        question.item(Subject.PATIENT, " ")
    assert question.item(Subject.IMAGE, f"sha256:{'a' * 64}") == Item(Subject.IMAGE, "a" * 64)


def command(capsys, monkeypatch, settings, *arguments):
    """Exit code, stdout and stderr of `biovlm lineage impact`."""
    monkeypatch.setenv("BIOVLM_HOME", str(settings.home))
    code = cli.call(["lineage", "impact", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_answers_with_versions_and_counts_and_no_id_of_a_person(built, capsys, monkeypatch):
    code, out, err = command(capsys, monkeypatch, built.settings, "--patient", "P-6")
    assert code == 0
    assert out.splitlines()[:3] == [
        "2 versions learned from it; 0 more only evaluated on it",
        "learned   main 2  1 record  through stage instruct, stage task",
        "learned   other 1  1 record  through stage instruct, stage task",
    ]
    assert "P-6" not in out + err
    code, out, _ = command(capsys, monkeypatch, built.settings, "--patient", "P-9", "--record", "r6", "--json")
    answer = json.loads(out)["answer"]
    assert ([one["number"] for one in answer["learned"]], [one["number"] for one in answer["evaluated"]]) == (["2", "1"], ["1"])
    code, out, err = command(capsys, monkeypatch, built.settings, "--patient", "Jane-Doe", "--record", "r6", "--json")
    assert (code, json.loads(out)["answer"]["nowhere"]) == (0, [{"subject": "patient", "line": 0}])
    assert "note: 1 thing of 2 stand nowhere: --patient" in err
    assert "Jane" not in out + err


def test_what_stands_nowhere_ends_with_66_and_says_what_only_looks_alike(built, capsys, monkeypatch, tmp_path):
    code, out, err = command(capsys, monkeypatch, built.settings, "--patient", "Jane-Doe")
    assert (code, out) == (66, "")
    assert "no data set, base model or licence behind any version has this patient" in err
    assert "Jane-Doe" not in err

    picture(6).resize((48, 48), Image.Resampling.BICUBIC).save(tmp_path / "scaled.png")
    code, out, err = command(capsys, monkeypatch, built.settings, "--image", str(tmp_path / "scaled.png"))
    assert code == 66
    assert "alike, which proves nothing: 1 further image, 2 versions learned from them" in out
    assert "1 image only look alike" in err
    assert command(capsys, monkeypatch, built.settings)[0] == 64
    assert command(capsys, monkeypatch, built.settings, "--withdraw", str(tmp_path / "none.txt"))[0] == 66


def test_an_incomplete_answer_is_printed_and_ends_with_66(own, capsys, monkeypatch):
    insert_versions(own.home / "mlflow.db", "foreign", [{}])
    code, out, err = command(capsys, monkeypatch, own, "--record", "r6")
    assert code == 66
    assert "learned   main 2" in out
    assert "the answer is not complete: of 1 version it is not known what they learned from" in err
