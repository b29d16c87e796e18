"""The process in which KFP's local runner executes the compiled pipeline; started by `pipelines.local`, once a run.

A process of its own, because KFP's runner prints, patches stdout and knows no way to be stopped: here its output is a log file,
and its end is an exit code. Its input is a pipe that nobody writes to: when the command that started it is gone, however it went,
the pipe closes, and the engine ends with every process that it started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import yaml
from kfp import components, local


def main(compiled: Path, recipe: Path, pipeline_root: Path, containers: Path | None = None) -> None:
    """Execute the pipeline in the file `compiled` for the recipe in the file `recipe`; KFP's files go below `pipeline_root`.

    With `containers`, a file with arguments of KFP's DockerRunner, every step is a container (pipelines/containers.py).
    """
    # Image names without "python" in them, and settings that only a cluster knows: said once a task, of no use here.
    warnings.filterwarnings("ignore", module="kfp")
    runner = local.SubprocessRunner(use_venv=False) if containers is None else docker_runner(containers)
    local.init(runner, pipeline_root=str(pipeline_root), raise_on_error=True)
    text = once(compiled.read_text(encoding="utf-8"))
    pipeline = components.load_component_from_text(text if containers is None else bare(text))
    try:
        pipeline(recipe=recipe.read_text(encoding="utf-8"), trigger="")
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")  # a failed step; it has said why in the event log
        raise SystemExit(os.EX_SOFTWARE) from None


def bare(compiled: str) -> str:
    """The package without the variables of its containers: KFP would give a container them instead of those of the runner."""
    documents = list(yaml.safe_load_all(compiled))
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        executor["container"].pop("env", None)
    return yaml.safe_dump_all(documents)


def docker_runner(path: Path) -> Any:
    """KFP's DockerRunner with the arguments in the file; variables of the environment stand there by name."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return local.DockerRunner(**{**found, "environment": {name: os.environ[name] for name in found["environment"]}})


def once(compiled: str) -> str:
    """The package with every step tried once: its retries are for pods that are lost with their node, which this machine has not got."""
    documents = list(yaml.load_all(compiled, Loader=yaml.CSafeLoader))
    for task in documents[0]["root"]["dag"]["tasks"].values():
        task.pop("retryPolicy", None)
    return str(yaml.dump_all(documents, Dumper=yaml.CSafeDumper))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read: its lock would be held when the interpreter ends
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main(*map(Path, sys.argv[1:]))
