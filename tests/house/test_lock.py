"""The lock: every requirement is in it, every line has its hashes, and no line says where a file comes from."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENTRY = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?P<marker> ; [^\\\n]+)?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", re.M
)
ROOMS = {"installer", "torch", "cuda", "lock", "source"}
# Imported under another name than the one it is installed by, or brought on purpose by a declared package.
BROUGHT_BY = {
    "pyarrow": "ray",
    "s3fs": "dvc",
    "fsspec": "dvc",
    "botocore": "boto3",
    "kfp-server-api": "kfp",
    "click": "typer",
    "urllib3": "kfp",
    "pandas": "mlflow",
}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def rooms(root):
    """File -> its entries."""
    return {path.stem: list(ENTRY.finditer(path.read_text())) for path in (root / "requirements").glob("*.txt")}


@pytest.fixture(scope="module")
def locked(rooms):
    return {entry["name"]: entry["version"] for entries in rooms.values() for entry in entries}


def requirements(project, *extras):
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def test_the_lock_has_its_rooms_and_nothing_twice(rooms):
    names = [entry["name"] for entries in rooms.values() for entry in entries]
    assert set(rooms) == ROOMS
    assert len(names) == len(set(names))


def test_every_requirement_is_locked_at_a_version_it_allows(project, locked):
    asked = requirements(project, *project["optional-dependencies"])
    wrong = [str(r) for r in asked if not r.specifier.contains(locked.get(canonicalize_name(r.name), "0.dev0"), prereleases=True)]
    assert not wrong, "run `make lock`"


def test_every_line_has_its_hashes_and_says_nothing_else(root):
    for path in (root / "requirements").glob("*.txt"):
        rest = ENTRY.sub("", path.read_text())
        assert not [line for line in rest.splitlines() if line and not line.startswith("# ")], path.name
        assert not [entry["name"] for entry in ENTRY.finditer(path.read_text()) if not entry["hashes"]], path.name


def test_what_needs_a_gpu_stands_apart(rooms):
    assert [entry["name"] for entry in rooms["torch"]] == ["torch"]
    gpu = re.compile(r"^(nvidia-|cuda-|triton$)")
    assert all(gpu.match(entry["name"]) for entry in rooms["cuda"])
    assert not [entry["name"] for room in ROOMS - {"cuda"} for entry in rooms[room] if gpu.match(entry["name"])]


def test_the_environment_is_what_the_lock_says(locked):
    """An environment made by hand answers questions about itself, not about the lock."""
    installed = {canonicalize_name(d.metadata["Name"]): d.version.split("+")[0] for d in importlib.metadata.distributions()}
    assert not {name: (version, locked[name]) for name, version in installed.items() if locked.get(name, version) != version}


def imported(source):
    """Top-level names of what one file imports, wherever in the file it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((name.name.split(".")[0], node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0], node.lineno


def undeclared(sources, declared, own=("pipelines", "components", "model")):
    """Imports of third-party packages that the declared requirements do not bring."""
    homes = importlib.metadata.packages_distributions()
    for source in sources:
        for name, line in imported(source):
            if name in sys.stdlib_module_names or name in own:
                continue
            distributions = {canonicalize_name(home) for home in homes.get(name, [name])}
            if not (distributions | {BROUGHT_BY.get(home, home) for home in distributions}) & declared:
                yield f"{source.name}:{line} {name}"


def test_what_is_imported_is_declared(house, project):
    declared = {canonicalize_name(r.name) for r in requirements(project, "train", "platform")}
    assert not list(undeclared(house, declared))


def test_the_model_needs_only_the_core_and_the_train_extra(house, project):
    declared = {canonicalize_name(r.name) for r in requirements(project, "train") if r.name != "ray"}
    assert not list(undeclared([source for source in house if source.floor == "model"], declared))


def test_an_undeclared_import_is_seen(read):
    assert list(undeclared([read("def f():\n    import pytest\n")], {"numpy"})) == ["planted.py:2 pytest"]
