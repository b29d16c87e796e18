"""A whole small lineage from real steps: two data sets, two base models, two stages, an evaluation, registration and promotion.

What the stages and the export hold is made up, since a real one needs torch; how it is recorded, signed, registered and promoted is
the product's own code. `Chain.make()` leaves version 1 of `mini`, promoted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.platform import champion, exports, reference, signing
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.step import Work, run_step
from components.platform.store import Store, open_store
from components.promote import step as promote
from components.register import step as register
from model import manifest
from tests.components.reports import write_report

REGISTER = {"registered_model": "mini", "recipe": "micro", "recipe_digest": "f" * 64}
GATE = {"min_items": 10, "min_image_gain": -1.0, "max_loss_to_champion": 0.01}
CONFIG = {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}, "text_config": {"model_type": "llama"}}
LICENCES = {"mini": "CC0-1.0", "asked": "CC-BY-NC-4.0", "tower": "MIT", "language": "llama3"}
MODEL = {
    "tower": {"source": "registry:tower", "licence": "MIT"},
    "language": {"source": "registry:language", "licence": "llama3"},
}


class Chain:
    """The steps of one run, one after the other; every reference by the step's name."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.out, self.store = settings, folder / "out", open_store(settings)
        self.facts = {name: self._source(name) for name in LICENCES}

    def _source(self, name: str) -> dict[str, str]:
        folder = self.store.root / "data" / f"{name}-1"
        with manifest.commit(folder, "data", facts={"name": name, "licence": LICENCES[name]}) as aside:
            (aside / "records").mkdir()
            (aside / "records" / "train.jsonl").write_text(f"records of {name}\n" * 9)
        digest = self.store.publish(f"data/{name}-1").digest
        known = {"revision": "c0ffee" * 6, "dvc_path": f"data/{name}", "md5": "m", "licence": LICENCES[name]}
        return {"uri": f"data/{name}-1", "digest": digest, **known}

    def path(self, name: str) -> str:
        return str(self.out / f"{name}.json")

    def read(self, name: str) -> Reference:
        return reference.read(self.path(name), self.store.root)

    def _step(
        self,
        kind: str,
        name: str,
        piece: dict[str, Any],
        parents: dict[str, str],
        facts: dict[str, Any],
        inputs: dict[str, str],
        artifact: str,
    ) -> None:
        def produce(work: Work) -> None:
            with manifest.commit(work.final, artifact, parents, facts) as folder:
                (folder / "content.safetensors").write_bytes(f"weights of {name} ".encode() * 40)

        run_step(kind, name, piece, {role: self.path(source) for role, source in inputs.items()}, self.path(name), produce)

    def data(self) -> None:
        groups = {"sets": ("mini", "asked"), "bases": ("tower", "language")}
        facts: dict[str, Any] = {group: {name: self.facts[name] for name in names} for group, names in groups.items()}
        self._step("data", "data", {}, {}, {**facts, "figures": {"records": 18}}, {}, "data")

    def stage(self, name: str, parent: str | None = None) -> None:
        parents = {part: self.facts[part]["digest"] for part in ("tower", "language")}
        parents |= {"data:mini": self.facts["mini"]["digest"]} | ({"parent": self.read(parent).digest} if parent else {})
        facts: dict[str, Any] = {"stage": name, "seed": 7, "step": 3, "records": 9, "world_sizes": [[0, 1]], "skipped_steps": 0}
        piece: dict[str, Any] = {"seed": 7, "stage_name": name, "model": MODEL}
        self._step("train", name, piece, parents, facts, {"data": "data"} | ({"parent": parent} if parent else {}), "checkpoint")

    def evaluate(self, subject: str = "task", name: str = "evaluate", right: int = 18) -> None:
        made = self.read(subject)

        def produce(work: Work) -> None:
            write_report(work.final, right, checkpoint=made.digest, asked=self.facts["asked"]["digest"])

        inputs = {"data": self.path("data"), "checkpoint": self.path(subject)}
        run_step("evaluate", name, {"subject": subject}, inputs, self.path(name), produce)
        found = self.read(name)
        signing.ensure(self.store, self.settings, self.store.uri(found.folder))

    def export(self, checkpoint: Reference, bases: object, store: Store) -> Path:
        final = store.root / exports.uri_of(checkpoint)
        if not final.exists():
            with manifest.commit(final, "export", {"checkpoint": checkpoint.digest}) as folder:
                (folder / "config.json").write_text(json.dumps(CONFIG))
        store.publish(exports.uri_of(checkpoint))
        return final

    def register(self, subject: str = "task", report: str = "evaluate") -> None:
        register.run(json.dumps(REGISTER), "store", *map(self.path, ("data", subject, report, f"receipt of {subject}")))

    def promote(self, subject: str = "task", report: str = "evaluate", rival: str | None = None) -> None:
        found, _ = champion.present(self.settings, "mini")
        found.write(self.out / "champion.json", self.store.root)
        Reference(kind="none").write(self.out / "nobody.json", self.store.root)
        piece = json.dumps({"registered_model": "mini", "promotion": GATE})
        names = (f"receipt of {subject}", report, "champion", rival or "nobody", f"decision on {subject}")
        promote.run(piece, "store", *map(self.path, names))

    def make(self) -> Chain:
        self.data()
        self.stage("align")
        self.stage("task", parent="align")
        self.evaluate()
        self.register()
        self.promote()
        return self
