"""The demo data in the data registry: what dvc.yaml of the checkout says, built there so that the checkout stays clean.

1. `prepare` copies dvc.yaml and the sources its stages depend on from the checkout into the registry, and names the stages. The
   same relative paths stand in both places, so both have the same dvc.lock, and the registry's history shows what made its data.
2. `dvc repro` builds there (components/data/registry.py), importing from the checkout, in the order of `waves`.
3. `differences` compares the result with the dvc.lock that the checkout has in Git: only what is equal on every machine is in it.
4. `stamp` notes what was built; `is_fresh` says that the same would be built again, without starting DVC.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from model.errors import DataError, MissingInputError
from model.manifest import digest_of, sha256_file

STAMP = Path(".dvc", "tmp", "demo-stamp")
OUTS = "data/"


def stages(code: Path) -> tuple[str, ...]:
    """Names of the demo's data sets and base models, in the order of dvc.yaml."""
    return tuple(_stages(code / "dvc.yaml"))


def waves(code: Path) -> list[tuple[str, ...]]:
    """The stages in an order in which they can be built; those of one wave need nothing of each other."""
    left = dict(_stages(code / "dvc.yaml"))
    found: list[tuple[str, ...]] = []
    while left:
        to_come = {out for stage in left.values() for out in stage.get("outs", ())}
        ready = tuple(name for name, stage in left.items() if to_come.isdisjoint(stage.get("deps", ())))
        if not ready:
            raise DataError(f"the stages {', '.join(left)} of {code / 'dvc.yaml'} wait for each other", "mend `deps` in dvc.yaml")
        found.append(ready)
        left = {name: stage for name, stage in left.items() if name not in ready}
    return found


def prepare(root: Path, code: Path) -> tuple[str, ...]:
    """Let the registry's dvc.yaml and sources be the checkout's; the names of the stages."""
    wanted = {"dvc.yaml", *_sources(code)}
    for name in wanted:
        target = root / name
        content = (code / name).read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for old in (root / "model").rglob("*"):
        if old.is_file() and old.relative_to(root).as_posix() not in wanted:
            old.unlink()
    (root / OUTS).mkdir(exist_ok=True)
    for half_made in (root / OUTS).glob(".*/"):  # left by a stage that was killed; nobody else writes now
        shutil.rmtree(half_made, ignore_errors=True)
    return stages(code)


def pinned(folder: Path) -> dict[str, str]:
    """Path -> md5 of every output in the dvc.lock of `folder`."""
    path = folder / "dvc.lock"
    if not path.is_file():
        return {}
    lock: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {out["path"]: out["md5"] for stage in lock.get("stages", {}).values() for out in stage.get("outs", ())}


def differences(root: Path, code: Path) -> list[str]:
    """A sentence for each output that is not what the checkout's dvc.lock says it is on every machine."""
    built, expected = pinned(root), pinned(code)
    return [
        f"{path} is {built.get(path, 'missing')[:12]}, dvc.lock of the checkout says {md5[:12]}: its sources changed, or this machine"
        f" differs; after a wanted change run `dvc repro {Path(path).name}` and commit dvc.lock"
        for path, md5 in expected.items()
        if built.get(path) != md5
    ]


def stamp(root: Path, code: Path) -> None:
    """Note what the demo data was built from."""
    (root / STAMP).write_text(_state(root, code), encoding="utf-8")


def is_fresh(root: Path, code: Path) -> bool:
    """Whether the demo data was built, whole, from what the checkout holds now."""
    path = root / STAMP
    return path.is_file() and path.read_text(encoding="utf-8") == _state(root, code)


def _state(root: Path, code: Path) -> str:
    """Digest of the checkout's dvc.yaml and its stages' sources, and of the registry's dvc.lock."""
    files = [code / "dvc.yaml", *(code / name for name in _sources(code)), root / "dvc.lock"]
    return digest_of([sha256_file(path) if path.is_file() else "" for path in files])


def _sources(code: Path) -> list[str]:
    """Relative paths of the stages' dependencies that are sources, not data; sorted."""
    found = {dep for stage in _stages(code / "dvc.yaml").values() for dep in stage.get("deps", ()) if not dep.startswith(OUTS)}
    for name in sorted(found):
        if not (code / name).is_file():
            raise MissingInputError(f"{code / 'dvc.yaml'} names {name}, which is missing", "mend `deps` in dvc.yaml")
    return sorted(found)


def _stages(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        raise MissingInputError(
            f"no {path}", "the demo data is built from a checkout of biovlm; clone it and run there"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError):
        raise DataError(f"{path} is not a DVC pipeline: it has no `stages`", "restore it from Git") from None
