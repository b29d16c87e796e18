"""A store and a registry as runs of the pipeline leave them, without the training: the same manifests, records and tags.

`World` writes data sets with real images, base models, checkpoints, reports and receipts through the same functions as the steps, and
versions into a real tracking store. What the steps write about themselves is compared with a real run in tests/pipelines/test_run.py.
"""

from __future__ import annotations

import io
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.platform import champion
from components.platform.settings import Settings
from components.platform.store import Source, StepRecord, Store
from model import manifest
from model.manifest import Manifest

STAGES = ("align", "instruct", "task")


def picture(number: int, size: int = 32) -> Image.Image:
    """A picture of its own, smooth enough that its perceptual hash survives scaling."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (6, 6), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")


def record(name: str, patient: str, images: Sequence[str], kind: str = "question") -> dict[str, Any]:
    """One record as a data set holds it."""
    turns = [{"role": "user", "text": "What is this?"}, {"role": "assistant", "text": "A square."}]
    return {"id": name, "group": patient, "kind": kind, "images": list(images), "turns": turns}


@dataclass
class World:
    """Everything that was made so far, by name."""

    settings: Settings
    made: dict[str, tuple[str, Manifest]] = field(default_factory=dict)
    """Name -> place in the store and manifest."""

    @property
    def store(self) -> Store:
        return Store(self.settings.store)

    def data_set(
        self, name: str, splits: Mapping[str, Iterable[dict[str, Any]]], pictures: Mapping[str, bytes], licence: str = "CC0-1.0"
    ) -> str:
        """A version of a data set; its digest."""
        aside = self.settings.store / "data" / f".{name}"
        with manifest.commit(aside, "data", facts={"name": name, "licence": licence}) as folder:
            (folder / "records").mkdir()
            (folder / "images").mkdir()
            for split, records in splits.items():
                with (folder / "records" / f"{split}.jsonl").open("w") as stream:
                    stream.writelines(json.dumps(one) + "\n" for one in records)
            for path, content in pictures.items():
                (folder / path).write_bytes(content)
        found = manifest.read(aside)
        place = self.settings.store / "data" / f"{name}-{found.digest[:16]}"
        aside.rename(place)
        self.made[f"{name}@{found.digest}"] = (self.store.uri(place), found)
        return found.digest

    def base(self, name: str, parents: Mapping[str, str] | None = None, licence: str = "CC0-1.0") -> str:
        """A base model of the data registry; its digest."""
        return self._artifact(f"data/{name}", "base", parents or {}, {"name": name, "licence": licence}, name)

    def material(
        self, sets: Mapping[str, str], bases: Mapping[str, str], excluded: Mapping[str, Sequence[str]] | None = None
    ) -> str:
        """A data artifact of these sets and base models; its name here, which is its key."""

        def entry(name: str, digest: str, key: str) -> dict[str, str]:
            uri, found = self.made[key]
            licence = str(found.facts["licence"])
            return {"uri": uri, "digest": digest, "revision": digest[:40], "dvc_path": name, "md5": "m", "licence": licence}

        facts = {
            "sets": {name: entry(name, digest, f"{name}@{digest}") for name, digest in sets.items()},
            "bases": {name: entry(name, digest, name) for name, digest in bases.items()},
            "excluded": {name: list((excluded or {}).get(name, ())) for name in sets},
        }
        return self._step("data", facts, {}, {}, {}, "data")

    def stage(
        self, stage: str, material: str, mixtures: Sequence[Mapping[str, Any]], parent: str = "", tower: str = "tower"
    ) -> str:
        """A checkpoint as a training step leaves it; its key."""
        facts = self.made[material][1].facts
        used = {mix["set"]: facts["sets"][mix["set"]]["digest"] for mix in mixtures}
        parents = {f"data:{name}": digest for name, digest in used.items()}
        if parent:
            parents["parent"] = self.made[parent][1].digest
        data = [{"split": "train", "kinds": [], "weight": 1.0, **mix} for mix in mixtures]
        exclude = {name: sorted(facts["excluded"][name]) for name in used if facts["excluded"][name]}
        own = {
            "stage": stage,
            "model": {
                part: {"source": f"registry:{name}", "licence": "x"}
                for part, name in (("tower", tower), ("language", "language"))
            },
            "configuration": {"piece": {"stage": {"data": data}}, "inputs": parents, "exclude": exclude, "world_size": 1},
        }
        bases = {part: facts["bases"][name]["digest"] for part, name in (("tower", tower), ("language", "language"))}
        given = {"data": material} | ({"parent": parent} if parent else {})
        return self._step("train", own, {**bases, **parents}, given, {"stage": {"data": data}}, "checkpoint", stage)

    def version(self, model: str, checkpoint: str, material: str, benchmarks: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """Report, export and receipt of a checkpoint; the tags of its version."""
        found = self.made[checkpoint][1]
        asked = {"evaluation": {"benchmarks": [{"split": "test", **one} for one in benchmarks]}}
        given = {"data": material, "checkpoint": checkpoint}
        report = self._step("evaluate", {}, {"checkpoint": found.digest}, given, asked, "report")
        receipt = self._step("register", {}, {}, {**given, "report": report}, {"model": model}, "receipt")
        export = f"exports/{found.digest}"
        self._artifact(export, "export", {"checkpoint": found.digest}, {}, f"export {checkpoint}")
        return {
            champion.CHECKPOINT_DIGEST: found.digest,
            champion.CHECKPOINT_PATH: self.made[checkpoint][0],
            champion.RECEIPT_KEY: receipt,
            "biovlm.export": export,
        }

    def _artifact(self, uri: str, kind: str, parents: Mapping[str, str], facts: dict[str, Any], name: str) -> str:
        with manifest.commit(self.settings.store / uri, kind, parents, facts) as folder:
            (folder / "content").write_text(name)
        found = manifest.read(self.settings.store / uri)
        self.made[name] = (uri, found)
        return found.digest

    def _step(
        self,
        kind: str,
        facts: dict[str, Any],
        parents: Mapping[str, str],
        given: Mapping[str, str],
        piece: dict[str, Any],
        artifact: str,
        name: str = "",
    ) -> str:
        key = manifest.digest_of([kind, facts, dict(parents), dict(given), piece])
        self._artifact(f"steps/{kind}/{key}", artifact, parents, facts, key)
        inputs = {
            role: Source(kind=self.made[one][1].kind, uri=self.made[one][0], digest=self.made[one][1].digest)
            for role, one in given.items()
        }
        written = StepRecord(
            key=key,
            kind=kind,
            name=name or kind,
            run_id="r",
            piece=piece,
            identity={},
            code="c",
            inputs=inputs,
            started=time.time(),
        )
        self.store.write_record(written)
        return key


def png(image: Image.Image, **options: Any) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def insert_versions(database: Path, model: str, tags: Sequence[Mapping[str, str]]) -> None:
    """Write versions into an embedded store directly: ten thousand through MLflow's client take many minutes."""
    now = int(time.time() * 1000)
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT INTO registered_models (name, creation_time, last_updated_time) VALUES (?, ?, ?)", (model, now, now)
        )
        connection.executemany(
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source, status) "
            "VALUES (?, ?, ?, ?, 'None', 'x', 'READY')",
            [(model, number, now, now) for number in range(1, len(tags) + 1)],
        )
        connection.executemany(
            "INSERT INTO model_version_tags (name, version, key, value) VALUES (?, ?, ?, ?)",
            [(model, number, key, value) for number, own in enumerate(tags, 1) for key, value in own.items()],
        )
