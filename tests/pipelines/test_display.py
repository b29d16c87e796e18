"""What people see of a run, from its events and its result alone."""

from __future__ import annotations

import io

from rich.console import Console

from components.platform.events import Event, EventType
from model.errors import RefusedError
from pipelines import closing, display
from pipelines.summary import RunResult, StepResult

STEPS = ["data", "align", "task"]


def event(kind, step="", time=0.0, **fields):
    return Event(type=kind, step=step, time=time, **fields)


def shown(*events):
    """What `Lines` writes for the events."""
    text = io.StringIO()
    with display.Lines(Console(file=text, width=80)) as lines:
        lines(event(EventType.RUN_STARTED, facts={"recipe": "tiny", "steps": STEPS}))
        for one in events:
            lines(one)
    return text.getvalue().splitlines()


def view(*events):
    step = display.StepView("align")
    for one in events:
        step.apply(one)
    return step


def test_time_left_is_guessed_from_the_speed_so_far():
    step = view(
        event(EventType.STEP_STARTED, time=100),
        event(EventType.PROGRESS, time=110, done=10, total=100),
        event(EventType.PROGRESS, time=130, done=30, total=100),
    )
    # 20 units in 20 seconds since the first number: what came before it was loading, not training.
    assert step.seconds_left(130) == 70
    assert step.seconds(130) == 30


def test_there_is_no_guess_before_there_is_something_to_guess_from():
    assert view(event(EventType.STEP_STARTED, time=100)).seconds_left(200) is None
    first = view(event(EventType.STEP_STARTED), event(EventType.PROGRESS, time=1, done=1, total=1000))
    assert first.seconds_left(2) is None


def test_a_resumed_stage_is_not_thought_to_be_faster_than_it_is():
    step = view(
        event(EventType.STEP_STARTED, time=0),
        event(EventType.PROGRESS, time=10, done=60, total=100),
        event(EventType.STEP_STARTED, time=20, attempt=2),
        event(EventType.RESUMED, time=30, done=50, total=100),
        event(EventType.PROGRESS, time=40, done=60, total=100),
    )
    assert step.seconds_left(40) == 40
    assert step.resumed_from == 50


def test_lines_tell_the_story_without_a_terminal():
    assert shown(
        event(EventType.STEP_STARTED, "preflight", 1),
        event(EventType.FINISHED, "preflight", 2, facts={"kind": "preflight"}),
        event(EventType.STEP_STARTED, "data", 1),
        event(EventType.NOTE, "data", 1, message="building phantom"),
        event(EventType.FINISHED, "data", 91, facts={"key": "k"}),
        event(EventType.STEP_STARTED, "align", 91),
        event(EventType.REUSED, "align", 91.5),
        event(EventType.STEP_STARTED, "task", 92),
        event(EventType.PROGRESS, "task", 120, done=10, total=40, unit="steps"),
        event(EventType.PROGRESS, "task", 121, done=11, total=40, unit="steps"),
        event(EventType.STEP_STARTED, "task", 130, attempt=2),
        event(EventType.RESUMED, "task", 131, done=10),
        event(EventType.FAILED, "task", 140, message="the loss is not a number", exit_code=79),
    ) == [
        "preflight: started",
        "preflight: checked in 1.0 s",
        "data: started",
        "data: building phantom",
        "data: ran in 1 min 30 s",
        "align: started",
        "align: reused in 0.5 s",
        "task: started",
        "task: 10/40 steps",
        "task: started again (attempt 2)",
        "task: resumed from step 10",
        "task: failed in 48 s",
    ]


def test_a_step_that_was_asked_to_stop_did_not_fail():
    stopped = event(EventType.FAILED, "task", 140, message="saved after step 9", exit_code=75)
    assert shown(event(EventType.STEP_STARTED, "task", 92), stopped)[-1] == "task: stopped in 48 s"


def test_markup_in_a_message_is_text():
    assert shown(event(EventType.NOTE, "data", message="see [red]images[/red]/[1]")) == ["data: see [red]images[/red]/[1]"]


def test_the_live_view_fits_into_eighty_columns():
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    live = display.LiveView(console)
    live(event(EventType.RUN_STARTED, facts={"steps": [*display.TITLES]}))
    live(event(EventType.STEP_STARTED, "instruct"))
    live(event(EventType.PROGRESS, "instruct", 1, done=100, total=1400, unit="steps", metrics={"loss": 2.5}))
    live(event(EventType.PROGRESS, "instruct", 5, done=1225, total=1400, unit="steps", metrics={"loss": 1.5}))
    console.print(live._draw())
    drawn = text.getvalue().splitlines()
    assert len(drawn) == len(display.TITLES)
    assert all(len(line) <= 80 for line in drawn)
    (row,) = (line for line in drawn if "1,225/1,400 steps" in line)
    assert "left" in row


def a_result(**changes):
    steps = (
        StepResult(name="data", state="ran", seconds=92, figures={"records": 31250}),
        StepResult(name="align", state="ran", seconds=127, resumed_from=150, figures={"loss": 0.1873, "tokens": 1638400}),
        StepResult(name="task", state="not reached"),
    )
    values = {"run_id": "x", "folder": "/runs/x", "recipe": "tiny", "seconds": 321, "exit_code": 0, "registered_model": "tiny"}
    values["tracking"] = "sqlite:///db"
    return RunResult(steps=steps, **(values | changes))


def test_a_step_that_went_on_and_then_failed_is_called_failed():
    text = io.StringIO()
    failed = StepResult(name="task", state="failed", resumed_from=150)
    Console(file=text, width=80).print(closing.table(a_result().model_copy(update={"steps": (failed,)})))
    assert "failed" in text.getvalue()


def test_the_closing_table_fits_and_says_what_happened():
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(closing.table(a_result()))
    drawn = text.getvalue()
    assert all(len(line) <= 80 for line in drawn.splitlines())
    for word in ("1 min 32 s", "records 31,250", "resumed from 150", "loss 0.187", "tokens 1,638,400", "not reached"):
        assert word in " ".join(drawn.split())


def test_the_closing_lines_say_where_to_look_next():
    said = closing.lines(
        a_result(version="3", decision="hold", reasons=("closed accuracy 0.7 is below 0.8",), report="/runs/x/report.html")
    )
    assert said[0] == "tiny: 2 ran, 1 not reached in 5 min 21 s"
    text = "\n".join(said)
    for word in (
        "tiny 3",
        "hold",
        "below 0.8",
        "/runs/x/report.html",
        "models:/tiny/3",
        "mlflow ui --backend-store-uri sqlite:///db",
    ):
        assert word in text
    assert "biovlm chat" not in text, "a version that is not champion does not answer"
    assert "biovlm chat" in "\n".join(closing.lines(a_result(version="3", decision="promote")))


def test_no_line_leads_to_a_server_that_ended_with_the_run():
    said = "\n".join(closing.lines(a_result(version="3", decision="promote", tracking="")))
    assert "ended with the run" in said
    assert not [word for word in ("mlflow", "models:/", "http", "biovlm chat", "biovlm lineage") if word in said]


def test_a_run_that_failed_offers_no_report():
    said = "\n".join(closing.lines(a_result(exit_code=77, error=RefusedError("no"))))
    assert "report:" not in said
    assert "/runs/x" in said
