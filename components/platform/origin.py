"""Where and by whom a result was made: machine, images, lock, launcher, trigger. What a result depends on beside its key.

1. A step calls `here(settings)` when it begins to make something; the answer goes into its record, and with it into the lineage.
2. Work that ran in a cluster brings the machine and the lock of its own environment back in its result (`components.platform.heavy`).

Read from files of the system: no library that learns is imported for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from components.platform.code import REVISION, ROOT
from components.platform.settings import Settings

GPUS = Path("/proc/driver/nvidia/gpus")
PERSON = "person"
UNKNOWN = "unknown"


class Origin(BaseModel):
    """Where and by whom a result was made."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    trigger: str = Field(default=PERSON, description="Who or what began the run, as BIOVLM_TRIGGER says.")
    attempt: int = Field(default=1, description="Which process of the step in its run made it.")
    tries: int = Field(default=1, description="How often its workers were started.")
    launcher: str = Field(default="process", description="Where heavy work runs: process, jobs or kuberay.")
    job: str = Field(default="", description="Id of the Ray job; empty in process.")
    workers: int = Field(default=1, description="Processes side by side.")
    gpus: float = Field(default=0, description="GPUs of all workers together.")
    lock: str = Field(default=UNKNOWN, description="SHA-256 of the locked requirements.")
    images: dict[str, str] = Field(default_factory=dict, description="launcher and train -> image by digest.")
    machine: dict[str, JsonValue] = Field(default_factory=dict, description="system, processor, cpus, memory_gib, gpus.")
    places: dict[str, str] = Field(default_factory=dict, description="Addresses of data registry and DVC remote, without logins.")


def here(settings: Settings, environment: Mapping[str, str] | None = None) -> Origin:
    """The origin of what this process makes."""
    env = os.environ if environment is None else environment
    images = {name: env.get(f"BIOVLM_{name.upper()}_IMAGE", "") for name in ("launcher", "train")}
    places = {"registry": settings.data_url, "dvc_remote": settings.dvc_remote_url}
    return Origin(
        trigger=settings.trigger or PERSON,
        launcher=settings.launcher,
        lock=lock(),
        images={name: image for name, image in images.items() if "@" in image},  # a name without a digest may be any image
        machine=machine(),
        places={name: without_login(address) for name, address in places.items() if address},
    )


def lock(root: Path = ROOT) -> str:
    """SHA-256 (64 hex digits) of the locked requirements, as an image or a checkout has them; `unknown` where there are none."""
    if (root / REVISION).is_file():
        return str(json.loads((root / REVISION).read_text(encoding="utf-8")).get("lock", UNKNOWN))
    path = root / "requirements" / "lock.txt"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else UNKNOWN


def machine() -> dict[str, JsonValue]:
    """This machine, as far as numbers and speed may depend on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = sorted(_model(path) for path in GPUS.glob("*/information")) if GPUS.is_dir() else []
    gpus: list[JsonValue] = [*names]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count() or 1,
        "memory_gib": round(memory / 2**30),
        "gpus": gpus,
    }


def without_login(address: str) -> str:
    """An address without user and password."""
    parts = urllib.parse.urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return found[1].strip() if found else platform.processor() or UNKNOWN


def _model(path: Path) -> str:
    """The name of a GPU, from its driver."""
    found = re.search(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8"), re.M)
    return found[1].strip() if found else UNKNOWN
