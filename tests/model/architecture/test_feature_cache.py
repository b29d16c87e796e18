"""Entries on disk: whole or not there, whatever happens to the files, the disk and the processes that write."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.architecture import cache_space
from model.architecture.cache_space import ABOUT, ASIDE
from model.architecture.feature_cache import HEADER_BYTES, FeatureCache

SHAPE = (2, 4)
ENTRY_BYTES = HEADER_BYTES + 32
MIB = 2**20


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def features_of(number: int, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def opened(root: Path, limit: int = MIB, tower: str = "a", **changes: Any) -> FeatureCache:
    return FeatureCache(root, limit, {"tower": tower}, **{"shape": SHAPE, "dtype": torch.float32, "reserve_bytes": 0, **changes})


def filled(root: Path, numbers: range, **changes: Any) -> FeatureCache:
    cache = opened(root, **changes)
    for number in numbers:
        cache.put(name_of(number), features_of(number, changes.get("shape", SHAPE)))
    cache.flush()
    return cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_is_got_to_the_bit_also_by_another_process_later(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = opened(tmp_path, dtype=dtype)
    cache.put(name_of(1), features_of(1).to(dtype))
    cache.flush()
    for reader in (cache, opened(tmp_path, dtype=dtype)):
        found = reader.get(name_of(1))
        assert found is not None
        assert found.dtype is dtype
        assert torch.equal(found, features_of(1).to(dtype))
        assert reader.get(name_of(2)) is None
        assert reader.news() == []


def test_no_cut_and_no_changed_byte_goes_unseen(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(1))
    path = cache.folder / name_of(0)[:2] / name_of(0)[2:]
    whole = path.read_bytes()
    assert len(whole) == ENTRY_BYTES
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    cut = [whole[:length] for length in range(len(whole))]
    for content in [*flipped, *cut, whole + b"\0", b"\0" * len(whole), whole[::-1]]:
        path.write_bytes(content)
        assert cache.get(name_of(0)) is None
        assert not path.exists(), "a damaged entry is removed, so that it is written again"
    told = cache.news()
    assert len(told) == 1, "told once"
    assert "damaged" in told[0]
    path.write_bytes(whole)
    assert cache.get(name_of(0)) is not None


@pytest.mark.parametrize("stranger", ["of another image", "of another tower", "of another shape"])
def test_an_entry_that_disagrees_with_its_name_is_refused(tmp_path: Path, stranger: str) -> None:
    cache = filled(tmp_path, range(2))
    other = filled(tmp_path / "b", range(1), tower="b")
    flat = FeatureCache(tmp_path / "c", MIB, {"tower": "a"}, (4, 2), torch.float32, reserve_bytes=0)
    flat.put(name_of(0), features_of(0).reshape(4, 2))
    flat.flush()
    place = Path(name_of(0)[:2]) / name_of(0)[2:]
    source = {
        "of another image": cache.folder / name_of(1)[:2] / name_of(1)[2:],
        "of another tower": other.folder / place,
        "of another shape": flat.folder / place,
    }[stranger]
    shutil.copy(source, cache.folder / place)
    assert cache.get(name_of(0)) is None
    assert len(cache.news()) == 1


def test_at_the_limit_filling_stops_and_the_first_stay(tmp_path: Path) -> None:
    limit = 10 * ENTRY_BYTES + 100
    cache = filled(tmp_path, range(30), limit=limit)
    there = [number for number in range(30) if cache.get(name_of(number)) is not None]
    assert 8 <= len(there) <= 10
    assert there == list(range(len(there)))
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert held <= limit + limit // cache_space.SHARE_BETWEEN_MEASURES
    told = cache.news()
    assert len(told) == 1
    assert "is not filled further" in told[0]


def test_whole_towers_that_nobody_uses_go_first_the_oldest_first(tmp_path: Path) -> None:
    folders = {}
    for age, tower in ((3, "oldest"), (2, "old"), (0, "of another run")):
        folders[tower] = filled(tmp_path, range(8), tower=tower).folder
        used = time.time() - age * 3600
        os.utime(folders[tower] / ABOUT, (used, used))
    room = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) + 600
    cache = filled(tmp_path, range(8, 14), limit=room, tower="present")
    assert all(cache.get(name_of(number)) is not None for number in range(8, 14))
    assert [tower for tower, folder in folders.items() if folder.exists()] == ["old", "of another run"]
    tight = filled(tmp_path, range(40), limit=room, tower="present")
    assert [tower for tower, folder in folders.items() if folder.exists()] == ["of another run"], "one in use never goes"
    assert tight.get(name_of(0)) is not None


def test_some_of_the_disk_is_left_to_checkpoints(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(1), reserve_bytes=2**62)
    assert cache.get(name_of(0)) is None
    assert "left to checkpoints" in cache.news()[0]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """RLIMIT_FSIZE stands for a full disk: the write itself fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_filling_and_is_told_once(tmp_path: Path, full_disk: None) -> None:
    cache = filled(tmp_path, range(3), limit=2**30, shape=(400, 256))
    assert [cache.get(name_of(number)) for number in range(3)] == [None] * 3
    told = cache.news()
    assert len(told) == 1
    assert "File too large" in told[0]
    assert list((tmp_path / ASIDE).iterdir()) == [], "the half entry is gone"
    assert cache.news() == []


def test_a_folder_that_takes_no_writes_is_told_and_used_no_further(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = filled(tmp_path / "file", range(2))
    assert cache.get(name_of(0)) is None
    assert len([text for text in cache.news() if "cannot be filled" in text]) == 1


def write_for_ever(root: Path, seed: int) -> None:
    cache, rng = opened(root, 2**30), random.Random(seed)
    while True:
        number = rng.randrange(200)
        cache.put(name_of(number), features_of(number))
        if rng.random() < 0.05:  # another finds it damaged, or the folder is cleared, in the middle of everything
            (cache.folder / name_of(number)[:2] / name_of(number)[2:]).unlink(missing_ok=True)


def test_killed_writers_leave_only_whole_entries(tmp_path: Path) -> None:
    fork, rng = multiprocessing.get_context("fork"), random.Random(0)
    reader = opened(tmp_path, 2**30)
    found = 0
    for attempt in range(6):
        writers = [fork.Process(target=write_for_ever, args=(tmp_path, attempt * 3 + n), daemon=True) for n in range(3)]
        for writer in writers:
            writer.start()
        time.sleep(0.1 + 0.2 * rng.random())
        for writer in writers:
            os.kill(writer.pid or 0, signal.SIGKILL)
            writer.join()
            assert writer.exitcode == -signal.SIGKILL, "the writer was at work when it was killed"
        for number in range(200):
            entry = reader.get(name_of(number))
            assert entry is None or torch.equal(entry, features_of(number))
            found += entry is not None
    assert found > 200
    assert reader.news() == [], "no entry was ever found damaged"


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    opened(tmp_path)
    left = tmp_path / ASIDE / "left"
    fresh = tmp_path / ASIDE / "fresh"
    for path in (left, fresh):
        path.write_bytes(b"half an entry")
    long_ago = time.time() - 2 * cache_space.GRACE_SECONDS
    os.utime(left, (long_ago, long_ago))
    filled(tmp_path, range(1))
    assert not left.exists()
    assert fresh.exists(), "another process may be writing it"
