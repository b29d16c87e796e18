"""Runs inside a container while an image is built: fills its environment, checks it, and lists what is in it.

1. `install TARGET` makes /app/venv and installs the target's lock into it, offline, every file checked against its hash:
   first what comes as wheels, then what is built from source against them. What builds does not stay.
2. `describe TARGET` refuses an image that holds what its target must not, and writes the SBOM (CycloneDX 1.6, JSON): Python packages
   as cyclonedx-py finds them, Debian packages as dpkg knows them. cyclonedx-py lives in an environment that is thrown away.

uv installs, out of its own wheel: it takes a tenth of pip's time for the same files, and nothing of it stays.

Standard library only. The context of the build has wheels/ and requirements/ beside this file.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BUILD = Path(__file__).resolve().parent
HOME = Path("/app")
VENV = HOME / "venv"
SBOM = HOME / "sbom.cdx.json"
FORBIDDEN = {
    "launcher": ("torch", "ray", "transformers", "peft", "deepspeed", "accelerate", "mlflow", "pip", "uv", "cyclonedx-bom"),
    "train": ("kfp", "kfp-kubernetes", "kfp-server-api", "mlflow", "dvc", "pip", "uv", "cyclonedx-bom"),
    "mlflow": ("torch", "ray", "transformers", "kfp", "dvc", "model-signing", "pip", "uv", "cyclonedx-bom"),
}
"""What a target must not hold: a launcher is thin, workers talk to no platform, and nobody installs anything in an image."""
NEEDED = {
    "launcher": ("kfp", "kubernetes", "boto3", "dvc"),
    "train": ("torch", "ray", "deepspeed", "peft", "boto3"),
    "mlflow": ("mlflow", "flask-wtf", "psycopg2-binary", "boto3", "prometheus-flask-exporter"),
}
BUILDERS = ("setuptools", "wheel")


def complaints(target: str, installed: Iterable[str]) -> list[str]:
    """What is wrong with the set of installed distributions, one sentence each."""
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in installed}
    return [f"{name} is in the {target} image" for name in FORBIDDEN[target] if name in names] + [
        f"{name} is not in the {target} image" for name in NEEDED[target] if name not in names
    ]


def with_debian(sbom: dict[str, Any], listing: str) -> dict[str, Any]:
    """The SBOM with a component for every line `name version architecture` of dpkg's list."""
    found = []
    for line in listing.splitlines():
        name, version, architecture = line.split()
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
        found.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return {**sbom, "components": [*sbom.get("components", []), *found]}


def install(target: str) -> None:
    """Fill the environment of the target, and make the one that describes it."""
    _fill(VENV, [f"images/{target}.txt", *(["torch.txt", "cuda.txt"] if target == "train" else [])])
    (_packages(VENV) / "biovlm.pth").write_text(f"{HOME / 'code'}\n")
    subprocess.run([VENV / "bin" / "python", "-m", "compileall", "-q", "-j0", _packages(VENV)], check=False)  # some are templates
    _fill(BUILD / "describer", ["images/sbom.txt"])


def _fill(folder: Path, locks: list[str]) -> None:
    venv.create(folder, symlinks=True, with_pip=False)
    lines = [line for lock in locks if (path := BUILD / "requirements" / lock).exists() for line in entries(path.read_text())]
    builders = [line for line in entries((BUILD / "requirements" / "lock.txt").read_text()) if line.startswith(BUILDERS)]
    came = sorted(path.name for path in (BUILD / "wheels").glob("*.whl"))
    _install(folder, [as_it_came(line, came) for line in sorted({*builders, *lines}) if name_of(line) not in _sources()])
    _install(folder, [line for line in lines if name_of(line) in _sources()], "--no-build-isolation")
    _uv(folder, "uninstall", *(name for name in BUILDERS if name not in map(name_of, lines)))


def entries(text: str) -> list[str]:
    """Requirements of a lock file, each with its hashes on one line."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def name_of(entry: str) -> str:
    """Name of the distribution."""
    return entry.partition("==")[0]


def as_it_came(entry: str, wheels: Iterable[str]) -> str:
    """The entry, of the local version that its wheel has: uv holds `torch==2.13.0+cpu` for another version than `torch==2.13.0`, pip
    and the lock do not. The hashes stay, and still decide."""
    version = entry.partition("==")[2].split()[0]
    plain = f"{name_of(entry)}-{version}"
    local = next((wheel.split("-")[1] for wheel in wheels if wheel.startswith(f"{plain}+")), version)
    return entry.replace(f"=={version}", f"=={local}", 1)


def _sources() -> set[str]:
    """Names of what comes as source only."""
    return {name_of(entry) for entry in entries((BUILD / "requirements" / "source.txt").read_text())}


def _install(folder: Path, entries: list[str], *options: str) -> None:
    if not entries:
        return
    lock = BUILD / "now.txt"
    lock.write_text("\n".join(entries) + "\n")
    offline = ("--no-index", "--find-links", str(BUILD / "wheels"), "--require-hashes", "--no-deps")
    _uv(folder, "install", *offline, *options, "-r", str(lock))


def _uv(folder: Path, verb: str, *arguments: str) -> None:
    """uv runs out of its own wheel, so that it is never installed."""
    program = BUILD / "uv"
    if not program.exists():
        (wheel,) = (BUILD / "wheels").glob("uv-*.whl")
        with zipfile.ZipFile(wheel) as pack:
            (name,) = (name for name in pack.namelist() if name.endswith(".data/scripts/uv"))
            program.write_bytes(pack.read(name))
        program.chmod(0o755)
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "UV_CACHE_DIR": str(BUILD / "cache"),
        "UV_OFFLINE": "1",
        "DS_BUILD_OPS": "0",
        "DS_ACCELERATOR": "cpu",
    }
    subprocess.run(
        [program, "pip", verb, "--quiet", "--python", folder / "bin" / "python", *arguments], check=True, env=environment
    )


def _packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python3.*/site-packages")
    return found


def describe(target: str) -> None:
    """Check the environment and write the SBOM. SystemExit says what is wrong."""
    installed = [d.metadata["Name"] for d in importlib.metadata.distributions(path=[str(_packages(VENV))])]
    wrong = complaints(target, installed)
    if wrong:
        raise SystemExit("\n".join(wrong))
    scan = (BUILD / "describer" / "bin" / "cyclonedx-py", "environment", "--spec-version", "1.6", "--output-reproducible", VENV)
    found = json.loads(subprocess.run(scan, check=True, capture_output=True, text=True).stdout)
    debian = ("dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n")
    listing = subprocess.run(debian, check=True, capture_output=True, text=True).stdout
    SBOM.write_text(json.dumps(with_debian(found, listing), indent=1))
    shutil.rmtree(BUILD / "describer")


if __name__ == "__main__":
    {"install": install, "describe": describe}[sys.argv[1]](sys.argv[2])
