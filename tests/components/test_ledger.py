"""The ledger at a real place, a folder and a bucket: written once, in one order, and no change goes unseen."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from components.platform import places
from components.platform.ledger import chain
from components.platform.ledger.entry import Kind, render
from components.platform.ledger.ledger import Draft, Ledger
from components.platform.places import Folder, Prefix
from model.errors import MissingInputError, RefusedError
from model.manifest import digest_of
from tests.forks import forked

NOON = 1_790_000_000.0


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path / "ledger")
    return Prefix(request.getfixturevalue("shared"), "mini")


def ledger(place, model="mini"):
    return Ledger(place, model, lambda: NOON)


def act(book, name, version="1", claim=None):
    draft = Draft(Kind.PROMOTION, version, "me", {"champion": version})
    return book.append(digest_of(name), lambda _: draft, claim)


def filled(entries=4):
    """Number -> bytes of a whole ledger."""
    made: list = []
    for number in range(1, entries + 1):
        book = Ledger(None, "mini", lambda: NOON)
        draft = Draft(Kind.PROMOTION, str(number), "me", {"champion": str(number)}, evidence={"report": digest_of(number)})
        made.append(book._entry(tuple(made), draft, digest_of(number), None))
    return {entry.number: render(entry) for entry in made}


def test_an_act_is_written_once_however_often_it_is_tried(place):
    first, again = act(ledger(place), "a"), act(ledger(place), "a", version="7")
    assert (first.new, again.new) == (True, False)
    assert again.entry == first.entry
    act(ledger(place), "b")
    one, two = ledger(place).entries()
    assert (two.number, two.previous) == (2, one.digest)
    assert ledger(place).verify() == []


def test_of_many_that_write_at_once_each_gets_its_own_number_and_one_act_is_one_entry(place):
    """Nobody may lose what was written, nor write it twice."""
    told, start = [], threading.Barrier(8)

    def write(number):
        start.wait()
        told.append((act(ledger(place), "the same"), act(ledger(place), f"own {number}", str(number + 2))))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = ledger(place).entries()
    assert sorted(entry.key for entry in entries) == sorted(digest_of(x) for x in ("the same", *(f"own {n}" for n in range(8))))
    assert sum(same.new for same, _ in told) == 1
    assert len({same.entry.digest for same, _ in told}) == 1


def test_what_is_decided_is_decided_on_the_entries_that_it_follows(place):
    """The one that comes second is asked again, with what the first wrote."""
    seen = []

    def propose(entries):
        seen.append(len(entries))
        if len(seen) == 1:
            act(ledger(place), "in between")
        return Draft(Kind.PROMOTION, "2", "me") if len(entries) < 1 else None

    done = ledger(place).append(digest_of("mine"), propose)
    assert (done.entry, seen) == (None, [0, 1])


def test_a_stale_attempt_writes_nothing_and_hears_of_what_the_newer_one_wrote(place):
    book = ledger(place)
    old, new = book.claim("run-1"), book.claim("run-1")
    assert (old.attempt, new.attempt, book.claim("run-2").attempt) == (1, 2, 1)
    with pytest.raises(RefusedError, match="attempt 1 of run run-1 is stale: attempt 2 has begun"):
        act(book, "a", claim=old)
    assert ledger(place).entries() == ()
    written = act(book, "a", claim=new).entry
    assert written.attempt == 2
    assert act(book, "a", claim=old).entry == written


def test_a_byte_changed_anywhere_is_found_and_its_entry_named():
    contents = filled()
    assert list(chain.breaks(contents)) == []
    for number in (2, 4):
        for at in range(len(contents[number])):
            broken = bytearray(contents[number])
            broken[at] ^= 1
            found = list(chain.breaks({**contents, number: bytes(broken)}))
            assert [place for place, _ in found] == [number], (number, at)


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (lambda c: c.update({2: c[2][: len(c[2]) // 2]}), RefusedError, "entry 2 of the ledger is torn or changed"),
        (lambda c: c.update({3: b""}), RefusedError, "entry 3 of the ledger is torn or changed"),
        (lambda c: c.pop(2), MissingInputError, "entry 2 of the ledger is missing, and 2 follow it"),
        (lambda c: c.update({3: filled(3)[2]}), RefusedError, "the file of entry 3 of the ledger holds entry 2"),
        (lambda c: c.update({2: other_history()[2]}), RefusedError, "forks at entry 3"),
    ],
    ids=["torn", "emptied", "gap", "copied", "fork"],
)
def test_a_broken_chain_is_a_letter(harm, error, words):
    contents = filled()
    harm(contents)
    with pytest.raises(error, match=words):
        chain.whole(contents)


def other_history():
    """A whole ledger that tells something else from entry 2 on."""
    first = chain.whole(filled(1))
    book = Ledger(None, "mini", lambda: NOON + 9)
    entry = book._entry(first, Draft(Kind.PROMOTION, "9", "they", {"champion": "9"}), digest_of("theirs"), None)
    return {1: render(first[0]), 2: render(entry)}


def test_a_ledger_that_lost_its_end_or_was_written_anew_is_found_by_what_the_registry_remembers():
    """Both are chains that are whole in themselves."""
    entries = chain.whole(filled())
    anchor = chain.anchor_of(entries)
    chain.against(entries, anchor)
    chain.against(entries, chain.anchor_of(entries[:2]))  # the registry may be behind
    chain.against((), "")
    with pytest.raises(MissingInputError, match="ends at entry 3, and the registry remembers entry 4"):
        chain.against(entries[:3], anchor)
    with pytest.raises(RefusedError, match="the ledger forks: its entry 2"):
        chain.against(chain.whole(other_history()), chain.anchor_of(entries[:2]))
    with pytest.raises(RefusedError, match="was changed"):
        chain.against(entries, "four")


def test_a_file_that_is_no_entry_and_another_models_ledger_are_refused(tmp_path):
    place = Folder(tmp_path / "a")
    act(ledger(place), "a")
    with pytest.raises(RefusedError, match="entry 1 of the ledger of other is about mini"):
        ledger(place, "other").entries()
    assert place.create("entries/1.json", b"{}")
    with pytest.raises(RefusedError, match="a file in the ledger is no entry"):
        ledger(place).entries()


def test_a_writer_killed_while_it_writes_leaves_no_entry(tmp_path, monkeypatch):
    place = Folder(tmp_path / "ledger")

    def dies(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def write():
        monkeypatch.setattr(places.os, "link", dies)
        act(ledger(place), "a")
        return 0

    assert forked([write]) == [-signal.SIGKILL]
    assert ledger(place).entries() == ()
    assert act(ledger(place), "a").entry.number == 1
    assert place.names("entries/") == ["entries/00000001.json"]


def test_a_listing_that_lacks_an_entry_in_the_middle_is_no_gap(tmp_path):
    """A folder is not read in one moment: the newer of two new files may be seen without the older."""
    place = Folder(tmp_path / "ledger")
    for name in "abc":
        act(ledger(place), name)

    class Late(Folder):
        def names(self, start):
            return [name for name in super().names(start) if "00000002" not in name]

    assert [entry.number for entry in ledger(Late(tmp_path / "ledger")).entries()] == [1, 2, 3]
