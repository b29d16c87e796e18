"""Why a step on a cluster failed, through the server that a cluster has: MLflow's own, over PostgreSQL."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from components.platform import mirror
from components.platform.events import EventLog, EventType
from components.platform.settings import Settings
from model.errors import DataError, MissingInputError
from pipelines import grounds, letters

pytestmark = [pytest.mark.lane, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def reach(tmp_path_factory):
    """Variables that lead to the servers."""
    try:
        grounds.check()
    except MissingInputError as missing:
        pytest.skip(missing.message)
    with grounds.lay(tmp_path_factory.mktemp("servers")) as (reach, laid):
        laid()
        yield reach


def settings(home, reach, run_id):
    return Settings.from_environment({**reach, "BIOVLM_HOME": str(home), "BIOVLM_RUN_ID": run_id})


@pytest.fixture
def failed(tmp_path, reach, monkeypatch):
    """A pod whose step failed, and copied its events to MLflow before it ended."""
    for name, value in reach.items():
        monkeypatch.setenv(name, value)
    mine = settings(tmp_path / "pod", reach, "run-1")
    EventLog(mine.events).write(EventType.RUN_STARTED, facts={"recipe": "tiny", "steps": ["align", "instruct"]})
    EventLog(mine.events, "instruct").write(EventType.STEP_STARTED)
    log = EventLog(mine.events, "align")
    log.write(EventType.STEP_STARTED)
    log.write(EventType.FAILED, exit_code=65, message="37 records have no image", hint="`biovlm data audit` names them")
    mirror.copy_once(mine)
    return settings(tmp_path / "desk", reach, "adhoc")


def test_the_letter_of_a_failed_step_comes_back_with_its_code_and_its_hint(failed):
    """And nobody reads the pod's log, which may be gone."""
    run = SimpleNamespace(run_id="run-1", failed=SimpleNamespace(name="align", pods=("pod-1",)))
    letter = letters.why(run, SimpleNamespace(log=lambda *_: pytest.fail("the log was read")), failed)
    assert isinstance(letter, DataError)
    assert (letter.message, letter.hint) == ("align: 37 records have no image", "`biovlm data audit` names them")


@pytest.mark.parametrize(("run_id", "step"), [("run-1", "instruct"), ("run-1", "task"), ("run-2", "align")])
def test_a_step_that_did_not_fail_and_one_that_nobody_heard_of_have_no_letter(failed, run_id, step):
    assert letters.from_tracking(run_id, step, failed) is None


def test_where_the_server_is_away_the_log_of_the_pod_is_read(tmp_path):
    away = Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    run = SimpleNamespace(run_id="run-1", failed=SimpleNamespace(name="align", pods=("pod-1",)))
    said = "align: 37 records have no image\nhint: look\nexit status 65\n"
    letter = letters.why(run, SimpleNamespace(log=lambda *_: said), away)
    assert isinstance(letter, DataError)
    assert letter.hint == "look"
