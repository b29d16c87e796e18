"""What an evaluation leaves behind: `report.json` (every number) and `predictions.jsonl` (every item).

`write` puts both into an artifact folder, `read_report` and `read_items` get them back, checked. Numbers are shares (0.9, never
90 %), and each stands with its interval and counts. A number that is not finite cannot be written or read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from model.config import Strict
from model.data.records import AnswerType
from model.errors import DataError, MissingInputError
from model.evaluation.bootstrap import Interval

REPORT = "report.json"
ITEMS = "predictions.jsonl"
KIND = "report"
SCHEMA_VERSION = 1

Difference = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Parsed = TypeVar("Parsed", bound=BaseModel)


class Figure(Strict):
    """A number with its interval and what it was computed from."""

    value: Difference
    """A share in 0..1, or a difference of shares in -1..1."""
    low: Difference | None
    """Lower end of the interval; empty with fewer than two groups."""
    high: Difference | None
    items: Count
    groups: Count
    """Images (or studies, or patients): what was resampled."""

    @staticmethod
    def of(interval: Interval) -> Figure:
        """The same as data."""
        return Figure(value=interval.value, low=interval.low, high=interval.high, items=interval.items, groups=interval.groups)


class MetricResult(Strict):
    """One metric of the model, beside what one scores without looking."""

    name: str
    model: Figure
    blind: Figure
    """The same model, every image replaced by the mean training image."""
    majority: Figure
    """Most frequent training answer by wording, else question type."""
    constant: Figure
    """Most frequent training answer of all."""


class SliceResult(Strict):
    """The metrics of a part of the items."""

    field: str
    """modality, question_type, answer_type, or seen_in_training."""
    value: str
    items: Count
    groups: Count
    metrics: tuple[MetricResult, ...]


class BenchmarkResult(Strict):
    """One benchmark on one split of one data set."""

    benchmark: str
    version: Annotated[int, Field(ge=1)]
    title: str
    headline: str
    """Name of the metric that stands first."""
    set: str
    split: str
    set_digest: str
    """Digest of the data set's manifest."""
    items_digest: str
    """Digest of what was asked: ids, wording, answers, groups and image bytes. Only equal ones are compared."""
    items: Count
    groups: Count
    unasked: Count
    """Questions too long for the model's context; they count as wrong."""
    cut: Count
    """Answers that reached the longest length without an end."""
    blind_images: Count
    """Training images averaged for the blind control."""
    seen_items: Count
    """Questions about images that also stand in training."""
    seen_images: Count
    metrics: tuple[MetricResult, ...]
    image_gain: Figure | None
    """Closed accuracy minus that of the blind control, paired; empty without closed questions."""
    slices: tuple[SliceResult, ...]

    @property
    def key(self) -> str:
        """Name of this result within a report."""
        return f"{self.benchmark}/{self.set}/{self.split}"

    def metric(self, name: str) -> MetricResult | None:
        """The metric `name`, if it was computed."""
        return next((metric for metric in self.metrics if metric.name == name), None)


class Report(Strict):
    """Everything an evaluation found."""

    schema_version: int = SCHEMA_VERSION
    checkpoint: str
    """Digest of the checkpoint's manifest."""
    seed: int
    bootstrap_samples: int
    confidence: float
    max_new_tokens: int
    benchmarks: tuple[BenchmarkResult, ...] = Field(min_length=1)
    """The first is the one that promotion looks at."""


class Item(Strict):
    """One question, as answered."""

    benchmark: str
    """`BenchmarkResult.key`."""
    id: str
    group: str
    answer_type: AnswerType
    question_type: str
    modality: str
    seen_in_training: bool
    prediction: str
    blind_prediction: str
    scores: dict[str, Share]
    """Metric -> score of this item."""
    blind_scores: dict[str, Share]


def write(folder: Path, report: Report, items: Iterable[Item]) -> None:
    """Write both files into `folder`."""
    (folder / REPORT).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    with open(folder / ITEMS, "w", encoding="utf-8", newline="\n") as stream:
        for item in items:
            stream.write(json.dumps(item.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) + "\n")


def read_report(folder: Path) -> Report:
    """The report in `folder`. MissingInputError if there is none, DataError if it is damaged."""
    return _parse(Report, _text(folder / REPORT), f"{folder / REPORT}")


def read_items(folder: Path) -> list[Item]:
    """The items in `folder`; errors as `read_report`."""
    lines = _text(folder / ITEMS).split("\n")
    return [_parse(Item, line, f"{folder / ITEMS}:{number}") for number, line in enumerate(lines, start=1) if line]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInputError(f"no evaluation at {path.parent}: it has no {path.name}", "run the evaluation again") from None


def _parse(kind: type[Parsed], text: str, place: str) -> Parsed:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        # Only place and rule: pydantic's input would be the content of the item.
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise DataError(f"{place}: {field}: {first['msg']}", "the report was changed or cut; run the evaluation again") from None
