"""The base of an image: the pinned one from a registry, or one that debootstrap makes on this machine.

1. `get` gives what `--base` asks for. `auto` takes the base that the Containerfile pins, and makes one where no registry gives it.
2. `make` lets debootstrap lay a minimal Debian with Python 3.11 and the target's packages into a folder, takes away what no container
   reads, and imports it. One that is there and was made from the same list is taken again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infra import bootstrap

SUITE = "bookworm"
PYTHON = ("python3.11-minimal", "libpython3.11-stdlib")
PACKAGES = {
    "launcher": ("git", "ca-certificates"),  # git: the data registry
    "train": ("gcc", "libc6-dev", "ca-certificates"),  # gcc: torch compiles kernels for GPUs
    "mlflow": ("ca-certificates",),
}
"""Target -> Debian packages that its image needs beside Python."""
HEADERS = {"launcher": (), "train": ("libpython3.11-dev",), "mlflow": ()}
"""What an official Python image has already, and a Debian has not: Python.h, for the same kernels."""
BUILDERS = ("uv", "setuptools", "wheel")
UNREAD = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/log")


@dataclass(frozen=True)
class Base:
    """What an image stands on."""

    image: str
    """What FROM gets: a name with a digest, or the id of an imported image."""
    name: str
    """For the label: where it comes from."""
    complete: bool
    """Whether it has the target's Debian packages, so that the build needs no network."""


def pinned(containerfile: str) -> str:
    """The base that the Containerfile names. StopError unless it is pinned by digest."""
    found = re.search(r"^ARG BASE=(\S+)$", containerfile, re.MULTILINE)
    if found is None or not re.search(r"@sha256:[0-9a-f]{64}$", found[1]):
        raise bootstrap.StopError("the Containerfile's BASE is not pinned by digest.\nhint: name it as NAME@sha256:DIGEST")
    return found[1]


def check(docker: str) -> None:
    """StopError unless a container daemon answers."""
    if shutil.which(docker) is None:
        raise bootstrap.StopError(f"no {docker} found.\nhint: install docker, or name it: DOCKER=podman")
    asked = subprocess.run((docker, "version"), capture_output=True, text=True, check=False)
    if asked.returncode:
        raise bootstrap.StopError(f"{docker} has no daemon: {asked.stderr.strip()[-300:]}\nhint: start it, or set DOCKER_HOST")


def get(docker: str, target: str, wanted: str, containerfile: str, folder: Path) -> Base:
    """The base that is wanted: `auto`, `debootstrap` or the name of an image."""
    name = pinned(containerfile) if wanted == "auto" else wanted
    if name != "debootstrap":
        if _there(docker, name) or _pulled(docker, name):
            return Base(name, name, complete=False)
        if wanted != "auto":
            raise bootstrap.StopError(f"no registry gives {name}.\nhint: leave --base away, or make it: --base debootstrap")
        print(f"images: no registry gives {name}; making a base with debootstrap", file=sys.stderr)
    return make(docker, target, folder)


def _there(docker: str, name: str) -> bool:
    return subprocess.run((docker, "image", "inspect", name), capture_output=True, check=False).returncode == 0


def _pulled(docker: str, name: str) -> bool:
    return subprocess.run((docker, "pull", "--quiet", name), capture_output=True, check=False).returncode == 0


def recipe(target: str) -> list[str]:
    """The arguments of debootstrap, but for the folder."""
    included = (*PYTHON, *PACKAGES[target], *HEADERS[target])
    return ["debootstrap", "--variant=minbase", f"--include={','.join(included)}", SUITE]


def make(docker: str, target: str, folder: Path) -> Base:
    """A base made here, or the one made before from the same list."""
    mark = hashlib.sha256(" ".join((*recipe(target), *UNREAD)).encode()).hexdigest()[:12]
    name = f"biovlm-base-{target}:{mark}"
    if not _there(docker, name):
        if shutil.which("debootstrap") is None or os.geteuid() != 0:
            raise bootstrap.StopError(
                "debootstrap is needed, as root.\nhint: apt-get install debootstrap, or name a base: --base NAME"
            )
        root = folder / f"base-{target}"
        shutil.rmtree(root, ignore_errors=True)
        try:
            bootstrap.call(f"base for {target}", [*recipe(target), str(root)])
            _import(docker, root, name)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    seen = subprocess.run((docker, "image", "inspect", "--format", "{{.Id}}", name), capture_output=True, text=True, check=True)
    return Base(name, f"debian:{SUITE} by debootstrap, {seen.stdout.strip()}", complete=True)


def _import(docker: str, root: Path, name: str) -> None:
    for unread in UNREAD:
        for path in (root / unread).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    pack = subprocess.Popen(("tar", "--create", "--one-file-system", "--directory", str(root), "."), stdout=subprocess.PIPE)
    done = subprocess.run((docker, "import", "-", name), stdin=pack.stdout, capture_output=True, text=True, check=False)
    if pack.wait() or done.returncode:
        raise bootstrap.StopError(f"docker import failed: {done.stderr.strip()[-500:]}")
