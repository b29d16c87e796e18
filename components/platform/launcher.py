"""The one way in which a step has heavy work done.

1. A step makes a `Task` and calls `run`. BIOVLM_LAUNCHER says where it runs; the step does not see a difference.
2. *In process*: the artifacts are brought and verified here, and Ray's workers on this machine run the task.
3. *Elsewhere*: the task goes into the shared store, and a back end (components/platform/heavy.py) has the entrypoint
   `components.platform.remote` run it in a cluster, where the artifacts are. What it tells is copied into the event log of the step;
   what it made is in the store before its result is.
4. A SIGTERM becomes a question to the workers, who save a checkpoint and end; the step ends with 75. A second signal changes nothing.
5. An error that a worker wrote down is raised here, with its own exit code and hint.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator

from components.platform import launch, letter
from components.platform.desk import Desk
from components.platform.heavy import Backend, HeavyWork, Result
from components.platform.retries import Attempts, forgiven
from components.platform.settings import Settings
from components.platform.step import Work
from components.platform.stops import on_sigterm
from components.platform.task import STOP_FILE, Places, Task, fetched, local_job
from model.errors import ConfigError, ExitCode, MissingInputError

COPY_SECONDS = 2.0
"""How often events of a cluster are looked for; the job's own courier brings them as often."""


def run(task: Task, work: Work) -> Result | None:
    """Do the task; the artifact is then at `work.final`, or in the shared store.

    Returns:
        What the cluster's entrypoint said of it; None if it was done in this environment.

    Raises:
        PreemptedError: It was stopped, and the same step goes on. BiovlmError: What the workers or the cluster said.
    """
    if work.settings.launcher == "process":
        _in_process(task, work)
        return None
    return _elsewhere(task, work, backend(work.settings))


def backend(settings: Settings) -> Backend:
    """The back end of the settings. ConfigError: heavy work is to run in this process, or the cluster is not described."""
    if settings.launcher == "jobs":
        from components.platform.jobs import JobsCluster  # ray

        return JobsCluster(settings.ray_address)
    if settings.launcher == "kuberay":
        from components.platform.kuberay.backend import connected  # kubernetes

        return connected(settings)
    raise ConfigError(f"BIOVLM_LAUNCHER is {settings.launcher}", "set it to jobs or kuberay, or unset it to work in this process")


def here(work: Work) -> Places:
    """The places of a task that runs on the machine of its step."""
    attempts = work.scratch.with_name(f"{work.scratch.name}.attempts")
    return Places(work.scratch, work.final, work.log.path, attempts, work.settings.checkpoints)


def _in_process(task: Task, work: Work) -> None:
    places = here(work)
    job = local_job(task, fetched(task, work.store), places, work.settings)
    for stale in (STOP_FILE, letter.NAME):
        (places.scratch / stale).unlink(missing_ok=True)
    attempts = Attempts(places.attempts, task.run_id)
    attempts.check()
    failures = forgiven(task.resources.max_failures, attempts.counted)
    resources = task.resources.model_copy(update={"max_failures": failures})

    def ask() -> None:
        with contextlib.suppress(OSError):  # on a full disk the workers cannot be asked, and this is no place to fail
            (places.scratch / STOP_FILE).touch()

    places.scratch.mkdir(parents=True, exist_ok=True)
    with on_sigterm(ask):
        try:
            launch.run_workers(task.function, job, task.key[:32], places.scratch / "ray", resources, work.settings)
        finally:
            letter.raise_letter(places.scratch)
    shutil.rmtree(places.scratch, ignore_errors=True)
    places.attempts.unlink(missing_ok=True)


def _elsewhere(task: Task, work: Work, cluster: Backend) -> Result | None:
    settings = work.settings
    desk = Desk.of(settings.shared_store, task.run_id, task.key)
    said, uri = desk.result(), work.store.uri(work.final)
    if said is not None and said.exit_code == ExitCode.DONE and not _is_published(work, uri):
        desk.forget_result()  # what it made was set aside since
    desk.begin(task, settings)
    heavy = HeavyWork(
        key=task.key,
        step=task.step,
        run_id=task.run_id,
        recipe=settings.recipe,
        spec_uri=desk.spec_uri,
        result_uri=desk.result_uri,
        resources=task.resources,
        evaluates=task.kind == "evaluate",
    )
    stop = threading.Event()
    with on_sigterm(stop.set), _followed(desk, work, stop):
        cluster.run(heavy, work.note, desk.result)
    if not _is_published(work, uri):
        raise MissingInputError(
            f"the job of {task.step} says done, and {uri} is not in {settings.shared_store}", "run the command again"
        )
    return desk.result()


def _is_published(work: Work, uri: str) -> bool:
    try:
        return bool(work.store.manifest_of(uri))
    except MissingInputError:
        return False


@contextlib.contextmanager
def _followed(desk: Desk, work: Work, stop: threading.Event) -> Iterator[None]:
    """Inside, a thread copies the events of the work into the log of its step, and passes a stop on."""
    ended, seen = threading.Event(), work.settings.run_folder / f"seen-{work.key[:16]}"

    def copy() -> None:
        begun = int(seen.read_text(encoding="utf-8")) if seen.is_file() else 0
        for number, events in desk.events_after(begun):
            for event in events:
                work.log.append(event.model_copy(update={"attempt": work.log.attempt}))
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(str(number), encoding="utf-8")

    def follow() -> None:
        asked = False
        while not ended.wait(COPY_SECONDS):
            with contextlib.suppress(Exception):  # a store that is away for a while is no reason to leave the job
                if stop.is_set() and not asked:
                    desk.ask_stop()
                    asked = True
                copy()

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=60)
        with contextlib.suppress(Exception):  # what the work told last; its result is told by another way
            copy()
