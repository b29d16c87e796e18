"""A retraining policy: when a team wants a new model, for which reasons, at what cost. Strict data, read from `policy.yaml`.

    name: monthly
    recipe: tiny                       # name of a recipe, or a YAML file beside this one
    follow_data: [phantom]             # its newest version is taken; other data sets stay as the recipe pins them
    when: {cron: "0 3 1 * *"}          # when to look
    because:                                # what is a reason; more than one may be
      data_version: true
      base_model: true
      recipe: true
      code: release_tag
      drift: {of: [question_type, modality], above: 0.2}
      feedback: {file: corrections.jsonl, at_least: 50}
    budget: {gpu_hours: 40, gpu_hours_in_30_days: 80}
    cool_down_days: 7
    compare_with: models:/biovlm-tiny@champion
    promote: by_gate

What is not named is no reason. `decision.decide` says what follows; `pipelines/retraining.py` reads the file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from model.config.choices import Name, Strict

CHAMPION = "@champion"


class CodeReason(StrEnum):
    """Which change of the code that trains is a reason."""

    NEVER = "never"
    """None: new code takes effect with the next run that has another reason."""
    RELEASE_TAG = "release_tag"
    """Only of a clean checkout whose commit carries a release tag."""
    ANY = "any"
    """Every one, also without a commit."""


class Variable(StrEnum):
    """Whose mix is watched."""

    KIND = "kind"
    """Of all records: caption, question, dialogue, grounding."""
    QUESTION_TYPE = "question_type"
    """Of questions: presence, position, ..."""
    ANSWER_TYPE = "answer_type"
    """Of questions: open, closed."""
    MODALITY = "modality"
    """Of all records: ct, mr, xray, ..."""


class Promote(StrEnum):
    """What happens to a candidate that passes the gate."""

    BY_GATE = "by_gate"
    """It becomes champion."""
    AFTER_APPROVAL = "after_approval"
    """It waits for the approval of a second person."""


class UnknownCost(StrEnum):
    """What to do where the cost cannot be estimated."""

    SKIP = "skip"
    """Train nothing that nobody can price."""
    RUN = "run"
    """Train all the same: the deadlines of the steps still bound it."""


class When(Strict):
    """When to look whether there is a reason."""

    cron: str
    """Five fields, six with the seconds first, or @monthly."""
    time_zone: str = "UTC"
    """In which `cron` is meant."""


class DriftReason(Strict):
    """The mix of the data has moved away from what was trained on."""

    of: tuple[Variable, ...] = Field(default=(Variable.QUESTION_TYPE, Variable.MODALITY), min_length=1)
    above: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Least population stability index (see drift.py); 0.1 to 0.25 is usually called a moderate shift."""
    chance: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Largest probability of so large a shift where there is none (chi-square test): a small set varies by itself."""


class FeedbackReason(Strict):
    """Corrections that people wrote down, one a line (see feedback.py)."""

    file: str
    """JSONL, beside the policy or by its whole path."""
    at_least: Annotated[int, Field(ge=1)] = 50
    """So many new lines are a reason."""
    set: Name = "corrections"
    """The data set of the registry that they become; the task stage learns from it, too."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often an epoch shows each of them."""


class Reasons(Strict):
    """What is a reason to train again."""

    data_version: bool = True
    """A new version of a data set that is followed."""
    base_model: bool = True
    """A new version of a base model in the data registry."""
    recipe: bool = True
    """A change of what the recipe says about training."""
    code: CodeReason = CodeReason.RELEASE_TAG
    release_tags: Annotated[str, Field(pattern=r"^[A-Za-z0-9*?._/-]{1,100}$")] = "v*"
    """Pattern of Git tags that are releases."""
    drift: DriftReason | None = None
    feedback: FeedbackReason | None = None


class Budget(Strict):
    """What training may cost, in GPU hours as estimated before."""

    gpu_hours: Annotated[float, Field(gt=0, le=1_000_000)]
    """Of one run."""
    gpu_hours_in_30_days: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Of all runs of this policy that began in the last 30 days, the next one counted; empty for no bound."""
    if_unknown: UnknownCost = UnknownCost.SKIP

    @model_validator(mode="after")
    def _one_run_fits(self) -> Budget:
        if self.gpu_hours_in_30_days is not None and self.gpu_hours_in_30_days < self.gpu_hours:
            raise ValueError(
                f"gpu_hours_in_30_days {self.gpu_hours_in_30_days:g} is less than one run's gpu_hours {self.gpu_hours:g}"
            )
        return self


class Policy(Strict):
    """When to train again, why, and for how much."""

    name: Name
    """Of the schedule on a server, and of its history."""
    description: str = ""
    recipe: str
    """Name of a recipe, or path of a YAML file beside this one."""
    set: tuple[str, ...] = ()
    """Changes of the recipe, as `--set` takes them."""
    follow_data: tuple[Name, ...] = ()
    """Data sets of the recipe whose newest revision is taken."""
    when: When
    because: Reasons = Reasons()
    budget: Budget
    cool_down_days: Annotated[float, Field(ge=0, le=3660)] = 7.0
    """Least time between the beginnings of two trainings; one that broke off goes on without it."""
    compare_with: Annotated[str, Field(pattern=rf"^models:/[A-Za-z0-9][A-Za-z0-9_.-]{{0,99}}{CHAMPION}$")] | None = None
    """`models:/NAME@champion`: the candidate becomes a version of NAME; empty takes the recipe's own."""
    promote: Promote = Promote.BY_GATE

    @property
    def changes(self) -> tuple[str, ...]:
        """Changes of the recipe that follow from the policy, as `--set` takes them."""
        found = [*self.set, *(f"data.sets.{name}.revision=HEAD" for name in self.follow_data)]
        if self.compare_with:
            found.append(f"registered_model={self.compare_with.removeprefix('models:/').removesuffix(CHAMPION)}")
        if self.promote is Promote.AFTER_APPROVAL:
            found.append("promotion.approvals=1")
        return tuple(found)


def known_keys(location: tuple[Any, ...]) -> list[str]:
    """Names of the fields at `location` in a policy, for who misspelt one."""
    model: Any = Policy
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))
