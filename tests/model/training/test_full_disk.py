"""A disk that is really full: a file system of one mebibyte, in a mount namespace of the test's own."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from model import manifest
from model.errors import CannotWriteError, ExitCode
from model.training.loop import train
from model.training.places import Folder
from model.training.reporter import ListReporter
from tests.forks import forked
from tests.toy_run import finish, toy_training

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
WIDTH = 5600
"""A checkpoint of this network has 400 KiB: two fit into a mebibyte, a third does not."""


def mounted(folder: Path, act: Callable[[], int]) -> int:
    """What `act` returns in a child that sees a file system of one mebibyte at `folder`; skips where there are no namespaces."""

    def inside() -> int:
        flags = CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
        if ctypes.CDLL(None).unshare(flags):
            return -1
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True)
        return -1 if made.returncode else act()

    (code,) = forked([inside])
    if code == 255:
        pytest.skip("no mount namespace can be made here, so no small file system")
    return code


def test_a_full_file_system_ends_the_run_with_73_and_with_room_it_goes_on_to_the_same_end(tmp_path: Path) -> None:
    disk, plain = tmp_path / "disk", tmp_path / "plain"
    disk.mkdir()
    whole, _ = toy_training(plain, width=WIDTH)
    expected = finish(whole)

    def act() -> int:
        work = disk / "work"
        training, _ = toy_training(work, width=WIDTH)
        with pytest.raises(CannotWriteError) as refused:
            train(training)
        assert refused.value.exit_code == ExitCode.CANNOT_WRITE
        left = Folder(work).entries()
        assert left, "no checkpoint was left"
        assert not list(work.glob(".staging-*")), "a half checkpoint still takes room"
        for entry in left:
            manifest.verify(work / entry.name)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        reporter = ListReporter()
        again, _ = toy_training(work, reporter, width=WIDTH)
        assert finish(again) == expected
        assert reporter.resumes == [left[0].step]
        return 0

    assert mounted(disk, act) == 0


def test_a_folder_that_takes_no_writes_is_found_out_before_the_first_step(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def act() -> int:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        reporter = ListReporter()
        training, _ = toy_training(disk / "work", reporter)
        with pytest.raises(CannotWriteError):
            train(training)
        assert not reporter.rows
        return 0

    assert mounted(disk, act) == 0
