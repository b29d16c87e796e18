"""A home with one real version of a few thousand weights, made by the steps `evaluate`, `register` and `promote` without Ray."""

from __future__ import annotations

import json

from components.evaluate import step as evaluate
from components.platform import champion, code, origin, reference
from components.platform.reference import Reference
from components.platform.store import Source, StepRecord, Store
from components.promote import step as promote
from components.register import step as register
from model import manifest, recipe
from model.config import TrainSlice
from model.training.reporter import SilentReporter
from model.training.stage import StageInputs, run_stage
from tests.model.tiny_bases import make_language, make_tower
from tests.pipelines import micro


class Version:
    """The steps of one candidate, and where their references are."""

    def __init__(self, settings, folder, **changes):
        self.settings, self.store, self.out = settings, Store(settings.store), folder / "out"
        self.slices = {name: json.dumps(piece) for name, piece in recipe.slices(micro.recipe(**changes)).items()}
        Reference(kind="none").write(self.path("nobody"), self.store.root)

    def path(self, name):
        return self.out / f"{name}.json"

    def train(self):
        """Data and a checkpoint of one short stage."""
        root = self.store.root
        sets = {"mini": micro.write_set(root / "data" / "mini", (("train", 9), ("test", 30)))}
        bases = {"mini-tower": make_tower(root / "data" / "tower"), "mini-language": make_language(root / "data" / "language")}
        facts = {"sets": self._facts(sets), "bases": self._facts(bases), "excluded": {"mini": []}, "figures": {"records": 1}}
        data = self._artifact("data", facts)
        folder = self.store.folder("train", "c" * 64)
        folder.parent.mkdir(parents=True)
        piece = TrainSlice.model_validate_json(self.slices["align"])
        run_stage(piece, StageInputs(sets, bases), self.store.scratch("train", "c" * 64), folder, SilentReporter())
        self._record("train", "align", folder, piece.model_dump(mode="json"), data=data)
        for name, ref in (("data", data), ("checkpoint", Reference.to(folder, manifest.read(folder)))):
            ref.write(self.path(name), root)

    def evaluate(self):
        evaluate.run("evaluate", self.slices["evaluate"], *map(str, map(self.path, ("data", "checkpoint", "report"))))
        return reference.read(self.path("report"), self.store.root)

    def register(self):
        names = ("data", "checkpoint", "report", "receipt")
        register.run(self.slices["register"], "store", *map(str, map(self.path, names)))
        return reference.read(self.path("receipt"), self.store.root)

    def promote(self, rival="nobody", **gate):
        found, _ = champion.present(self.settings, "micro")
        found.write(self.path("champion"), self.store.root)
        piece = json.loads(self.slices["promote"])
        piece["promotion"].update(gate)
        names = ("receipt", "report", "champion", rival, "decision")
        promote.run(json.dumps(piece), "store", *map(str, map(self.path, names)))
        return reference.read(self.path("decision"), self.store.root).facts

    def _facts(self, folders):
        return {
            name: {
                "uri": self.store.uri(path),
                "digest": manifest.read(path).digest,
                "revision": "c0ffee" * 6,
                "dvc_path": name,
                "md5": "m",
                "licence": "CC0-1.0",
            }
            for name, path in folders.items()
        }

    def _artifact(self, kind, facts):
        folder = self.store.folder(kind, "d" * 64)
        with manifest.commit(folder, kind, {}, facts) as aside:
            (aside / "audit.json").write_text("{}")
        self._record(kind, kind, folder, {})
        return Reference.to(folder, manifest.read(folder))

    def _record(self, kind, name, folder, piece, **inputs):
        sources = {role: Source(kind=r.kind, uri=self.store.uri(r.folder), digest=r.digest) for role, r in inputs.items()}
        self.store.write_record(
            StepRecord(
                key=folder.name,
                kind=kind,
                name=name,
                run_id="r",
                piece=piece,
                identity={},
                code=code.digest(kind),
                inputs=sources,
                revision={"commit": "abc", "dirty": False},
                versions={"torch": "1"},
                origin=origin.here(self.settings),
                started=0.0,
            )
        )
