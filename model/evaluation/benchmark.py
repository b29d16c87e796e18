"""Benchmarks are data: a YAML file in `benchmarks/` says what is asked, how it is worded and which numbers are computed.

`load(name)` reads and checks one; unknown keys, metrics and slices are errors that name the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from model.config import Kind, Name, Strict
from model.errors import ConfigError
from model.evaluation.metrics import METRICS
from model.recipe import nearest, strict_letter

FOLDER = Path(__file__).parent / "benchmarks"
PLACE = "{question}"
SLICES = ("modality", "question_type", "answer_type")


class BenchmarkFile(Strict):
    """What a benchmark asks and counts."""

    name: Name
    version: Annotated[int, Field(ge=1)]
    """Results of different versions are never compared."""
    title: str
    description: str = ""
    kinds: tuple[Kind, ...] = Field(min_length=1)
    """Kinds of record that are asked."""
    prompt: str = PLACE
    """Wording around the question; `{question}` stands for the question as the data set words it."""
    headline: str
    """The metric that stands first; it must be strict."""
    metrics: tuple[str, ...] = Field(min_length=1)
    slices: tuple[str, ...] = ()
    """Fields of a record by which the metrics are also given."""

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _all_known(value, METRICS, "metric")

    @field_validator("slices")
    @classmethod
    def _slices_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _all_known(value, SLICES, "slice")

    @model_validator(mode="after")
    def _consistent(self) -> BenchmarkFile:
        if self.headline not in self.metrics:
            raise ValueError(f"headline {self.headline!r} is not among the metrics {list(self.metrics)}")
        if not METRICS[self.headline].strict:
            raise ValueError(f"headline {self.headline!r} is a lenient metric: a headline must be strict")
        if self.prompt.count(PLACE) != 1:
            raise ValueError(f"prompt must hold {PLACE} exactly once, this one holds it {self.prompt.count(PLACE)} times")
        return self

    def worded(self, question: str) -> str:
        """The question as it is asked."""
        return self.prompt.replace(PLACE, question)


def names(folder: Path = FOLDER) -> list[str]:
    """Names of the benchmarks in `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> BenchmarkFile:
    """The benchmark `name`. ConfigError if it is unknown or its file is wrong."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = names(folder)
        raise ConfigError(f"unknown benchmark {name!r}{nearest(name, known)}", f"known benchmarks: {', '.join(known) or 'none'}")
    try:
        found = BenchmarkFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {getattr(error, 'problem', None) or error}", "mend the file") from None
    except ValidationError as error:
        raise ConfigError(
            *strict_letter(error, path, lambda _: BenchmarkFile.model_fields, "model/evaluation/benchmark.py")
        ) from None
    if found.name != name:
        raise ConfigError(f"{path} calls itself {found.name!r}", "a benchmark's name is the name of its file")
    return found


def _all_known(value: tuple[str, ...], known: Iterable[str], what: str) -> tuple[str, ...]:
    options = list(known)
    for word in value:
        if word not in options:
            raise ValueError(f"unknown {what} {word!r}{nearest(word, options)}")
    if len(set(value)) != len(value):
        raise ValueError(f"a {what} stands twice in {list(value)}")
    return value
