"""What a withdrawal marks, stops and says, in the small world of tests/registry_world.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.platform import champion, peek
from components.platform.impact import ask, listed, marks, question, withdrawals
from components.platform.ledger import proof
from components.platform.ledger.registry import Book
from components.platform.store import open_store
from components.platform.tracking import Tracking
from model.data.dataset import open_dataset
from model.errors import MissingInputError, RefusedError
from pipelines import cli
from tests.components.promotions import make_person
from tests.registry_world import World, picture, png


def reasons_against(settings, tags):
    """What the tag of a version and the marks of all that it was made from say."""
    place, digest = (tags.get(name, "") for name in (champion.CHECKPOINT_PATH, champion.CHECKPOINT_DIGEST))
    said = marks.reasons(open_store(settings), place, digest)
    return tuple(sorted({*filter(None, tags.get(withdrawals.TAG, "").split("; ")), *said}))


def command(capsys, monkeypatch, settings, *arguments):
    """Exit code, stdout and stderr of `biovlm lineage impact`."""
    monkeypatch.setenv("BIOVLM_HOME", str(settings.home))
    code = cli.call(["lineage", "impact", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


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
    reasons = {key: reasons_against(own, found) for key, found in tags.items()}
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
    assert any(text in reason for reason in reasons_against(own, late))
    assert not reasons_against(own, {})

    # A stage that goes on from a marked one.
    world, place = World(own), late["biovlm.checkpoint_path"]
    for uri in (place, store.record("train", Path(place).name).inputs["data"].uri):
        world.made[Path(uri).name] = (uri, store.manifest_of(uri))
    uri, found = world.made[world.stage("further", Path(uri).name, [{"set": "scans"}], Path(place).name)]
    assert any(reason.startswith("parent ") for reason in marks.reasons(store, uri, found.digest))

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
    assert listed.known(store) == [f"{wanted.digest}-1"]
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


def withdrawn(own):
    """Model and number of every version that carries the tag, and whether proof or tag refuses it."""
    return [(name, number) for name, number, tags in peek.versions(own.tracking_uri) if reasons_against(own, tags)]


def test_a_withdrawal_that_was_a_mistake_is_taken_back_for_a_reason_and_can_be_made_again(own, capsys, monkeypatch, tmp_path):
    def withdraw(name, line):
        (tmp_path / name).write_text(f"{line}\n")
        digest = question.read_list(tmp_path / name).digest
        assert command(capsys, monkeypatch, own, "--withdraw", str(tmp_path / name), "--reason", "consent")[0] == 0
        return digest

    first, second = withdraw("first.txt", "patient P-6"), withdraw("second.txt", "record scans/r6")
    assert withdrawn(own) == [("main", "2"), ("other", "1")]
    before = Book(own, "main").entries()
    for more in ((), ("--dry-run",)):
        code, _, err = command(capsys, monkeypatch, own, "--undo", first[:12], *more)
        assert (code, "needs a reason" in err) == (64, True)
    code, _, err = command(capsys, monkeypatch, own, "--undo", "f" * 12, "--reason", "x")
    assert (code, first[:12] in err) == (66, True)
    undo = ("--undo", first[:12], "--reason", "the wrong patient", "--by", "officer")
    code, out, _ = command(capsys, monkeypatch, own, *undo, "--dry-run")
    assert (code, "would be taken back: 2 versions" in out) == (0, True)
    assert Book(own, "main").entries() == before

    assert command(capsys, monkeypatch, own, *undo)[0] == 0
    entry = Book(own, "main").entries()[-1]
    assert (entry.kind, entry.version, entry.by, entry.reason) == ("reinstatement", "2", "officer", "the wrong patient")
    assert entry.evidence == {"withdrawal_list": first, "withdrawal": before[0].digest}
    assert Book(own, "main").entries()[: len(before)] == before
    assert withdrawn(own) == [("main", "2"), ("other", "1")], "the second list withdraws them still"
    tags = {(name, number): found for name, number, found in peek.versions(own.tracking_uri)}
    assert first[:12] not in tags["main", "2"][withdrawals.TAG]

    assert command(capsys, monkeypatch, own, "--undo", second[:12], "--reason", "the wrong record")[0] == 0
    assert withdrawn(own) == []
    assert not [found for _, _, found in peek.versions(own.tracking_uri) if withdrawals.TAG in found]
    store = World(own).store
    assert listed.known(store) == []
    marks.refuse(store, {path.name: path.name for path in (own.store / "withdrawn").iterdir()})
    assert command(capsys, monkeypatch, own, *undo)[0] == 66, "there is nothing left to take back"

    assert withdraw("first.txt", "patient P-6") == first
    assert withdrawn(own) == [("main", "2"), ("other", "1")]
    assert [one.kind for one in Book(own, "main").entries()] == [*["withdrawal"] * 2, *["reinstatement"] * 2, "withdrawal"]
    late = {key: value for key, value in tags["main", "2"].items() if key != withdrawals.TAG}
    assert reasons_against(own, late), "the marks count again, not the tag alone"


def test_only_a_known_key_takes_a_withdrawal_back_where_a_site_has_approvers(own, capsys, monkeypatch, tmp_path):
    (tmp_path / "list.txt").write_text("patient P-6\n")
    assert command(capsys, monkeypatch, own, "--withdraw", str(tmp_path / "list.txt"), "--reason", "consent")[0] == 0
    key = make_person(tmp_path, "ada")
    monkeypatch.setenv("BIOVLM_APPROVERS", str(tmp_path / "approvers"))
    undo = ("--undo", question.read_list(tmp_path / "list.txt").digest, "--reason", "the wrong patient")
    assert command(capsys, monkeypatch, own, *undo, "--by", "ada")[0] == 77
    assert withdrawn(own) == [("main", "2"), ("other", "1")]
    monkeypatch.setenv("BIOVLM_ACTOR_KEY", str(key))
    assert command(capsys, monkeypatch, own, *undo)[0] == 0
    assert Book(own, "main").entries()[-1].by == "ada"
    assert withdrawn(own) == []
