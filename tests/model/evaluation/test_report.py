from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.config import Promotion
from model.data.dataset import DataSet
from model.data.records import AnswerType, Record
from model.evaluation.decision import Evidence, Grounds, decide
from model.evaluation.metrics import METRICS, score_item
from model.evaluation.report import Curve, ReportInputs, Sample, Step, choose_samples, duration, render, write_report
from model.evaluation.report_drawing import HEIGHT, curve
from model.evaluation.results import Item
from tests.model.evaluation.tiny_reports import report

EVIL = "<script>alert('x')</script>"
RIGHT = [number % 5 != 0 for number in range(60)]


@pytest.fixture(scope="module")
def inputs() -> ReportInputs:
    whole, items = report(RIGHT, open_right=RIGHT)
    return ReportInputs(
        name=f"biovlm{EVIL}",
        version="3",
        report=whole,
        description=EVIL,
        recipe="tiny",
        decision=decide(Promotion(min_closed_accuracy=0.9), Evidence(whole, items), None, Grounds(("CC0-1.0",))),
        curves=(Curve("align", tuple((step, 5 / step) for step in range(1, 900))),),
        data=((EVIL, EVIL),),
        lineage=(("Code", EVIL),),
        samples=(Sample("", "ct", EVIL, EVIL, EVIL, EVIL, "", right=False),),
        steps=(Step("data", 0.0, "reused"), Step("align", 75.0)),
    )


def test_the_page_needs_nothing_from_outside(inputs: ReportInputs) -> None:
    page = render(inputs)
    assert "://" not in page
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_no_value_is_taken_as_markup(inputs: ReportInputs) -> None:
    page = render(inputs)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_the_page_shows_every_metric_with_its_controls_and_the_decision(inputs: ReportInputs, tmp_path: Path) -> None:
    write_report(inputs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for metric in METRICS.values():
        assert metric.title in page
    assert "Hold: not promoted" in page
    assert "closed_accuracy is 0.800, at least 0.900 is needed" in page
    assert "Research use only" in page
    assert "80.0" in page
    assert "align" in page


def test_a_page_without_optional_parts_still_stands() -> None:
    whole, _ = report(RIGHT[:4])  # one image: no interval anywhere
    page = render(ReportInputs(name="m", version="1", report=whole))
    assert "Decision" not in page
    assert "no such questions" in page


def test_samples_are_right_and_wrong_ones_of_each_modality(phantom: DataSet, questions: list[Record]) -> None:
    items = [item_of(record, right=number % 3 != 0) for number, record in enumerate(questions)]
    samples = choose_samples(phantom, "test", items, per_modality=4)
    assert samples == choose_samples(phantom, "test", items[::-1], per_modality=4)
    for modality in {item.modality for item in items}:
        shown = [sample.right for sample in samples if sample.modality == modality]
        assert len(shown) == 4
        assert sum(shown) == 2
    assert all(sample.image.startswith("data:image/png;base64,") for sample in samples)
    assert len(choose_samples(phantom, "test", [item_of(record, right=True) for record in questions], 4, limit=3)) == 3


def test_a_curve_keeps_its_last_point_and_leaves_out_what_is_not_finite() -> None:
    drawn = curve("align", [*((step, 1.0 / step) for step in range(1, 1000)), (1000, float("nan")), (1001, 0.5)])
    assert drawn is not None
    assert drawn.steps == 1001
    assert "nan" not in drawn.path
    assert drawn.path.count("L") < 450
    assert all(0 <= tick.at <= HEIGHT for tick in drawn.y_ticks)
    assert curve("flat", [(1, 2.0), (2, 2.0)]) is not None
    assert curve("short", [(1, 2.0)]) is None


def test_a_curve_that_hardly_moves_has_ticks_that_differ() -> None:
    drawn = curve("align", [(step, 5.590 + 0.002 * step) for step in range(4)])
    assert drawn is not None
    assert len({tick.label for tick in drawn.y_ticks}) == len(drawn.y_ticks) >= 3


def test_times_read_like_times() -> None:
    assert [duration(s) for s in (4.21, 185, 7801)] == ["4.2 s", "3 min 05 s", "2 h 10 min"]


def test_decision_and_report_do_not_load_torch() -> None:
    code = "import sys, model.evaluation.decision, model.evaluation.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False, timeout=120).returncode == 0


def item_of(record: Record, right: bool) -> Item:
    said = record.answer if right else "something else"
    kind = record.answer_type or AnswerType.OPEN
    scores = score_item(kind, record.answer, said)
    return Item(
        benchmark="vqa/phantom/test",
        id=record.id,
        group=record.group,
        answer_type=kind,
        question_type=record.question_type,
        modality=record.modality,
        seen_in_training=False,
        prediction=said,
        blind_prediction="",
        scores=scores,
        blind_scores=scores,
    )
