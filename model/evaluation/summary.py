"""From answered questions to figures: overall, by slice, and the gain from looking.

Every figure of a benchmark uses the same draws of its groups, so differences between rows of a report are not noise of drawing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from model.config import Benchmark
from model.data.records import AnswerType, Record
from model.evaluation.benchmark import BenchmarkFile
from model.evaluation.bootstrap import Draws
from model.evaluation.generate import Prediction
from model.evaluation.metrics import METRICS, score_item
from model.evaluation.results import BenchmarkResult, Figure, Item, MetricResult, SliceResult
from model.manifest import Manifest, digest_of

GAIN_METRIC = "closed_accuracy"
CONDITIONS = ("model", "blind", "majority", "constant")
SEEN = "seen_in_training"
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Answered:
    """A question with everything that was said to it."""

    record: Record
    prediction: Prediction
    blind: Prediction
    majority: str
    """Most frequent training answer for such a question."""
    constant: str
    """Most frequent training answer of all."""
    image_digests: tuple[str, ...]
    """SHA-256 of the image files."""
    seen_in_training: bool

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Condition -> metric -> score."""
        said = (self.prediction.text, self.blind.text, self.majority, self.constant)
        return {
            condition: score_item(self.answer_type, self.record.answer, text)
            for condition, text in zip(CONDITIONS, said, strict=True)
        }

    @property
    def answer_type(self) -> AnswerType:
        """Open or closed."""
        if self.record.answer_type is None:
            raise ValueError(f"record {self.record.id!r} has no answer type")
        return self.record.answer_type

    def item(self, key: str) -> Item:
        """The line of `predictions.jsonl`."""
        return Item(
            benchmark=key,
            id=self.record.id,
            group=self.record.group,
            answer_type=self.answer_type,
            question_type=self.record.question_type,
            modality=self.record.modality,
            seen_in_training=self.seen_in_training,
            prediction=self.prediction.text,
            blind_prediction=self.blind.text,
            scores=self.scores["model"],
            blind_scores=self.scores["blind"],
        )


def summarise(
    file: BenchmarkFile, entry: Benchmark, data: Manifest, answered: Sequence[Answered], blind_images: int, draws: Draws
) -> BenchmarkResult:
    """All figures of one benchmark.

    Args:
        file: What is counted.
        entry: Data set and split.
        data: Manifest of the data set.
        answered: At least one question.
        blind_images: Training images averaged for the blind control.
        draws: Over the groups of `answered`.
    """
    seen = [one for one in answered if one.seen_in_training]
    return BenchmarkResult(
        benchmark=file.name,
        version=file.version,
        title=file.title,
        headline=file.headline,
        set=entry.set,
        split=entry.split,
        set_digest=data.digest,
        items_digest=items_digest(file, answered),
        items=len(answered),
        groups=len({one.record.group for one in answered}),
        unasked=sum(not one.prediction.asked for one in answered),
        cut=sum(one.prediction.asked and not one.prediction.complete for one in answered),
        blind_images=blind_images,
        seen_items=len(seen),
        seen_images=len({one.image_digests for one in seen}),
        metrics=_metrics(file, answered, draws),
        image_gain=_gain(answered, draws),
        slices=_slices(file, answered, draws),
    )


def items_digest(file: BenchmarkFile, answered: Sequence[Answered]) -> str:
    """Digest of what was asked; order does not matter."""
    rows = sorted(
        [
            one.record.id,
            one.record.group,
            file.worded(one.record.question),
            one.record.answer,
            one.answer_type,
            *one.image_digests,
        ]
        for one in answered
    )
    return digest_of(rows)


def _metrics(file: BenchmarkFile, answered: Sequence[Answered], draws: Draws) -> tuple[MetricResult, ...]:
    """Every metric of the file that applies to at least one item, in the order of the file."""
    results: dict[str, MetricResult] = {}
    for answer_type in AnswerType:
        fitting = [one for one in answered if one.answer_type is answer_type]
        names = [name for name in file.metrics if METRICS[name].answer_type is answer_type]
        if fitting and names:
            pairs = [(name, condition) for name in names for condition in CONDITIONS]
            rows = [[one.scores[condition][name] for name, condition in pairs] for one in fitting]
            found = draws.intervals(rows, [one.record.group for one in fitting])
            figures = {pair: Figure.of(interval) for pair, interval in zip(pairs, found, strict=True)}
            results |= {name: MetricResult(name=name, **{c: figures[name, c] for c in CONDITIONS}) for name in names}
    return tuple(results[name] for name in file.metrics if name in results)


def _gain(answered: Sequence[Answered], draws: Draws) -> Figure | None:
    """Closed accuracy with the image minus without, paired by item."""
    closed = [one for one in answered if GAIN_METRIC in one.scores["model"]]
    if not closed:
        return None
    seeing, blind = ([one.scores[condition][GAIN_METRIC] for one in closed] for condition in ("model", "blind"))
    return Figure.of(draws.paired(seeing, blind, [one.record.group for one in closed]))


def _slices(file: BenchmarkFile, answered: Sequence[Answered], draws: Draws) -> tuple[SliceResult, ...]:
    """The metrics by each field of the file, and by whether the image was seen in training if some were."""
    results = []
    fields = [*file.slices, SEEN] if any(one.seen_in_training for one in answered) else list(file.slices)
    for field in fields:
        parts: defaultdict[str, list[Answered]] = defaultdict(list)
        for one in answered:
            value = ("yes" if one.seen_in_training else "no") if field == SEEN else str(getattr(one.record, field))
            parts[value or NOT_GIVEN].append(one)
        for value, part in sorted(parts.items()):
            groups = len({one.record.group for one in part})
            metrics = _metrics(file, part, draws)
            results.append(SliceResult(field=field, value=value, items=len(part), groups=groups, metrics=metrics))
    return tuple(results)
