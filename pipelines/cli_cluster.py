"""`biovlm submit`, `status`, `stop`, `retry` and `reap`: runs on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines import output
from pipelines.cli_options import DEFAULT, Changes, Data, Json, RecipeName

if TYPE_CHECKING:
    from pipelines.cluster import Server
    from pipelines.runs import RunView

Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end, and end with its exit code.")]
Logs = Annotated[bool, typer.Option("--logs", help="With --wait: also what the steps write.")]
RunId = Annotated[str, typer.Argument(help="Id of a run; `biovlm status` lists them.", metavar="RUN")]
Budget = Annotated[float | None, typer.Option("--budget", help="Refuse a run that is thought to cost more.", metavar="GPU_HOURS")]


def submit(
    recipe: RecipeName = DEFAULT,
    data: Data = None,
    changes: Changes = None,
    budget: Budget = None,
    package: Annotated[Path | None, typer.Option("--package", help="A compiled file to take.", metavar="FILE")] = None,
    wait: Wait = False,
    logs: Logs = False,
    json: Json = False,
) -> None:
    """Start a run on the Kubeflow server."""
    from pipelines.choice import chosen

    wanted = chosen(recipe, data, changes or ())
    from components.platform.addresses import Addresses
    from components.platform.settings import Settings
    from pipelines import cluster, estimate, submit  # after what can be said at once

    addresses, settings = Addresses.from_environment(), Settings.from_environment()
    server = cluster.connect(addresses)
    estimate.refuse(wanted, budget, settings)
    ready = submit.package(addresses, package)
    run_id = submit.start(server, wanted, ready, settings, budget)
    output.say(f"started {run_id}, {server.addresses.pipelines}/#/runs/details/{run_id}")
    if wait:
        _wait(server, run_id, logs, json)
    elif json:
        output.emit_json({"run_id": run_id, "package": ready.digest})
    else:
        output.emit(run_id)


def status(
    run: Annotated[str | None, typer.Argument(help="Id of a run; all without it.", metavar="RUN")] = None,
    last: Annotated[int, typer.Option("--last", help="How many runs.", min=1, max=1000)] = 10,
    wait: Wait = False,
    logs: Logs = False,
    json: Json = False,
) -> None:
    """Show the runs of the Kubeflow server, or the steps of one."""
    from pipelines import cluster, runs

    server = cluster.connect()
    if run and wait:
        _wait(server, run, logs, json)
    elif run:
        _show(runs.view(server.run(run)), json)
    else:
        views = [runs.view(one) for one in server.runs(last)]
        if json:
            output.emit_json([{name: part for name, part in runs.as_json(one).items() if name != "steps"} for one in views])
        elif views:
            output.emit_table(
                ("run", "state", "started", "name"),
                [(v.run_id, v.state, v.created, v.name.partition(" ")[0][:CELL]) for v in views],
            )
        else:
            output.say("no runs yet; `biovlm submit` starts one")


CELL = 15
"""Of a name, beside an id, so that a row fits 80 columns."""


def stop(run: RunId) -> None:
    """Stop a run: terminate it and delete its Ray jobs."""
    from pipelines import cluster, reap, runs

    server = cluster.connect()
    if runs.view(server.run(run)).over:
        output.say(f"{run} is over already")
    else:
        server.terminate(run)
        output.say(f"{run} is stopping; what its stages learned until their last checkpoint stays")
    for name in reap.stop(reap.cluster_jobs(server.addresses.jobs_namespace), run):
        output.emit(name)


def retry(run: RunId, wait: Wait = False, logs: Logs = False, json: Json = False) -> None:
    """Run a failed or stopped run again from where it ended, with the same package."""
    from pipelines import cluster, reap

    server = cluster.connect()
    # A job that failed is not to be found and believed by the step that is started again.
    reap.stop(reap.cluster_jobs(server.addresses.jobs_namespace), run)
    server.retry(run)
    output.say(f"{run} goes on from the steps that failed; a change of the code needs a new run: `biovlm submit`")
    if wait:
        _wait(server, run, logs, json)


def reap(json: Json = False) -> None:
    """Delete the Ray jobs of runs that are over."""
    from functools import partial

    from pipelines import cluster
    from pipelines import reap as reaping

    server = cluster.connect()
    gone = reaping.reap(reaping.cluster_jobs(server.addresses.jobs_namespace), partial(reaping.state, server))
    rows = [(str(leftover.job["metadata"]["name"]), leftover.why) for leftover in gone]
    if json:
        output.emit_json([{"job": name, "why": why} for name, why in rows])
    elif rows:
        output.emit_table(("deleted", "because"), rows)
    else:
        output.say("no Ray job without its run")


def _wait(server: Server, run_id: str, logs: bool, json: bool) -> None:
    """Tell what happens until the run is over; the letter of a step that failed."""
    from components.platform.settings import Settings
    from model.errors import PreemptedError
    from pipelines import letters, runs, submit

    try:
        last = submit.follow(server, run_id, output.say, logs)
    except KeyboardInterrupt:
        raise PreemptedError(
            f"waiting ended, the run {run_id} goes on",
            f"`biovlm status {run_id} --wait` waits again, `biovlm stop {run_id}` ends it",
        ) from None
    _show(last, json)
    error = runs.letter(last, letters.why(last, server, Settings.from_environment()))
    if error is not None:
        raise error


def _show(view: RunView, json: bool) -> None:
    from pipelines import runs
    from pipelines.closing import duration

    if json:
        output.emit_json(runs.as_json(view))
        return
    spent = f" for {duration(view.seconds)}" if view.seconds is not None else ""
    output.say(f"{view.name}: {view.state}{spent}")
    rows: list[tuple[Any, ...]] = [
        (s.name, s.state, duration(s.seconds) if s.seconds is not None else "", s.said[:SAID]) for s in view.steps
    ]
    output.emit_table(("step", "state", "time", "said"), rows)


SAID = 48
"""Of what KFP says about a step, so that a row fits 80 columns."""
