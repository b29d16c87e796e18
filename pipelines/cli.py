"""The command `biovlm`.

1. The commands are plain functions in `pipelines/cli_*.py`; this file gives them their places. A test holds the list.
2. `main` runs one and turns its end into an exit code of `model.errors`: a letter and no trace for what is our own, one line and a
   log for a defect.

What is heavy (kfp, mlflow, torch, dvc) is imported by the command that needs it, so that `biovlm --help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from model.errors import BiovlmError, ExitCode, PreemptedError, UsageError
from pipelines import (
    cli_cluster,
    cli_cost,
    cli_data,
    cli_impact,
    cli_ledger,
    cli_lineage,
    cli_machine,
    cli_model,
    cli_registry,
    cli_reproduce,
    cli_run,
    cli_schedule,
    output,
)

HELP = "Train biomedical vision-language assistants, evaluate them, promote the good ones. Research use only."

TYPERS_INTERRUPT = 130
"""What typer makes of a KeyboardInterrupt."""
# Plain help: with rich's boxes it takes twice as long.
PLAIN: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(name="biovlm", help=HELP, **PLAIN)
data = typer.Typer(help="Data sets and base models in the data registry.", **PLAIN)
registry = typer.Typer(help="Registered models and their versions.", **PLAIN)
lineage = typer.Typer(help="What a model version was made from.", **PLAIN)
schedule = typer.Typer(help="Runs on a cluster that come back, declared in a file.", **PLAIN)

app.command("run")(cli_run.run)
app.command("plan")(cli_run.plan)
app.command("compile")(cli_run.compile_pipeline)
app.command("submit")(cli_cluster.submit)
app.command("status")(cli_cluster.status)
app.command("stop")(cli_cluster.stop)
app.command("retry")(cli_cluster.retry)
app.command("reap")(cli_cluster.reap)
app.add_typer(schedule, name="schedule")
schedule.command("apply")(cli_schedule.apply)
schedule.command("diff")(cli_schedule.diff)
schedule.command("list")(cli_schedule.list_schedules)
schedule.command("pause")(cli_schedule.pause)
schedule.command("resume")(cli_schedule.resume)
app.add_typer(data, name="data")
data.command("build")(cli_data.build)
data.command("import")(cli_data.import_set)
data.command("corrections")(cli_data.corrections)
data.command("check")(cli_data.check)
data.command("list")(cli_data.list_sets)
app.command("train")(cli_model.train)
app.command("evaluate")(cli_model.evaluate)
app.command("chat")(cli_model.chat)
app.command("serve")(cli_model.serve)
app.add_typer(registry, name="registry")
registry.command("list")(cli_registry.list_models)
registry.command("history")(cli_registry.history)
registry.command("approve")(cli_ledger.approve)
registry.command("promote")(cli_ledger.promote)
registry.command("rollback")(cli_ledger.rollback)
registry.command("reconcile")(cli_ledger.reconcile)
app.add_typer(lineage, name="lineage")
lineage.command("show")(cli_lineage.show)
lineage.command("verify")(cli_lineage.verify)
lineage.command("export")(cli_lineage.export)
lineage.command("impact")(cli_impact.impact)
app.command("cost")(cli_cost.cost)
app.command("reproduce")(cli_reproduce.reproduce)
app.command("doctor")(cli_machine.doctor)
app.command("schema")(cli_machine.schema)


def main() -> None:
    """Run the command with this process's arguments, and end the process."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(int(call(sys.argv[1:])))


def call(arguments: Sequence[str]) -> int:
    """Run the command with `arguments`; its exit code."""
    try:
        code = int(app(args=list(arguments), prog_name="biovlm", standalone_mode=False) or ExitCode.DONE)
        return _stopped() if code == TYPERS_INTERRUPT else code
    except BiovlmError as error:
        output.letter(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except BrokenPipeError:
        return ExitCode.DONE  # `biovlm ... | head`: the reader has what it wanted
    except Exception as error:  # noqa: BLE001 (the last door: a person must never be left with a trace)
        return _usage(error) if hasattr(error, "format_message") else _unwritten(error) or _defect(error)


def _stopped() -> int:
    error = PreemptedError("stopped", "nothing is lost; the same command goes on where it stopped")
    output.letter(error)
    return error.exit_code


def _usage(error: Exception) -> int:
    """Typer's own errors, in the words of the house."""
    message = error.format_message()  # type: ignore[attr-defined]  # typer does not export the class that has it
    if type(error).__name__ == "NoArgsIsHelpError":
        output.say(message)
    else:
        output.letter(
            UsageError(message.rstrip("."), "`biovlm --help` lists the commands, `biovlm COMMAND --help` their options")
        )
    return ExitCode.USAGE


def _unwritten(error: Exception) -> int:
    """0 unless a full disk, or one that takes no writes, is all that is wrong."""
    from components.platform.settings import Settings
    from model.manifest import failed_write

    letter = failed_write(Path(str(getattr(error, "filename", None) or Settings.from_environment().home)), error)
    if letter is None:
        return 0
    output.letter(letter)
    return letter.exit_code


def _defect(error: Exception) -> int:
    """One line, and the trace in a file. The error's own text stays out of both: it could quote a record."""
    from components.platform.settings import Settings

    settings = Settings.from_environment()
    lines = [*traceback.format_list(traceback.extract_tb(error.__traceback__)), type(error).__name__]
    if settings.trace:
        lines.append(f": {error}")
    path = settings.home / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}.log"
    where = f"its trace is in {path}" if _written(path, "".join(lines)) else "its trace could not be written"
    output.say(f"error: {type(error).__name__}: this is a defect of biovlm; {where}")
    return ExitCode.INTERNAL


def _written(path: Path, text: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError:
        return False
    return True


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
