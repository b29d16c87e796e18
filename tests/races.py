"""Many processes promote at once, over a real registry and a real ledger; what is left when they are done.

1. `Racers` forks processes that stay, from a parent that has imported MLflow and opened nothing: each opens its own client.
2. `same(name)` lets all promote one version; `different(name)` lets each promote its own, and whoever finds another champion than it
   was measured with is measured again, as a run that is repeated would be.
3. Both give an `Outcome`: what every process was told, the ledger, and the registry's aliases at rest, which are set by the processes
   themselves: nobody reconciles afterwards.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from components.platform.ledger import acts, registry
from components.platform.ledger.entry import Entry
from components.platform.ledger.registry import Book
from components.platform.ledger.rules import Candidate
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.errors import RefusedError
from model.manifest import digest_of

MOST_TURNS = 400


@dataclass(frozen=True)
class Outcome:
    """What a round left."""

    told: list[tuple[int, bool, int]]
    """Of each process: number of the entry it was told of (0 for none), whether it wrote it, and how often it was refused."""
    entries: tuple[Entry, ...]
    aliases: dict[str, str]

    @property
    def at_rest(self) -> bool:
        """Whether the aliases are where the ledger has them."""
        return self.aliases == dict(acts.state(self.entries).aliases)


class Racers:
    """Processes that wait for a word. A context: they end with it."""

    def __init__(self, processes: int, environment: Mapping[str, str]) -> None:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (once, before the forks)

        context = multiprocessing.get_context("fork")
        self._barrier = context.Barrier(processes)
        self._environment = dict(environment)
        self.settings = Settings.from_environment(self._environment)
        pairs = [context.Pipe() for _ in range(processes)]
        self._ends = [pair[0] for pair in pairs]
        self._children = [
            context.Process(target=self._live, args=(number, pair[1]), daemon=True) for number, pair in enumerate(pairs)
        ]
        for child in self._children:
            child.start()

    def __enter__(self) -> Racers:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.join()

    def same(self, name: str) -> Outcome:
        """All promote version 1."""
        self._one(_register, name, 1)
        return self._round(_promote_same, name)

    def different(self, name: str) -> Outcome:
        """Process n promotes version n + 1."""
        self._one(_register, name, len(self._ends))
        return self._round(_promote_own, name)

    def _round(self, act: Callable[..., Any], name: str) -> Outcome:
        for number, end in enumerate(self._ends):
            end.send((act, (name, number), True))
        told = [self._answer(end) for end in self._ends]
        entries, aliases = self._one(_left, name)
        return Outcome(told, entries, aliases)

    def _one(self, act: Callable[..., Any], *args: Any) -> Any:
        self._ends[0].send((act, args, False))
        return self._answer(self._ends[0])

    @staticmethod
    def _answer(end: Connection) -> Any:
        fine, answer = end.recv()
        if not fine:
            raise AssertionError(f"a process failed: {answer}")
        return answer

    def _live(self, number: int, end: Connection) -> None:
        os.environ.update(self._environment)
        settings = Settings.from_environment()
        while True:
            act, args, together = end.recv()
            try:
                if together:
                    self._barrier.wait(60)
                end.send((True, act(settings, *args)))
            except BaseException:
                end.send((False, f"{number}: {traceback.format_exc()}"))


def _register(settings: Settings, name: str, versions: int) -> None:
    client = Tracking(settings).client
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, source="exports/none")


def _promote_same(settings: Settings, name: str, number: int) -> tuple[int, bool, int]:
    book = Book(settings, name)
    candidate = Candidate("1", "", 0, {"decision": digest_of(name)})
    done = acts.offer(book, candidate, f"run {number}", digest_of(["same", name]), book.ledger.claim(f"run-{number}"))
    return (done.entry.number if done.entry else 0, done.new, 0)


def _promote_own(settings: Settings, name: str, number: int) -> tuple[int, bool, int]:
    book = Book(settings, name)
    version = str(number + 1)
    for turn in range(MOST_TURNS):
        now = registry.standing(settings, name)
        assert now is not None
        candidate = Candidate(version, now.state.champion, now.since, {"decision": digest_of([name, version, turn])})
        try:
            done = acts.offer(book, candidate, f"run {number}", digest_of(["own", name, version, now.since]))
        except RefusedError:
            continue
        return (done.entry.number if done.entry else 0, done.new, turn)
    raise AssertionError(f"refused {MOST_TURNS} times")


def _left(settings: Settings, name: str) -> tuple[tuple[Entry, ...], dict[str, str]]:
    book = Book(settings, name)
    return book.entries(), dict(book.facts().aliases)
