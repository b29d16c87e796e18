"""The place in the bucket where a launcher and its heavy work leave word for each other, since they share no disk.

    s3://BUCKET/PREFIX/heavy/RUN/KEY/spec.json        what is to be done; the launcher writes it first
                                     events/000001    lines for the event log of the step, one object for each delivery
                                     attempts         how often the workers were started (components/platform/retries.py)
                                     letter.json      what a worker died of; the first one stays
                                     stop             the launcher asks the workers to save and end
                                     result.json      how it ended; the entrypoint writes it last

1. A launcher calls `begin`, and then `events_after`, `ask_stop` and `result` as long as the work goes on.
2. The entrypoint reads `spec`, calls `clear`, and writes `write_result` at its end.
3. On each node a `Courier` stands between a worker's files and the desk.

One desk for one step of one run: a step that is tried again finds the job that still works, its events and its result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from components.platform import letter
from components.platform.events import Event, parse
from components.platform.heavy import Result
from components.platform.objects import Objects, place_of
from components.platform.settings import Settings
from components.platform.task import Places, Task
from model.errors import BiovlmError, DataError

SPEC, RESULT, STOP, ATTEMPTS = "spec.json", "result.json", "stop", "attempts"
COURIER_SECONDS = 2.0


class Spec(BaseModel):
    """What the entrypoint is given: the task, and what its machine cannot know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task
    store: str
    checkpoints: str
    trace: bool
    feature_cache_gib: float

    def settings(self, here: Settings) -> Settings:
        """The settings of this machine, for this task."""
        return dataclasses.replace(
            here,
            run_id=self.task.run_id,
            shared_store=self.store,
            checkpoints=self.checkpoints,
            trace=self.trace,
            feature_cache_gib=self.feature_cache_gib,
            launcher="process",
            ray_address="",
        )


class Desk:
    """The desk of one step in one run.

    Args:
        objects: Its prefix.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @classmethod
    def of(cls, store: str, run_id: str, key: str) -> Desk:
        """The desk of a key in a run; `store` is the address of the shared store."""
        return cls(Objects(*place_of(store, "BIOVLM_STORE", "a shared store")).at("heavy", run_id, key))

    @classmethod
    def at(cls, spec_uri: str) -> Desk:
        """The desk on which that spec lies. ConfigError: the address is no s3://BUCKET/PREFIX/spec.json."""
        folder = spec_uri.removesuffix(f"/{SPEC}")
        return cls(Objects(*place_of(folder if folder != spec_uri else "", "the spec's address", f"a spec ({spec_uri})")))

    @property
    def spec_uri(self) -> str:
        """Address of the spec."""
        return f"{self._objects.label}/{SPEC}"

    @property
    def result_uri(self) -> str:
        """Address of the result."""
        return f"{self._objects.label}/{RESULT}"

    # ---------------------------------------------------------------------------------------------------------- launcher

    def begin(self, task: Task, settings: Settings) -> None:
        """Lay the spec on the desk. A stop of an earlier attempt is taken back: this one wants the work done."""
        checkpoints = settings.checkpoints or f"{settings.shared_store.rstrip('/')}/checkpoints"
        spec = Spec(
            task=task,
            store=settings.shared_store,
            checkpoints=checkpoints,
            trace=settings.trace,
            feature_cache_gib=settings.feature_cache_gib,
        )
        self._objects.delete([STOP])
        self._objects.put(SPEC, spec.model_dump_json(indent=1).encode())

    def result(self) -> Result | None:
        """What the entrypoint wrote last; None if there is nothing."""
        content = self._objects.find(RESULT)
        if content is None:
            return None
        try:
            known = {field.name for field in dataclasses.fields(Result)}
            return Result(**{name: value for name, value in json.loads(content).items() if name in known})
        except (ValueError, TypeError, AttributeError):
            raise DataError(f"{self.result_uri} is no result", "remove it, and run the step again") from None

    def forget_result(self) -> None:
        """Remove the result."""
        self._objects.delete([RESULT])

    def ask_stop(self) -> None:
        """Ask the workers to save and end."""
        self._objects.put(STOP, b"")

    def events_after(self, number: int) -> Iterator[tuple[int, list[Event]]]:
        """Deliveries of events behind the one of `number`, each with its own number."""
        while (content := self._objects.find(_delivery(number + 1))) is not None:
            number += 1
            yield number, parse(content)

    # ---------------------------------------------------------------------------------------------------------- the work

    def spec(self) -> Spec:
        """The spec. MissingInputError: there is none; DataError: it is not one, or of another version."""
        try:
            return Spec.model_validate_json(self._objects.get(SPEC))
        except ValidationError as error:
            raise DataError(
                f"{self.spec_uri} is no spec: {error.errors()[0]['msg']}",
                "launcher and train image must be of one version: build both from one commit",
            ) from None

    def clear(self) -> None:
        """Take away what an earlier job left: its result and its letter."""
        self._objects.delete([RESULT, letter.NAME])

    def write_result(self, result: Result) -> None:
        """The last word of a job."""
        self._objects.put(RESULT, json.dumps(dataclasses.asdict(result), indent=1).encode())

    def stop_asked(self) -> bool:
        """Whether the launcher asked the workers to end."""
        return STOP in self._objects.names(STOP)

    def pull(self, name: str, path: Path) -> None:
        """Write an object into a file, unless there is none."""
        content = self._objects.find(name)
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def push(self, name: str, path: Path, once: bool = False) -> None:
        """Put a file, if there is one; with `once` an object that is there stays."""
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            if once:
                self._objects.put_new(name, content)
            else:
                self._objects.put(name, content)

    def deliver(self, lines: bytes, after: int) -> int:
        """Put lines for the event log behind delivery `after`; the number that they got."""
        number = after + 1
        while not self._objects.put_new(_delivery(number), lines):
            number += 1
        return number


class Courier:
    """Carries between the files of one worker and the desk, in a thread, until the worker ends.

    Args:
        desk: The desk.
        places: Files of the worker.
        leads: It is rank 0, which alone tells events and counts attempts.
    """

    def __init__(self, desk: Desk, places: Places, leads: bool) -> None:
        self._desk, self._places, self._leads = desk, places, leads
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go, name="courier", daemon=True)
        self._offset = self._number = 0
        self._counted = b""

    def __enter__(self) -> Courier:
        """Bring what others know; errors of the bucket are raised here."""
        self._desk.pull(letter.NAME, self._places.scratch / letter.NAME)
        self._desk.pull(ATTEMPTS, self._places.attempts)
        with contextlib.suppress(FileNotFoundError):  # a worker of this node was here before, and its courier brought that
            self._offset = self._places.events.stat().st_size
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Bring what the worker left, the letter first."""
        self._ended.set()
        self._thread.join(timeout=60)
        self._desk.push(letter.NAME, self._places.scratch / letter.NAME, once=True)
        if self._leads:
            self._count()
            self._deliver()

    def _go(self) -> None:
        while not self._ended.wait(COURIER_SECONDS):
            with contextlib.suppress(BiovlmError):  # a store that is away for a while must not end the training
                if self._desk.stop_asked():
                    (self._places.scratch / STOP).touch()
                if self._leads:
                    self._count()  # soon after it has begun: a worker that is killed tells nothing more
                    self._deliver()

    def _count(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            counted = self._places.attempts.read_bytes()
            if counted != self._counted:
                self._desk.push(ATTEMPTS, self._places.attempts)
                self._counted = counted

    def _deliver(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._places.events.open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._number = self._desk.deliver(whole, self._number)
                self._offset += len(whole)


def _delivery(number: int) -> str:
    return f"events/{number:06d}"
