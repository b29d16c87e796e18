"""What this machine has and lacks, for `biovlm doctor`.

1. `examine` asks each question below and collects one `Finding` each: `ok`, `warn` (a run works, with a limit) or `missing`.
2. Versions of packages are compared with the pins of the project, without importing anything heavy.

Nothing is made or changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from components.platform.settings import Settings

NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "ray", "kfp", "mlflow", "dvc", "pydantic", "typer")
OPTIONAL = {"deepspeed": "only strategies zero2 and zero3 need it", "kfp-kubernetes": "only clusters need it"}
LEAST_CORES, LEAST_MEMORY_GIB, LEAST_FREE_GIB = 2, 6.0, 2.0
TIMEOUT_SECONDS = 10


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    WARN = "warn"
    """A run works here, with a limit."""
    MISSING = "missing"
    """A run cannot work here."""


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    level: Level
    found: str
    hint: str = Field(default="", description="The way out; empty if there is nothing to do.")


def examine() -> list[Finding]:
    """Look at everything."""
    home = Settings.from_environment().home
    return [_python(), _cores(), _memory(), _home(home), _disk(home), *_packages(), _gpu(), _git(), _docker()]


def _python() -> Finding:
    found = sys.version.split()[0]
    good = (3, 11) <= sys.version_info[:2] < (3, 15)
    hint = "" if good else "use Python 3.11 to 3.14; Ray has no builds for others"
    return Finding(name="python", level=Level.OK if good else Level.MISSING, found=found, hint=hint)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores >= LEAST_CORES:
        return Finding(name="cores", level=Level.OK, found=str(cores))
    return Finding(name="cores", level=Level.WARN, found=str(cores), hint="the demo is made for two; it takes longer here")


def _memory() -> Finding:
    gib = _memory_bytes() / 2**30
    if gib >= LEAST_MEMORY_GIB:
        return Finding(name="memory", level=Level.OK, found=f"{gib:.1f} GiB")
    return Finding(
        name="memory",
        level=Level.WARN,
        found=f"{gib:.1f} GiB",
        hint=f"the demo is made for {LEAST_MEMORY_GIB:g} GiB; close what else runs",
    )


def _memory_bytes() -> int:
    """Memory of the machine, or of the container if that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return min(whole, int(text)) if text.isdigit() else whole
    return whole


def _home(home: Path) -> Finding:
    near = _nearest(home)
    if near.is_dir() and os.access(near, os.W_OK | os.X_OK):
        return Finding(name="home", level=Level.OK, found=str(home))
    why = "cannot be written" if near.is_dir() else "is not a folder"
    hint = "set BIOVLM_HOME to a folder that can be written"
    return Finding(
        name="home", level=Level.MISSING, found=f"{home}: {near} {why}" if near != home else f"{home} {why}", hint=hint
    )


def _nearest(home: Path) -> Path:
    """`home`, or of the folders above it the first that is there."""
    return next(folder for folder in (home, *home.parents) if os.access(folder, os.F_OK))


def _disk(home: Path) -> Finding:
    gib = shutil.disk_usage(_nearest(home)).free / 2**30
    if gib >= LEAST_FREE_GIB:
        return Finding(name="disk", level=Level.OK, found=f"{gib:.1f} GiB free")
    hint = f"a run needs about {LEAST_FREE_GIB:g} GiB: free some space, or set BIOVLM_HOME to another disk"
    return Finding(name="disk", level=Level.WARN, found=f"{gib:.1f} GiB free", hint=hint)


def _packages() -> Iterator[Finding]:
    """Installed version of each package, against what biovlm was made for."""
    pins = _pins()
    for name in (*NEEDED, *OPTIONAL):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            level, why = (Level.WARN, OPTIONAL[name]) if name in OPTIONAL else (Level.MISSING, "`make env` installs it")
            yield Finding(name=name, level=level, found="not installed", hint=why)
            continue
        pin = pins.get(name)
        if pin and found.partition("+")[0] != pin:
            yield Finding(name=name, level=Level.WARN, found=found, hint=f"biovlm is tested with {pin}; `make env` installs that")
        else:
            yield Finding(name=name, level=Level.OK, found=found)


def _pins() -> dict[str, str]:
    """Package -> version, where pyproject.toml demands one exactly. Empty if biovlm itself is not installed."""
    try:
        demands = importlib.metadata.requires("biovlm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    exact = (demand.partition(";")[0].split("==") for demand in demands if "==" in demand.partition(";")[0])
    return {name.partition("[")[0].strip(): version.strip() for name, version in exact}


def _gpu() -> Finding:
    said = _said("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if said:
        return Finding(name="gpu", level=Level.OK, found="; ".join(said.splitlines()))
    return Finding(name="gpu", level=Level.OK, found="none; the demo needs none")


def _git() -> Finding:
    said = _said("git", "--version")
    if said:
        return Finding(name="git", level=Level.OK, found=said.removeprefix("git version "))
    return Finding(name="git", level=Level.MISSING, found="not found", hint="install Git; the data registry is a Git repository")


def _docker() -> Finding:
    if shutil.which("docker") is None:
        return Finding(
            name="docker", level=Level.WARN, found="not found", hint="only images and clusters on this machine need it"
        )
    version = _said("docker", "version", "--format", "{{.Server.Version}}")
    if version:
        return Finding(name="docker", level=Level.OK, found=version)
    return Finding(
        name="docker", level=Level.WARN, found="no daemon answers", hint="only images and clusters on this machine need it"
    )


def _said(*command: str) -> str:
    """What a program prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
