"""Preflight: check now what would fail later, and hand each step its slice of the recipe.

1. The recipe is validated again: on a cluster it comes from whoever pressed the button.
2. What the run may cost bounds the deadline of each heavy step. Libraries, licences, the store, the disk and the keys of a cluster are
   looked at, and whether tracking store and registry can be written; each complaint is one letter with the way out.
3. The present champion is read, so that the whole run compares with the same one; and the recipe's gate must be one that may judge
   against it, which would else be refused after hours.
4. Of a scheduled run, the data step is asked whether to train again (components/platform/retraining/question.py).
5. Out come nine texts (one slice for each step, the mark of the tracking store, that question), what a worker asks for on a cluster,
   and the reference to the champion's checkpoint.

Preflight is never reused: what it looks at changes between runs. It imports neither torch nor, where it can be avoided, MLflow.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from components.platform import approved, keys, pools
from components.platform import champion as champions
from components.platform.events import EventLog, EventType
from components.platform.lineage import licences
from components.platform.retraining import question as retraining
from components.platform.settings import Settings
from components.platform.step import guarded
from components.platform.store import open_store
from components.platform.task_config import asked
from components.platform.tracking import Tracking
from model import manifest, recipe
from model.config import Model, Recipe, Resources
from model.errors import CannotWriteError, ConfigError, MissingInputError, RefusedError

LIBRARIES = ("torch", "transformers", "peft", "safetensors", "ray", "mlflow", "dvc")
LAUNCHER_LIBRARIES = ("mlflow", "dvc")
"""Where the heavy work is done elsewhere; the launcher image has no torch."""
LEAST_FREE_MIB = 512


class Slices(NamedTuple):
    """What preflight hands out, in the order of its door's outputs. JSON texts: KFP turns the integers of its own structs to
    floats."""

    data: str
    align: str
    instruct: str
    task: str
    evaluate: str
    register: str
    promote: str
    tracking: str
    question: str
    cpu: str
    memory: str
    accelerator: str
    gpus: str
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]


def run(recipe_json: str, champion: str, budget: str = "", policy: str = "") -> Slices:
    """Check everything; write the champion's reference to the path `champion`; return the slices.

    Args:
        recipe_json: A complete recipe.
        champion: Where the reference to the champion's checkpoint goes.
        budget: GPU hours that the run may cost, as a number; empty for no bound.
        policy: Of a scheduled run, as JSON: when to train again, and why; empty trains in any case.
    """
    settings = Settings.from_environment()
    with guarded("preflight", settings) as log:
        began = time.time()
        checked = _recipe(recipe_json)
        _libraries(LIBRARIES if settings.launcher == "process" else LAUNCHER_LIBRARIES)
        name, pool = pools.choose(pools.load(settings.pools), checked.resources.pool)
        if settings.launcher == "kuberay":
            pools.check(name, pool, checked.resources)
        if settings.launcher == "process":
            _machine(checked.resources, log)
        _bases(checked.model)
        _licences(checked)
        keys.refuse_stranger(settings)
        _writable(settings.store)
        open_store(settings).check()
        if settings.tracking_uri.startswith(("http://", "https://")):  # the embedded store lies in the home, which was tried
            Tracking(settings).try_writing(checked.registered_model)
        found, tracking = champions.present(settings, checked.registered_model)
        approved.refuse_gate(settings, checked.registered_model, checked.promotion, found)
        found.write(Path(champion), settings.store)
        slices = recipe.slices(checked)
        question = retraining.ask(policy, checked, slices, settings).model_dump_json() if policy else ""
        within(slices, checked.resources, budget)
        pieces: dict[str, Any] = {name: manifest.canonical_json(piece) for name, piece in slices.items()}
        facts = {"champion": found.facts.get("version", "none"), "recipe_digest": recipe.digest(checked)}
        log.write(EventType.FINISHED, seconds=time.time() - began, facts={"kind": "preflight", **facts})
    return Slices(**pieces, tracking=tracking, question=question, **asked(checked.resources, pool)._asdict())


def within(slices: dict[str, dict[str, Any]], resources: Resources, budget: str) -> None:
    """Cut the deadlines of the heavy steps so that none alone can cost more than the whole budget.

    The deadline is the one bound that the cluster keeps; it belongs to no step's key. Whether the run fits its budget was estimated
    where it was submitted.

    Args:
        slices: Of the recipe; changed.
        resources: Of the recipe.
        budget: GPU hours as a number; empty for no bound. ConfigError if it is neither.
    """
    if not budget:
        return
    try:
        hours = float(budget)
    except ValueError:
        hours = math.nan
    if not (math.isfinite(hours) and hours > 0):
        raise ConfigError(f"the budget is {budget!r}", "give GPU hours as a number, or leave it empty")
    if resources.gpus_per_worker:
        most = hours / (resources.workers * resources.gpus_per_worker)
        for piece in slices.values():
            if "resources" in piece:
                piece["resources"] = {**piece["resources"], "deadline_hours": min(piece["resources"]["deadline_hours"], most)}


def _recipe(text: str) -> Recipe:
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise ConfigError(f"{field}: {first['msg']}", "every field is described in recipes/schema.json") from None


def _libraries(needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingInputError(f"not installed: {', '.join(missing)}", "pip install 'biovlm[train,platform]'")


def _machine(resources: Resources, log: EventLog) -> None:
    wanted, present = resources.workers * resources.cpus_per_worker, os.cpu_count() or 1
    if wanted > present:
        log.write(EventType.NOTE, message=f"{wanted:g} CPUs are asked for, this machine has {present}: training will be slow")
    if resources.gpus_per_worker and shutil.which("nvidia-smi") is None:
        raise ConfigError(
            f"resources.gpus_per_worker is {resources.gpus_per_worker}, and this machine has no GPU",
            "run with --set resources.gpus_per_worker=0, or on a machine with a GPU",
        )


def _bases(wanted: Model) -> None:
    """A folder that is not there would be missed by the first stage only, when data and workers are ready."""
    for source in (wanted.tower.source, wanted.language.source):
        if source and Path(source).is_absolute() and not Path(source).is_dir():
            raise MissingInputError(
                f"no folder {source} for a base model", "correct its path in the recipe, or bring the folder there"
            )


def _licences(wanted: Recipe) -> None:
    """RefusedError where the gate would refuse in the end: a base model's stated licence forbids what the version shall be used for."""
    purpose = wanted.promotion.purpose
    for part, source in (("tower", wanted.model.tower), ("language", wanted.model.language)):
        if source.source and (words := licences.against(source.licence, purpose)):
            raise RefusedError(
                f"model.{part} is offered under {source.licence!r}: {words}; the recipe's purpose is {purpose}",
                f"correct model.{part}.licence if it is another, take other weights, or a purpose that the licence allows",
            )


def _writable(store: Path) -> None:
    probe = store / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"written")
        probe.unlink()
    except OSError as error:
        raise manifest.cannot_write(store, error) from error
    free_mib = shutil.disk_usage(store).free // 2**20
    if free_mib < LEAST_FREE_MIB:
        raise CannotWriteError(
            f"{store}: {free_mib:,} MiB are free, a run needs at least {LEAST_FREE_MIB:,} MiB",
            "free some space, or set BIOVLM_HOME to another disk",
        )
