"""The data registry's DVC: builds stages, takes in folders, keeps their bytes, hands them out again.

1. `call(root, commands, ...)` runs DVC commands side by side and passes their lines on. Stopped in the middle (Ctrl-C), it stops
   what DVC started; a stage that failed ends with that stage's own message and exit code.
2. `fetch(root, revision, path, target)` copies the folder `path` of a commit out of DVC's cache, or out of the remote where the
   cache has it not. The work tree is not looked at.

DVC trusts names: it does not hash again what it hands out. Whoever fetches must verify.

DVC builds as a program of its own, so that a stop or a crash of a stage cannot touch this process, and reads through its library.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from model import manifest
from model.errors import BiovlmError, CannotWriteError, InternalError, MissingInputError, kind_of

Progress = Callable[[str], None]

REMOTE = "../../dvc-remote"
"""Relative, so that $BIOVLM_HOME can be moved."""
STARTED = re.compile(r"Running stage '(?P<stage>[^']+)'")
NOISE = re.compile(
    r"Stage '|(Generat|Updat)ing lock|Use `dvc|To (track|enable)|\s*(git add|dvc config)|> |$|Data and|\d+ files? |Everything"
    r"|Writing model|\[\d{4}-"  # what transformers and deepspeed say of themselves
)
FAILED_STAGE = re.compile(r"failed to reproduce '(?P<stage>[^']+)'.*exited with (?P<code>-?\d+)", re.DOTALL)
NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded|Read-only file system|Permission denied", re.IGNORECASE)
STOP_SECONDS = 10
KEPT_LINES = 200


def files(remote: str) -> dict[str, str]:
    """What `dvc init` would write, with the address of the remote; empty for the folder beside the registry."""
    return {
        ".dvc/config": (
            "[core]\n    analytics = false\n    check_update = false\n    autostage = false\n    remote = local\n"
            f"['remote \"local\"']\n    url = {remote or REMOTE}\n"
        ),
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".dvcignore": "",
    }


def call(root: Path, commands: Sequence[Sequence[str]], code: Path, progress: Progress, keep: Sequence[int] = ()) -> None:
    """Run `dvc ARGUMENTS` in `root` for each of `commands`, all at once; `code` is the checkout that the stages' commands import.

    `keep` are file descriptors (the registry's lock) that stay open in DVC: if this process is killed, nobody else builds until
    DVC has ended, too. If one command fails, the others are ended.
    """
    running = {_start(root, command, code, keep): (command, deque[str](maxlen=KEPT_LINES)) for command in commands}
    heard: queue.SimpleQueue[tuple[subprocess.Popen[str], str | None]] = queue.SimpleQueue()
    for process in running:
        threading.Thread(target=_listen, args=(process, heard), daemon=True).start()
    silent = 0
    try:
        while silent < len(running):
            process, line = heard.get()
            command, lines = running[process]
            if line is not None:
                lines.append(line)
                _pass_on(line, f"{command[-1]}: " if len(running) > 1 else "", progress)
            elif ended := process.wait():
                raise _letter(command[0], root, list(lines), ended)
            else:
                silent += 1
    except BaseException:
        for process in running:
            _stop(process)
        raise


def _start(root: Path, arguments: Sequence[str], code: Path, keep: Sequence[int]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (sys.executable, "-m", "dvc", "--wait-for-lock", *arguments),  # its neighbours hold DVC's lock between stages
        cwd=root,
        env=_environment(root, code),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=tuple(keep),
        start_new_session=True,
    )


def _listen(process: subprocess.Popen[str], heard: queue.SimpleQueue[tuple[subprocess.Popen[str], str | None]]) -> None:
    """Put every line of the process into the queue, and None when it has said its last."""
    for line in process.stdout or ():
        heard.put((process, line.rstrip()))
    heard.put((process, None))


def _pass_on(line: str, speaker: str, progress: Progress) -> None:
    if started := STARTED.match(line):
        progress(f"building {started['stage']}")
    elif not NOISE.match(line):
        progress(f"{speaker}{line}")


def fetch(root: Path, revision: str, path: str, target: Path) -> None:
    """Copy `path` of the commit `revision` to `target`, which must not exist yet."""
    from dvc.api import DVCFileSystem  # half a second, and many readers only ask for names

    settings = {"core": {"analytics": False, "check_update": False, "site_cache_dir": str(root / ".dvc" / "tmp" / "site")}}
    try:
        files = DVCFileSystem(str(root), rev=revision, config=settings)
        files.get(path, str(target), recursive=True)
    except Exception as error:  # DVC's errors share no useful root with those of its file systems
        unwritten = manifest.failed_write(target, error)
        if unwritten is not None:
            raise unwritten from error
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise _gone(root, revision, path) from error


def _gone(root: Path, revision: str, path: str) -> MissingInputError:
    return MissingInputError(
        f"the data registry {root} does not have the bytes of {path} at {revision[:12]}, neither in its cache nor in its remote",
        f"bring {root.parent / 'dvc-remote'} back, or make the data set again: `biovlm data build` or `biovlm data import`",
    )


def _environment(root: Path, code: Path) -> dict[str, str]:
    """Stages import from `code`, with this Python, and not from the registry, which holds copies of their sources."""
    here = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_"))}
    return here | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH")))),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root / ".dvc" / "tmp" / "site"),
        "COLUMNS": "130",
    }


def _stop(process: subprocess.Popen[str]) -> None:
    """End DVC and the stage it runs: both are in a process group of their own."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(STOP_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _letter(command: str, root: Path, lines: list[str], ended: int) -> BiovlmError:
    """The letter for a DVC command that failed: the stage's own, if a stage failed."""
    text = "\n".join(lines)
    if NO_ROOM.search(text):
        line = next(line for line in lines if NO_ROOM.search(line))
        return CannotWriteError(f"cannot write the data registry {root}: {line.removeprefix('ERROR: ')}", "free some space there")
    failed = FAILED_STAGE.search(text)
    if not failed:
        error = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else f"exit code {ended}")
        return InternalError(
            f"`dvc {command}` failed in {root}: {error.removeprefix('ERROR: ')}",
            f"run `dvc {command}` in {root} to see all it says",
        )
    code = int(failed["code"])
    # DVC runs a stage in a shell: one that gave way to the command ends with -signal, one that waited for it with 128 + signal.
    killed_by = -code if code < 0 else code - 128
    if killed_by > 0:
        return InternalError(
            f"building {failed['stage']} was ended by signal {killed_by}",
            "a process that vanishes was often killed for its memory; `biovlm data build` goes on with this stage",
        )
    hint = next(
        (line.removeprefix("hint: ") for line in reversed(lines) if line.startswith("hint: ")), "run `biovlm data build` again"
    )
    said = [line for line in lines if line and not line.startswith(("ERROR", "hint: ")) and not NOISE.match(line)]
    message = f"building {failed['stage']} failed: {said[-1] if said else 'no message'}"
    return kind_of(code)(message, hint)
