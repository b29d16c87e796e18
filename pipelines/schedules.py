"""Schedules as files: what shall be on the server, what is, and what has to be done about the difference. Pure; `schedule_server` acts.

1. `read` takes a YAML file strictly: an unknown key is an error with the nearest known one, a cron expression is checked, the recipe is
   resolved whole. The file may also be a retraining policy (pipelines/retraining.py): one schedule, whose runs carry the policy.
2. A schedule on the server is a recurring run of KFP. Nothing in it can be edited, so it carries the digest of what it was made from in
   its description, and a change is another recurring run.
3. `found` reads ours from the server's list, `drift` says what is not as the file wants it, `decide` what to keep, make and delete.

Two that do the same at once both make one and both see two. Which stays must then be the same for both: `winner` is the oldest, and of
equally old ones the one with the smallest id. What another file's version made meanwhile is left alone: the next `apply` settles it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from model import recipe as recipes
from model.config.choices import Name, Strict
from model.errors import ConfigError, MissingInputError
from model.manifest import canonical_json, digest_of
from pipelines import choice, cron, retraining
from pipelines.choice import RECIPES, must_know
from pipelines.retraining import Plan
from pipelines.submit import arguments

MARK = re.compile(r"^biovlm schedule (?P<name>[a-z0-9_-]+), spec (?P<spec>[0-9a-f]{64})$", re.M)
HEAD = "HEAD"


class Entry(Strict):
    """One schedule of a file."""

    name: Name
    """Also its name on the server."""
    cron: str
    """Five fields, or six with the seconds first."""
    time_zone: str = "UTC"
    """In which `cron` is meant; that of the server, which knows only one."""
    recipe: str
    """Name of a recipe, or path of a YAML file beside this one."""
    set: tuple[str, ...] = ()
    """Changes of the recipe, as `--set` takes them."""
    follow_data: tuple[Name, ...] = ()
    """Data sets of the recipe whose newest revision is taken each time."""
    budget_gpu_hours: Annotated[float, Field(gt=0, le=1_000_000)]
    """A run that is thought to cost more is refused before any GPU."""
    no_catchup: bool = True
    """After a pause, run once and not once for each time that was missed."""


class File(Strict):
    """A file of schedules."""

    schedules: tuple[Entry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Wanted:
    """A schedule as the file wants it, in the server's words."""

    name: str
    cron: str
    no_catchup: bool
    parameters: dict[str, str]

    @property
    def spec(self) -> str:
        """Digest of all of it."""
        return digest_of({"cron": self.cron, "no_catchup": self.no_catchup, "parameters": self.parameters, "at_once": 1})

    @property
    def description(self) -> str:
        """What says on the server whose it is."""
        return f"biovlm schedule {self.name}, spec {self.spec}"


@dataclass(frozen=True)
class Found:
    """A recurring run of ours, as it is on the server."""

    identifier: str
    name: str
    spec: str
    """What it says that it was made from."""
    created: str
    enabled: bool
    cron: str
    no_catchup: bool
    parameters: dict[str, Any]
    at_once: int
    pinned: bool
    """Whether it stays with one version of the pipeline."""


@dataclass(frozen=True)
class Decision:
    """What to do about one schedule."""

    keep: Found | None
    make: bool
    enabled: bool
    """Whether what is made runs: a paused schedule that is replaced stays paused."""
    delete: tuple[Found, ...]
    why: tuple[str, ...]
    """What is not as the file wants it."""

    @property
    def word(self) -> str:
        """For people."""
        return "make" if self.make and not self.delete else "replace" if self.make else "tidy" if self.delete else "same"


