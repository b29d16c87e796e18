"""A version is made again from its lineage alone: equal to the bit, or with the missing input by name. Real runs of the micro recipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.data.registry import Registry
from components.platform import code, versions
from components.platform.settings import CHECKOUT, Settings
from components.platform.store import open_store
from model import manifest
from tests.pipelines import command, micro

pytestmark = [pytest.mark.lane, pytest.mark.timeout(1800)]


def biovlm(home, *words):
    """Exit code, stdout and stderr."""
    return command.call(home, "-m", "pipelines.cli", *words)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A home with one registered version, whose data and base models have newer versions since."""
    home = tmp_path_factory.mktemp("reproduce") / "home"
    micro.fill(home)
    recipe = home.parent / "recipe.yaml"
    recipe.write_text(micro.recipe(seed=3).model_dump_json())
    done = biovlm(home, "run", "--recipe", recipe, "--json")
    assert done[0] == 0, done[2]
    registry = Registry(home)
    registry.add("mini", lambda folder: micro.write_set(folder, (("train", 18), ("test", 6))), "newer data")
    registry.add("mini-tower", lambda folder: micro.make_tower(folder, seed=9), "newer base model")
    return home


@pytest.fixture
def settings(place):
    return Settings.from_environment({"BIOVLM_HOME": str(place)})


def test_a_version_is_made_again_to_the_bit_although_data_and_base_models_have_moved_on(place):
    status, out, err = biovlm(place, "reproduce", "models:/micro/1", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert {row["step"]: row["equal"] for row in found["artifacts"]} == dict.fromkeys(
        ("data", "align", "instruct", "task", "evaluate"), True
    )
    assert "equal to the bit: 5 artifacts" in err
    assert not list((place / "reproductions").iterdir()), "what was laid out is removed"


def record_of_task(home):
    """File of the record of the version's task stage."""
    version = versions.find(Settings.from_environment({"BIOVLM_HOME": str(home)}), "models:/micro/1")
    return home / "store" / "steps" / "train" / f"{Path(version.tags['biovlm.checkpoint_path']).name}.json"


def test_a_version_that_is_not_what_its_lineage_says_is_refused(place, tmp_path):
    """Its task stage learned at another rate than its record says: the chain is whole, and a lie."""
    home = tmp_path / "home"
    shutil.copytree(place, home, symlinks=True)
    path = record_of_task(home)
    record = json.loads(path.read_text())
    record["piece"]["stage"]["learning_rates"]["language_lora"] *= 2
    path.write_text(json.dumps(record))
    status, out, err = biovlm(home, "reproduce", "models:/micro/1", "--json")
    assert status == 77, err
    found = {row["step"]: row for row in json.loads(out)["artifacts"]}
    assert [found[step]["equal"] for step in ("data", "align", "instruct", "task")] == [True, True, True, False]
    assert found["task"]["apart"] > 0
    assert "differ on the same kind of machine" in err or "apart" in err
    assert list((home / "reproductions").iterdir()), "what was made is kept for whoever looks into it"


def test_each_missing_input_is_named_before_anything_runs(place, settings, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(place, home, symlinks=True)
    shutil.rmtree(home / "dvc-remote")
    shutil.rmtree(home / "data" / ".dvc" / "cache")
    shutil.rmtree(home / "store" / "data")
    version = versions.find(settings, "models:/micro/1")
    record = open_store(settings).record("train", Path(version.tags["biovlm.checkpoint_path"]).name)
    for path in (home / "store" / "steps").glob("*/*.json"):
        path.write_text(path.read_text().replace(record.code, manifest.digest_of("code of another time")))
    status, _, err = biovlm(home, "reproduce", "models:/micro@champion" if "champion" in version.aliases else "models:/micro/1")
    assert status == 66
    assert "4 inputs are missing" in err
    for name in ("data set mini at", "base model mini-tower at", "base model mini-language at", "the code of its steps"):
        assert name in err
    assert not list((home / "reproductions").iterdir())


def test_a_version_whose_records_are_gone_says_which(place, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(place, home, symlinks=True)
    for path in (home / "store" / "steps" / "train").glob("*.json"):
        path.unlink()
    status, _, err = biovlm(home, "reproduce", "models:/micro/1")
    assert status == 66
    assert "no record of " in err
    assert "task" in err


def test_the_code_of_an_older_commit_is_brought_back(place, tmp_path):
    """A copy of this code in a repository of its own: what trained is its first commit, what is checked out its second."""
    root = tmp_path / "code"
    for folder in ("model", "components", "pipelines"):
        shutil.copytree(CHECKOUT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "dvc.yaml", root)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "first")
    first = git(root, "rev-parse", "HEAD")
    (root / "model" / "training" / "loop.py").open("a").write("# another time\n")
    git(root, "commit", "--quiet", "-a", "-m", "second")
    wanted = {kind: code.digest(kind) for kind in ("data", "train", "evaluate")}
    lay = (
        "import sys, dataclasses; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from components.platform import code; from pipelines import reproduce\n"
        f"wanted = {wanted!r}\n"
        f"records = {{k: N(kind=k, code=v, revision={{'commit': {first!r}}}) for k, v in wanted.items()}}\n"
        f"print(reproduce._lay_code(N(records=records), Path({str(tmp_path / 'laid')!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run((sys.executable, "-c", lay), capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.stdout.strip() == str(tmp_path / "laid" / first), done.stderr


def git(root, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgSign=false")
    return subprocess.run(("git", "-C", str(root), *identity, *words), capture_output=True, text=True, check=True).stdout.strip()
