"""Reports from lists of scores, made by the same code as real ones."""

from __future__ import annotations

from collections.abc import Sequence

from model.config import Benchmark, Kind
from model.data.records import AnswerType, Record, Role, Turn
from model.evaluation import benchmark
from model.evaluation.bootstrap import Draws
from model.evaluation.generate import Prediction
from model.evaluation.results import Item, Report
from model.evaluation.summary import Answered, summarise
from model.manifest import Manifest

SAMPLES = 200


def question(number: int, answer: str = "yes", answer_type: AnswerType = AnswerType.CLOSED, images: int = 4) -> Record:
    """One of several questions about one of a few images."""
    turns = (Turn(role=Role.USER, text=f"Question {number}?"), Turn(role=Role.ASSISTANT, text=answer))
    group = f"image-{number // images}"
    return Record(
        id=f"q{number}",
        group=group,
        kind=Kind.QUESTION,
        images=(f"images/{group}.png",),
        turns=turns,
        answer_type=answer_type,
        question_type="presence",
        modality=("ct", "mr")[number // images % 2],
    )


def answered(right: Sequence[bool], blind_right: Sequence[bool], answer_type: AnswerType = AnswerType.CLOSED) -> list[Answered]:
    """Questions answered "yes" where right, else "normal"; baselines always say "no"."""
    found = []
    for number, (seeing, blind) in enumerate(zip(right, blind_right, strict=True)):
        record = question(number, answer_type=answer_type)
        record = record.model_copy(update={"id": f"{answer_type}-{record.id}"})
        said = (Prediction(record.id, "yes" if one else "normal", 1, True) for one in (seeing, blind))
        found.append(Answered(record, *said, "no", "no", record.images, False))
    return found


def report(closed: Sequence[bool], blind: Sequence[bool] = (), open_right: Sequence[bool] = ()) -> tuple[Report, list[Item]]:
    """A report with its items. `blind` is all wrong, if it is not given."""
    everything = answered(closed, blind or [False] * len(closed))
    everything += answered(open_right, [False] * len(open_right), AnswerType.OPEN)
    draws = Draws([one.record.group for one in everything], SAMPLES)
    result = summarise(benchmark.load("vqa"), Benchmark(set="tiny"), Manifest(kind="data", files=()), everything, 3, draws)
    whole = Report(
        checkpoint="c" * 64, seed=0, bootstrap_samples=SAMPLES, confidence=0.95, max_new_tokens=8, benchmarks=(result,)
    )
    return whole, [one.item(result.key) for one in everything]
