"""Small real reports: some closed questions, answered right or wrong."""

from __future__ import annotations

from pathlib import Path

from model import manifest
from model.data.records import AnswerType
from model.evaluation.results import BenchmarkResult, Figure, Item, MetricResult, Report, write


def write_report(folder: Path, right: int, items: int = 20, checkpoint: str = "c" * 64, asked: str = "") -> Path:
    """A report artifact in which `right` of `items` closed questions were answered well, and none of them blindly."""

    def figure(value: float) -> Figure:
        return Figure(value=value, low=max(-1.0, value - 0.1), high=min(1.0, value + 0.1), items=items, groups=items)

    share = right / items
    metric = MetricResult(
        name="closed_accuracy", model=figure(share), blind=figure(0.0), majority=figure(0.5), constant=figure(0.5)
    )
    result = BenchmarkResult(
        benchmark="vqa",
        version=1,
        title="VQA",
        headline="closed_accuracy",
        set="asked" if asked else "mini",
        split="test",
        set_digest="d" * 64,
        items_digest="e" * 64,
        items=items,
        groups=items,
        unasked=0,
        cut=0,
        blind_images=1,
        seen_items=0,
        seen_images=0,
        metrics=(metric,),
        image_gain=figure(share),
        slices=(),
    )
    report = Report(checkpoint=checkpoint, seed=0, bootstrap_samples=100, confidence=0.95, max_new_tokens=4, benchmarks=(result,))
    answered = [
        Item(
            benchmark=result.key,
            id=str(index),
            group=str(index),
            answer_type=AnswerType.CLOSED,
            question_type="presence",
            modality="square",
            seen_in_training=False,
            prediction="yes",
            blind_prediction="no",
            scores={"closed_accuracy": float(index < right)},
            blind_scores={"closed_accuracy": 0.0},
        )
        for index in range(items)
    ]
    numbers = {"closed_accuracy": share, "image_gain": share, "items": items}
    parents = {"checkpoint": checkpoint} | ({"data:asked": asked} if asked else {})
    with manifest.commit(folder, "report", parents, {"benchmarks": {result.key: numbers}}) as aside:
        write(aside, report, answered)
    return folder
