"""The door to Ray: one Ray for a whole run on this machine, and the way a step trains on it.

1. `pipelines.local` calls `start` before the first step that will train. A child process holds Ray's head. Ray listens on
   every interface, whatever address it is given, so it wants a token of this run; it ends with that child: when its input closes, or
   when its parent dies in any way.
2. A training step calls `run_workers`. It connects to the run's Ray (about a second), or starts one of its own where there is
   none.
3. `TorchTrainer` runs the function in as many worker processes as the recipe says. A worker that dies is started again, at most
   `max_failures` times; the function finds its own checkpoints and goes on. A BiovlmError is not a death: see
   `components/platform/workers.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.platform.settings import CHECKOUT, Settings
from model import manifest
from model.config import Resources
from model.errors import BiovlmError, InternalError

NOTICE = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray looks out for nodes that will be taken away. Off by default, for it is one process more for each stage and nobody takes a laptop
away with a notice; a cluster sets it to 1."""
OBJECT_STORE_BYTES = 100 * 2**20
START_SECONDS = 180.0
START_TRIES = 3
"""Ray gives its node 30 seconds, a figure in its code, and a cold disk may need more; the second try finds the files in memory."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray runs what its ports are given; without a token any local user could give it something
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how long a finished worker waits to be noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # two busy cores need long to import torch
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets any other process of the machine stop the training
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES as it is for workers without a GPU
}


class RayHead:
    """The child process that holds the Ray of a run."""

    def __init__(self, process: subprocess.Popen[bytes], address_file: Path) -> None:
        self._process, self.address_file = process, address_file

    def stop(self) -> None:
        """End Ray and everything that runs on it."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for path in (self.address_file, _token_file(self.address_file), _ended(self.address_file)):
            path.unlink(missing_ok=True)


def start(settings: Settings, cpus: int) -> RayHead:
    """Start a Ray for the run of `settings`; returns at once, its address appears in `address_file` some seconds later."""
    address_file = settings.run_folder / "ray-address"
    settings.run_folder.mkdir(parents=True, exist_ok=True)
    _write_token(_token_file(address_file))
    command = (sys.executable, "-m", "components.platform.launch", str(address_file), str(cpus))
    with (settings.run_folder / "ray.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=CHECKOUT,
            env=_environment(address_file),
            start_new_session=True,
        )
    return RayHead(process, address_file)


def run_workers(
    function: str,
    job: dict[str, Any],
    name: str,
    storage: Path | str,
    resources: Resources,
    settings: Settings,
    inside: bool = False,
) -> None:
    """Run the function in Ray Train workers until it is done.

    Args:
        function: Dotted name of the function that every worker calls. A name, because its module imports ray, which reads its
            environment at that moment, and must not do so before the token is known.
        job: Its argument, as JSON values.
        name: Name of the Ray Train run; a digest, because Ray resumes any run of the same name.
        storage: Folder for Ray's own notes about the run, or the address of one in a bucket.
        resources: Number and size of the workers, and how many deaths are forgiven.
        settings: Says where the run's Ray is.
        inside: This process is a job of a Ray cluster, and the workers are to run there.

    Raises:
        InternalError: A worker died too often, or failed with an error that is not a BiovlmError.
        BiovlmError: What a worker could not write down. CannotWriteError: The disk is full.
    """
    with _inside() if inside else _connected(settings, resources):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        from components.platform import workers

        module_name, _, name_in_module = function.rpartition(".")
        module = importlib.import_module(module_name)
        trainer = TorchTrainer(
            getattr(module, name_in_module),
            train_loop_config=job,
            torch_config=workers.torch_config(resources.stall_seconds),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
            ),
            run_config=RunConfig(
                name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=resources.max_failures)
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _letter(error, storage, resources, settings) from None


