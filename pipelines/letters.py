"""Why a step on a cluster failed, with its exit code.

KFP cannot say: its launcher ends every failed pod with 1. So it is asked, in this order:

1. MLflow. Each step copies its events there when it ends (components/platform/mirror.py): exit code, message and hint, as tags of its run.
2. The pod's log, as far as the server keeps it: the step writes the same letter to stderr, and KFP's launcher the code behind it.
"""

from __future__ import annotations

import re
from typing import Any

from components.platform.settings import Settings
from model.errors import BiovlmError, ExitCode, kind_of
from pipelines.cluster import Server
from pipelines.runs import RunView

STATUS = re.compile(r"exit (?:status|code) (\d{1,3})")
HINT = "hint: "


def why(run: RunView, server: Server, settings: Settings) -> BiovlmError | None:
    """The letter of the step that failed; None if nobody kept it."""
    step = run.failed
    if step is None:
        return None
    return from_tracking(run.run_id, step.name, settings) or next(
        (found for pod in step.pods if (found := from_log(step.name, server.log(run.run_id, pod)))), None
    )


def from_tracking(run_id: str, step: str, settings: Settings) -> BiovlmError | None:
    """What the step wrote to MLflow; None if there is no server or nothing there."""
    if not settings.tracking_uri.startswith(("http://", "https://")):
        return None  # a store on this machine knows nothing of a cluster
    from components.platform.tracking import Tracking

    try:
        tags = Tracking(settings).failure(run_id, step)
    except BiovlmError:
        return None
    return made(step, tags["exit_code"], tags["message"], tags["hint"]) if tags else None


def from_log(step: str, text: str) -> BiovlmError | None:
    """The last letter in a pod's log."""
    message, hint = "", ""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith(f"{step}: "):
            following = lines[at + 1] if at + 1 < len(lines) else ""
            message, hint = line.removeprefix(f"{step}: "), following.removeprefix(HINT) if following.startswith(HINT) else ""
    statuses = STATUS.findall(text)
    return made(step, statuses[-1], message, hint) if statuses else None


def made(step: str, code: Any, message: str, hint: str) -> BiovlmError:
    """A letter with that exit code; a code that is none of ours is a defect."""
    number = int(code) if str(code).isdigit() else int(ExitCode.INTERNAL)
    said = message or f"ended with {number} and without a word; a pod that is killed for its memory ends with 137"
    return kind_of(number)(f"{step}: {said}", hint)
