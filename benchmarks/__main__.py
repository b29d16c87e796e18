"""Runs the measurements of this folder: `python -m benchmarks [name ...] [--json]`; none named means all.

A measurement is one file here. Its docstring's first line says what is measured; its `measure()` returns numbers whose names
carry their unit (`examples_per_second`, `peak_memory_mib`). What came out on which machine is written down in LOG.md.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path


def names() -> list[str]:
    """The measurements there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def measure(name: str) -> dict[str, float]:
    """One measurement, with the time it took as a whole."""
    module = importlib.import_module(f"benchmarks.{name}")
    title = (module.__doc__ or name).splitlines()[0]
    print(f"{name}: {title}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    return {**module.measure(), "took_seconds": time.perf_counter() - started}


def main(arguments: list[str]) -> int:
    """Runs what is asked for and prints it, for a person or as JSON."""
    asked = [argument for argument in arguments if argument != "--json"]
    unknown = sorted(set(asked) - set(names()))
    if unknown:
        print(f"no measurement called {', '.join(unknown)}\nhint: there are {', '.join(names()) or 'none yet'}", file=sys.stderr)
        return 64
    results = {name: measure(name) for name in asked or names()}
    if "--json" in arguments:
        print(json.dumps({"machine": platform.platform(), "cores": os.cpu_count(), "results": results}, indent=2))
        return 0
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name, numbers in results.items():
        print(name)
        for key, value in numbers.items():
            print(f"  {key:<40} {value:>14,.3f}")
    if not results:
        print("no measurement yet; benchmarks/LOG.md says what is wanted")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