def read(path: Path, time_zone: str) -> list[Wanted]:
    """The schedules of a file.

    Args:
        path: A YAML file.
        time_zone: Of the server.

    Raises:
        MissingInputError: No such file. ConfigError: anything wrong in it, with its place.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and "when" in raw:
            return [_of_policy(path, time_zone)]
        entries = File.model_validate(raw).schedules
    except OSError as error:
        raise MissingInputError(f"cannot read {path}: {error.strerror}", "give the path of a YAML file of schedules") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}", "mend the file") from None
    except ValidationError as error:
        raise ConfigError(*recipes.strict_letter(error, path, _known, "pipelines/schedules.py")) from None
    twice = sorted({entry.name for entry in entries if [other.name for other in entries].count(entry.name) > 1})
    if twice:
        raise ConfigError(f"{path}: schedules of the same name: {', '.join(twice)}", "give each its own name")
    return [_wanted(entry, path, time_zone) for entry in entries]


def _of_policy(path: Path, time_zone: str) -> Wanted:
    """The schedule of a retraining policy: no training is caught up, since one look sees all that changed meanwhile."""
    plan = retraining.read(path)
    policy = plan.policy
    try:
        _pods_see_feedback(plan)
        _same_zone(policy.when.time_zone, time_zone)
        given = arguments(plan.recipe, policy.budget.gpu_hours, _trigger(policy.name)) | {
            "policy": canonical_json(policy.model_dump(mode="json"))
        }
        return Wanted(policy.name, cron.six_fields(policy.when.cron), True, given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None


def _pods_see_feedback(plan: Plan) -> None:
    """ConfigError unless corrections reach pods as versions of a data set: they see no file of this machine."""
    wanted = plan.policy.because.feedback
    if wanted is None:
        return
    learned = {mixture.set for mixture in plan.recipe.stages.task.data}
    if wanted.set not in learned or wanted.set not in plan.policy.follow_data:
        raise ConfigError(
            f"because.feedback: {wanted.file} lies on this machine, and pods do not see it",
            f"`biovlm data corrections POLICY`, where the data registry lies, makes the data set {wanted.set} of it; name that set in the "
            "recipe (data.sets, and the data of stages.task) and in follow_data: each new version of it is then a reason to train",
        )


def _same_zone(wanted: str, time_zone: str) -> None:
    if cron.zone_of(wanted).key != time_zone:
        raise ConfigError(
            f"time_zone: {wanted} is wanted, the server reads cron in {time_zone}",
            "write the hour in the server's zone; or let its operator set CRON_SCHEDULE_TIMEZONE, and say so in BIOVLM_KFP_TIME_ZONE",
        )


def _wanted(entry: Entry, path: Path, time_zone: str) -> Wanted:
    try:
        _same_zone(entry.time_zone, time_zone)
        name = choice.named_beside(path, entry.recipe)
        base = recipes.load(name, RECIPES, entry.set)
        must_know(entry.follow_data, base.data.sets)
        follow = [f"data.sets.{data}.revision={HEAD}" for data in entry.follow_data]
        given = arguments(recipes.load(name, RECIPES, [*entry.set, *follow]), entry.budget_gpu_hours, _trigger(entry.name))
        return Wanted(entry.name, cron.six_fields(entry.cron), entry.no_catchup, given)
    except ConfigError as error:
        raise ConfigError(f"{path}: schedule {entry.name}: {error.message}", error.hint) from None


def _trigger(name: str) -> str:
    """What the lineage of a schedule's runs says began them."""
    return f"schedule:{name}"


def _known(location: tuple[int | str, ...]) -> list[str]:
    return list((Entry if location else File).model_fields)


def found(recurring: Iterable[Any]) -> list[Found]:
    """Ours among the server's recurring runs; others are never touched."""
    ours = []
    for run in recurring:
        mark = MARK.search(run.description or "")
        if mark is None or mark["name"] != run.display_name:
            continue
        trigger, runtime, reference = run.trigger, run.runtime_config, run.pipeline_version_reference
        ours.append(
            Found(
                identifier=run.recurring_run_id,
                name=run.display_name,
                spec=mark["spec"],
                created=run.created_at.isoformat() if run.created_at else "",
                enabled=run.status == "ENABLED",
                cron=(trigger.cron_schedule.cron if trigger and trigger.cron_schedule else "") or "",
                no_catchup=bool(run.no_catchup),
                parameters=dict(runtime.parameters or {}) if runtime else {},
                at_once=int(run.max_concurrency or 1),
                pinned=bool(reference and reference.pipeline_version_id),
            )
        )
    return ours


def drift(wanted: Wanted, there: Found) -> list[str]:
    """What is not as the file wants it; empty if all is."""
    pairs = (
        ("cron", there.cron, wanted.cron),
        ("no_catchup", there.no_catchup, wanted.no_catchup),
        ("runs at once", there.at_once, 1),
        ("budget", there.parameters.get("budget"), wanted.parameters["budget"]),
        ("trigger", there.parameters.get("trigger"), wanted.parameters["trigger"]),
    )
    said = [f"{name}: {is_!r} instead of {should!r}" for name, is_, should in pairs if is_ != should]
    if there.parameters.get("recipe") != wanted.parameters["recipe"]:
        said.append("the recipe is another")
    if there.parameters.get("policy") != wanted.parameters.get("policy"):
        said.append("the policy is another")
    if there.pinned:
        said.append("it stays with one version of the pipeline instead of the newest")
    return said


def winner(same: Iterable[Found]) -> Found | None:
    """The one that stays."""
    return min(same, key=lambda one: (one.created, one.identifier), default=None)


def decide(wanted: Wanted, there: Iterable[Found]) -> Decision:
    """What to do about one schedule, given what is on the server under its name."""
    mine = [one for one in there if one.name == wanted.name]
    good = [one for one in mine if one.spec == wanted.spec and not drift(wanted, one)]
    keep = winner(good)
    others = tuple(one for one in mine if one is not keep)
    why = tuple(dict.fromkeys(line for one in others for line in (drift(wanted, one) or ["it is there twice"])))
    enabled = all(one.enabled for one in mine)
    return Decision(keep, make=keep is None, enabled=enabled, delete=others, why=why)
