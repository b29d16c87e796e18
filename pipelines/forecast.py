"""How long a run will take and what it will cost, from what earlier runs of this home took; and, afterwards, how wrong that was.

1. `earlier(settings)` reads the records of steps that were really done here, newest first, with the cost that they measured.
2. `forecast(recipe, steps, ...)` gives each step that would run an expectation. A training stage is scaled from the newest record of a
   stage, by as many workers on the same kind of machine: start-up as it was, the rest by examples, weights and tokens (no record is
   longer than the context). The stage of the same name is preferred: what the count does not see is then the same on both sides. An
   evaluation is scaled by its new tokens. Other steps take what they took.
3. Where nothing was measured yet, GPUs are estimated by `pipelines.estimate`, and on a CPU nothing is said.
4. `local.run` keeps the forecast in the run's folder; `compare` puts it beside what happened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from components.data.registry import Registry
from components.platform.cost import Cost
from components.platform.origin import machine
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.store import StepRecord, open_store
from model.config import Model, Recipe
from model.errors import BiovlmError
from model.recipe import slices
from model.training.memory import shapes_of
from pipelines import estimate
from pipelines.plan import PlannedStep
from pipelines.plan_memory import config_of

HEAVY = ("train", "evaluate")
KINDS = ("data", *HEAVY, "register", "promote")
FILE = "forecast.json"
START_SECONDS = 8.0
"""Of a heavy step before its first example, as measured with tiny models on two cores: Ray's worker, torch, the base models."""
SAME_MACHINE = ("processor", "cpus", "gpus")


class Expected(BaseModel):
    """What a step is thought to take."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    seconds: float = Field(description="Without waiting for machines.")
    gpu_hours: float = 0.0
    source: str = Field(description="What it was scaled from: key of a step, by its first digits.")


class Forecast(BaseModel):
    """What a run is thought to take."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = 1
    steps: dict[str, Expected] = Field(default_factory=dict, description="Steps that would run and of which something is known.")
    unknown: tuple[str, ...] = Field(default=(), description="Steps that would run and of which nothing is known.")

    @property
    def seconds(self) -> float:
        """Of all steps that are known."""
        return sum(step.seconds for step in self.steps.values())

    @property
    def gpu_hours(self) -> float:
        """Of all steps that are known."""
        return sum(step.gpu_hours for step in self.steps.values())


class Error(BaseModel):
    """How wrong a forecast was, over the steps that ran and were forecast."""

    model_config = ConfigDict(frozen=True)

    expected_seconds: float
    seconds: float
    worst: str = Field(description="The step that was furthest from what was expected.")

    @property
    def ratio(self) -> float:
        """What it took, by what was expected."""
        return self.seconds / self.expected_seconds


def earlier(settings: Settings) -> list[StepRecord]:
    """Records of steps that were made in this home's store and measured, newest first."""
    store = open_store(settings)
    found = [store.record(kind, key) for kind in KINDS for key in store.keys(kind)]
    measured = [record for record in found if record is not None and record.cost is not None]
    return sorted(measured, key=lambda record: -record.started)


def forecast(recipe: Recipe, steps: Sequence[PlannedStep], records: Sequence[StepRecord], settings: Settings) -> Forecast:
    """The forecast of a run.

    Args:
        recipe: What would run.
        steps: As `pipelines.plan.plan` gives them.
        records: As `earlier` gives them.
        settings: Where base models and data sets are.
    """
    scale, here = Scale(recipe, settings), machine()
    expected: dict[str, Expected] = {}
    unknown = []
    for step in steps:
        if not step.reused:
            mine = [one for one in records if one.kind == step.kind and _is_alike(one, here, recipe.resources.workers)]
            found = next((one for one in mine if one.name == step.name), mine[0] if mine else None)
            if found is None:
                unknown.append(step.name)
            else:
                expected[step.name] = _expected(recipe, step, found, scale.of(step, found))
    return Forecast(steps=expected, unknown=tuple(unknown))


def _is_alike(record: StepRecord, here: Mapping[str, JsonValue], workers: int) -> bool:
    """Whether a record was made on this kind of machine by as many workers; a cluster's machines are its own affair."""
    made = record.origin
    if record.kind == "train" and record.piece.get("resources", {}).get("workers") != workers:
        return False
    return made is None or made.launcher != "process" or all(made.machine.get(key) == here.get(key) for key in SAME_MACHINE)


