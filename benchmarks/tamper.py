"""Whether a changed byte is found: one byte at random places anywhere behind a version, and what `lineage verify` says of it.

    python -m benchmarks.tamper [--places 200] [--seed 0] [--home DIR --model models:/NAME@champion]

1. Without `--home`, a small version is made by the real steps (tests/components/chain.py); with it, one of that home is taken. The bytes
   of that home are changed one at a time and put back: give it a copy.
2. A part of the chain (weights, data, report, lineage, record, signature, ledger, ...) is drawn, then a file of it, then a byte, then its
   new value. A finding counts as named if it says the artifact, the step, the run or the entry in which the byte is.
3. Printed: places, places found, places named, places in each part, seconds for one verification.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from components.platform import exports, versions
from components.platform.settings import Settings
from components.platform.versions import Version
from tests.components.chain import Chain
from tests.components.tampering import one_byte, places, said

PLACES = 200


def measure(
    count: int = PLACES, seed: int = 0, home: Path | None = None, model: str = "models:/mini@champion"
) -> dict[str, float]:
    """Changed places, those found, those named; of each part how many; seconds for one verification."""
    with _version(home, model) as (settings, found):
        untouched = said(settings, found)
        if untouched:
            raise SystemExit(f"the version is broken before anything was changed:\n{untouched}")
        draw, began = random.Random(seed), time.perf_counter()
        by_part: dict[str, list[tuple[Path, str]]] = {}
        for place in places(settings, found):
            by_part.setdefault(place.part, []).append((place.path, place.named))
        result = dict.fromkeys(("places", "found", "named"), 0.0) | {f"in_{part.replace(' ', '_')}": 0.0 for part in by_part}
        for _ in range(count):
            part = draw.choice(sorted(by_part))
            path, named = draw.choice(by_part[part])
            with one_byte(path, draw) as at:
                text = said(settings, found)
            if named not in text:
                print(f"{part}: {path} at byte {at}: {text or 'not found'}", file=sys.stderr, flush=True)
            for name, true in (("places", True), ("found", bool(text)), ("named", named in text)):
                result[name] += true
            result[f"in_{part.replace(' ', '_')}"] += 1
        result["seconds_a_verification"] = (time.perf_counter() - began) / max(1, count)
        if said(settings, found):
            raise SystemExit("a byte was not put back")
        return result


@contextlib.contextmanager
def _version(home: Path | None, model: str) -> Iterator[tuple[Settings, Version]]:
    """A version to change: of a home, or one that is made for it."""
    with tempfile.TemporaryDirectory(prefix="biovlm-tamper-") as folder:
        place = home or Path(folder)
        environment = {"BIOVLM_HOME": str(place), "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "BIOVLM_MIRRORED": "1"}
        before = dict(os.environ)
        os.environ |= environment
        try:
            settings = Settings.from_environment()
            if home is None:
                chain, real = Chain(settings, place / "refs"), exports.ensure
                exports.ensure = chain.export  # type: ignore[assignment]  # the real one needs a model
                try:
                    chain.make()
                finally:
                    exports.ensure = real
            yield settings, versions.find(settings, model)
        finally:
            os.environ.clear()
            os.environ |= before


def main() -> None:
    """One measurement with the options of the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--places", type=int, default=PLACES)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--home", type=Path)
    options.add_argument("--model", default="models:/mini@champion")
    asked = options.parse_args()
    for name, value in measure(asked.places, asked.seed, asked.home, asked.model).items():
        print(f"{name}: {value:g}")


if __name__ == "__main__":
    main()
