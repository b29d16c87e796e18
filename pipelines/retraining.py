"""Retraining by a policy: read the file, gather the facts, decide, and keep what was decided.

1. `read` takes `policy.yaml` strictly: an unknown key is an error with the nearest known one; cron, zone and recipe are checked whole.
2. `look` gathers what a decision needs (newest data from Git, the last training from the registry of models, feedback, cost) and asks the
   pure `decide`. It changes nothing: `biovlm plan --policy` is this.
3. `keep` writes the look into the policy's history; `close` adds how its training ended. `biovlm run --if-changed --policy` is both,
   with a run between them.
4. Corrections that are reason enough are taken into the data registry before that run (`take`). Once there, the task stage of every look
   and run learns from them, too.

The recipe that runs is the policy's: newest data, the registered model it is compared in, how it is promoted.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.data import corrections, newest
from components.data.corrections import Taken
from components.data.registry import Registry
from components.data.registry_url import open_registry
from components.platform.retraining import basis, feedback
from components.platform.retraining.decision import Decision, Entry, Facts, Verdict, decide
from components.platform.retraining.feedback import Feedback
from components.platform.retraining.journal import Journal, entry_of
from components.platform.retraining.policy import Policy, known_keys
from components.platform.settings import Settings
from model import recipe as recipes
from model.config import DataSlice, Recipe
from model.errors import ConfigError, MissingInputError, UsageError
from pipelines import cron, estimate
from pipelines.choice import RECIPES, must_know, named_beside


@dataclass(frozen=True)
class Plan:
    """A policy with its recipe."""

    policy: Policy
    recipe: Recipe
    folder: Path
    """Where the policy lies; its feedback file lies beside it."""

    @property
    def feedback_file(self) -> Path | None:
        """If the policy names one."""
        return self.folder / self.policy.because.feedback.file if self.policy.because.feedback else None


@dataclass(frozen=True)
class Look:
    """What is the case, and what follows from it."""

    plan: Plan
    """With the corrections in its recipe, if there are some."""
    takes: Path | None
    """The feedback file, if its corrections are to be taken before the run."""
    facts: Facts
    decision: Decision
    moment: datetime.datetime
    history: Sequence[Entry]
    next_moment: datetime.datetime | None

    def entry(self, run_id: str = "") -> Entry:
        """As the history keeps it."""
        return entry_of(self.decision, self.facts, self.history, self.moment, run_id, takes=self.takes is not None)


def read(path: Path) -> Plan:
    """The policy in a file, and its recipe.

    Raises:
        MissingInputError: No such file. ConfigError: Anything wrong in it, with its place.
    """
    if not path.is_file():
        raise MissingInputError(
            f"no policy at {path}", "give the path of a YAML file; components/platform/retraining/policy.py shows one"
        )
    try:
        policy = Policy.model_validate(recipes.read_yaml(path, "a policy"))
    except ValidationError as error:
        described = "components/platform/retraining/policy.py"
        raise ConfigError(*recipes.strict_letter(error, path, known_keys, described)) from None
    try:
        cron.zone_of(policy.when.time_zone)
        cron.six_fields(policy.when.cron)
        name = named_beside(path, policy.recipe)
        base = recipes.load(name, RECIPES, policy.set)
        must_know(policy.follow_data, base.data.sets)
        return Plan(policy, recipes.load(name, RECIPES, policy.changes), path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None


def look(plan: Plan, settings: Settings, moment: datetime.datetime) -> Look:
    """What the policy says at this moment.

    Args:
        plan: The policy and its recipe.
        settings: Where registry, store and history are.
        moment: The clock, with its zone.

    Raises:
        MissingInputError: A registry does not answer, or has not got what the recipe names. RefusedError, DataError: as `feedback.read`.
    """
    history = Journal(settings, plan.policy.name).entries()
    counted = next((entry.feedback for entry in reversed(history) if entry.verdict is Verdict.RUN), Feedback())
    wanted, path = plan.policy.because.feedback, plan.feedback_file
    found = feedback.read(path, counted) if path else counted
    takes = path if wanted and found.lines - counted.lines >= wanted.at_least else None
    plan = _with_corrections(plan, open_registry(settings), takes is not None)
    facts = _facts(plan, settings, takes is not None).model_copy(update={"feedback": found, "counted": counted})
    when = plan.policy.when
    last = cron.latest(when.cron, when.time_zone, moment)
    decision = decide(plan.policy, facts, moment, history, last)
    return Look(plan, takes, facts, decision, moment, history, cron.following(when.cron, when.time_zone, moment))


def _with_corrections(plan: Plan, registry: Registry, takes: bool) -> Plan:
    """The plan, its task stage learning from the corrections if the registry has some, or will before the run."""
    wanted = plan.policy.because.feedback
    known = wanted and registry.exists() and wanted.set in {version.name for version in registry.list()}
    if wanted is None or not (known or takes) or wanted.set in plan.recipe.data.sets:
        return plan
    content = plan.recipe.model_dump(mode="json")
    content["data"]["sets"][wanted.set] = {"revision": "HEAD"}
    content["stages"]["task"]["data"].append({"set": wanted.set, "kinds": ["question"], "weight": wanted.weight})
    return replace(plan, recipe=Recipe.model_validate(content))


def take_all(plan: Plan, settings: Settings) -> Taken:
    """Take all corrections of a policy's file into the data registry, without a training: what a curator does for a cluster.

    Raises:
        UsageError: The policy names no file. MissingInputError: There is no such file. Others as `feedback.read`, `corrections.take`.
    """
    wanted, path = plan.policy.because.feedback, plan.feedback_file
    if wanted is None or path is None:
        raise UsageError(f"the policy {plan.policy.name} names no file of corrections", "name one: because.feedback.file")
    if not path.is_file():
        raise MissingInputError(f"no file {path} of corrections", "`because.feedback.file` of the policy names it")
    asked = DataSlice.model_validate(recipes.slices(plan.recipe)["data"])
    return corrections.take(feedback.corrections(path), wanted.set, asked, open_registry(settings), settings)


def take(found: Look, settings: Settings) -> Taken | None:
    """Take the corrections of a look that runs because of them into the data registry. Errors as `corrections.take`."""
    wanted = found.plan.policy.because.feedback
    if wanted is None or found.takes is None:
        return None
    asked = DataSlice.model_validate(recipes.slices(found.plan.recipe)["data"])
    return corrections.take(feedback.corrections(found.takes), wanted.set, asked, open_registry(settings), settings)


def _facts(plan: Plan, settings: Settings, takes: bool) -> Facts:
    policy, registry, slices = plan.policy, open_registry(settings), recipes.slices(plan.recipe)
    wanted = DataSlice.model_validate(slices["data"])
    to_come = {policy.because.feedback.set} if policy.because.feedback and takes else set()
    now = basis.wanted(slices, *newest.digests(wanted, registry, to_come))
    before = basis.last(settings, plan.recipe.registered_model, plan.recipe.name)
    watched = policy.because.drift.of if policy.because.drift and before else ()
    shifts = newest.shifts(wanted, registry, settings, before.revisions, watched) if before and watched else ()
    return Facts(
        now=now,
        basis=before,
        code=basis.code_state(policy.because.release_tags),
        shifts=shifts,
        gpu_hours=cost(plan.recipe, settings),
    )


def cost(recipe: Recipe, settings: Settings) -> float | None:
    """GPU hours that a run from the beginning is thought to take; None where that is not known."""
    if not recipe.resources.gpus_per_worker:
        return 0.0
    found = estimate.of(recipe, settings)
    return None if found is None else found.total


def keep(found: Look, settings: Settings) -> Entry | None:
    """Write a look that it was time for into the history; one that came too early leaves no trace. RefusedError: as `Journal.append`."""
    if not found.decision.due:
        return None
    entry = found.entry()
    Journal(settings, found.plan.policy.name).append(entry)
    return entry


def close(found: Look, settings: Settings, exit_code: int, run_id: str) -> None:
    """Say how the training of the look `found` ended."""
    Journal(settings, found.plan.policy.name).ended(len(found.history) + 1, exit_code, run_id)


def as_json(found: Look) -> dict[str, Any]:
    """For programs."""
    return {
        "policy": found.plan.policy.name,
        "verdict": str(found.decision.verdict),
        "unchanged": found.decision.unchanged,
        "due": found.decision.due,
        "goes_on": found.decision.goes_on,
        "reasons": [reason.model_dump(mode="json") for reason in found.decision.reasons],
        "next": found.next_moment.isoformat() if found.next_moment else None,
        "gpu_hours": found.facts.gpu_hours,
        "shifts": [shift.model_dump() for shift in found.facts.shifts],
        "compared_with": f"models:/{found.plan.recipe.registered_model}@champion",
        "promote": str(found.plan.policy.promote),
    }
