"""The energy that a machine says it took: its processors by RAPL, its GPUs by NVML; nothing where it does not tell.

1. `meters()` finds what this machine and this user can read. RAPL's counters are readable by root alone on most machines, and hidden in
   most virtual ones; NVML counts from Volta on.
2. `Energy` reads them when it begins, every minute (RAPL's counter begins again after about an hour of hard work), and when it ends.

It is the energy of the whole machine: what others did there in the same time is in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

RAPL = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
EVERY_SECONDS = 60.0
COUNTED = ("package", "dram")
"""Domains of RAPL that do not hold each other; `core` and `uncore` are parts of `package`."""


class EnergyMeter(Protocol):
    """Something that counts."""

    name: str

    def joules(self) -> float:
        """Since some moment in the past; never less than before. OSError: it cannot be read any more."""


class Rapl:
    """The counters of the processors and their memory."""

    name = "rapl"

    def __init__(self, root: Path = RAPL) -> None:
        """OSError: none of its counters can be read by this user."""
        names = sorted(root.glob("intel-rapl:*/name"))
        self._domains = [path.parent for path in names if path.read_text(encoding="ascii").strip().startswith(COUNTED)]
        if not self._domains:
            raise FileNotFoundError(f"no counter below {root}")
        self._limits = {domain: _number(domain / "max_energy_range_uj") for domain in self._domains}
        self._last = {domain: _number(domain / "energy_uj") for domain in self._domains}
        self._microjoules = 0

    def joules(self) -> float:
        for domain in self._domains:
            now = _number(domain / "energy_uj")
            gone = now - self._last[domain]
            self._microjoules += gone if gone >= 0 else gone + self._limits[domain] + 1  # the counter began again
            self._last[domain] = now
        return self._microjoules / 1e6


class Nvml:
    """The counters of all GPUs of the machine, in millijoules since the driver was loaded."""

    name = "nvml"

    def __init__(self) -> None:
        """OSError: there is no driver, or no GPU that counts."""
        self._library = ctypes.CDLL(NVML)
        self._call("nvmlInit_v2")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices = []
        for number in range(count.value):
            device = ctypes.c_void_p()
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(device))
            self._devices.append(device)
        if not self._devices:
            raise FileNotFoundError("no GPU")
        self.joules()

    def joules(self) -> float:
        total = 0
        for device in self._devices:
            found = ctypes.c_ulonglong()
            self._call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(found))
            total += found.value
        return total / 1e3

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise OSError(code, f"{name} answers {code}")


def meters() -> list[EnergyMeter]:
    """What can be read here."""
    found: list[EnergyMeter] = []
    kinds: Sequence[Callable[[], EnergyMeter]] = (Rapl, Nvml)
    for kind in kinds:
        with contextlib.suppress(OSError, AttributeError, ValueError):  # no driver, no right to read, an old library
            found.append(kind())
    return found


class Energy:
    """What was taken between the beginning and the end of a `with` block."""

    def __init__(self, found: Sequence[EnergyMeter] | None = None) -> None:
        self._meters = meters() if found is None else list(found)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}
        self.joules: dict[str, float] = {}
        """Meter -> joules so far; those that could not be read to the end are left out."""

    def __enter__(self) -> Energy:
        for meter in self._meters:
            with contextlib.suppress(OSError):
                self._begun[meter.name] = meter.joules()
        if self._begun:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._begun:
            self._thread.join()
        self._read()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._read()

    def _read(self) -> None:
        with self._lock:
            for meter in self._meters:
                try:
                    self.joules[meter.name] = meter.joules() - self._begun[meter.name]
                except (OSError, KeyError):
                    self.joules.pop(meter.name, None)


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
