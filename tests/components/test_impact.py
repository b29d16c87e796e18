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
from components.platform.impact import ask, listed, marks, question, sync, withdrawals
from components.platform.impact.index import FILE, KEY, DamagedIndexError, Index
from components.platform.impact.question import Item, Subject
from components.platform.ledger import proof
from components.platform.ledger.registry import Book
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.data.dataset import open_dataset
from model.errors import DataError, MissingInputError, RefusedError, UsageError
from pipelines import cli
from tests.registry_world import STAGES, World, insert_versions, picture, png, record

CAPTION, QUESTION = "caption", "question"


def build(settings):
    """Two data versions of `scans`; `main` 1 is trained on the first, 2 on the second, `other` 1 on a base made from `main` 1."""
    world = World(settings)
    files = {f"images/{number}.png": png(picture(number)) for number in range(8)}
    old = [record(f"r{n}", f"P-{n // 2}", [f"images/{n}.png"], QUESTION if n % 2 else CAPTION) for n in range(6)]
    tests = [record("t0", "P-9", ["images/7.png"])]
    first = world.data_set("scans", {"train": old, "test": tests}, files, "CC-BY-4.0")
    second = world.data_set(
        "scans", {"train": [*old[1:], record("r6", "P-6", ["images/6.png"])], "test": tests}, files, "CC-BY-4.0"
    )
    bases = {"tower": world.base("tower", {"data": first}), "language": world.base("language", licence="llama3")}
    tags = []
    for digest, aside in ((first, ["r5"]), (second, [])):
        material = world.material({"scans": digest}, bases, {"scans": aside})
        checkpoint = ""
        for stage, kinds in zip(STAGES, ([CAPTION], [QUESTION], [QUESTION]), strict=True):
            checkpoint = world.stage(stage, material, [{"set": "scans", "kinds": kinds}], checkpoint)
        tags.append(world.version("main", checkpoint, material, [{"set": "scans"}]))
    merged = world.base("merged", {"export": world.made[f"export {checkpoint}"][1].digest})
    plain = world.base("plain")
    lone = world.data_set("lone", {"train": [record("x1", "P-x", ["images/a.png"])]}, {"images/a.png": png(picture(50))}, "NC")
    bases |= {"merged": merged, "plain": plain}
    for tower in ("merged", "plain"):
        material = world.material({"lone": lone}, bases)
        checkpoint = world.stage("align", material, [{"set": "lone"}], tower=tower)
        tags.append(world.version("other", checkpoint, material, []))
    insert_versions(settings.home / "mlflow.db", "main", tags[:2])
    insert_versions(settings.home / "mlflow.db", "other", tags[2:])
    return world


@pytest.fixture(scope="module")
def built(tmp_path_factory, empty_store):
    """The world, and an index of it that no test changes."""
    home = tmp_path_factory.mktemp("world")
    shutil.copy(empty_store, home / "mlflow.db")
    settings = Settings.from_environment({"BIOVLM_HOME": str(home)})
    world = build(settings)
    sync.fresh(settings, lambda line: None)
    return world


@pytest.fixture
def own(built, settings):
    """A copy of the world that a test may change."""
    shutil.copytree(built.settings.home, settings.home)
    return settings


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
    sync.fresh(Settings.from_environment({"BIOVLM_HOME": str(home)}), lambda line: None)


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


