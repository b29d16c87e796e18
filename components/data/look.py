"""A scheduled run's first look at the data: train again, or not? The pods' way to what `pipelines/retraining.py` does on one machine.

1. Preflight asks a `Question`: the policy, the last training, recipe and code now, and the policy's history.
2. Here the data registry is at hand. Its newest digests, and how far the mix has moved, complete the facts; the same pure `decide` answers.
3. The look is written into the history, with the id of the run. A step that is started again finds it there and does not decide anew.
4. For `skip` the data step makes nothing, and every step behind it passes that on: an unchanged month costs seconds, and says so.

A run is thought to cost its budget, to which preflight cut its deadlines: pods do not estimate.
"""

from __future__ import annotations

import datetime

from components.data import newest
from components.data.registry_url import open_registry
from components.platform.events import EventLog, EventType
from components.platform.retraining.decision import Entry, Verdict, decide
from components.platform.retraining.journal import Journal, entry_of
from components.platform.retraining.question import Question
from components.platform.settings import Settings
from model.config import DataSlice


def skips(question: str, wanted: DataSlice, log: EventLog) -> str:
    """Why the run is skipped; empty if it is not.

    Args:
        question: Preflight's, as JSON.
        wanted: What the data step would see.
        log: Is told why the run goes on, if it does.
    """
    settings = Settings.from_environment()
    entry = answer(Question.model_validate_json(question), wanted, settings, datetime.datetime.now(datetime.UTC))
    said = "; ".join(reason.text for reason in entry.reasons)
    if entry.verdict is Verdict.SKIP:
        return said
    log.write(EventType.NOTE, message=f"run: {said}")
    return ""


def answer(asked: Question, wanted: DataSlice, settings: Settings, now: datetime.datetime) -> Entry:
    """The look of this run, written into the policy's history.

    Raises:
        RefusedError: Another run of the policy looked at the same time. MissingInputError: The data registry does not answer.
    """
    if asked.history and asked.history[-1].run_id == settings.run_id:
        return asked.history[-1]
    registry, facts = open_registry(settings), asked.facts
    data, bases = newest.digests(wanted, registry)
    drift, before = asked.policy.because.drift, facts.basis
    shifts = newest.shifts(wanted, registry, settings, before.revisions, drift.of) if drift and before else ()
    facts = facts.model_copy(update={"now": facts.now.model_copy(update={"data": data, "bases": bases}), "shifts": shifts})
    decision = decide(asked.policy, facts, now, asked.history, None)
    entry = entry_of(decision, facts, asked.history, now, settings.run_id)
    Journal(settings, asked.policy.name).append(entry)
    return entry