def _expected(recipe: Recipe, step: PlannedStep, record: StepRecord, ratio: float) -> Expected:
    took = record.cost.work_seconds if record.cost else 0.0
    start = min(START_SECONDS, took / 2) if step.kind in HEAVY else 0.0
    seconds = start + (took - start) * ratio
    gpus = recipe.resources.workers * recipe.resources.gpus_per_worker if step.kind in HEAVY else 0
    return Expected(seconds=seconds, gpu_hours=gpus * seconds / 3600, source=f"{record.name} {record.key[:12]}")


class Scale:
    """How much more a step of a recipe does than one that was measured."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self._recipe, self._settings, self._store = recipe, settings, open_store(settings)
        self._pieces = slices(recipe)
        try:
            self._records = estimate.counts(recipe, Registry(settings.home))
        except BiovlmError:
            self._records = {}  # no registry on this machine

    def of(self, step: PlannedStep, record: StepRecord) -> float:
        """Work of the step, by the work that was measured; 1 where that cannot be known."""
        if step.kind == "train":
            return self._examples(step.name, record) * self._sizes(self._recipe.model, record.piece.get("model"))
        if step.kind == "evaluate":
            wanted, did = (
                piece.get("evaluation", {}).get("max_new_tokens", 1) for piece in (self._pieces["evaluate"], record.piece)
            )
            return float(wanted / did)
        return 1.0

    def _examples(self, stage: str, record: StepRecord) -> float:
        """Examples shown, by examples shown then."""
        mine, then = self._pieces[stage]["stage"], record.piece.get("stage", {})
        epochs = mine["epochs"] / then.get("epochs", mine["epochs"])
        facts = self._facts(record)
        if mine["data"] == then.get("data") or not self._records.get(stage) or not facts.get("records"):
            return float(epochs)
        return float(epochs * self._records[stage] / facts["records"])

    def _sizes(self, model: Model, then: Any) -> float:
        """Operations for an example, by those then: weights times the longest record."""
        if then is None or model.model_dump(mode="json") == then:
            return 1.0
        try:
            mine, other = self._operations(model), self._operations(Model.model_validate(then))
        except (BiovlmError, ValidationError):
            return 1.0
        return mine / other if mine and other else 1.0

    def _operations(self, model: Model) -> float | None:
        language, tower = (config_of(source, self._material(), self._settings.store) for source in (model.language, model.tower))
        if language is None or tower is None:
            return None
        shapes = shapes_of(language, tower)
        return float(estimate.weights(shapes) * model.context_tokens)

    def _material(self) -> Reference | None:
        """Some data artifact of this home that names base models and where they lie."""
        for key in self._store.keys("data"):
            with contextlib.suppress(BiovlmError):
                folder = self._store.folder("data", key)
                return Reference.to(folder, self._store.manifest_of(self._store.uri(folder)))
        return None

    def _facts(self, record: StepRecord) -> Mapping[str, Any]:
        try:
            return self._store.manifest_of(f"steps/{record.kind}/{record.key}").facts
        except BiovlmError:
            return {}


def keep(found: Forecast, settings: Settings) -> None:
    """Write the forecast of a run into its folder; a run is worth more than that, so a disk that does not take it is passed over."""
    with contextlib.suppress(OSError):
        (settings.run_folder / FILE).write_text(found.model_dump_json(indent=1), encoding="utf-8")


def kept(folder: Path) -> Forecast | None:
    """The forecast of the run in `folder`; None if there is none."""
    try:
        return Forecast.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def compare(found: Forecast | None, spent: Mapping[str, Cost]) -> Error | None:
    """The forecast beside what the steps of the run cost; None where nothing can be compared."""
    both = (
        {name: (step.seconds, spent[name].work_seconds) for name, step in found.steps.items() if name in spent} if found else {}
    )
    if not both or not all(expected > 0 for expected, _ in both.values()):
        return None
    worst = max(both, key=lambda name: abs(both[name][1] - both[name][0]))
    return Error(
        expected_seconds=sum(expected for expected, _ in both.values()),
        seconds=sum(took for _, took in both.values()),
        worst=worst,
    )
