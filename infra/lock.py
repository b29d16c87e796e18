"""Writes requirements/: every package this project may install, with its version and the hashes of its files.

1. `pins` lets uv resolve pyproject.toml with all extras, keeping the present versions where it can (`UPGRADE=...` frees some).
2. `resolve` asks for the files of those versions; `files_of` keeps the wheels for Linux and macOS on x86-64 and arm64.
3. `room_of` sorts each package into one file, because they are installed in turns (see infra/bootstrap.py):

   installer.txt  pip and uv: what installs the rest
   torch.txt      torch alone; pip brings it, so that a CPU build offered to pip (find-links, an extra index) is taken
   cuda.txt       what the registry's torch for Linux needs besides; only installed if that build came
   lock.txt       all the others, wheels only: nothing is run to install them
   source.txt     what exists as source only: built last, against what is already there

4. `images/NAME.txt` names, at the same versions, what one container image holds (infra/images): one extra of pyproject.toml
   each, without torch and cuda, which an image takes from the two files above.

No address is written: which registry or mirror serves the files is the machine's affair, the hashes say what they must be.

Usage: make lock [UPGRADE=all | UPGRADE="name name ..."]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
PYTHON_VERSION = "3.11"
WHEEL = re.compile(r"-(?:any|[\w.]*(?:manylinux\w*_(?:x86_64|aarch64)|macosx\w*))\.whl$")
CUDA = re.compile(r"^(?:nvidia-|cuda-|triton$)")
LOCAL_BUILD = re.compile(r"^# also (?P<file>\S+) sha256:(?P<hash>[0-9a-f]{64})$", re.MULTILINE)
IMAGES = {
    "launcher": "What the launcher image holds: what carries, and nothing that learns.",
    "train": "What the train image holds beside torch: what learns, Ray around it, and no kfp.",
    "mlflow": "What the image of MLflow's server holds.",
    "sbom": "What lists the content of an image while it is built, and stays out of it.",
}
"""Extra of pyproject.toml, or the group SBOM -> title of its file in requirements/images."""
SBOM = "sbom"
"""A group: it stands alone, where an extra also brings what the project itself needs. Not in .venv: it asks for jsonschema's checks of
formats, whose grammar of IRIs costs every process that imports ray 1.6 seconds."""
ALL, ENVIRONMENT = "all", "environment"
"""Everything, whose versions agree; and what .venv holds of it."""
TITLES = {
    "installer": "What installs the rest.",
    "torch": "Installed by pip, not uv: pip takes a CPU build where the machine offers one.",
    "cuda": "What the registry's torch needs on Linux; not installed beside a CPU build.",
    "lock": "Everything that comes as a wheel.",
    "source": "What exists as source only: built last, against what is installed by then.",
}


def uv(*arguments: str) -> None:
    """Runs uv in the project's root; its complaints go to stderr as they are."""
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], cwd=ROOT, check=True)


def compile_arguments(upgrade: str, image: str = ALL) -> list[str]:
    """What all passes of the resolution have in common; what is resolved: ALL, ENVIRONMENT, or one image's."""
    environment, describer = ["pyproject.toml", "--all-extras"], [f"--group={SBOM}"]
    special = {ALL: [*environment, *describer], ENVIRONMENT: environment, SBOM: describer}
    asked = special.get(image, ["pyproject.toml", f"--extra={image}"])
    common = ["pip", "compile", *asked, "--universal", "--python-version", PYTHON_VERSION]
    chosen = ["--upgrade"] if upgrade == "all" else [f"--upgrade-package={name}" for name in upgrade.split()]
    return [*common, "--no-header", "--no-annotate", *chosen]


def pins(upgrade: str, target: Path) -> None:
    """Writes `name==version` lines to `target`: the present versions wherever pyproject.toml still allows them."""
    lines = (line for path in sorted(REQUIREMENTS.rglob("*.txt")) for line in path.read_text().splitlines())
    present = dict.fromkeys(line.removesuffix(" \\") for line in lines if re.match(r"[\w.-]+==", line))
    target.write_text("".join(f"{line}\n" for line in present))
    uv(*compile_arguments(upgrade), "--output-file", str(target))


def resolve(constraints: Path, target: Path, image: str = ENVIRONMENT) -> list[dict[str, Any]]:
    """The packages of the resolution, each with its marker, wheels and source."""
    uv(*compile_arguments("", image), "--constraints", str(constraints), "--format", "pylock.toml", "--output-file", str(target))
    packages: list[dict[str, Any]] = tomllib.loads(target.read_text())["packages"]
    return [package for package in packages if files_of(package)]


def files_of(package: dict[str, Any]) -> list[str]:
    """The hashes that may be installed: wheels of our platforms, or the source where there is no wheel at all.

    None at all for a package of another platform, such as pywin32.
    """
    wheels = package.get("wheels", [])
    files = [wheel for wheel in wheels if WHEEL.search(wheel["url"])] if wheels else [package["sdist"]]
    return [file["hashes"]["sha256"] for file in files]


def room_of(package: dict[str, Any]) -> str:
    """Which file of requirements/ a package belongs to."""
    name = package["name"]
    if name in ("pip", "uv"):
        return "installer"
    if name == "torch":
        return "torch"
    if CUDA.match(name):
        return "cuda"
    return "lock" if package.get("wheels") else "source"


def local_builds(version: str) -> dict[str, str]:
    """File name -> hash of builds of torch that no registry has: those already noted, and one this machine offers pip."""
    noted = REQUIREMENTS / "torch.txt"
    text = noted.read_text() if noted.exists() else ""
    found = {match["file"]: match["hash"] for match in LOCAL_BUILD.finditer(text) if f"-{version}+" in match["file"]}
    ask = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--no-index"]
    answer = subprocess.run([*ask, "--report", "-", f"torch=={version}"], capture_output=True, text=True, check=False)
    for item in json.loads(answer.stdout)["install"] if answer.returncode == 0 else []:
        info = item["download_info"]
        found[info["url"].rsplit("/", 1)[-1].replace("%2B", "+")] = info["archive_info"]["hashes"]["sha256"]
    return found


def page(room: str, packages: list[dict[str, Any]]) -> str:
    """The text of one requirements file."""
    lines = [f"# {(TITLES | IMAGES)[room]} Written by `make lock`."]
    for package in packages:
        hashes = files_of(package)
        if room == "torch":
            builds = local_builds(package["version"])
            lines += [f"# also {file} sha256:{digest}" for file, digest in sorted(builds.items())]
            hashes += sorted(builds.values())
        marker = f" ; {package['marker']}" if "marker" in package else ""
        lines.append(f"{package['name']}=={package['version']}{marker} \\")
        lines += [f"    --hash=sha256:{digest} \\" for digest in sorted(set(hashes))]
        lines[-1] = lines[-1].removesuffix(" \\")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Resolves, sorts, writes."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "pins.txt")
        pins(os.environ.get("UPGRADE", ""), pinned)
        packages = resolve(pinned, Path(folder, "pylock.toml"))
        in_image = {name: resolve(pinned, Path(folder, f"pylock.{name}.toml"), name) for name in IMAGES}
    for room in TITLES:
        write(room, REQUIREMENTS, [package for package in packages if room_of(package) == room])
    for name, theirs in in_image.items():
        write(name, REQUIREMENTS / "images", [package for package in theirs if room_of(package) in ("lock", "source")])


def write(room: str, folder: Path, packages: list[dict[str, Any]]) -> None:
    """One file of requirements/."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{room}.txt").write_text(page(room, packages))
    print(f"{folder.name}/{room}.txt: {len(packages)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
