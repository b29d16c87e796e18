"""Whether to train again: drift, feedback, the decision over a year, and the history it keeps."""

from __future__ import annotations

import calendar
import datetime
import json
import subprocess
import threading

import pytest
from scipy import stats

from components.platform import code
from components.platform.retraining import basis, feedback
from components.platform.retraining.decision import Basis, CodeState, Entry, Facts, Made, Verdict, decide
from components.platform.retraining.drift import shift, survival
from components.platform.retraining.feedback import Feedback
from components.platform.retraining.journal import Journal
from components.platform.retraining.policy import Policy
from model.errors import DataError, MissingInputError, RefusedError

START = datetime.datetime(2026, 1, 1, 3, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
OLD = Made(data={"phantom": "a" * 64}, bases={"tower": "b" * 64}, recipe={"align": "c" * 64, "task": "d" * 64}, code="e" * 64)
BASIS = Basis(version="3", made=OLD, created=START - 40 * DAY, revisions={"phantom": "r1"})
NEW_DATA = OLD.model_copy(update={"data": {"phantom": "f" * 64}})


def policy(**changes):
    values = {"name": "monthly", "recipe": "tiny", "when": {"cron": "0 3 1 * *"}, "budget": {"gpu_hours": 40}}
    return Policy.model_validate(values | changes)


def facts(now=OLD, basis=BASIS, **more):
    return Facts(now=now, basis=basis, **more)


def look(found, rules=None, history=(), now=START, moment=START):
    return decide(rules or policy(), found, now, history, moment)


def checks(decision, effect="against"):
    return [reason.check for reason in decision.reasons if reason.effect == effect]


def begun(made=NEW_DATA, days=0.0, number=1, **more):
    return Entry(number=number, time=START - days * DAY, verdict=Verdict.RUN, made=made.digest, **more)


# ---------------------------------------------------------------------------------------------------------------- drift


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 33])
@pytest.mark.parametrize("statistic", [0.01, 0.7, 3.0, 11.3, 60.0])
def test_the_probability_of_chance_is_that_of_scipy(freedom, statistic):
    assert survival(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-9)


def test_the_index_and_the_test_are_those_of_the_textbook():
    before, now = {"ct": 500, "mr": 300, "xray": 200}, {"ct": 350, "mr": 300, "xray": 350}
    found = shift("phantom", "modality", before, now)
    # By hand: -0.15 ln 0.7 + 0.15 ln 1.75
    assert found.index == pytest.approx(0.15 * (0.35667494393873245 + 0.5596157879354227))
    assert found.chance == pytest.approx(stats.chi2_contingency([list(before.values()), list(now.values())])[1], rel=1e-9)


def test_equal_shares_have_not_moved_however_many_records_there_are():
    found = shift("phantom", "modality", {"ct": 10, "mr": 20}, {"ct": 1000, "mr": 2000})
    assert (found.index, found.chance) == (0.0, pytest.approx(1.0))
    assert not found.drifted(above=0.01, chance=0.5)


def test_a_value_that_is_new_is_a_shift_and_a_finite_one():
    found = shift("phantom", "modality", {"ct": 500}, {"ct": 400, "ultrasound": 100})
    assert found.drifted(above=0.2, chance=0.01)
    assert 0.2 < found.index < 2


def test_a_handful_of_records_is_no_drift_although_its_index_is_large():
    found = shift("phantom", "modality", {"ct": 3, "mr": 2}, {"ct": 1, "mr": 4})
    assert found.index > 0.25
    assert not found.drifted(above=0.2, chance=0.01)


def test_nothing_to_compare_is_no_drift():
    assert shift("phantom", "modality", {}, {"ct": 5}).index == 0


# ------------------------------------------------------------------------------------------------------------- feedback


def line(number, **changes):
    values = {"id": f"c-{number}", "set": "phantom", "record": f"train-{number}", "problem": "wrong_answer", "by": "reader-3"}
    return json.dumps(values | {"time": "2026-05-04T09:30:00Z"} | changes) + "\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "corrections.jsonl"
    path.write_text("".join(line(number) for number in range(5)))
    return path


def test_lines_are_counted_and_those_counted_before_must_still_be_there(file):
    first = feedback.read(file)
    file.write_text(file.read_text() + line(5))
    assert (first.lines, feedback.read(file, first).lines) == (5, 6)
    file.write_text(file.read_text().replace("train-2", "train-9"))
    with pytest.raises(RefusedError, match="first 5 lines"):
        feedback.read(file, first)
    file.write_text(line(0))
    with pytest.raises(RefusedError, match="first 5 lines"):
        feedback.read(file, first)


