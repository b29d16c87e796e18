"""The entrypoint of heavy work in the train image: `python -m components.platform.remote s3://BUCKET/.../spec.json`.

1. It runs as a job of a Ray cluster, in an image without KFP and MLflow. It reads the spec, takes away what an earlier job left, and
   counts this one (components/platform/retries.py).
2. `on_node` runs in every Ray Train worker. It brings the artifacts into the home of its own node, verified; processes of one node
   wait for each other. Then it runs the function that the in-process back end would run.
3. Checkpoints go to the bucket of the spec: a worker that Ray starts again goes on from there, on whatever node it is.
4. Rank 0 publishes the artifact. The entrypoint writes the result last, and ends with its exit code: nobody need read a log.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import time
import uuid
from typing import Any

from components.platform import launch, letter, origin
from components.platform.desk import ATTEMPTS, Courier, Desk, Spec
from components.platform.heavy import Result
from components.platform.retries import Attempts, forgiven
from components.platform.settings import Settings
from components.platform.step import as_letter, versions
from components.platform.stops import on_sigterm
from components.platform.store import open_store
from components.platform.task import Places, fetched, local_job
from model.errors import BiovlmError, ExitCode

NODE = "components.platform.remote.on_node"


def main(spec_uri: str) -> int:
    """Do the work of a spec; its exit code.

    Raises:
        BiovlmError: The spec or its store cannot be read; nobody could be told another way.
    """
    started = time.monotonic()
    desk = Desk.at(spec_uri)
    spec, token = desk.spec(), uuid.uuid4().hex
    settings = spec.settings(Settings.from_environment())
    desk.clear()
    places = _places(spec, settings, token)
    said: BiovlmError | None = None
    digest, began = "", _counted(spec, desk, places)
    try:
        digest = _run(spec, spec_uri, desk, settings, places, token)
    except BaseException as error:  # noqa: BLE001 (every way of failing must end as a letter)
        said = as_letter(error, settings)
        sys.stderr.write(f"{spec.task.step}: {said}\n")
    finally:
        shutil.rmtree(places.scratch, ignore_errors=True)
    tries = _counted(spec, desk, places) - began
    code = said.exit_code if said else ExitCode.DONE
    text = (said.message, said.hint) if said else ("", "")
    desk.write_result(
        Result(
            int(code),
            *text,
            tries=tries,
            digest=digest,
            versions=versions(),
            job=token,
            origin=_origin(),
            work_seconds=time.monotonic() - started,
        )
    )
    return int(code)


def _run(spec: Spec, spec_uri: str, desk: Desk, settings: Settings, places: Places, token: str) -> str:
    """Run the workers; the digest of what they made."""
    task = spec.task
    attempts = Attempts(places.attempts, task.run_id)
    attempts.check()
    # RayJobs that came to no begin stand in the second count alone.
    failures = forgiven(task.resources.max_failures, max(attempts.counted, settings.tries_before))
    resources = task.resources.model_copy(update={"max_failures": failures})
    job = {"spec": spec.model_dump(mode="json"), "spec_uri": spec_uri, "token": token}
    try:
        with on_sigterm(lambda: threading.Thread(target=desk.ask_stop, daemon=True).start()):
            storage = settings.ray_storage or places.scratch / "ray"
            launch.run_workers(NODE, job, task.key[:32], storage, resources, settings, inside=True)
    finally:
        desk.pull(letter.NAME, places.scratch / letter.NAME)
        letter.raise_letter(places.scratch)
    return open_store(settings).manifest_of(f"steps/{task.kind}/{task.key}").digest


def _origin() -> dict[str, Any]:
    """What the lineage says of this environment; Ray tells a job its id in its configuration."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    job = str(told.get("metadata", {}).get("job_submission_id", ""))
    return {"machine": origin.machine(), "lock": origin.lock(), "job": job}


def _counted(spec: Spec, desk: Desk, places: Places) -> int:
    """Attempts of this run that counted so far."""
    desk.pull(ATTEMPTS, places.attempts)
    return Attempts(places.attempts, spec.task.run_id).counted


def on_node(job: dict[str, Any]) -> None:
    """Be one worker of the task, on whatever node this is.

    Args:
        job: `spec`, `spec_uri`, and the `token` of the job: what an earlier job left on this node must not be taken for its own.
    """
    import ray.train

    spec = Spec.model_validate(job["spec"])
    settings, context = spec.settings(Settings.from_environment()), ray.train.get_context()
    places, leads = _places(spec, settings, job["token"]), context.get_world_rank() == 0
    store = open_store(settings)
    places.scratch.mkdir(parents=True, exist_ok=True)
    with Courier(Desk.at(job["spec_uri"]), places, leads):
        try:
            local = local_job(spec.task, fetched(spec.task, store), places, settings)
        except BiovlmError as error:  # a finding: no restart would change it, unless the store is away
            if error.exit_code == ExitCode.INTERNAL:
                raise
            letter.write(places.scratch, error)
            if context.get_world_size() > 1:
                raise
            return
        module_name, _, name = spec.task.function.rpartition(".")
        getattr(importlib.import_module(module_name), name)(local)
        if leads and not (places.scratch / letter.NAME).exists():
            store.publish(store.uri(places.final))


def _places(spec: Spec, settings: Settings, token: str) -> Places:
    """Where this node keeps what belongs to the job of `token`."""
    store = open_store(settings)
    scratch = store.scratch(spec.task.kind, f"{spec.task.key}-{token}")
    return Places(
        scratch=scratch,
        final=store.folder(spec.task.kind, spec.task.key),
        events=scratch / "events.jsonl",
        attempts=scratch.with_name(f"{scratch.name}.attempts"),
        checkpoints=spec.checkpoints,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
