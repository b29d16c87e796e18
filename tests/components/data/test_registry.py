"""The data registry with real Git and DVC, and a stand-in for the demo data: one stage that draws three lines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.data import demo, registry_dvc
from components.data.registry import Registry
from model import manifest
from model.errors import CannotWriteError, DivergedError, InternalError, MissingInputError, RefusedError, UsageError

ROOT = Path(__file__).resolve().parents[3]
STAGE = '''
"""Writes a tiny data set; obeys the environment to fail or to take long."""
import os, pathlib, sys, time
from model.manifest import commit
out = pathlib.Path(sys.argv[2])
with open(os.environ["COUNTER"], "a") as counter:
    counter.write("built\\n")
with commit(out, "data", facts={"name": "phantom", "licence": "CC0-1.0"}) as folder:
    (folder / "records").mkdir()
    (folder / "records" / "train.jsonl").write_text("TEXT")
    print("drawing", flush=True)
    time.sleep(float(os.environ.get("SLEEP", "0")))
    if os.environ.get("SAYS"):
        print(os.environ["SAYS"], flush=True)
        code = int(os.environ["CODE"])
        os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
'''
DVC_YAML = """
stages:
  phantom:
    cmd: python -m sources.draw --out data/phantom
    deps: [sources/draw.py]
    outs: [data/phantom]