def test_a_file_that_nobody_wrote_yet_is_empty_and_one_that_vanished_is_missing(tmp_path, file):
    assert feedback.read(tmp_path / "none.jsonl") == Feedback()
    with pytest.raises(MissingInputError, match="5 lines were counted"):
        feedback.read(tmp_path / "none.jsonl", feedback.read(file))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line(1, patient="Jane Doe"), "an unknown field"),
        (line(1, problem="Jane Doe is ill"), "problem: "),
        (line(1, time="yesterday"), "time: "),
        (line(1, answer=7), "answer: "),
        (line(0), "stands in an earlier line"),
        (line(1)[:-2] + "\n", "json"),
        ('{"id": "a", "id": "b"}\n', "duplicate_key"),
        ("[]\n", "the line|an unknown field"),
        (line(1)[:-1], "has no end"),
        ("\n", "json"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_never_quoted(file, bad, said):
    file.write_text(line(0) + bad)
    with pytest.raises(DataError, match=f"corrections.jsonl:2: .*({said})") as caught:
        feedback.read(file)
    assert "Jane" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- deciding


def test_nothing_changed_is_said_so():
    decision = look(facts())
    assert (decision.verdict, decision.unchanged) == ("skip", True)
    assert "unchanged: data, base models, recipe and code are those of version 3 of 2025-11-22" in decision.summary


def test_the_first_training_needs_no_other_reason():
    assert (look(facts(basis=None)).verdict, checks(look(facts(basis=None)), "for")) == ("run", ["first"])


DRIFT = shift("phantom", "modality", {"ct": 500}, {"ct": 400, "us": 100})
TAGGED = CodeState(commit="abc", dirty=False, tags=("v1.2",))
CODE = OLD.model_copy(update={"code": "9" * 64})


@pytest.mark.parametrize(
    ("now", "more", "on", "check", "counts"),
    [
        (NEW_DATA, {}, {}, "data", True),
        (NEW_DATA, {}, {"data_version": False}, "data", False),
        (NEW_DATA, {"shifts": (DRIFT,)}, {"data_version": False, "drift": {}}, "drift", True),
        (NEW_DATA, {"shifts": (DRIFT,)}, {"data_version": False, "drift": {"above": 3}}, "data", False),
        (OLD.model_copy(update={"bases": {"tower": "9" * 64}}), {}, {}, "base_model", True),
        (OLD.model_copy(update={"bases": {"tower": "9" * 64}}), {}, {"base_model": False}, "base_model", False),
        (OLD.model_copy(update={"recipe": OLD.recipe | {"task": "9" * 64}}), {}, {}, "recipe", True),
        (OLD.model_copy(update={"recipe": OLD.recipe | {"task": "9" * 64}}), {}, {"recipe": False}, "recipe", False),
        (CODE, {"code": TAGGED}, {}, "code", True),
        (CODE, {"code": TAGGED.model_copy(update={"dirty": True})}, {}, "code", False),
        (CODE, {"code": TAGGED.model_copy(update={"tags": ()})}, {}, "code", False),
        (CODE, {"code": TAGGED}, {"code": "never"}, "code", False),
        (CODE, {}, {"code": "any"}, "code", True),
        (OLD, {"feedback": Feedback(lines=60), "counted": Feedback(lines=10)}, {"feedback": {"file": "f"}}, "feedback", True),
        (OLD, {"feedback": Feedback(lines=59), "counted": Feedback(lines=10)}, {"feedback": {"file": "f"}}, "feedback", False),
    ],
)
def test_each_reason_counts_where_the_policy_says_so_and_is_told_where_not(now, more, on, check, counts):
    decision = look(facts(now, **more), policy(because=on))
    assert decision.verdict == ("run" if counts else "skip")
    assert check in checks(decision, "for" if counts else "note")
    assert checks(decision) == ([] if counts else ["no_reason"])


def test_it_is_looked_at_when_the_cron_expression_has_come_and_once():
    seen = begun(OLD, days=1).model_copy(update={"verdict": Verdict.SKIP})
    assert checks(look(facts(NEW_DATA), history=[seen], moment=START - 2 * DAY)) == ["when"]
    assert look(facts(NEW_DATA), history=[seen], moment=START).verdict == "run"
    assert look(facts(NEW_DATA, asked_by_schedule=True), history=[seen], moment=START - 2 * DAY).verdict == "run"


def test_a_training_too_soon_after_the_last_waits_for_the_cool_down():
    assert checks(look(facts(NEW_DATA), history=[begun(OLD, days=6, exit_code=0)])) == ["cool_down"]
    assert look(facts(NEW_DATA), history=[begun(OLD, days=7, exit_code=0)]).verdict == "run"


def test_what_costs_more_than_the_budget_is_not_begun():
    assert checks(look(facts(NEW_DATA, gpu_hours=41))) == ["budget"]
    month = policy(budget={"gpu_hours": 40, "gpu_hours_in_30_days": 60})
    spent = [begun(OLD, days=20, gpu_hours=30, exit_code=0)]
    assert checks(look(facts(NEW_DATA, gpu_hours=31), month, spent)) == ["budget"]
    assert look(facts(NEW_DATA, gpu_hours=30), month, spent).verdict == "run"
    old = [begun(OLD, days=31, gpu_hours=30, exit_code=0)]
    assert look(facts(NEW_DATA, gpu_hours=31), month, old).verdict == "run"


def test_a_cost_that_nobody_knows_is_refused_unless_the_policy_takes_the_risk():
    assert checks(look(facts(NEW_DATA, gpu_hours=None))) == ["budget"]
    assert look(facts(NEW_DATA, gpu_hours=None), policy(budget={"gpu_hours": 40, "if_unknown": "run"})).verdict == "run"


def test_what_broke_off_goes_on_at_once_and_at_no_further_cost():
    broken = begun(days=1, exit_code=75, gpu_hours=40)
    rules = policy(budget={"gpu_hours": 40, "gpu_hours_in_30_days": 40})
    decision = look(facts(NEW_DATA, gpu_hours=40), rules, [broken])
    assert (decision.verdict, decision.goes_on) == ("run", True)


def test_what_cannot_succeed_is_not_tried_again_until_something_changes():
    diverged = begun(days=30, exit_code=79)
    assert checks(look(facts(NEW_DATA), history=[diverged])) == ["tried"]
    mended = NEW_DATA.model_copy(update={"recipe": {"align": "1" * 64}})
    assert look(facts(mended), history=[diverged]).verdict == "run"


def test_what_ended_three_times_without_a_word_waits_for_a_person():
    silent = [begun(days=90 - 30 * number, number=number) for number in (1, 2, 3)]
    assert look(facts(NEW_DATA), history=silent[:2]).verdict == "run"
    assert "tried" in checks(look(facts(NEW_DATA), history=silent))


def test_data_that_went_back_to_what_was_trained_before_is_not_trained_again():
    assert checks(look(facts(NEW_DATA), history=[begun(days=60, exit_code=0)])) == ["tried"]


def test_release_tags_are_those_of_the_commit_and_an_image_knows_them_too(tmp_path):
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgSign=false")
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "a"), ("tag", "v1.0"), ("tag", "draft")):
        subprocess.run((*git, *words), check=True)
    state = basis.code_state("v*", tmp_path)
    assert (state.tags, state.dirty, len(state.commit)) == (("v1.0",), False, 40)
    image = tmp_path / "image"
    image.mkdir()
    (image / code.REVISION).write_text(json.dumps({"commit": "c" * 40, "dirty": False, "tags": "v2.0 draft"}))
    assert basis.code_state("v*", image) == CodeState(commit="c" * 40, dirty=False, tags=("v2.0",))


