"""The digest of the code that can change a step's result.

For each kind of step the table below names the files under `model/` and `components/` that its result depends on. The digest
covers their relative paths and bytes, so it is the same on every machine. `components/platform` is left out: it carries
references and numbers, and does not make them. So are the report's template and the importers of raw data, whose results the data
digests name. A test walks the imports of every step and demands that the table covers them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from pathlib import Path

from model.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = frozenset({".py", ".yaml", ".j2"})
GROUND = ("model/batch.py", "model/config", "model/errors.py", "model/folders.py", "model/manifest.py", "model/recipe.py")
DECIDES = ("decision", "gates", "own_figures", "comparison", "verdict", "results", "bootstrap")
SHARING = ("model/training/ranks.py", "model/training/watchdog.py")
"""By which workers of an evaluation talk; nothing else of the training."""
CODE: dict[str, tuple[str, ...]] = {
    "data": (*GROUND, "model/data", "components/data"),
    "train": (*GROUND, "model/data", "model/architecture", "model/training", "components/train"),
    "evaluate": (*GROUND, "model/data", "model/architecture", "model/evaluation", *SHARING, "components/evaluate"),
    "register": (*GROUND, "model/data", "model/architecture", "components/register"),
    "promote": (*GROUND, "model/data/records.py", *(f"model/evaluation/{n}.py" for n in DECIDES), "components/promote"),
}
"""Kind of step -> files and folders, relative to the root of the code."""
PACKAGES = ("model", "components", "pipelines")
REVISION = "revision.json"
"""In the root of code that lies in an image: the commit that it came from, as `revision` gives it, and the digest of its lock."""
LEFT_OUT = ("model/data/sources", "model/evaluation/report")
"""Prefixes of paths under the folders above whose content does not touch any step's result."""


@functools.cache
def digest(kind: str, root: Path = ROOT) -> str:
    """Digest (64 hex digits) of the code of steps of `kind`."""
    if kind not in CODE:
        raise UsageError(f"unknown kind of step {kind!r}", f"kinds: {', '.join(CODE)}")
    total = hashlib.sha256()
    for relative in files(kind, root):
        content = hashlib.sha256((root / relative).read_bytes()).hexdigest()
        total.update(f"{relative}\0{content}\n".encode())
    return total.hexdigest()


def files(kind: str, root: Path = ROOT) -> list[str]:
    """Paths, relative to `root` and sorted, of the files that count for steps of `kind`."""
    found: set[str] = set()
    for entry in CODE[kind]:
        path = root / entry
        candidates = path.rglob("*") if path.is_dir() else (path,)
        found.update(p.relative_to(root).as_posix() for p in candidates if p.suffix in SUFFIXES and p.is_file())
    return sorted(name for name in found if not name.startswith(LEFT_OUT))


def everything(root: Path = ROOT) -> str:
    """Digest (64 hex digits) of all code: two places that have the same give every step the same key."""
    total = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*") if path.suffix in SUFFIXES):
        total.update(f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


@functools.cache
def revision(root: Path = ROOT) -> dict[str, str | bool]:
    """Commit of the code and whether it was changed since; `unknown` where it comes neither from a checkout nor from an image."""
    if (root / REVISION).is_file():
        found = json.loads((root / REVISION).read_text(encoding="utf-8"))
        return {"commit": str(found["commit"]), "dirty": bool(found["dirty"])}
    command = ("git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", "model", "components", "pipelines")
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": True}
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), "unknown")
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def tags(root: Path = ROOT) -> list[str]:
    """Git tags of the code's commit, as the checkout or the image knows them; empty where it comes from neither."""
    if (root / REVISION).is_file():
        return str(json.loads((root / REVISION).read_text(encoding="utf-8")).get("tags", "")).split()
    command = ("git", "-C", str(root), "tag", "--points-at", "HEAD")
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
