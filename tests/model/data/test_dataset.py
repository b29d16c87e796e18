"""Reading records strictly: what is set aside, with which reason and place, and when a split is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import manifest
from model.config import Kind
from model.data import dataset as dataset_module
from model.data.dataset import file_digests, open_dataset
from model.data.strict_json import MAX_LINE_BYTES, Flaw, FlawError, parse
from model.errors import DataError, ExitCode, MissingInputError, RefusedError
from model.manifest import commit
from tests.model.data.conftest import Writer
from tests.model.data.tiny_data import question

GOOD = [question(f"good{number}") for number in range(60)]


def changed(**fields: object) -> bytes:
    return json.dumps(question("bad", **fields)).encode()


def raw(old: bytes, new: bytes) -> bytes:
    line = json.dumps(question("bad")).encode()
    assert old in line
    return line.replace(old, new)


DEEP = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD_LINES = {
    "bytes that are not UTF-8": (raw(b"What is", b"What \xff\xfe is"), Flaw.UTF8),
    "a byte order mark": (b"\xef\xbb\xbf" + raw(b"bad", b"bad"), Flaw.JSON),
    "NaN": (raw(b'"open"', b"NaN"), Flaw.NOT_FINITE),
    "minus infinity": (raw(b'"open"', b"-Infinity"), Flaw.NOT_FINITE),
    "a float beyond all floats": (raw(b'"open"', b"1e999"), Flaw.NOT_FINITE),
    "a key twice": (raw(b'"group": "g"', b'"group": "g", "group": "h"'), Flaw.DUPLICATE_KEY),
    "a key twice inside": (raw(b'"role": "user"', b'"role": "user", "role": "user"'), Flaw.DUPLICATE_KEY),
    "100,000 brackets": (DEEP, Flaw.DEEP),
    "50 brackets": (raw(b'"open"', b"[" * 50 + b"]" * 50), Flaw.DEEP),
    "an integer of 100,000 digits": (raw(b'"open"', b"1" * 100_000), Flaw.HUGE_INT),
    "half a surrogate pair": (raw(b"shown", b"\\ud83d"), Flaw.SURROGATE),
    "half a surrogate pair in a key": (raw(b'"group"', b'"\\udc00": 1, "group"'), Flaw.SURROGATE),
    "a blank line": (b"", Flaw.BLANK_LINE),
    "a line of spaces": (b"   \t", Flaw.BLANK_LINE),
    "a trailing comma": (raw(b'"open"}', b'"open",}'), Flaw.JSON),
    "a cut line": (raw(b'"open"}', b'"op'), Flaw.JSON),
    "an array": (b'["a", "b"]', Flaw.SCHEMA),
    "a string": (b'"a"', Flaw.SCHEMA),
    "a line above the limit": (raw(b"shown", b"x" * (3 * MAX_LINE_BYTES)), Flaw.LONG_LINE),
    "an unknown field": (changed(colour="red"), Flaw.SCHEMA),
    "no turns": (changed(turns=[]), Flaw.SCHEMA),
    "a number for an id": (changed(id=7), Flaw.SCHEMA),
    "an unknown kind": (changed(kind="riddle"), Flaw.SCHEMA),
    "an unknown role": (changed(turns=[{"role": "system", "text": "a"}, {"role": "assistant", "text": "b"}]), Flaw.SCHEMA),
    "the assistant first": (changed(turns=[{"role": "assistant", "text": "a"}, {"role": "user", "text": "b"}]), Flaw.SCHEMA),
    "no last answer": (changed(turns=[*question("x")["turns"], {"role": "user", "text": "b"}]), Flaw.SCHEMA),
    "an empty answer": (changed(turns=[{"role": "user", "text": "a"}, {"role": "assistant", "text": ""}]), Flaw.SCHEMA),
    "a blank answer": (changed(turns=[{"role": "user", "text": "a"}, {"role": "assistant", "text": " \n"}]), Flaw.SCHEMA),
    "a placeholder in a question": (raw(b"What is", b"<image> What"), Flaw.RESERVED_TOKEN),
    "an end token in an answer": (raw(b"A liver", b"</s> A liver"), Flaw.RESERVED_TOKEN),
    "a path upwards": (changed(images=["../../etc/passwd"]), Flaw.UNSAFE_PATH),
    "an absolute path": (changed(images=["/etc/passwd"]), Flaw.UNSAFE_PATH),
    "a URL": (changed(images=["http://example.org/a.png"]), Flaw.UNSAFE_PATH),
    "a file URL": (changed(images=["file:///etc/passwd"]), Flaw.UNSAFE_PATH),
    "a network path": (changed(images=["\\\\host\\a.png"]), Flaw.UNSAFE_PATH),
    "a NUL in a path": (changed(images=["images/a\u0000.png"]), Flaw.UNSAFE_PATH),
    "a home path": (changed(images=["~/a.png"]), Flaw.UNSAFE_PATH),
    "a path of 5,000 characters": (changed(images=["a" * 5000]), Flaw.IMAGE_MISSING),
    "a look-alike slash": (changed(images=["..\u2215a.png"]), Flaw.IMAGE_MISSING),
    "an environment variable": (changed(images=["$HOME/a.png"]), Flaw.IMAGE_MISSING),
    "an image that is not in the manifest": (changed(images=["images/b.png"]), Flaw.IMAGE_MISSING),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_set_aside_with_reason_and_place(case: str, write_set: Writer) -> None:
    line, flaw = BAD_LINES[case]
    dataset = open_dataset(write_set({"train": [GOOD[0], line, *GOOD[1:]]}))
    assert [record.id for record in dataset.records("train")] == [record["id"] for record in GOOD]
    (finding,) = dataset.scan("train")[1]
    assert (finding.flaw, finding.file, finding.line) == (flaw, "records/train.jsonl", 2)
    assert "What" not in str(finding)
    assert "liver" not in str(finding)


def test_no_file_outside_the_data_set_is_opened(write_set: Writer, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"x")
    folder = write_set({"train": [*GOOD, question("bad", "../outside.png")]})
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    open_dataset(folder).records("train")
    watching = False
    assert opened
    assert all(path.startswith(str(folder)) for path in opened if path.startswith(str(tmp_path)))


def test_a_symbolic_link_out_of_the_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"x")
    with commit(tmp_path / "linked", kind="data") as folder:
        (folder / "records").mkdir()
        (folder / "records" / "train.jsonl").write_text(json.dumps(question("a", "link.png")) + "\n")
        (folder / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(RefusedError, match="leaves its folder"):
        open_dataset(tmp_path / "linked")
    assert open_dataset(tmp_path / "linked", verify=False).scan("train")[1][0].flaw is Flaw.UNSAFE_PATH


def test_a_broken_line_is_told_by_its_own_line_and_column(write_set: Writer) -> None:
    finding = open_dataset(write_set({"train": [*GOOD, b'{"id": "a"']})).scan("train")[1][0]
    assert str(finding) == "records/train.jsonl:61: json: column 11: Expecting ',' delimiter"


def test_windows_line_ends_are_fine(write_set: Writer) -> None:
    dataset = open_dataset(write_set({"train": [json.dumps(question("a")).encode() + b"\r"]}))
    assert [record.id for record in dataset.records("train")] == ["a"]


def test_too_many_bad_records_stop_with_exit_65_counts_and_the_first_reason(write_set: Writer) -> None:
    folder = write_set({"train": [*GOOD, b"", b"{", b"{"]})
    with pytest.raises(DataError) as caught:
        open_dataset(folder).records("train")
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert "3 of 63 records are set aside (4.8%, the limit is 2.0%): 2 json, 1 blank_line" in caught.value.message
    assert "the first: records/train.jsonl:61: blank_line" in caught.value.message
    assert len(open_dataset(folder, max_quarantined=0.05).records("train")) == 60


def test_all_bad_is_refused_even_if_everything_may_be_set_aside(write_set: Writer) -> None:
    with pytest.raises(DataError, match="2 of 2 records are set aside"):
        open_dataset(write_set({"train": [b"{", b"{"]}), max_quarantined=1.0).records("train")


def test_an_empty_split_is_refused(write_set: Writer) -> None:
    with pytest.raises(DataError, match=r"records/train\.jsonl is empty"):
        open_dataset(write_set({"train": []})).records("train")


def test_an_id_twice_is_refused_with_both_lines(write_set: Writer) -> None:
    folder = write_set({"train": [*GOOD, question("good3")]})
    with pytest.raises(DataError, match="the id 'good3' stands in line 4 and line 61"):
        open_dataset(folder, max_quarantined=1.0).records("train")


def test_kinds_select(write_set: Writer) -> None:
    dataset = open_dataset(write_set({"train": [question("a"), question("b", kind="caption")]}))
    assert [record.id for record in dataset.records("train", [Kind.CAPTION])] == ["b"]
    assert len(dataset.records("train")) == 2


def test_splits_are_those_of_the_manifest(write_set: Writer) -> None:
    dataset = open_dataset(write_set({"train": GOOD, "test": GOOD[:1]}))
    assert dataset.splits == ("test", "train")
    with pytest.raises(MissingInputError, match="has no split 'dev'") as caught:
        dataset.records("dev")
    assert "test, train" in caught.value.hint


def test_a_changed_file_is_refused_before_it_is_read(write_set: Writer) -> None:
    folder = write_set({"train": GOOD})
    path = folder / "records" / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"liver", b"heart"))
    with pytest.raises(RefusedError, match="SHA-256"):
        open_dataset(folder)


def test_another_kind_of_artifact_is_no_data_set(tmp_path: Path) -> None:
    with commit(tmp_path / "c", kind="checkpoint"):
        pass
    with pytest.raises(DataError, match="is a 'checkpoint' artifact, not a data set"):
        open_dataset(tmp_path / "c")


def test_excluded_records_are_left_out_and_count_as_set_aside(write_set: Writer) -> None:
    folder = write_set({"train": GOOD})
    assert len(open_dataset(folder, exclude=["good0"]).records("train")) == 59
    with pytest.raises(DataError, match="2 of 60 records are set aside"):
        open_dataset(folder, exclude=["good0", "good1"]).records("train")


def test_a_split_is_read_once(write_set: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(write_set({"train": GOOD}))
    dataset.records("train")
    monkeypatch.setattr(dataset_module, "lines", None)
    assert len(dataset.records("train")) == 60


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0d8 1eNan-+.', max_size=40).map(str.encode))
def test_no_line_whatever_breaks_the_parser(line: bytes) -> None:
    with contextlib.suppress(FlawError):
        parse(line)


def test_the_digest_of_a_file_comes_from_the_manifest_and_of_a_stranger_from_its_bytes(tmp_path: Path) -> None:
    with manifest.commit(tmp_path / "set", "data") as folder:
        for name in ("a.txt", "a/b.png", "a/c.png", "a-b/d.png", "z/e.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(name.encode())
    digest = file_digests([open_dataset(tmp_path / "set")])
    for entry in manifest.read(tmp_path / "set").files:
        assert digest(tmp_path / "set" / entry.path) == entry.sha256
    (tmp_path / "set" / "a/b.png").write_bytes(b"changed")
    assert digest(tmp_path / "set" / "a/b.png") == hashlib.sha256(b"a/b.png").hexdigest(), "the file was not read"
    (tmp_path / "other.png").write_bytes(b"other")
    assert digest(tmp_path / "other.png") == hashlib.sha256(b"other").hexdigest()
