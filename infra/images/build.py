"""Builds the container images: `make images`, or `python -m infra.images.build [TARGET ...] [--base NAME]`.

1. `facts` says what an image is made of: commit, digest of the lock, digest of the code. They become its labels.
2. The base is the one that the Containerfile pins by digest; where no registry gives it, one that debootstrap makes (base.py).
3. `wheels` lets this machine's pip fetch what the lock names, so that mirrors, certificates and find-links are those of the machine
   and stand in no layer; the build itself has no network unless a base lacks a Debian package.
4. The context is a folder under build/images with just what the Containerfile copies.
5. What was built is measured. A launcher past its limit is an error. build/images/TARGET.json says what it is and what it weighs,
   and TARGET.cdx.json beside it is its SBOM.

Which commands are run is decided by pure functions, and tests/infra/images holds them; `main` runs them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.platform import code
from infra import bootstrap
from infra.images import base as bases
from infra.images.inside import SBOM, entries, name_of

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "infra" / "images" / "Containerfile"
REQUIREMENTS = ROOT / "requirements"
OUT = ROOT / "build" / "images"
NAMES = {"launcher": "biovlm-launcher-python", "train": "biovlm-train", "mlflow": "biovlm-mlflow"}
"""Target -> name of its image. The launcher's is the base image of the compiled steps: KFP warns of one without `python` in its name."""
LIMIT_MB = {"launcher": 900}
BESIDE = ("pyproject.toml", "dvc.yaml", "LICENSE")


@dataclass(frozen=True)
class Facts:
    """What an image is made of."""

    target: str
    commit: str
    dirty: bool
    lock: str
    """Digest (64 hex digits) of the requirements that its packages come from."""
    code: str
    """Digest (64 hex digits) of its code (components/platform/code.py)."""
    version: str

    def labels(self) -> dict[str, str]:
        """As arguments of the Containerfile."""
        return {
            "TARGET": self.target,
            "COMMIT": self.commit,
            "DIRTY": str(self.dirty).lower(),
            "LOCK": self.lock,
            "CODE": self.code,
            "VERSION": self.version,
        }


def kept(root: Path) -> list[str]:
    """Relative paths of the code that goes into an image: what Git keeps or would keep, sorted."""
    ask = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *code.PACKAGES, *BESIDE)
    listed = subprocess.run(ask, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in listed if name and (root / name).is_file()})


def digest(root: Path, names: Sequence[str]) -> str:
    """Digest (64 hex digits) of files: their relative paths and bytes."""
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def locks(target: str, cuda: bool = True) -> list[str]:
    """Files of requirements/ that an image of `target` is made from."""
    learning = ["torch.txt", *(["cuda.txt"] if cuda else [])] if target == "train" else []
    return [f"images/{target}.txt", "images/sbom.txt", "installer.txt", "lock.txt", "source.txt", *learning]


def facts(target: str, root: Path = ROOT) -> Facts:
    """What an image of `target` would be made of now."""

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return Facts(
        target=target,
        commit=git("rev-parse", "HEAD"),
        dirty=bool(git("status", "--porcelain", "--", *code.PACKAGES, *BESIDE, "requirements", "infra/images")),
        lock=digest(root / "requirements", locks(target)),
        code=code.everything(root),
        version=project["version"],
    )


