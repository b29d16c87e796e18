"""Makes .venv what requirements/ says it is. Standard library only; `make` calls it, and nothing else needs to.

1. `choose_torch` asks pip which build of torch this machine is offered, and refuses a surprise of several gigabytes in CI.
2. `make` installs in turns, every file checked against its hash: pip and uv, torch (pip: it knows the machine's find-links),
   the wheels, what a CUDA build of torch needs, what comes as source only, and the project itself, editable.
3. `main` writes .venv/.stamp last. A folder without a stamp was left half made and is made anew; a stamp that tells of other
   requirements than today's is brought up to date; a stamp that tells the truth costs one hash.

Packages that a person added to .venv by hand are left alone; those that a former lock brought and this one no longer names go.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".stamp"
REQUIREMENTS = ROOT / "requirements"
PYTHON = VENV / "bin" / "python"
OLDEST, NEWEST = (3, 11), (3, 14)  # ray 2.60 has wheels for these
ROOM_NEEDED_GIB = 4.0
UV = [str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON), "--quiet", "--no-deps"]
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-compile"]
CAUSES = {
    r"No space left|Disk quota": "the disk is full: this folder, or the cache of pip or uv in the home folder",
    r"hash(es)? mismatch|do not match": "a file differs from its hash in requirements/: a mirror that rebuilds "
    "packages, or a changed file. Do not install it; compare with another network",
    r"connect|timed? ?out|error sending request|Max retries|temporary failure|certificate|could not resolve": "no way to the package "
    "registry: no network, a proxy (HTTPS_PROXY), a mirror that pip must be told of (PIP_INDEX_URL), or its certificate (PIP_CERT)",
    r"No matching distribution|no wheels|not have a wheel": "a package has no wheel for this Python and processor",
}


class StopError(Exception):
    """The environment cannot be made; the text is a letter to the person at the keyboard."""


def check_machine() -> None:
    """Refuses an interpreter, a platform or a disk on which the work below must fail."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        found = ".".join(map(str, version))
        raise StopError(
            f"Python {found} found, 3.11 to 3.14 needed.\nhint: install one, or name it: `make PYTHON=/path/to/python3.11`"
        )
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if not PYTHON.exists() and free_gib < ROOM_NEEDED_GIB:
        raise StopError(
            f"{free_gib:.1f} GiB free in {ROOT}, {ROOM_NEEDED_GIB:.0f} needed.\nhint: free some, or move the checkout"
        )


