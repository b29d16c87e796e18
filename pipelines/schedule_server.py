"""Make the schedules of a file real on a KFP server.

1. `apply` decides for each schedule, makes what is missing, lists again, and deletes what is superseded: first the new one, then the old
   ones away, so that a schedule is never without a recurring run.
2. Whoever made one lists afterwards and keeps the winner of all with the same spec. So any number of appliers of one file end with one
   recurring run: the winner is never deleted by anyone, and every other is seen together with it by whoever came later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import MissingInputError
from pipelines import schedules
from pipelines.cluster import Server
from pipelines.schedules import Decision, Found, Wanted
from pipelines.submit import Package, publish


@dataclass(frozen=True)
class Applied:
    """What was done about one schedule."""

    name: str
    word: str
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
    first = schedules.decide(wanted, schedules.found(server.schedules()))
    superseded = {one.identifier for one in first.delete}
    if first.make:
        server.add_schedule(
            experiment,
            pipeline,
            first.enabled,
            name=wanted.name,
            description=wanted.description,
            cron=wanted.cron,
            no_catchup=wanted.no_catchup,
            parameters=wanted.parameters,
        )
    last = schedules.decide(wanted, schedules.found(server.schedules())) if first.make else first
    if last.keep is None:
        raise MissingInputError(f"the schedule {wanted.name} vanished while it was made", "someone deletes it: find out who")
    for one in last.delete:
        # What was not there before, and is of another spec, belongs to someone who applies another file at this moment.
        if one.identifier in superseded or one.spec == wanted.spec:
            server.remove_schedule(one.identifier)
    return Applied(wanted.name, first.word, last.keep.identifier, last.keep.enabled, first.why)


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
