"""Make the schedules of a file real on a KFP server.

1. `apply` decides for each schedule, makes what is missing, lists again, and deletes all but the newest of that name: first the new one,
   then the old ones away, so that a schedule is never without a recurring run.
2. Any number of appliers, of one file or of several, end with one recurring run, the newest: it is deleted by nobody, and every other is
   seen together with it by whoever came later. Whose file lost that race is told so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import InternalError, MissingInputError
from pipelines import schedules
from pipelines.cluster import Server
from pipelines.schedules import Decision, Found, Wanted
from pipelines.submit import Package, publish

PAUSES_SECONDS = (0.0, 1.0, 1.0)
"""Before making one: the server's times are whole seconds, so of an old and a new one of the same second the old one can be the newest."""


@dataclass(frozen=True)
class Applied:
    """What was done about one schedule."""

    name: str
    word: str
    """As a decision's, or `lost`: another file that names this schedule was applied at the same moment, and its one stays."""
    identifier: str
    enabled: bool
    why: tuple[str, ...]


def diff(server: Server, wanted: Sequence[Wanted]) -> list[tuple[Wanted, Decision]]:
    """What `apply` would do."""
    there = schedules.found(server.schedules())
    return [(one, schedules.decide(one, there)) for one in wanted]


def extra(server: Server, wanted: Sequence[Wanted]) -> list[Found]:
    """Schedules of ours on the server that the file does not name."""
    named = {one.name for one in wanted}
    return [one for one in schedules.found(server.schedules()) if one.name not in named]


def apply(server: Server, wanted: Sequence[Wanted], package: Package, experiment: str) -> list[Applied]:
    """Make the server's schedules those of the file; what the file does not name stays.

    Args:
        server: The server.
        wanted: The schedules of a file.
        package: The pipeline, uploaded if the server has not got it: schedules follow the newest version.
        experiment: Name of the experiment of their runs.
    """
    server.check()
    pipeline, _ = publish(server, package)
    place = server.experiment(experiment)
    return [_settle(server, one, pipeline, place) for one in wanted]


def _settle(server: Server, wanted: Wanted, pipeline: str, experiment: str) -> Applied:
    there = _named(server, wanted)
    first = now = schedules.decide(wanted, there)
    before, last = {one.identifier for one in there}, schedules.newest(there)
    for seconds in PAUSES_SECONDS:
        if not now.make or (now is not first and (last is None or last.identifier not in before)):
            break  # as wanted; or another file was applied after this one looked
        time.sleep(seconds)
        _make(server, wanted, pipeline, experiment, first.enabled)
        there = _named(server, wanted)
        now, last = schedules.decide(wanted, there), schedules.newest(there)
    if last is None:
        raise MissingInputError(f"the schedule {wanted.name} vanished while it was made", "someone deletes it: find out who")
    for one in there:
        if one is not last:
            server.remove_schedule(one.identifier)
    if now.make and last.spec == wanted.spec:
        raise InternalError(
            f"the server keeps {wanted.name} otherwise than it was asked to: {'; '.join(now.why)}", "ask its operator"
        )
    return Applied(wanted.name, "lost" if now.make else first.word, last.identifier, last.enabled, first.why)


def _named(server: Server, wanted: Wanted) -> list[Found]:
    return [one for one in schedules.found(server.schedules()) if one.name == wanted.name]


def _make(server: Server, wanted: Wanted, pipeline: str, experiment: str, enabled: bool) -> None:
    server.add_schedule(
        experiment,
        pipeline,
        enabled,
        name=wanted.name,
        description=wanted.description,
        cron=wanted.cron,
        no_catchup=wanted.no_catchup,
        parameters=wanted.parameters,
    )


def prune(server: Server, wanted: Sequence[Wanted]) -> list[Found]:
    """Delete the schedules of ours that the file does not name; what was deleted."""
    gone = extra(server, wanted)
    for one in gone:
        server.remove_schedule(one.identifier)
    return gone


def switch(server: Server, wanted: Sequence[Wanted], enabled: bool) -> list[Found]:
    """Let the schedules of a file run, or pause them; which they were. MissingInputError if one is not on the server."""
    there = schedules.found(server.schedules())
    missing = [one.name for one in wanted if one.name not in {known.name for known in there}]
    if missing:
        raise MissingInputError(f"not on the server: {', '.join(missing)}", "`biovlm schedule apply FILE` makes them")
    mine = [one for one in there if one.name in {wish.name for wish in wanted}]
    for one in mine:
        server.enable_schedule(one.identifier, enabled)
    return mine