def build_command(docker: str, found: Facts, context: Path, ground: bases.Base) -> list[str]:
    """The call of docker that builds one image."""
    arguments = found.labels() | {
        "BASE": ground.image,
        "BASE_NAME": ground.name,
        "PACKAGES": " ".join(bases.PACKAGES[found.target]),
    }
    name = NAMES[found.target]
    return [
        *(docker, "build", "--quiet", "--file", str(context / "Containerfile"), "--target", found.target),
        # A base from debootstrap has all Debian packages; the wheels lie in the context.
        *("--network", "none" if ground.complete else "host"),
        *(part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")),
        *("--tag", f"{name}:latest", "--tag", f"{name}:{found.commit[:12]}", str(context)),
    ]


def tidy_command(docker: str, target: str) -> list[str]:
    """The call of docker that removes images of the target which have lost their name; another target may be built meanwhile."""
    return [docker, "image", "prune", "--force", "--filter", "dangling=true", "--filter", f"label=io.biovlm.target={target}"]


def download_command(python: str, requirements: Path, folder: Path, source: bool) -> list[str]:
    """The call of pip that fetches what one file of requirements names, hashes checked; sources need what is installed to be read."""
    how = ("--no-build-isolation",) if source else ("--only-binary", ":all:")
    common = ("--quiet", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes", *how)
    return [python, "-m", "pip", *common, "--dest", str(folder), "-r", str(requirements)]


def split(lock: str, sources: str) -> tuple[list[str], list[str]]:
    """A lock's entries in two: what comes as wheels, and what the text `sources` says comes as source only."""
    named = {name_of(entry) for entry in entries(sources)}
    mine = [entry for entry in entries(lock) if name_of(entry) in named]
    return [entry for entry in entries(lock) if entry not in mine], mine


def oversize(target: str, size_bytes: int) -> str:
    """A letter if an image weighs more than its limit; else empty."""
    megabytes, limit = size_bytes / 1e6, LIMIT_MB.get(target)
    if limit is None or megabytes <= limit:
        return ""
    return f"the {target} image has {megabytes:.0f} MB, its limit is {limit} MB.\nhint: see its SBOM for what came in"


def wheels(found: Facts, folder: Path) -> None:
    """Fetch the target's packages into `folder`, unless the same lie there already."""
    target = found.target
    sources = (REQUIREMENTS / "source.txt").read_text()
    master = entries((REQUIREMENTS / "lock.txt").read_text() + (REQUIREMENTS / "installer.txt").read_text())
    own, from_source = split((REQUIREMENTS / "images" / f"{target}.txt").read_text(), sources)
    describer = entries((REQUIREMENTS / "images" / "sbom.txt").read_text())
    parts = {"its own": own, "for the SBOM": describer, "for building": [e for e in master if name_of(e) in bases.BUILDERS]}
    if target == "train":
        chosen = bootstrap.choose_torch()
        parts["torch"] = [chosen]
        if "+cpu" not in chosen:
            parts["CUDA"] = entries((REQUIREMENTS / "cuda.txt").read_text())
    parts["sources"] = from_source
    stamp, wanted = folder / "stamp.json", json.dumps(parts)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    requirements = folder / "wanted.txt"
    for what, lines in parts.items():
        requirements.write_text("\n".join(lines) + "\n")
        command = download_command(sys.executable, requirements, folder, what == "sources")
        bootstrap.call(f"packages of {target}, {what}", command)
    requirements.unlink()
    stamp.write_text(wanted)


def lay_context(found: Facts, folder: Path) -> None:
    """Make the folder that docker gets: Containerfile, wheels, requirements, code."""
    shutil.rmtree(folder, ignore_errors=True)
    store = OUT / "wheels" / found.target
    wheels(found, store)
    (folder / "wheels").mkdir(parents=True)
    for path in (*store.glob("*.whl"), *store.glob("*.tar.gz")):
        os.link(path, folder / "wheels" / path.name)
    cuda = any((folder / "wheels").glob("nvidia_*"))
    for name in [*(f"requirements/{lock}" for lock in locks(found.target, cuda)), "infra/images/inside.py"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name in kept(ROOT):
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "code" / name)
    revision = {**code.revision(ROOT), "tags": " ".join(code.tags(ROOT)), "lock": found.lock}
    (folder / "code" / code.REVISION).write_text(json.dumps(revision))
    shutil.copyfile(CONTAINERFILE, folder / "Containerfile")


def measure(docker: str, found: Facts, ground: bases.Base) -> dict[str, Any]:
    """What was built, written beside its SBOM."""
    name = f"{NAMES[found.target]}:latest"
    seen = json.loads(_output(docker, "image", "inspect", name))[0]
    holder = _output(docker, "create", name).strip()
    try:
        sbom = OUT / f"{found.target}.cdx.json"
        _output(docker, "cp", f"{holder}:{SBOM}", str(sbom))
    finally:
        _output(docker, "rm", "--volumes", holder)
    told: dict[str, Any] = {
        "image": name,
        "id": seen["Id"],
        "size_bytes": seen["Size"],
        "base": {"name": ground.name, "image": ground.image},
        "labels": seen["Config"]["Labels"],
        "sbom": {"file": sbom.name, "sha256": hashlib.sha256(sbom.read_bytes()).hexdigest()},
    }
    (OUT / f"{found.target}.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise bootstrap.StopError(f"`{' '.join(command[:3])}` failed:\n{done.stderr.strip()[-1500:]}")
    return done.stdout


def build(target: str, docker: str, wanted: str) -> dict[str, Any]:
    """Build one image and measure it."""
    found, context = facts(target), OUT / target
    ground = bases.get(docker, target, wanted, CONTAINERFILE.read_text(), OUT)
    lay_context(found, context)
    try:
        bootstrap.call(f"image {target}", build_command(docker, found, context, ground))
    finally:
        shutil.rmtree(context, ignore_errors=True)
        # Its own former image, and nobody else's; of two that tidy at once docker refuses one, which harms nobody.
        subprocess.run(tidy_command(docker, target), capture_output=True, check=False)
    return measure(docker, found, ground)


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    """Build what is asked for; the exit code."""
    parser = argparse.ArgumentParser(description="Build the container images.")
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], help="launcher, train, mlflow; all, unless given")
    parser.add_argument("--base", default="auto", help="an image, or `debootstrap`; auto: the pinned one, else debootstrap")
    asked = parser.parse_args(arguments)
    docker = environment.get("DOCKER", "docker")
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        bases.check(docker)
        for target in asked.targets or NAMES:
            told = build(target, docker, asked.base)
            print(f"{told['image']}  {told['size_bytes'] / 1e6:.0f} MB  {told['id'][7:19]}  on {told['base']['name']}")
            if letter := oversize(target, told["size_bytes"]):
                raise bootstrap.StopError(letter)
    except bootstrap.StopError as stop:
        print(f"images: {stop}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
