"""Recipes: everything that decides what a run does, as frozen and strict data.

A `Recipe` is one complete value; two runs differ as two recipes differ. It is read from YAML by `model.recipe.load`. Unknown keys,
wrong types and contradictions are errors that name the field. Each pipeline step sees only its own slice (`model.recipe.slices`), so
a change of the task stage does not touch the key of the alignment stage.

Closed choices are string enums; each member says what it does.
"""

from model.config.choices import (
    Against,
    ConnectorKind,
    Fraction,
    Kind,
    Memory,
    Name,
    Packing,
    Part,
    Precision,
    Purpose,
    Schedule,
    Strategy,
    Strict,
    Template,
    TooLong,
)
from model.config.parts import (
    Benchmark,
    Connector,
    Data,
    DataSet,
    Evaluation,
    Model,
    ModelSource,
    Promotion,
    Resources,
)
from model.config.stages import (
    Guard,
    Lora,
    Mixture,
    Stage,
    Stages,
)
from model.config.whole import (
    STAGE_NAMES,
    DataSlice,
    EvaluateSlice,
    PromoteSlice,
    Recipe,
    RegisterSlice,
    TrainSlice,
)

__all__ = [
    "Against",
    "Benchmark",
    "Connector",
    "ConnectorKind",
    "Data",
    "DataSet",
    "DataSlice",
    "EvaluateSlice",
    "Evaluation",
    "Fraction",
    "Guard",
    "Memory",
    "Packing",
    "TooLong",
    "Kind",
    "Lora",
    "Mixture",
    "Model",
    "ModelSource",
    "Name",
    "Part",
    "Precision",
    "PromoteSlice",
    "Purpose",
    "Promotion",
    "Recipe",
    "RegisterSlice",
    "Resources",
    "STAGE_NAMES",
    "Schedule",
    "Stage",
    "Stages",
    "Strategy",
    "Strict",
    "Template",
    "TrainSlice",
]
