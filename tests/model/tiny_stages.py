"""Short stages of a few steps on the tiny bases, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from model.config import TrainSlice
from tests.model.tiny_bases import model_settings

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
STAGES: dict[str, dict[str, Any]] = {
    "align": {
        "data": [{"set": "phantom", "kinds": ["caption"]}],
        "trainable": ["connector"],
        "template": "plain",
        "learning_rates": {"connector": 2e-3},
    },
    "instruct": {
        "data": [{"set": "phantom", "kinds": ["dialogue", "grounding"]}],
        "trainable": ["connector", "language_lora"],
        "learning_rates": {"connector": 1e-3, "language_lora": 2e-3},
        "lora": LORA,
    },
    "task": {
        "data": [{"set": "phantom", "kinds": ["question"]}],
        "trainable": ["language_lora"],
        "learning_rates": {"language_lora": 1e-3},
        "lora": LORA,
    },
}
COMMON = {"batch_tokens": 512, "micro_batch_tokens": 256, "checkpoint_every": 2, "warmup": 0.25, "weight_decay": 0.01}


def piece(stage: str = "align", workers: int = 1, model: dict[str, Any] | None = None, **changes: Any) -> TrainSlice:
    """The slice of one stage; by default about twenty steps."""
    values = {
        "stage_name": stage,
        "seed": 3,
        "model": model_settings(**{"context_tokens": 512} | (model or {})),
        "stage": STAGES[stage] | COMMON | changes,
        "resources": {"workers": workers},
    }
    return TrainSlice.model_validate(values)


def stop_after(steps: int) -> Callable[[], bool]:
    """A `stop` that becomes true in the given step (from 1)."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= steps


def recipe_text() -> str:
    """A whole recipe with these stages, as YAML."""
    return yaml.safe_dump(
        {
            "name": "short",
            "seed": 3,
            "data": {"sets": {"phantom": {}}},
            "model": model_settings(context_tokens=512).model_dump(mode="json"),
            "stages": {name: stage | COMMON for name, stage in STAGES.items()},
            "evaluation": {"benchmarks": [{"set": "phantom"}]},
        }
    )
