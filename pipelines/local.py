"""Run the compiled pipeline on this machine.

1. A run gets an id and a folder: recipe, event log, KFP's log and, at the end, the report.
2. `plan` tells whether a stage will train. If so, Ray starts now, while data and preflight are still at work.
3. `pipelines.engine` executes the graph in a process group of its own; a thread copies its events to MLflow.
4. This process shows events as they come. Ctrl-C or SIGTERM asks the present step to save and end, and after a while ends it.
5. The exit code is that of the step that failed, as its event says. What was found becomes a `RunResult` and the report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from components.platform import launch
from components.platform.events import Event, EventLog, EventType, Follower
from components.platform.mirror import Mirror
from components.platform.settings import CHECKOUT, Settings
from components.platform.step import STOP_FILE
from model import recipe as recipes
from model.config import Recipe
from model.errors import BiovlmError, CannotWriteError, ExitCode, InternalError, PreemptedError, kind_of
from model.manifest import cannot_write
from pipelines import forecast
from pipelines import plan as plans
from pipelines.summary import STEPS, RunResult, summarise

if TYPE_CHECKING:
    from pipelines.containers import Site

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
FULL_BYTES = 2**20
"""With less than this free, a step that ended without a word could not write one."""
COMPILED = Path(__file__).parent / "compiled" / "biovlm.yaml"
Display = Callable[[Event], None]


class Runner(StrEnum):
    """What a step of a run on this machine is."""

    SUBPROCESS = "subprocess"
    """A process in this environment."""
    DOCKER = "docker"
    """A container, with the servers of a cluster beside it (pipelines/containers.py)."""


def run(recipe: Recipe, display: Display, settings: Settings | None = None, runner: Runner = Runner.SUBPROCESS) -> RunResult:
    """Run the whole pipeline for `recipe`, reusing every step whose key has not changed.

    Args:
        recipe: What to run.
        display: Gets every event of the run, in order, in this thread.
        settings: Where; from the environment, unless given.
        runner: What a step is: a process, or a container.
    """
    mine = _own(settings or Settings.from_environment(), recipe)
    log = EventLog(mine.events)
    facts = {"recipe": recipe.name, "recipe_digest": recipes.digest(recipe), "steps": list(STEPS)}
    log.write(EventType.RUN_STARTED, facts=facts)
    began = time.time()
    if runner is Runner.SUBPROCESS:
        return _run(recipe, display, mine, log, began)
    from pipelines import containers  # docker

    def tell(line: str) -> None:
        log.write(EventType.NOTE, message=line)

    with containers.site(mine, recipe, tell) as site:
        result = _run(recipe, display, site.settings, log, began, site)
        containers.bring_home(site.settings, result)
        return result.model_copy(update={"tracking": ""})  # its servers end here


def _run(recipe: Recipe, display: Display, mine: Settings, log: EventLog, began: float, site: Site | None = None) -> RunResult:
    """The run of `mine`, whose log has its first line."""
    follower = Follower(mine.events)
    letter: BiovlmError | None = InternalError("the run broke off", "run the same command again")
    with _mirrored(mine, log), _ray_if_needed(recipe, mine) as settled:
        try:
            letter = _execute(settled, lambda: _show(follower, display), site)
        finally:
            code = letter.exit_code if letter else ExitCode.DONE
            with contextlib.suppress(CannotWriteError):  # a full disk must not hide why the run ended
                log.write(EventType.RUN_FINISHED, exit_code=int(code), seconds=time.time() - began)
    _show(follower, display)
    return summarise(mine, recipe, letter, time.time() - began)


def _own(settings: Settings, recipe: Recipe) -> Settings:
    """Settings of a new run, whose folder holds the recipe."""
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe.name}-{secrets.token_hex(2)}"
    mine = dataclasses.replace(settings, run_id=run_id, events=settings.home / "runs" / run_id / "events.jsonl", mirrored=True)
    try:
        mine.run_folder.mkdir(parents=True)
        mine.recipe_file.write_text(recipe.model_dump_json(indent=1), encoding="utf-8")
    except OSError as error:
        raise cannot_write(mine.run_folder, error) from error
    return mine


def _show(follower: Follower, display: Display) -> None:
    for event in follower.new():
        display(event)


@contextlib.contextmanager
def _ray_if_needed(recipe: Recipe, settings: Settings) -> Iterator[Settings]:
    """Settings with the address of a Ray for the whole run, if some stage will train."""
    steps = plans.plan(recipe, settings, ask_registry=False) if settings.launcher == "process" else []
    forecast.keep(forecast.forecast(recipe, steps, forecast.earlier(settings), settings), settings)
    if not any(step.kind == "train" and not step.reused for step in steps):
        yield settings
        return
    head = launch.start(settings, launch.cpus_for(recipe.resources))
    try:
        yield dataclasses.replace(settings, ray_address_file=head.address_file)
    finally:
        head.stop()


@contextlib.contextmanager
def _mirrored(settings: Settings, log: EventLog) -> Iterator[None]:
    """Inside, a thread copies events to MLflow; on leaving, it copies the rest."""
    ended, mirror = threading.Event(), Mirror(settings)

    def follow() -> None:
        try:
            while not ended.wait(1.0):
                mirror.pump()
            mirror.pump()
        except Exception as error:  # noqa: BLE001 (training is worth more than its picture)
            with contextlib.suppress(CannotWriteError):
                log.write(EventType.NOTE, message=f"tracking stopped: {type(error).__name__}; the results are in the store")

    thread = threading.Thread(target=follow, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=120)


def _execute(settings: Settings, show: Callable[[], None], site: Site | None) -> BiovlmError | None:
    """Run the engine to its end; the letter that explains a failure, or None."""
    path = os.pathsep.join(p for p in (str(CHECKOUT), os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, **settings.for_children(), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    command = (
        sys.executable,
        "-m",
        "pipelines.engine",
        str(COMPILED),
        str(settings.recipe_file),
        str(settings.run_folder / "kfp"),
        *([str(site.arguments)] if site else []),
    )
    with (settings.run_folder / "kfp.log").open("ab") as out:
        engine = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.PIPE, cwd=CHECKOUT, env=environment, start_new_session=True
        )
    with _sigterm_is_interrupt():
        try:
            while engine.poll() is None:
                show()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            _stop(engine, settings, show, site.stop if site else _terminate)
            return PreemptedError("the run was stopped", "nothing is lost; the same command goes on where it stopped")
        finally:
            _kill(engine)
    # KFP takes a container that vanishes before it could be asked for one that succeeded.
    failed = engine.returncode != 0 or any(event.type is EventType.FAILED for event in Follower(settings.events).new())
    return _letter(settings) if failed else None


def _terminate(event: Event) -> None:
    """Ask the step that began with `event` to end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(event.facts["pid"]), signal.SIGTERM)


