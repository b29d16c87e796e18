"""What preflight asks for a scheduled run, and the data step answers (components/data/look.py): policy, facts so far, history.

Preflight knows recipe, code, registry of models and history; only the data step may open the data registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from components.platform.retraining import basis
from components.platform.retraining.decision import Entry, Facts
from components.platform.retraining.feedback import Feedback
from components.platform.retraining.journal import Journal
from components.platform.retraining.policy import Policy
from components.platform.settings import Settings
from model.config import Recipe, Strict
from model.errors import ConfigError


class Question(Strict):
    """Train again, or not?"""

    policy: Policy
    facts: Facts
    """But for the data, which are empty."""
    history: tuple[Entry, ...]


def ask(policy: str, recipe: Recipe, slices: Mapping[str, Mapping[str, Any]], settings: Settings) -> Question:
    """The question of a run.

    Args:
        policy: As JSON, from the schedule.
        recipe: That the run would train.
        slices: Of the recipe.
        settings: Where store and registry of models are.

    Raises:
        ConfigError: It is no policy. MissingInputError: The tracking store does not answer. DataError: The history was changed.
    """
    try:
        wanted = Policy.model_validate_json(policy)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigError(
            f"the run's policy: {'.'.join(map(str, first['loc'])) or 'policy'}: {first['msg']}", "apply the schedule again"
        ) from None
    history = tuple(Journal(settings, wanted.name).entries())
    counted = history[-1].feedback if history else Feedback()
    facts = Facts(
        now=basis.wanted(slices, {}, {}),
        basis=basis.last(settings, recipe.registered_model, recipe.name),
        code=basis.code_state(wanted.because.release_tags),
        feedback=counted,
        counted=counted,
        gpu_hours=wanted.budget.gpu_hours if recipe.resources.gpus_per_worker else 0.0,
        asked_by_schedule=True,
    )
    return Question(policy=wanted, facts=facts, history=history)
