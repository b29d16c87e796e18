"""Artifact folders: whole or invisible, and never silently changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import manifest
from model.errors import CannotWriteError, DataError, MissingInputError, RefusedError


def write_artifact(folder: Path, content: bytes = b"weights") -> manifest.Manifest:
    with manifest.commit(folder, "checkpoint", parents={"data": "a" * 64}, facts={"step": 3}) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "w.bin").write_bytes(content)
        (aside / "note.txt").write_text("hello")
    return manifest.read(folder)


def test_a_committed_artifact_verifies_and_lists_every_file(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "a")
    assert [f.path for f in written.files] == ["note.txt", "sub/w.bin"]
    assert manifest.verify(tmp_path / "a", written.digest) == written


def test_equal_content_has_an_equal_name_wherever_and_whenever_it_is_written(tmp_path: Path) -> None:
    assert write_artifact(tmp_path / "a").digest == write_artifact(tmp_path / "b").digest
    assert write_artifact(tmp_path / "a").digest != write_artifact(tmp_path / "c", b"other").digest


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 6), flip=st.integers(1, 255))
def test_any_changed_byte_is_refused(tmp_path: Path, position: int, flip: int) -> None:
    write_artifact(tmp_path / "a")
    path = tmp_path / "a" / "sub" / "w.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= flip
    path.write_bytes(bytes(content))
    with pytest.raises(RefusedError, match="SHA-256"):
        manifest.verify(tmp_path / "a")


def test_a_missing_an_added_and_a_cut_file_are_each_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "missing")
    (tmp_path / "missing" / "note.txt").unlink()
    write_artifact(tmp_path / "added")
    (tmp_path / "added" / ".hidden").write_text("x")
    write_artifact(tmp_path / "cut")
    (tmp_path / "cut" / "note.txt").write_text("hell")
    for name, word in (("missing", "missing"), ("added", "added"), ("cut", "bytes")):
        with pytest.raises(RefusedError, match=word):
            manifest.verify(tmp_path / name)


def test_a_changed_fact_is_refused_by_the_reader_who_knows_the_digest(tmp_path: Path) -> None:
    digest = write_artifact(tmp_path / "a").digest
    path = tmp_path / "a" / manifest.FILE_NAME
    path.write_text(path.read_text().replace('"step": 3', '"step": 4').replace('"step":3', '"step":4'))
    with pytest.raises(RefusedError, match="expected"):
        manifest.verify(tmp_path / "a", digest)


def test_an_error_while_writing_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    before = write_artifact(tmp_path / "a")

    def write_half() -> None:
        with manifest.commit(tmp_path / "a", "checkpoint") as aside:
            (aside / "half.bin").write_bytes(b"half")
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        write_half()
    assert manifest.verify(tmp_path / "a") == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_killed_writer_leaves_no_artifact_under_the_final_name(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from model import manifest\n"
        "with manifest.commit(Path(sys.argv[1]), 'data') as aside:\n"
        "    (aside / 'x').write_text('x'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "a").exists()


def test_a_full_disk_ends_with_cannot_write_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from model import manifest\n"
        "from model.errors import CannotWriteError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try:\n"
        "    with manifest.commit(Path(sys.argv[1]), 'data') as aside: (aside / 'x').write_bytes(b'x' * 4096)\n"
        "except CannotWriteError as error: print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False, capture_output=True, text=True)
    assert done.returncode == 73, done.stderr
    assert "MiB are free" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_understood_whichever_library_tells_of_it(tmp_path: Path) -> None:
    def write() -> None:
        with manifest.commit(tmp_path / "a", "checkpoint") as aside:
            try:
                (aside / "weights").write_bytes(b"half")
                raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
            except ValueError as error:
                raise RuntimeError("cannot save") from error

    with pytest.raises(CannotWriteError, match=r"a: No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_input_while_writing_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), manifest.commit(tmp_path / "a", "data"):
        (tmp_path / "absent").read_bytes()


def test_a_place_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWriteError), manifest.commit(tmp_path / "file" / "a", "data"):
        pass


def test_a_folder_without_a_manifest_is_missing_and_a_broken_one_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        manifest.read(tmp_path)
    (tmp_path / manifest.FILE_NAME).write_text('{"kind": "data"')
    with pytest.raises(DataError):
        manifest.read(tmp_path)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "~x", "file:///x", "x\x00y", "", "link/x"])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(tmp_path, root / "link")
    with pytest.raises(RefusedError):
        manifest.safe_join(root, path)


def test_a_path_inside_its_folder_is_joined(tmp_path: Path) -> None:
    assert manifest.safe_join(tmp_path, "images/a b.png") == tmp_path / "images" / "a b.png"
