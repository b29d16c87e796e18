"""Lineage asked backwards: a small world of data sets, stages and versions, whose answers are known by construction."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal

import pytest
from PIL import Image

from components.platform import peek
from components.platform.impact import ask, question, sync, withdrawals
from components.platform.impact.index import FILE, KEY, DamagedIndexError, Index
from components.platform.impact.question import Item, Subject
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.errors import DataError, MissingInputError, RefusedError, UsageError
from tests.registry_world import STAGES, World, insert_versions, picture, png, record

CAPTION, QUESTION = "caption", "question"


def build(settings):
    """Two data versions of `scans`; `main` 1 is trained on the first, 2 on the second, `other` 1 on a base made from `main` 1."""
    world = World(settings)
    files = {f"images/{number}.png": png(picture(number)) for number in range(8)}
    old = [record(f"r{n}", f"P-{n // 2}", [f"images/{n}.png"], QUESTION if n % 2 else CAPTION) for n in range(6)]
    tests = [record("t0", "P-9", ["images/7.png"])]
    first = world.data_set("scans", {"train": old, "test": tests}, files, "CC-BY-4.0")
    second = world.data_set("scans", {"train": [*old[1:], record("r6", "P-6", ["images/6.png"])], "test": tests}, files, "CC-BY-4.0")
    bases = {"tower": world.base("tower", {"data": first}), "language": world.base("language", licence="llama3")}
    tags = []
    for digest, aside in ((first, ["r5"]), (second, [])):
        material = world.material({"scans": digest}, bases, {"scans": aside})
        checkpoint = ""
        for stage, kinds in zip(STAGES, ([CAPTION], [QUESTION], [QUESTION]), strict=True):
            checkpoint = world.stage(stage, material, [{"set": "scans", "kinds": kinds}], checkpoint)
        tags.append(world.version("main", checkpoint, material, [{"set": "scans"}]))
    merged = world.base("merged", {"export": world.made[f"export {checkpoint}"][1].digest})
    plain = world.base("plain")
    lone = world.data_set("lone", {"train": [record("x1", "P-x", ["images/a.png"])]}, {"images/a.png": png(picture(50))}, "NC")
    bases |= {"merged": merged, "plain": plain}
    for tower in ("merged", "plain"):
        material = world.material({"lone": lone}, bases)
        checkpoint = world.stage("align", material, [{"set": "lone"}], tower=tower)
        tags.append(world.version("other", checkpoint, material, []))
    insert_versions(settings.home / "mlflow.db", "main", tags[:2])
    insert_versions(settings.home / "mlflow.db", "other", tags[2:])
    return world


@pytest.fixture(scope="module")
def built(tmp_path_factory, empty_store):
    """The world, and an index of it that no test changes."""
    home = tmp_path_factory.mktemp("world")
    shutil.copy(empty_store, home / "mlflow.db")
    settings = Settings.from_environment({"BIOVLM_HOME": str(home)})
    world = build(settings)
    sync.fresh(settings, lambda line: None)
    return world


@pytest.fixture
def own(built, settings):
    """A copy of the world that a test may change."""
    shutil.copytree(built.settings.home, settings.home)
    return settings


def asked(settings, subject, value):
    told = ask.ask(settings, [question.item(subject, value)], lambda line: None)
    return told


def versions(found):
    return [f"{one.model} {one.number}" for one in found]


EVERY = ["main 1", "main 2", "other 1"]


@pytest.mark.parametrize(
    ("subject", "value", "learned", "evaluated"),
    [
        # A caption: align learned it; it is in the first version only, but the tower learned from the first, and all stand on it.
        (Subject.RECORD, "r0", EVERY, []),
        (Subject.RECORD, "scans/r0", EVERY, []),
        # New in the second version: main 2, and what was made from its export.
        (Subject.RECORD, "r6", ["main 2", "other 1"], []),
        (Subject.PATIENT, "P-6", ["main 2", "other 1"], []),
        (Subject.RECORD, "t0", [], ["main 1", "main 2"]),
        (Subject.PATIENT, "P-9", [], ["main 1", "main 2"]),
        (Subject.RECORD, "x1", ["other 1", "other 2"], []),
        (Subject.DATA, "lone", ["other 1", "other 2"], []),
        (Subject.LICENCE, "nc", ["other 1", "other 2"], []),
        (Subject.LICENCE, "llama3", [*EVERY, "other 2"], []),
        (Subject.BASE, "tower", EVERY, []),
        (Subject.BASE, "merged", ["other 1"], []),
        (Subject.BASE, "plain", ["other 2"], []),
    ],
)
def test_a_question_names_every_version_that_learned_and_apart_those_only_asked(built, subject, value, learned, evaluated):
    answer = asked(built.settings, subject, value).answer
    assert (versions(answer.learned), versions(answer.evaluated)) == (learned, evaluated)
    assert not answer.nowhere
    assert not answer.unknown