def _stop(
    engine: subprocess.Popen[bytes], settings: Settings, show: Callable[[], None], terminate: Callable[[Event], None]
) -> None:
    """Ask the present step to end, and wait; a second Ctrl-C ends the waiting."""
    (settings.run_folder / STOP_FILE).touch()
    for event in _unfinished(settings):
        with contextlib.suppress(KeyError):
            terminate(event)
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(KeyboardInterrupt):
        while engine.poll() is None and time.monotonic() < deadline:
            show()
            time.sleep(POLL_SECONDS)


def _unfinished(settings: Settings) -> list[Event]:
    """Starts of steps that have not ended."""
    open_steps: dict[str, Event] = {}
    for event in Follower(settings.events).new():
        if event.type is EventType.STEP_STARTED:
            open_steps[event.step] = event
        elif event.type in (EventType.FINISHED, EventType.REUSED, EventType.FAILED):
            open_steps.pop(event.step, None)
    return list(open_steps.values())


def _kill(engine: subprocess.Popen[bytes]) -> None:
    """Leave no process of the engine's group behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()


def _letter(settings: Settings) -> BiovlmError:
    """What the failed step said; if it could say nothing, that."""
    for event in reversed(Follower(settings.events).new()):
        if event.type is EventType.FAILED and event.exit_code:
            return kind_of(event.exit_code)(f"{event.step}: {event.message}", event.hint)
    names = ", ".join(event.step for event in _unfinished(settings)) or "the pipeline"
    if shutil.disk_usage(settings.home).free < FULL_BYTES:
        return cannot_write(settings.home, OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({names} could not even say so)"))
    return InternalError(
        f"{names} ended without a word; a process that vanishes was often killed for its memory",
        f"see {settings.run_folder / 'kfp.log'}, then run the same command again",
    )


@contextlib.contextmanager
def _sigterm_is_interrupt() -> Iterator[None]:
    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