def read_requirements() -> dict[str, str]:
    """Name -> version of everything in requirements/."""
    text = "\n".join(path.read_text() for path in sorted(REQUIREMENTS.glob("*.txt")))
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def digest() -> str:
    """What the environment depends on, as one hash: requirements/, this file, its place, and what pyproject.toml installs."""
    told = (ROOT / "pyproject.toml").read_text().split("\n[tool.ruff]")[0]
    parts = [path.read_bytes() for path in sorted(REQUIREMENTS.glob("*.txt"))]
    parts += [told.encode(), Path(__file__).read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def environment() -> dict[str, str]:
    """The surroundings of pip and uv: one setting for a mirror or a certificate serves both."""
    env = {**os.environ, "DS_BUILD_OPS": "0", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    for theirs, ours in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if theirs in env:
            env.setdefault(ours, env[theirs])
    env.pop("PYTHONPATH", None)
    return env


def call(what: str, command: list[str]) -> str:
    """Runs one command and tells how long it took; its failure becomes a letter with likely causes."""
    started = time.monotonic()
    print(f"environment: {what} ...", file=sys.stderr, end="", flush=True)
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(" failed", file=sys.stderr)
        said = (done.stderr or done.stdout).strip()
        likely = next((f"\nlikely: {cause}" for pattern, cause in CAUSES.items() if re.search(pattern, said, re.I)), "")
        raise StopError(f"{what} failed:\n{said[-1500:]}{likely}\nhint: the next `make` tries again")
    print(f" {time.monotonic() - started:.0f} s", file=sys.stderr)
    return done.stdout


def choose_torch() -> str:
    """The one build of torch that pip takes here, as a requirement with its hash, before a byte of it is fetched.

    Chosen without hashes and pinned afterwards: given torch.txt itself, pip would prefer the registry's CUDA build to a CPU build
    in a folder, because only the registry tells hashes beforehand.
    """
    ask = [*PIP, "--dry-run", "--ignore-installed", "--report", "-", f"torch=={read_requirements()['torch']}"]
    offer = json.loads(call("looking for torch", ask))["install"][0]
    info, version = offer["download_info"], offer["metadata"]["version"]
    found = info["archive_info"]["hashes"]["sha256"]
    if found not in (REQUIREMENTS / "torch.txt").read_text():
        raise StopError(
            f"pip offers torch {version} with hash {found}, which requirements/torch.txt does not name.\nhint: `make lock`"
        )
    if platform.system() == "Linux" and "+cpu" not in version:
        if os.environ.get("CI"):
            raise StopError(
                f"pip would fetch torch {version} for CUDA, several gigabytes, and CI is set.\n"
                "hint: offer pip a CPU build (PIP_FIND_LINKS), or unset CI"
            )
        print(f"environment: torch {version} is built for CUDA: with its libraries about 5 GB", file=sys.stderr)
    return f"torch=={version} --hash=sha256:{found}\n"


def install_torch() -> None:
    """Installs what `choose_torch` chose, and nothing else that has the same name."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder, "torch.txt")
        chosen.write_text(choose_torch())
        call("torch", [*PIP, "--require-hashes", "-r", str(chosen)])


def needs_cuda() -> bool:
    """True if the torch that came was built for CUDA. Its list of requirements would not tell: a CPU build may name them all."""
    (version,) = VENV.glob("lib/python*/site-packages/torch/version.py")
    return platform.system() == "Linux" and not re.search(r"^cuda\b.*= None$", version.read_text(), re.MULTILINE)


def make() -> None:
    """All steps in turn; each does nothing where its work is done already."""
    hashed = ["--require-hashes", "-r"]
    if not PYTHON.exists():
        call("making .venv", [sys.executable, "-m", "venv", str(VENV)])
    call("pip and uv", [*PIP, *hashed, str(REQUIREMENTS / "installer.txt")])
    install_torch()
    wheels = ["--only-binary", ":all:"]
    call("wheels", [*UV, *wheels, *hashed, str(REQUIREMENTS / "lock.txt")])
    if needs_cuda():
        call("CUDA libraries", [*UV, *wheels, *hashed, str(REQUIREMENTS / "cuda.txt")])
    call("sources", [*UV, "--no-build-isolation", *hashed, str(REQUIREMENTS / "source.txt")])
    call("biovlm itself", [*UV, "--no-build-isolation", "--editable", str(ROOT)])


def remove_leftovers(former: list[str]) -> None:
    """Takes away what a former lock installed and the present one does not name."""
    gone = sorted(set(former) - set(read_requirements()))
    if gone:
        call("removing " + ", ".join(gone), [str(PYTHON), "-m", "uv", "pip", "uninstall", "--python", str(PYTHON), *gone])


def bring_up_to_date() -> None:
    """Does nothing, the missing part, or all of it: see 3. above."""
    wanted = digest()
    known = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    if known.get("digest") == wanted:
        STAMP.touch()
        return
    check_machine()
    if VENV.exists() and not known:
        print("environment: .venv has no stamp, so it was left half made; making it anew", file=sys.stderr)
        shutil.rmtree(VENV)
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    make()
    remove_leftovers(known.get("packages", []))
    STAMP.write_text(json.dumps({"digest": wanted, "packages": sorted(read_requirements())}))
    print(f"environment: ready after {time.monotonic() - started:.0f} s", file=sys.stderr)


def main() -> int:
    """Holds the folder itself as the lock, so that two calls of make do not build into each other."""
    import fcntl

    handle = os.open(str(ROOT), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        bring_up_to_date()
    except StopError as stop:
        print(f"environment: {stop}", file=sys.stderr)
        return 1
    finally:
        os.close(handle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
