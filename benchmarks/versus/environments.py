"""The peers, each in an environment of its own below `$BIOVLM_BENCH_HOME` (default `~/.cache/biovlm-bench`), outside the checkout.

1. `make` creates the environment with `uv` from the pins in requirements/, without resolving anything anew.
2. torch is the project's own version, fetched as the project fetches its own: by pip, with the hash of requirements/torch.txt, so a CPU
   build is taken where the machine offers one. What only its CUDA build needs is not installed; torchvision neither.
3. A stamp with the pins' digest is written last; an environment with another stamp is made anew.

At run time a peer has no network, no telemetry and no hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.bootstrap import REQUIREMENTS, StopError, read_requirements

PINS = Path(__file__).parent / "requirements"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "DO_NOT_TRACK": "1",
    "USE_HF": "1",
    "MODELSCOPE_OFFLINE": "1",
    "WANDB_DISABLED": "true",
    "DISABLE_VERSION_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def home() -> Path:
    """Where environments, models and data of the benchmark lie."""
    return Path(os.environ.get("BIOVLM_BENCH_HOME", Path.home() / ".cache" / "biovlm-bench"))


def python_of(name: str) -> Path:
    """The interpreter of a framework; ours runs in this one."""
    return Path(sys.executable) if name == "ours" else home() / name / "bin" / "python"


def make(name: str) -> Path:
    """The environment of a peer, made if need be; returns its interpreter.

    Raises:
        StopError: It cannot be made; the text says why.
    """
    pins = PINS / f"{name}.txt"
    folder, stamp = home() / name, home() / name / ".stamp"
    digest = hashlib.sha256(pins.read_bytes() + (REQUIREMENTS / "torch.txt").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return python_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _call(name, [sys.executable, "-m", "venv", str(folder)])
    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(scratch, "torch.txt")
        chosen.write_text(_torch(name))
        _call(name, [str(python_of(name)), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(chosen)])
    _call(
        name,
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", str(python_of(name)), "-r", str(pins)],
    )
    stamp.write_text(digest)
    return python_of(name)


def _torch(name: str) -> str:
    """The build of torch that pip takes here, as a requirement with a hash that the project knows; see `infra.bootstrap.choose_torch`."""
    ask = [
        str(python_of(name)),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
    ]
    offer = json.loads(_call(name, [*ask, f"torch=={read_requirements()['torch']}"]))["install"][0]
    version, found = offer["metadata"]["version"], offer["download_info"]["archive_info"]["hashes"]["sha256"]
    if found not in (REQUIREMENTS / "torch.txt").read_text():
        raise StopError(
            f"pip offers torch {version} with hash {found}, which requirements/torch.txt does not name.\nhint: `make lock`"
        )
    if "+cpu" not in version:
        print(f"environment of {name}: torch {version} is built for CUDA; its libraries are not installed here", file=sys.stderr)
    return f"torch=={version} --hash=sha256:{found}\n"


def _call(name: str, command: list[str]) -> str:
    print(f"environment of {name}: {' '.join(command[1:5])} ...", file=sys.stderr, flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StopError(f"the environment of {name} cannot be made:\n{(done.stderr or done.stdout)[-1500:]}")
    return done.stdout