"""


def write_checkout(folder, text="one two three"):
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    (folder / "sources" / "draw.py").write_text(STAGE.replace("TEXT", text))
    (folder / "dvc.yaml").write_text(DVC_YAML)
    return folder


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    # A Git hook that starts biovlm sets these; they must not lead the registry's Git into the checkout.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere" / "index"))
    for name in ("SAYS", "CODE", "SLEEP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A home whose registry holds the demo data. Tests take copies: everything in it is relative."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("COUNTER", str(folder / "counter"))
        Registry(folder / "home", write_checkout(folder / "code")).build()
    return folder / "home"


@pytest.fixture
def registry(built, tmp_path):
    shutil.copytree(built, tmp_path / "home", symlinks=True)
    return Registry(tmp_path / "home", write_checkout(tmp_path / "code"))


def times_built(tmp_path):
    counter = tmp_path / "counter"
    return len(counter.read_text().splitlines()) if counter.exists() else 0


def an_artifact(text):
    def make(out):
        with manifest.commit(out, "data", facts={"name": "mine"}) as folder:
            (folder / "a.txt").write_text(text)

    return make


def objects(folder, suffix=""):
    """Files of a DVC cache or remote, without the lists of folders."""
    return [p for p in (folder / "files" / "md5").rglob("*") if p.is_file() and p.suffix == suffix]


def change_a_byte(path):
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_second_build_starts_nothing(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(registry_dvc, "call", lambda *args, **kw: pytest.fail("DVC was started"))
    assert registry.build() == registry.git.head()
    assert times_built(tmp_path) == 0


def test_dvc_itself_finds_nothing_to_build_the_second_time_and_a_different_lock_is_said(registry, tmp_path):
    lock = yaml.safe_load((registry.root / "dvc.lock").read_text())
    lock["stages"]["phantom"]["outs"][0]["md5"] = "0" * 32 + ".dir"
    (registry.code / "dvc.lock").write_text(yaml.safe_dump(lock))
    (registry.root / ".dvc" / "tmp" / "demo-stamp").unlink()
    lines = []
    before = registry.git.head()
    assert registry.build(lines.append) == before
    assert times_built(tmp_path) == 0
    assert [line for line in lines if "dvc.lock of the checkout says 000000000000" in line]


def test_a_changed_source_builds_again_and_the_old_revision_stays(registry, tmp_path):
    before = registry.git.head()
    write_checkout(registry.code, text="other words")
    lines = []
    assert registry.build(lines.append) != before
    assert lines[:2] == ["building phantom", "drawing"]
    old = registry.materialise(["phantom"], before, tmp_path / "store")["phantom"]
    new = registry.materialise(["phantom"], "HEAD", tmp_path / "store")["phantom"]
    assert (old.path / "records/train.jsonl").read_text() == "one two three"
    assert (new.path / "records/train.jsonl").read_text() == "other words"
    assert old.revision == before
    assert new.digest == manifest.verify(new.path).digest


def test_a_build_leaves_the_checkout_as_it_was(tmp_path):
    code = write_checkout(tmp_path / "code")
    (code / ".gitignore").write_text("__pycache__/\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    git = ("git", "-C", str(code), "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        subprocess.run((*git, *command), check=True, env=clean)
    Registry(tmp_path / "home", code).build()
    assert subprocess.run((*git, "status", "--porcelain"), check=True, env=clean, capture_output=True).stdout == b""


def test_a_byte_changed_in_the_cache_is_refused_and_the_remote_heals_it(registry, tmp_path):
    cache = registry.root / ".dvc" / "cache"
    change_a_byte(next(path for path in objects(cache) if path.read_bytes() == b"one two three"))
    with pytest.raises(RefusedError, match="records/train.jsonl has SHA-256") as caught:
        registry.materialise(["phantom"], "HEAD", tmp_path / "store")
    assert str(cache) in caught.value.hint
    assert not list((tmp_path / "store" / "data").iterdir())
    shutil.rmtree(cache)
    found = registry.materialise(["phantom"], "HEAD", tmp_path / "store")["phantom"]
    assert (found.path / "records/train.jsonl").read_text() == "one two three"


def test_a_byte_changed_in_the_work_tree_does_not_reach_a_reader(registry, tmp_path):
    change_a_byte(registry.root / "data/phantom/records/train.jsonl")
    found = registry.materialise(["phantom"], "HEAD", tmp_path / "store")["phantom"]
    assert (found.path / "records/train.jsonl").read_text() == "one two three"


def test_a_byte_changed_in_the_store_is_laid_anew(registry, tmp_path):
    first = registry.materialise(["phantom"], "HEAD", tmp_path / "store")["phantom"]
    change_a_byte(first.path / "records/train.jsonl")
    again = registry.materialise(["phantom"], "HEAD", tmp_path / "store")["phantom"]
    assert again.path == first.path
    assert (again.path / "records/train.jsonl").read_text() == "one two three"


def test_lost_bytes_are_a_letter(registry, tmp_path):
    shutil.rmtree(registry.root / ".dvc" / "cache")
    shutil.rmtree(registry.root.parent / "dvc-remote")
    with pytest.raises(MissingInputError, match="neither in its cache nor in its remote"):
        registry.materialise(["phantom"], "HEAD", tmp_path / "store")


def test_a_full_disk_while_bytes_are_fetched_is_not_called_lost_bytes(registry, tmp_path, monkeypatch):
    from dvc.api import DVCFileSystem

    def full(*args, **kw):
        raise RuntimeError("database or disk is full")

    monkeypatch.setattr(DVCFileSystem, "get", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        registry.materialise(["phantom"], "HEAD", tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_an_unknown_set_names_the_nearest_one(registry, tmp_path):
    with pytest.raises(MissingInputError, match="did you mean `phantom`") as caught:
        registry.materialise(["phantm"], "HEAD", tmp_path / "store")
    assert "biovlm data import" in caught.value.hint


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", "HEAD:sets", ""])
def test_an_unknown_revision_is_a_letter(registry, revision):
    with pytest.raises(MissingInputError, match="unknown revision"):
        registry.resolve(revision)


def test_an_empty_home_says_how_to_fill_it(tmp_path):
    registry = Registry(tmp_path, write_checkout(tmp_path / "code"))
    assert registry.list() == []
    with pytest.raises(MissingInputError, match="no data registry") as caught:
        registry.resolve("HEAD")
    assert "biovlm data build" in caught.value.hint
    assert not (tmp_path / "data").exists()


def test_importing_the_same_twice_gives_the_same_revision(registry):
    before = registry.version("phantom").revision
    first = registry.add("mine", an_artifact("x"), "import mine")
    assert registry.add("mine", an_artifact("x"), "import mine") == first
    assert registry.add("mine", an_artifact("y"), "import mine") != first
    assert registry.version("phantom").revision == before
    assert [version.name for version in registry.list()] == ["mine", "phantom"]
    assert registry.git.is_clean()


def test_a_killed_import_does_not_reach_git(registry):
    stray = registry.root / "data" / "mine" / "a.txt"
    stray.parent.mkdir()
    stray.write_text("bytes of data")
    assert registry.git.is_clean()
    registry.git.commit("nothing")
    assert "a.txt" not in registry.git._call("ls-files")


def test_a_failed_import_leaves_nothing(registry):
    def fails(out):
        an_artifact("x")(out)
        raise MissingInputError("half of it is missing")

    before = registry.git.head()
    with pytest.raises(MissingInputError, match="half of it"):
        registry.add("mine", fails, "import mine")
    assert registry.git.head() == before
    assert registry.git.is_clean()
    assert not (registry.root / "data" / "mine").exists()


@pytest.mark.parametrize("name", ["phantom", "../up", "A B", ""])
def test_names_that_cannot_be_imported_are_refused(registry, name):
    with pytest.raises(UsageError):
        registry.add(name, an_artifact("x"), "import")


def test_a_failed_stage_ends_with_its_own_letter_and_can_be_repeated(tmp_path, monkeypatch):
    registry = Registry(tmp_path / "home", write_checkout(tmp_path / "code"))
    monkeypatch.setenv("SAYS", "the loss is not a number\nhint: lower the rate")
    monkeypatch.setenv("CODE", "79")
    with pytest.raises(DivergedError, match="building phantom failed: the loss is not a number") as caught:
        registry.build()
    assert caught.value.hint == "lower the rate"
    assert not registry.exists()
    monkeypatch.delenv("SAYS")
    registry.build()
    assert [version.name for version in registry.list()] == ["phantom"]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stage_that_was_killed_says_by_what_in_any_shell(tmp_path, monkeypatch, shell):
    monkeypatch.setenv("SHELL", shell)
    monkeypatch.setenv("SAYS", "half done")
    monkeypatch.setenv("CODE", "-9")
    with pytest.raises(InternalError, match="building phantom was ended by signal 9"):
        Registry(tmp_path / "home", write_checkout(tmp_path / "code")).build()


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SAYS", "OSError: [Errno 28] No space left on device")
    monkeypatch.setenv("CODE", "1")
    with pytest.raises(CannotWriteError, match="No space left"):
        Registry(tmp_path / "home", write_checkout(tmp_path / "code")).build()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_was_stopped_is_repaired_by_the_next(tmp_path, stop):
    code = write_checkout(tmp_path / "code")
    program = (
        f"from pathlib import Path; from components.data.registry import Registry; R = Registry(Path({str(tmp_path)!r}) / 'home',"
    )
    program += f" Path({str(code)!r})); R.build(lambda line: print(line, flush=True))"
    running = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "SLEEP": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert running.stdout is not None
    assert any(line == b"drawing\n" for line in running.stdout)
    running.send_signal(stop)
    running.wait()
    registry = Registry(tmp_path / "home", code)
    # What such a stop may leave behind.
    (registry.root / ".git" / "index.lock").touch()
    (registry.root / ".dvc" / "tmp" / "rwlock").write_text('{"write": {')
    registry.build()
    manifest.verify(registry.root / "data" / "phantom")
    assert {p.name for p in (registry.root / "data").iterdir()} == {"phantom", ".gitignore"}
    assert registry.git.is_clean()


def test_the_lock_in_git_pins_the_phantom_alone_and_is_up_to_date():
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    assert list(lock) == ["phantom"], "trained weights are not equal on every machine; keep them out of dvc.lock"
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["phantom"]
    assert lock["phantom"]["cmd"] == stage["cmd"]
    assert [dep["path"] for dep in lock["phantom"]["deps"]] == stage["deps"]
    for dep in lock["phantom"]["deps"]:
        md5 = hashlib.md5((ROOT / dep["path"]).read_bytes(), usedforsecurity=False).hexdigest()
        assert md5 == dep["md5"], f"{dep['path']} changed: run `dvc repro phantom` and commit dvc.lock"


def test_what_git_knows_of_a_set_is_small_and_whole(registry):
    known = json.loads((registry.root / "sets" / "phantom.json").read_text())
    assert known["md5"].endswith(".dir")
    assert known["facts"]["licence"] == "CC0-1.0"
    assert known["digest"] == manifest.read(registry.root / "data" / "phantom").digest


def with_neighbours(code, tower, language):
    """The checkout with two more stages, which need the phantom alone."""
    stages = yaml.safe_load((code / "dvc.yaml").read_text())
    for name, command in (("tower", tower), ("language", language)):
        stages["stages"][name] = {"cmd": command, "deps": ["data/phantom"], "outs": [f"data/{name}"]}
    (code / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    return code


def test_stages_that_need_nothing_of_each_other_are_built_side_by_side(tmp_path):
    meet = "touch {0}/{1}; for i in $(seq 300); do test -e {0}/{2} && break; sleep 0.1; done; test -e {0}/{2} && {3} data/{1}"
    commands = (
        meet.format(tmp_path, *pair, "python -m sources.draw --out") for pair in (("tower", "language"), ("language", "tower"))
    )
    code = with_neighbours(write_checkout(tmp_path / "code"), *commands)
    assert demo.waves(code) == [("phantom",), ("tower", "language")]
    registry = Registry(tmp_path / "home", code)
    registry.build()
    assert {version.name for version in registry.list()} == {"phantom", "tower", "language"}


def test_when_one_stage_fails_its_neighbour_is_ended(tmp_path):
    code = with_neighbours(write_checkout(tmp_path / "code"), "sleep 2; false", f"sleep 61 && touch {tmp_path}/ran")
    with pytest.raises(InternalError, match="building tower failed"):
        Registry(tmp_path / "home", code).build()
    assert not subprocess.run(["pgrep", "-f", f"sleep 61 && touch {tmp_path}"], capture_output=True, check=False).stdout
