"""The report page: one HTML file that explains itself, without a network.

The journey of a report:
1. The caller fills `ReportInputs` with plain values; `choose_samples` picks questions to show, right and wrong ones of each modality.
2. `render` computes what is drawn (`report_drawing`) and fills `report.html.j2`; every value is escaped by jinja.
3. `write_report` writes the page. Style, drawings and pictures stand inside the file: it can be mailed, printed and archived.

The template decides nothing: what it shows is an attribute of the inputs, or a number of the `Report`.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from model.data.dataset import DataSet
from model.data.images import decode
from model.evaluation import report_drawing as drawing
from model.evaluation.decision import Decision
from model.evaluation.metrics import METRICS
from model.evaluation.report_template import template
from model.evaluation.results import BenchmarkResult, Figure, Item, Report
from model.manifest import digest_of

TEMPLATE = Path(__file__).with_name("report.html.j2")
THUMBNAIL_PIXELS = 224
RIGHT_FROM = 0.999999
"""A shown answer counts as right if its strict score is 1."""
STRICT = ("closed_accuracy", "open_accuracy")
SLICE_TITLES = {
    "modality": "Modality",
    "question_type": "Question type",
    "answer_type": "Answer type",
    "seen_in_training": "Image also stands in training",
}


@dataclass(frozen=True)
class Curve:
    """Loss of one stage."""

    stage: str
    points: tuple[tuple[int, float], ...]
    """(optimizer step, loss)."""


@dataclass(frozen=True)
class Step:
    """One step of the run."""

    name: str
    seconds: float
    """Wall clock."""
    state: str = "done"
    """done, reused, failed."""


@dataclass(frozen=True)
class Sample:
    """One question to show."""

    image: str
    """Data URI of a picture; empty for none."""
    modality: str
    question_type: str
    question: str
    reference: str
    prediction: str
    blind_prediction: str
    right: bool


@dataclass(frozen=True)
class ReportInputs:
    """Everything a page shows. Pairs are (label, value) rows, shown in order."""

    name: str
    """Name of the registered model."""
    version: str
    """Version in the registry, or a short digest."""
    report: Report
    description: str = ""
    recipe: str = ""
    run_id: str = ""
    created: str = ""
    """When, as it should be read."""
    decision: Decision | None = None
    champion: str = ""
    """Version of the champion it was compared with; empty for none."""
    curves: tuple[Curve, ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    """Data sets, versions, counts and findings of the audit."""
    lineage: tuple[tuple[str, str], ...] = ()
    """Digests, revisions and licences."""
    cost: tuple[tuple[str, str], ...] = ()
    """What the run cost, what reuse saved, and how wrong the forecast was."""
    samples: tuple[Sample, ...] = ()
    steps: tuple[Step, ...] = ()


def write_report(inputs: ReportInputs, path: Path) -> None:
    """Write the page to `path`."""
    path.write_text(render(inputs), encoding="utf-8")


def render(inputs: ReportInputs) -> str:
    """The page as HTML."""
    curves = [drawn for curve in inputs.curves if (drawn := drawing.curve(curve.stage, curve.points)) is not None]
    longest = max((step.seconds for step in inputs.steps), default=0.0)
    return template(
        TEMPLATE, {"percent": percent, "points": points, "ends": ends, "duration": duration, "strip": drawing.strip}
    ).render(
        inputs=inputs,
        report=inputs.report,
        main=inputs.report.benchmarks[0],
        metrics=METRICS,
        curves=curves,
        box=drawing,
        slice_titles=SLICE_TITLES,
        sliced={result.key: _by_field(result) for result in inputs.report.benchmarks},
        shares=[(step, step.seconds / longest * 100 if longest else 0.0) for step in inputs.steps],
        total_seconds=sum(step.seconds for step in inputs.steps),
    )


def choose_samples(
    dataset: DataSet, split: str, items: Sequence[Item], per_modality: int = 4, limit: int = 24
) -> tuple[Sample, ...]:
    """Questions to show: of each modality as many right as wrong ones where there are, from different images where possible.

    Args:
        dataset: The set of the benchmark.
        split: Its split.
        items: Items of one benchmark on that split.
        per_modality: Questions of each modality.
        limit: Questions in all.
    """
    by_modality: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_modality[item.modality].append(item)
    chosen = [item for _, part in sorted(by_modality.items()) for item in _mixed(part, per_modality)][:limit]
    records = {record.id: record for record in dataset.records(split)}
    samples = []
    for item in chosen:
        record = records[item.id]
        picture = data_uri(decode(dataset.path(record.images[0]), dataset.max_image_pixels)) if record.images else ""
        samples.append(
            Sample(
                image=picture,
                modality=item.modality,
                question_type=item.question_type,
                question=record.question,
                reference=record.answer,
                prediction=item.prediction,
                blind_prediction=item.blind_prediction,
                right=_right(item),
            )
        )
    return tuple(samples)


def data_uri(image: Image.Image) -> str:
    """The picture as a PNG data URI, scaled down to THUMBNAIL_PIXELS if it is larger."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def percent(value: float, digits: int = 1) -> str:
    """A share in percent, without the sign: 0.9 -> 90.0."""
    return f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: 0.05 -> +5.0."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def ends(figure: Figure, signed: bool = False) -> str:
    """The interval of a figure in percent, or a dash where there is none."""
    if figure.low is None or figure.high is None:
        return "\N{EN DASH}"
    show = points if signed else percent
    between = " to " if signed else "\N{EN DASH}"
    return f"{show(figure.low)}{between}{show(figure.high)}"


def duration(seconds: float) -> str:
    """Seconds as one reads them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _by_field(result: BenchmarkResult) -> Mapping[str, list]:
    """Field -> its slices, in the order of the result."""
    fields: defaultdict[str, list] = defaultdict(list)
    for part in result.slices:
        fields[part.field].append(part)
    return fields


def _right(item: Item) -> bool:
    return any(item.scores.get(name, 0.0) >= RIGHT_FROM for name in STRICT)


def _mixed(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items, half of them right as far as possible; each image once before any is shown again; always the same ones."""
    ordered = sorted(items, key=lambda item: digest_of(item.id))
    seen: defaultdict[str, int] = defaultdict(int)
    ranked = []
    for item in ordered:
        ranked.append((seen[item.group], item))
        seen[item.group] += 1
    ordered = [item for _, item in sorted(ranked, key=lambda pair: pair[0])]
    right, wrong = [item for item in ordered if _right(item)], [item for item in ordered if not _right(item)]
    half = max(count - len(wrong), min(len(right), (count + 1) // 2))
    return (right[:half] + wrong[: count - min(half, len(right))])[:count]
