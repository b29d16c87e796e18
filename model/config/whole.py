"""A whole recipe, and the slices of it that the pipeline's steps see."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from model.config.choices import Name, Strict
from model.config.parts import Benchmark, Data, Evaluation, Model, Promotion, Resources
from model.config.stages import Mixture, Stage, Stages


class Recipe(Strict):
    """A run, completely."""

    name: Name
    description: str = ""
    registered_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = "biovlm"
    """Name in the model registry."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    model: Model
    stages: Stages
    evaluation: Evaluation
    promotion: Promotion = Promotion()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _sets_exist(self) -> Recipe:
        used = [(f"stages.{stage}.data", mix.set) for stage in STAGE_NAMES for mix in getattr(self.stages, stage).data]
        used += [("evaluation.benchmarks", bench.set) for bench in self.evaluation.benchmarks]
        for field, name in used:
            if name not in self.data.sets:
                raise ValueError(f"{field} uses the data set {name!r}, but data.sets names {sorted(self.data.sets)}")
        return self


STAGE_NAMES = ("align", "instruct", "task")


class DataSlice(Strict):
    """What the data step sees."""

    data: Data
    uses: tuple[Mixture, ...]
    """Every mixture and benchmark of the recipe, for the audit of leakage between training and evaluation."""
    evaluated: tuple[Benchmark, ...]
    bases: tuple[str, ...]
    """Names of base models in the data registry (`registry:NAME`)."""


class TrainSlice(Strict):
    """What one training step sees."""

    stage_name: Name
    seed: int
    model: Model
    stage: Stage
    resources: Resources


class EvaluateSlice(Strict):
    """What the evaluation step sees."""

    seed: int
    evaluation: Evaluation
    resources: Resources


class RegisterSlice(Strict):
    """What the registration step sees."""

    registered_model: str
    recipe: Name
    recipe_digest: str


class PromoteSlice(Strict):
    """What the promotion step sees."""

    registered_model: str
    promotion: Promotion