def test_a_withdrawal_marks_what_learned_and_neither_data_nor_later_versions_pass_any_more(own, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("# asked out\npatient P-6\nrecord scans/r6\n\npatient P-none\n")
    wanted = question.read_list(listed)
    told = ask.ask(own, wanted.items, lambda line: None)
    assert [item.line for item in told.answer.nowhere] == [5]
    assert [(f"{one.model} {one.number}", one.records) for one in told.answer.learned] == [("main 2", 1), ("other 1", 1)]
    notice = marks.Notice(wanted.digest, "officer", "consent withdrawn")
    marked = withdrawals.withdraw(own, wanted.items, told.answer, notice)
    assert marked.versions == (("main", "2"), ("other", "1"))
    withdrawals.withdraw(own, wanted.items, told.answer, notice)  # once more changes nothing

    tags = {(name, number): own_tags for name, number, own_tags in peek.versions(own.tracking_uri)}
    text = f"list {wanted.digest[:12]} by officer: consent withdrawn"
    assert tags["main", "2"][withdrawals.TAG] == text
    reasons = {key: withdrawals.withdrawn(own, found) for key, found in tags.items()}
    assert [key for key, found in reasons.items() if found] == [("main", "2"), ("other", "1")]

    book, store = Book(own, "main"), World(own).store
    (entry,) = book.entries()
    assert (entry.kind, entry.version, entry.by, entry.evidence) == (
        "withdrawal",
        "2",
        "officer",
        {"withdrawal_list": wanted.digest},
    )
    for number, says in (("2", "learned from what is withdrawn"), ("1", "sign")):
        mine = tags["main", number]
        with pytest.raises((RefusedError, MissingInputError), match=says):
            proof.signatures(book, store, mine["biovlm.receipt_key"], mine["biovlm.export"], mine["biovlm.checkpoint"])

    # A version that was on its way: trained from the marked stage, unknown to the list.
    late = {key: value for key, value in tags["main", "2"].items() if key != withdrawals.TAG}
    assert any(text in reason for reason in withdrawals.withdrawn(own, late))
    assert not withdrawals.withdrawn(own, {})

    (held,) = told.answer.sets
    with pytest.raises(RefusedError, match="scans .* is withdrawn"):
        marks.refuse(store, {"scans": held.digest})
    marks.refuse(store, {"scans": "0" * 64})
    kept = b"".join(path.read_bytes() for path in own.store.glob("withdrawn*/**/*") if path.is_file())
    assert b"P-6" not in kept
    assert b"r6" not in kept


@pytest.mark.parametrize(
    ("line", "held"),
    [
        ("patient P-0", 2),
        ("record r6", 1),
        ("record scans/r6", 1),
        ("record other/r6", 0),
        ("image images/7.png", 1),
        ("patient P", 0),
    ],
)
def test_what_was_withdrawn_is_refused_when_it_comes_again_in_a_new_set(built, settings, tmp_path, line, held):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "7.png").write_bytes(png(picture(7)))
    (tmp_path / "list.txt").write_text(f"{line}\n")
    wanted, store = question.read_list(tmp_path / "list.txt"), World(settings).store
    listed.keep(store, wanted.items, wanted.digest)
    assert listed.known(store) == [wanted.digest]
    lists = listed.Lists.of(store)
    sets = [open_dataset(built.settings.store / uri) for name, (uri, _) in built.made.items() if name.startswith("scans@")]
    first = next(one for one in sets if "r0" in {record.id for record in one.records("train")})
    second = next(one for one in sets if one is not first)
    for dataset, expected in ((first, 0 if line.endswith("r6") else held), (second, held - (line == "patient P-0"))):
        if expected:
            with pytest.raises(RefusedError, match=f"holds {expected} records that were withdrawn"):
                lists.refuse("scans", dataset)
        else:
            lists.refuse("scans", dataset)


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


def test_the_command_says_what_follows_from_a_withdrawal_and_marks_only_without_dry_run(own, capsys, monkeypatch, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("patient P-6\npatient P-9\n")
    Tracking(own).client.set_registered_model_alias("main", "champion", "2")
    code, _, err = command(capsys, monkeypatch, own, "--withdraw", str(listed))
    assert (code, "needs a reason" in err) == (64, True)
    arguments = ("--withdraw", str(listed), "--reason", "consent withdrawn", "--by", "officer")
    code, out, err = command(capsys, monkeypatch, own, *arguments, "--dry-run")
    assert code == 0
    assert not [tags for _, _, tags in peek.versions(own.tracking_uri) if withdrawals.TAG in tags]
    assert not (own.store / "withdrawn").exists()
    assert "2 versions would be marked as withdrawn" in out
    assert "in service: main 2 is champion: roll back, or retrain" in out
    assert "retrain: main, without it, from stage instruct on" in out
    assert "evaluate again: main 1" in out
    assert "import again without it: scans" in out
    code, out, err = command(capsys, monkeypatch, own, *arguments, "--json")
    assert code == 0
    marked = [(name, number) for name, number, tags in peek.versions(own.tracking_uri) if withdrawals.TAG in tags]
    assert marked == [("main", "2"), ("other", "1")]
    assert json.loads(out)["withdrawal"]["marked"] is True
    everything = b"".join(path.read_bytes() for path in own.home.rglob("*") if path.is_file() and "data" not in path.parts)
    assert b"P-6" not in everything
