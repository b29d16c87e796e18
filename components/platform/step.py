"""The one way a step runs.

1. `guarded(name)` stands around everything: whatever goes wrong becomes one `failed` event and the exit code of `model.errors`.
2. `run_step` reads the references of the inputs and makes the **key**: kind, slice, what was read, code.
3. A result in the store under that key, verified, is the step's result: nothing is imported, trained or asked again.
   So is a step of a run that a policy skipped: the data step or an input says so, and the result says it on.
4. Else every input is verified, `produce(work)` writes the artifact at `work.final`, and its record goes beside it.
5. The artifact is published, for steps on other machines, and its lineage is written beside it
   (components/platform/lineage/steps.py). The reference is written where KFP wants the output; events tell all of it.

Nothing here imports torch, ray or mlflow: a reused step is over in well under a second.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from components.platform import code, events, reference
from components.platform import origin as origins
from components.platform.cost import Meter
from components.platform.events import EventLog, EventType
from components.platform.heavy import Result
from components.platform.lineage import steps
from components.platform.origin import Origin
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.store import Source, StepRecord, Store, open_store
from components.platform.task import Task
from model import manifest, recipe
from model.config import Resources
from model.errors import BiovlmError, InternalError, MissingInputError, PreemptedError

LIBRARIES = ("torch", "transformers", "peft", "safetensors", "ray", "numpy", "pillow")
STOP_FILE = "stop"
"""In the run's folder: no further step of the run begins."""


@dataclass(frozen=True)
class Work:
    """What `produce` gets to know."""

    settings: Settings
    store: Store
    log: EventLog
    name: str
    piece: Mapping[str, Any]
    key: str
    final: Path
    """The artifact goes here, by `model.manifest.commit`."""
    scratch: Path
    """What must survive a stop goes here; removed when the step is done."""
    inputs: dict[str, Reference]
    parents: dict[str, str]
    """Role -> digest of the inputs, for the manifest."""
    kind: str

    def note(self, sentence: str) -> None:
        """Tell the reader of the run."""
        self.log.write(EventType.NOTE, message=sentence)

    def source(self, ref: Reference) -> Source:
        """An input by its place in the store."""
        return Source(kind=ref.kind, uri=self.store.uri(ref.folder), digest=ref.digest)

    def task(self, function: str, job: dict[str, Any], artifacts: dict[str, dict[str, Source]], resources: Resources) -> Task:
        """This step's heavy work (components/platform/task.py)."""
        return Task(
            function=function,
            job=job,
            artifacts=artifacts,
            resources=resources,
            kind=self.kind,
            key=self.key,
            step=self.name,
            run_id=self.settings.run_id,
            attempt=self.log.attempt,
        )


def run_step(
    kind: str,
    name: str,
    piece: Mapping[str, Any],
    inputs: Mapping[str, str | None],
    out: str,
    produce: Callable[[Work], Result | None],
    identify: Callable[[Mapping[str, Reference]], dict[str, str]] | None = None,
    still_good: Callable[[manifest.Manifest], bool] | None = None,
    heavy: bool = False,
    skip: Callable[[EventLog], str] | None = None,
) -> Reference:
    """Reuse or make the result of one step, and write the reference to it.

    Args:
        kind: Kind of step; decides which code belongs to the key.
        name: Name of the step in its pipeline.
        piece: The step's slice of the recipe.
        inputs: Role -> path of a reference file; roles without a path are left out.
        out: Where KFP wants the reference to the result.
        produce: Writes the artifact; what the cluster said of it, if it was not made in this process's environment.
        identify: What of the inputs belongs to the key; the digest of each, unless given.
        still_good: A last question about a stored result; False runs the step again.
        heavy: Its inputs are read where the launcher has the work done, and need not come to this machine.
        skip: Asked first: why the whole run is to be skipped; empty if it is not.
    """
    settings = Settings.from_environment()
    with guarded(name, settings) as log:
        store = open_store(settings)
        given = {role: reference.read(path, store.root) for role, path in inputs.items() if path}
        reason = (skip(log) if skip else "") or next((ref.skipped for ref in given.values() if ref.skipped), "")
        if reason:
            return _passed_over(reason, out, store, log)
        identity = identify(given) if identify else {role: ref.digest for role, ref in given.items()}
        key = key_of(kind, piece, identity, code.digest(kind))
        tell = partial(log.write, EventType.NOTE)
        with store.alone(kind, key, lambda: tell(message="another run is making this result; waiting for it")):
            stored = store.lookup(kind, key, lambda sentence: tell(message=sentence))
            if stored is not None and (still_good is None or still_good(stored)):
                result = Reference.to(store.folder(kind, key), stored)
                log.write(EventType.REUSED, facts=_facts(kind, key, result) | _cost(store.record(kind, key)))
            else:
                with Meter(store.moved) as meter:
                    parents = _verified(given, store, elsewhere=heavy and settings.launcher != "process")
                    folders = store.folder(kind, key), store.scratch(kind, key)
                    work = Work(settings, store, log, name, piece, key, *folders, given, parents, kind)
                    record = _record(kind, identity, work)
                    store.write_record(record)
                    there = produce(work)
                result = _keep(store, work, record, there, meter)
        result.write(Path(out), store.root)
    return result


def _passed_over(reason: str, out: str, store: Store, log: EventLog) -> Reference:
    """The result of a step in a run that is skipped: nothing, with the reason."""
    nothing = Reference(kind=reference.NONE, facts={reference.SKIPPED: reason})
    nothing.write(Path(out), store.root)
    log.write(EventType.REUSED, message=f"skipped: {reason}", seconds=0.0)
    return nothing


