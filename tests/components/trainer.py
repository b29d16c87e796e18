"""Trainings that compute nothing: the records and folders that the steps would leave, under their real keys, and a registered version."""

from __future__ import annotations

import json

from components.data import step as data_step
from components.platform import champion, code, reference
from components.platform.reference import Reference
from components.platform.step import key_of, versions
from components.platform.store import Source, StepRecord, open_store
from components.platform.tracking import Tracking
from components.train import step as train_step
from model import manifest
from model import recipe as recipes
from model.config import STAGE_NAMES, TrainSlice


class Trainer:
    """Leaves behind what a run would, its checkpoints holding a word."""

    def __init__(self, settings, folder):
        self.settings, self.folder, self.store, self.runs = settings, folder, open_store(settings), 0

    def train(self, recipe):
        """The records and folders of a run, each under its step's real key, and the version that it registers."""
        self.runs += 1
        slices, settings = recipes.slices(recipe), self.settings
        out = self.folder / f"data-{self.runs}.json"
        data_step.run(json.dumps(slices["data"]), str(out))
        data = reference.read(out, settings.store)
        made: Reference | None = None
        for stage in STAGE_NAMES:
            given = {"data": data, **({"parent": made} if made else {})}
            made = self.keep(
                "train", stage, slices[stage], train_step.identity(TrainSlice.model_validate(slices[stage]), given), given
            )
        given = {"data": data, "checkpoint": made}
        report = self.keep("evaluate", "evaluate", slices["evaluate"], {"checkpoint": made.digest}, given)
        receipt = self.keep("register", "register", slices["register"], {"checkpoint": made.digest}, given | {"report": report})
        tags = {"biovlm.recipe": recipe.name, champion.RECEIPT_KEY: receipt.folder.name}
        client = Tracking(settings).client
        if self.runs == 1:
            client.create_registered_model(recipe.registered_model)
        client.create_model_version(recipe.registered_model, source="s", tags=tags)

    def keep(self, kind, name, piece, identity, given):
        key = key_of(kind, piece, identity, code.digest(kind))
        folder = self.store.folder(kind, key)
        with manifest.commit(folder, kind, {role: ref.digest for role, ref in given.items()}) as aside:
            (aside / "word").write_text(key)
        sources = {role: Source(kind=ref.kind, uri=self.store.uri(ref.folder), digest=ref.digest) for role, ref in given.items()}
        parts = {"piece": recipes.key_content(piece), "identity": identity, "code": code.digest(kind), "versions": versions()}
        self.store.write_record(StepRecord(key=key, kind=kind, name=name, run_id="r", inputs=sources, started=0.0, **parts))
        return Reference.to(folder, manifest.read(folder))
