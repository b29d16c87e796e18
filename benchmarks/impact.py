"""`lineage impact`: 10,000 versions over 1,000,000 records: seconds to index, size of the index, seconds of every kind of question.

1. A data set of `BENCH_RECORDS` records of `BENCH_PATIENTS` patients, an image for fifty records, in `BENCH_SETS` versions, each without
   some records of the one before and with as many new ones, the way a hospital's set grows and shrinks.
2. `BENCH_VERSIONS` versions of ten registered models: three stages each, every tenth stage shared with the version before, on one of
   the data versions; written as the steps write them (tests/registry_world.py), into a real store and an embedded registry.
3. Each question is asked as the command asks it: registry compared, index verified byte by byte, answered. The slowest is told, and
   the whole command in a process of its own once; the withdrawal list names 1,000 patients. Processor time stands beside wall time,
   for a machine that is shared.

The world is made once in `BENCH_WORLD` (a folder that stays) or in a temporary one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from components.platform.impact import ask, question
from components.platform.impact.question import Subject
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from tests.registry_world import STAGES, World, insert_versions, picture, png, record

RECORDS, PATIENTS, SETS, VERSIONS = (
    int(os.environ.get(f"BENCH_{name}", default))
    for name, default in (("RECORDS", "1000000"), ("PATIENTS", "50000"), ("SETS", "8"), ("VERSIONS", "10000"))
)
MODELS, PER_IMAGE, CHANGED, LISTED = 10, 50, 0.002, 1000
KINDS = ("caption", "question", "dialogue")


def measure() -> dict[str, float]:
    """Seconds and mebibytes."""
    with _folder() as home:
        settings = Settings.from_environment({"BIOVLM_HOME": str(home)})
        made = _seconds(lambda: None if (home / "mlflow.db").exists() else build(settings))
        index = home / "impact"
        for path in index.glob("*") if index.exists() else ():
            path.unlink()
        worked = time.process_time()
        told = {"make_the_world_seconds": made, "index_seconds": _seconds(lambda: ask.ask(settings, (), _say))}
        told["index_processor_seconds"] = time.process_time() - worked
        told["index_mib"] = (index / "index.sqlite").stat().st_size / 2**20
        told["index_again_seconds"] = _seconds(lambda: ask.ask(settings, (), _say))
        asked = {name: _asked(settings, items) for name, items in questions(home).items()}
        for name, (seconds, processor, count) in asked.items():
            told |= {f"{name}_seconds": seconds, f"{name}_processor_seconds": processor, f"{name}_versions": float(count)}
        told["slowest_seconds"] = max(seconds for seconds, _, _ in asked.values())
        told["slowest_processor_seconds"] = max(seconds for _, seconds, _ in asked.values())
        command = [sys.executable, "-m", "pipelines.cli", "lineage", "impact", "--patient", "P-00007", "--json"]
        environment = {**os.environ, "BIOVLM_HOME": str(home)}
        told["whole_command_seconds"] = _seconds(
            lambda: subprocess.run(command, env=environment, check=True, capture_output=True)
        )
        return told


def build(settings: Settings) -> None:
    """The world."""
    world, draw = World(settings), random.Random(0)
    images = {f"images/{number}.png": png(picture(number)) for number in range(max(1, RECORDS // PER_IMAGE))}
    kept = list(range(RECORDS))
    digests, newest = [], RECORDS
    for number in range(SETS):
        if number:
            gone = set(draw.sample(range(len(kept)), int(RECORDS * CHANGED)))
            kept = [one for place, one in enumerate(kept) if place not in gone] + list(range(newest, newest + len(gone)))
            newest += len(gone)
        digests.append(world.data_set("scans", {"train": _records(kept), "test": _records(range(-1000, 0))}, images))
        _say(f"data version {number + 1} of {SETS}")
    bases = {"tower": world.base("tower"), "language": world.base("language", licence="llama3")}
    tags: list[list[dict[str, str]]] = [[] for _ in range(MODELS)]
    material = {digest: world.material({"scans": digest}, bases) for digest in digests}
    before: dict[str, str] = {}
    for number in range(VERSIONS):
        digest = digests[number * SETS // VERSIONS]
        parent = ""
        for stage, kind in zip(STAGES, KINDS, strict=True):
            shared = stage == "align" and number % 10 and f"{digest} {stage}" in before
            mix = {"set": "scans", "kinds": [kind], "weight": 1 + number / VERSIONS}  # the weight gives each its own digest
            key = before[f"{digest} {stage}"] if shared else world.stage(stage, material[digest], [mix], parent)
            before[f"{digest} {stage}"] = parent = key
        tags[number % MODELS].append(world.version(f"m{number % MODELS}", parent, material[digest], [{"set": "scans"}]))
    Tracking(settings)
    for number, own in enumerate(tags):
        insert_versions(settings.home / "mlflow.db", f"m{number}", own)


def _records(numbers: Iterator[int] | list[int] | range) -> Iterator[dict[str, object]]:
    for number in numbers:
        image = f"images/{abs(number) // PER_IMAGE % max(1, RECORDS // PER_IMAGE)}.png"
        yield record(f"r{number}", f"P-{number % PATIENTS:05}", [image], KINDS[number % len(KINDS)])


def questions(home: Path) -> dict[str, list[question.Item]]:
    """One of every kind; the images are one of the sets, and one that only looks like it."""
    near = home / "near.png"
    picture(3).resize((48, 48)).save(near)
    listed = home / "list.txt"
    listed.write_text("".join(f"patient P-{number:05}\n" for number in range(LISTED)))
    one = {
        "record": (Subject.RECORD, "r7"),
        "patient": (Subject.PATIENT, "P-00007"),
        "image_alike": (Subject.IMAGE, str(near)),
        "data_version": (Subject.DATA, "scans"),
        "base": (Subject.BASE, "tower"),
        "licence": (Subject.LICENCE, "llama3"),
    }
    found = {name: [question.item(subject, value)] for name, (subject, value) in one.items()}
    exact = home / "exact.png"
    exact.write_bytes(png(picture(3)))
    return {**found, "image": [question.item(Subject.IMAGE, str(exact))], "list": list(question.read_list(listed).items)}


def _asked(settings: Settings, items: list[question.Item]) -> tuple[float, float, int]:
    """Wall and processor time of a question, and how many versions were named."""
    began, worked = time.perf_counter(), time.process_time()
    told = ask.ask(settings, items, _say)
    seconds = time.perf_counter() - began, time.process_time() - worked
    return *seconds, len(told.answer.learned) or len(told.alike.learned if told.alike else ())


def _seconds(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    if os.environ.get("BENCH_WORLD"):
        yield Path(os.environ["BENCH_WORLD"])
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
