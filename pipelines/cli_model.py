"""`biovlm train`, `evaluate`, `chat` and `serve`: one part of the way, by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import BiovlmError, ExitCode, MissingInputError, UsageError
from pipelines import output
from pipelines.cli_options import DEFAULT, Changes, Data, Json, RecipeName

if TYPE_CHECKING:
    from components.platform.settings import Settings
    from model.config import Recipe

RESEARCH = "Research use only: not a medical device, not for clinical decisions."


def train(
    stage: Annotated[str, typer.Option("--stage", help="align, instruct or task.", metavar="STAGE")],
    out: Annotated[Path, typer.Option("--out", help="Folder of this training.", metavar="DIR")],
    parent: Annotated[Path | None, typer.Option("--parent", help="Checkpoint of the stage before.", metavar="DIR")] = None,
    recipe: RecipeName = DEFAULT,
    data: Data = None,
    changes: Changes = None,
) -> None:
    """Train one stage here, without Ray, KFP or MLflow: `python -m model.training` on data of the registry."""
    from components.data.registry_url import open_registry
    from components.platform.settings import CHECKOUT, Settings
    from model.config import STAGE_NAMES
    from model.recipe import slices
    from pipelines.choice import chosen

    if stage not in STAGE_NAMES:
        raise UsageError(f"unknown stage {stage!r}", f"stages: {', '.join(STAGE_NAMES)}")
    wanted, settings = chosen(recipe, data, changes or ()), Settings.from_environment()
    registry, bases = open_registry(settings), slices(wanted)["data"]["bases"]
    registry.ensure((*wanted.data.sets, *bases), output.say)
    used = {mixture.set for mixture in getattr(wanted.stages, stage).data}
    sets = {name: registry.materialise([name], wanted.data.sets[name].revision, settings.store)[name] for name in sorted(used)}
    laid = registry.materialise(bases, "HEAD", settings.store)
    command = [sys.executable, "-m", "model.training", str(_resolved(wanted, out))]
    command += ["--stage", stage, "--out", str(out.absolute())]
    command += [word for name, found in sets.items() for word in ("--data", f"{name}={found.path}")]
    command += [word for name, found in laid.items() for word in ("--base", f"{name}={found.path}")]
    command += ["--parent", str(parent.absolute())] if parent else []
    raise typer.Exit(_until_saved(subprocess.Popen(command, cwd=CHECKOUT)))


def _resolved(wanted: Recipe, out: Path) -> Path:
    """The recipe as it is after `--data` and `--set`, in a file in the folder of the training."""
    from model.manifest import cannot_write

    path = out.absolute() / "recipe.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted.model_dump_json(indent=1), encoding="utf-8")  # JSON is YAML, too
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def _until_saved(training: subprocess.Popen[bytes]) -> int:
    """Exit code of the training; a stop is passed on, and it gets the time to save its checkpoint."""
    try:
        return training.wait()
    except KeyboardInterrupt:
        training.terminate()
        return training.wait()


def evaluate(recipe: RecipeName = DEFAULT, data: Data = None, changes: Changes = None, json: Json = False) -> None:
    """Ask the champion of a recipe its benchmarks, or find its answers in the store; prints the key figures."""
    import tempfile

    from components.data import step as data_step
    from components.evaluate import step as evaluate_step
    from components.platform import champion as champions
    from components.platform import reference
    from components.platform.settings import Settings
    from model.manifest import canonical_json
    from model.recipe import slices
    from pipelines.choice import chosen

    wanted, settings = chosen(recipe, data, changes or ()), Settings.from_environment()
    champion, _ = champions.look(settings, wanted.registered_model)
    if champion.is_none:
        raise MissingInputError(f"{wanted.registered_model} has no champion yet", f"`biovlm run --recipe {recipe}` makes one")
    pieces = {name: canonical_json(piece) for name, piece in slices(wanted).items()}
    with tempfile.TemporaryDirectory(prefix="biovlm-") as folder:
        material, checkpoint, report = (str(Path(folder) / name) for name in ("data", "checkpoint", "report"))
        champion.write(Path(checkpoint), settings.store)
        data_step.run(pieces["data"], material)
        evaluate_step.run("evaluate", pieces["evaluate"], material, checkpoint, report)
        found = reference.read(report, settings.store)
    figures = found.facts.get("figures", {})
    if json:
        output.emit_json({"model": wanted.registered_model, "version": champion.facts["version"], "report": found.uri, **figures})
    else:
        output.emit_table(("figure", "value"), [(name, f"{value:.4g}") for name, value in figures.items()])
        output.say(f"report: {found.uri}")


def chat(
    image: Annotated[Path, typer.Option("--image", help="PNG, JPEG or BMP file.", metavar="FILE")],
    question: Annotated[str | None, typer.Argument(help="Without it, questions are read until an empty line.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="models:/NAME@ALIAS; the tiny recipe's champion.")] = None,
    json: Json = False,
) -> None:
    """Ask the champion about an image. Research use only."""
    from components.platform import versions
    from components.platform.settings import Settings
    from components.platform.store import open_store
    from model.data.images import decode

    if not image.is_file():
        raise MissingInputError(f"no image at {image}", "give the path of a PNG, JPEG or BMP file as --image")
    decode(image)  # a bad one is told now, and not after the model was loaded
    settings = Settings.from_environment()
    address = model or _default_model(settings)
    found = versions.find(settings, address)
    found.export(settings)  # one that is gone, too
    output.say(RESEARCH)
    from components.platform.chat import Chat  # torch and transformers: seconds, after everything that can fail at once

    assistant = Chat(open_store(settings), settings, found.export_uri)
    if question is None:
        _converse(assistant.answer, image)
        return
    answer = assistant.answer(image, question)
    if json:
        output.emit_json({"model": address, "question": question, "answer": answer})
    else:
        output.emit(answer)


def serve(
    model: Annotated[str | None, typer.Option("--model", help="models:/NAME@ALIAS; the tiny recipe's champion.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; it asks nobody who they are.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 5001,
) -> None:
    """Answer over HTTP as `mlflow models serve` does, once everything that is served was proved. Research use only."""
    import tempfile

    from components.platform.settings import Settings
    from components.register import server

    settings = Settings.from_environment()
    with tempfile.TemporaryDirectory(prefix="biovlm-") as aside:
        version, folder = server.proved(settings, model or _default_model(settings), Path(aside))
        output.say(f"{version.name} {version.version} is proved; POST http://{host}:{port}/invocations. {RESEARCH}")
        server.serve(settings, folder, host, port)


def _default_model(settings: Settings) -> str:
    from pipelines.choice import chosen

    return f"models:/{chosen(DEFAULT, None, ()).registered_model}@champion"


def _converse(answer: Callable[[Path, str], str], image: Path) -> None:
    """Questions from stdin, until an empty line or its end."""
    asking = sys.stdin.isatty()
    while True:
        if asking:
            sys.stderr.write("? ")
            sys.stderr.flush()
        question = sys.stdin.readline().strip()
        if not question:
            return
        try:
            output.emit(answer(image, question))
        except BiovlmError as error:
            if error.exit_code is not ExitCode.USAGE:
                raise
            output.letter(error)  # a question that cannot be asked; the next one may