def months(year=2026):
    moment = START.replace(year=year)
    for _ in range(12):
        yield moment
        moment += calendar.monthrange(moment.year, moment.month)[1] * DAY


def test_in_twelve_months_each_change_trains_once_and_nothing_else_does():
    """Data come in March and July, a release in July, an edited recipe in October; the run of March is stopped and goes on in April."""
    rules, state, trained, history, verdicts = policy(), OLD, None, [], {}
    for moment in months():
        month = moment.month
        state = {
            3: NEW_DATA,
            7: CODE,
            10: CODE.model_copy(update={"recipe": {"align": "1" * 64}}),
        }.get(month, state)
        decision = decide(rules, facts(state, trained, code=TAGGED), moment, history, moment)
        verdicts[month] = decision.verdict.value
        ended = 75 if month == 3 else 0
        ran = decision.verdict is Verdict.RUN
        entry = begun(state, number=month).model_copy(update={"time": moment, "verdict": decision.verdict})
        history.append(entry.model_copy(update={"exit_code": ended if ran else None}))
        if ran and ended == 0:
            trained = Basis(version=str(month), made=state, created=moment)
    assert [month for month, verdict in verdicts.items() if verdict == "run"] == [1, 3, 4, 7, 10]


# ----------------------------------------------------------------------------------------------------------- the history


def test_looks_come_back_with_the_ends_of_their_trainings(settings):
    journal = Journal(settings, "monthly")
    assert journal.entries() == []
    journal.append(begun())
    journal.ended(1, 79, "run-7")
    journal.ended(1, 0, "run-8")
    (found,) = journal.entries()
    assert (found.exit_code, found.run_id, found.made) == (79, "run-7", NEW_DATA.digest), "what was said first stays"


def test_of_two_looks_at_once_one_is_written(settings):
    refused = []

    def write():
        try:
            Journal(settings, "monthly").append(begun())
        except RefusedError as error:
            refused.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(refused), len(Journal(settings, "monthly").entries())) == (7, 1)


def test_a_history_with_a_gap_or_a_changed_look_is_refused(settings):
    journal = Journal(settings, "monthly")
    for number in (1, 2, 3):
        journal.append(begun(number=number))
    folder = settings.home / "retraining" / "monthly"
    (folder / "000003.json").write_text("{}")
    with pytest.raises(DataError, match="no look of a policy"):
        journal.entries()
    (folder / "000002.json").unlink()
    with pytest.raises(DataError, match="a look is missing"):
        journal.entries()


def test_pods_share_the_history_through_the_bucket(settings, shared, monkeypatch):
    from dataclasses import replace

    there = replace(settings, shared_store=shared)
    Journal(there, "monthly").append(begun())
    with pytest.raises(RefusedError, match="at the same time"):
        Journal(there, "monthly").append(begun())
    Journal(there, "monthly").ended(1, 0, "run-1")
    (found,) = Journal(replace(there, home=settings.home / "elsewhere"), "monthly").entries()
    assert found.exit_code == 0