def _letter(error: Exception, storage: Path | str, resources: Resources, settings: Settings) -> BiovlmError:
    """What the workers died of: their own letter, if they had no place to write it down; a full disk; or what Ray calls it."""
    causes = [*getattr(error, "worker_failures", {}).values(), error]
    for cause in causes:
        letter = cause if isinstance(cause, BiovlmError) else manifest.failed_write(Path(storage), cause)
        if letter is not None:
            return letter
    kinds = sorted({type(cause).__name__ for cause in causes[:-1]})
    return InternalError(
        f"training failed after {resources.max_failures} restarts: {', '.join(kinds) or type(error).__name__}",
        f"the workers' own words are in {settings.run_folder / 'kfp.log'}; a worker that vanishes, or an OutOfMemoryError, "
        "asks for a smaller stages.*.micro_batch_tokens",
    )


@contextlib.contextmanager
def _connected(settings: Settings, resources: Resources) -> Iterator[None]:
    """Inside, this process is a driver of the run's Ray, or of one of its own."""
    head = None
    address_file = settings.ray_address_file
    if address_file is None:
        head = start(settings, cpus_for(resources))
        address_file = head.address_file
    os.environ.update(_environment(address_file))
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=_wait_for(address_file, settings), log_to_driver=True, logging_level="WARNING")
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which ends this process at once
        yield
    finally:
        ray.shutdown()
        if head:
            head.stop()


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    """Inside, this process is a driver of the cluster whose job it is; the cluster's own settings (its token) stand."""
    for name, value in QUIET.items():
        if name.startswith("RAY_TRAIN_"):
            os.environ.setdefault(name, value)
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address="auto", log_to_driver=True, logging_level="WARNING")
        signal.signal(signal.SIGTERM, on_sigterm)
        yield
    finally:
        ray.shutdown()


def cpus_for(resources: Resources) -> int:
    """How many CPUs Ray must believe in, so that all workers fit; more than there are is allowed, and slow."""
    return max(1, round(resources.workers * resources.cpus_per_worker + 0.499))


def _wait_for(address_file: Path, settings: Settings) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return address_file.read_text(encoding="utf-8")
        if _ended(address_file).exists():
            raise InternalError(f"Ray did not start in {START_TRIES} tries", f"see {settings.run_folder / 'ray.log'}")
        time.sleep(0.1)
    raise InternalError(f"Ray did not start within {START_SECONDS:.0f} s", f"see {settings.run_folder / 'ray.log'}")


def _environment(address_file: Path) -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(CHECKOUT), os.environ.get("PYTHONPATH", "")) if p)
    return {NOTICE: "0", **os.environ, **QUIET, "PYTHONPATH": path, "RAY_AUTH_TOKEN_PATH": str(_token_file(address_file))}


def _token_file(address_file: Path) -> Path:
    return address_file.with_name("ray-token")


def _ended(address_file: Path) -> Path:
    """A mark that the head is gone, for those who wait for its address."""
    return address_file.with_name("ray-ended")


def _write_token(path: Path) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(secrets.token_hex(32))


def hold(address_file: Path, cpus: int) -> None:
    """Be the head of a Ray until the input closes. Ray's processes die with this one (PR_SET_PDEATHSIG)."""
    try:
        with contextlib.ExitStack() as stack:
            aside = address_file.with_suffix(".tmp")
            aside.write_text(_begin(stack, cpus), encoding="utf-8")
            aside.replace(address_file)
            sys.stdin.buffer.read()
    finally:
        _ended(address_file).touch()


def _begin(stack: contextlib.ExitStack, cpus: int) -> str:
    """Start Ray, once more if its node was not up in Ray's own time; its address. It ends with `stack`."""
    import ray

    for tries in range(1, START_TRIES + 1):
        folder = tempfile.mkdtemp(prefix="bv-", dir="/tmp")  # short: sockets live below it, and their paths have 107 characters
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            context = ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                log_to_driver=False,
            )
        except Exception as error:  # Ray raises no narrower kind
            sys.stderr.write(f"try {tries} of {START_TRIES}: {error}\n")  # into ray.log
            sys.stderr.flush()
            ray.shutdown()
            if tries == START_TRIES:
                raise
        else:
            stack.callback(ray.shutdown)
            return str(context.address_info["gcs_address"])
    raise AssertionError("unreachable")


if __name__ == "__main__":
    hold(Path(sys.argv[1]), int(sys.argv[2]))