def key_of(kind: str, piece: Mapping[str, Any], identity: Mapping[str, str], code_digest: str) -> str:
    """The name of a step's result before it exists: 64 hex digits."""
    return manifest.digest_of({"kind": kind, "piece": recipe.key_content(piece), "inputs": dict(identity), "code": code_digest})


@contextlib.contextmanager
def guarded(name: str, settings: Settings) -> Iterator[EventLog]:
    """Announce the step; turn every way of failing into a `failed` event and a SystemExit with the right code."""
    attempt = 1 + sum(e.type is EventType.STEP_STARTED and e.step == name for e in events.read(settings.events))
    log = EventLog(settings.events, name, attempt)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        log.write(EventType.STEP_STARTED, facts={"pid": os.getpid()})
        if (settings.run_folder / STOP_FILE).exists():
            raise KeyboardInterrupt
        yield log
    except BaseException as error:  # noqa: BLE001 (every way of failing must end as a letter)
        letter = as_letter(error, settings)
        with contextlib.suppress(BiovlmError):  # a full disk must not hide the reason for the failure
            log.write(EventType.FAILED, exit_code=letter.exit_code, message=letter.message, hint=letter.hint)
        sys.stderr.write(f"{name}: {letter}\n")  # KFP's log; the command reads the event
        raise SystemExit(int(letter.exit_code)) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        if not settings.mirrored:
            _mirror(settings)


def as_letter(error: BaseException, settings: Settings) -> BiovlmError:
    """The letter that says what happened. An unexpected error leaves its trace in the log, without values of variables."""
    if isinstance(error, BiovlmError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return PreemptedError("the step was stopped", "nothing is lost; the same command goes on from the last checkpoint")
    unwritten = manifest.failed_write(Path(str(getattr(error, "filename", None) or settings.home)), error)
    if unwritten is not None:
        return unwritten
    frames = traceback.extract_tb(error.__traceback__)
    text = f": {error}" if settings.trace else ""
    sys.stderr.write("".join(traceback.format_list(frames)) + type(error).__name__ + text + "\n")
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return InternalError(
        f"{type(error).__name__}{place}",
        f"this is a defect; its trace is in {settings.run_folder / 'kfp.log'}, and BIOVLM_TRACE=1 adds the error's text to it",
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)  # a second signal must not hit the telling of the first
    raise KeyboardInterrupt


def _mirror(settings: Settings) -> None:
    from components.platform import mirror  # mlflow costs seconds, and a laptop's run has one process for it

    mirror.copy_once(settings)


def _verified(given: Mapping[str, Reference], store: Store, elsewhere: bool) -> dict[str, str]:
    """Hash the inputs of a step that will really run, or ask whether they are where it will run.

    Raises:
        RefusedError, MissingInputError: One is not what its reference says.
    """
    for ref in given.values():
        if not ref.is_none:
            uri = store.uri(ref.folder)
            if not elsewhere:
                store.fetch(uri, ref.digest)
            elif not store.holds(uri, ref.digest):
                raise MissingInputError(f"{uri} of {ref.digest[:12]} is not whole in the shared store", "run the command again")
    return {role: ref.digest for role, ref in given.items() if not ref.is_none}


def _keep(store: Store, work: Work, record: StepRecord, there: Result | None, meter: Meter) -> Reference:
    """Complete the record of what was made, and let all see both."""
    cost = meter.cost(record.origin.gpus if record.origin else 0, there.work_seconds if there else None)
    seconds = time.time() - record.started
    record = _with_there(record, there).model_copy(update={"seconds": seconds, "cost": cost})
    store.write_record(record)
    result = Reference.to(work.final, store.publish(store.uri(work.final), record))
    steps.write(store, record.kind, record.key)
    work.log.write(EventType.FINISHED, seconds=seconds, facts=_facts(record.kind, work.key, result) | _cost(record))
    return result


def _with_there(record: StepRecord, there: Result | None) -> StepRecord:
    """The record of work that was done in a cluster: with the libraries, the machine and the job that did it."""
    if there is None or record.origin is None:
        return record
    origin = record.origin.model_copy(update={**there.origin, "tries": there.tries})
    return record.model_copy(update={"versions": dict(there.versions), "origin": origin})


def _record(kind: str, identity: Mapping[str, str], work: Work) -> StepRecord:
    return StepRecord(
        key=work.key,
        kind=kind,
        name=work.name,
        run_id=work.settings.run_id,
        piece=recipe.key_content(work.piece),
        identity=dict(identity),
        code=code.digest(kind),
        inputs={role: work.source(ref) for role, ref in work.inputs.items() if not ref.is_none},
        revision=code.revision(),
        versions=versions(),
        origin=_origin(work),
        started=time.time(),
    )


def _origin(work: Work) -> Origin:
    """Where this process makes the result, with what the slice asks of it."""
    asked = Resources.model_validate(work.piece["resources"]) if "resources" in work.piece else None
    gpus = asked.workers * asked.gpus_per_worker if asked else 0
    more = {"attempt": work.log.attempt, "workers": asked.workers if asked else 1, "gpus": gpus}
    return origins.here(work.settings).model_copy(update=more)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result may depend on, in this environment."""
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cost(record: StepRecord | None) -> dict[str, Any]:
    """What the result cost when it was made, for an event."""
    return {"cost": record.cost.model_dump(exclude_none=True)} if record and record.cost else {}


def _facts(kind: str, key: str, result: Reference) -> dict[str, Any]:
    return {"kind": kind, "key": key, "folder": result.uri, "digest": result.digest, "figures": result.facts["figures"]}
