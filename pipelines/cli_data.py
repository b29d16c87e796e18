"""`biovlm data`: what the data registry holds, and how it gets there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from model.errors import MissingInputError, UsageError
from pipelines import output
from pipelines.cli_options import SHOWN, Json

SOURCES = ("vqa-rad",)


def build(json: Json = False) -> None:
    """Make the demo data: the phantom data set and two tiny base models."""
    from components.data.registry_url import open_registry
    from components.platform.settings import Settings

    began = time.monotonic()
    registry = open_registry(Settings.from_environment())
    revision = registry.build(output.say)
    output.say(f"demo data at {revision[:SHOWN]} after {time.monotonic() - began:.1f} s")
    _show(revision, json)


def import_set(
    name: Annotated[str, typer.Argument(help="Which data set: vqa-rad.", metavar="NAME")],
    path: Annotated[Path, typer.Option("--path", help="Folder with the published files.", metavar="DIR")],
    json: Json = False,
) -> None:
    """Take a published data set into the registry, as its authors publish it."""
    if name not in SOURCES:
        raise UsageError(f"unknown data set {name!r}", f"data sets that can be imported: {', '.join(SOURCES)}")
    if not path.is_dir():
        raise MissingInputError(f"no folder {path}", "give the folder with the published files as --path")
    from components.data.registry_url import open_registry
    from components.platform.settings import Settings
    from model.data.sources.vqa_rad import import_vqa_rad

    def make(folder: Path) -> None:
        for line in import_vqa_rad(path, folder).lines():
            output.say(line)

    registry = open_registry(Settings.from_environment())
    revision = registry.add(name, make, f"import {name}", output.say)
    output.say(f"`biovlm run --data {name}` trains and evaluates on it")
    _show(revision, json, name)


def corrections(
    policy: Annotated[Path, typer.Argument(help="A policy.yaml that names the file: because.feedback.", metavar="POLICY")],
    json: Json = False,
) -> None:
    """Make a data set of the corrections that a policy names, and train nothing: schedules on a cluster follow its versions."""
    from components.platform.settings import Settings
    from pipelines import retraining

    plan = retraining.read(policy)
    taken = retraining.take_all(plan, Settings.from_environment())
    output.say(
        f"{taken.learned} corrections are learned from, {taken.left_out} lines left out: no answer, or nothing that training reads"
    )
    wanted = plan.policy.because.feedback
    _show("HEAD", json, wanted.set if wanted else None)


def check(
    name: Annotated[str, typer.Argument(help="A data set of the registry.", metavar="NAME")],
    revision: Annotated[str, typer.Option("--revision", help="Git revision of the registry.")] = "HEAD",
    json: Json = False,
) -> None:
    """Read every record and image of a data set, and say what is wrong with which; exit code 65 if too much is."""
    from components.data.registry_url import open_registry
    from components.platform.settings import Settings
    from model.config import Data, DataSet
    from model.data.check import check as look

    settings = Settings.from_environment()
    found = open_registry(settings).materialise([name], revision, settings.store)[name]
    if found.manifest.kind != "data":
        raise UsageError(f"{name} is a {found.manifest.kind}, not a data set", "`biovlm data list` shows which are")
    report = look(found.path, Data(sets={name: DataSet(revision=revision)}))
    if json:
        output.emit_json({"name": name, "revision": found.revision, "digest": found.digest, **report.facts()})
    else:
        for line in report.lines():
            output.emit(line)
    report.refuse()


def list_sets(json: Json = False) -> None:
    """The newest version of every data set and base model."""
    _show("HEAD", json)


def _show(revision: str, json: bool, name: str | None = None) -> None:
    from components.data.registry_url import open_registry
    from components.platform.settings import Settings

    registry = open_registry(Settings.from_environment())
    found = [version for version in registry.list(revision) if name in (None, version.name)]
    if json:
        output.emit_json([version.model_dump() for version in found])
    elif not found:
        output.say("the data registry is empty")
        output.say("hint: `biovlm data build` makes the demo data, `biovlm data import vqa-rad --path DIR` takes in VQA-RAD")
    else:
        rows = [
            (
                v.name,
                v.kind,
                v.revision[:SHOWN],
                v.digest[:SHOWN],
                f"{v.files:,}",
                f"{v.size_bytes / 2**20:.1f}",
                _licence(v.facts),
            )
            for v in found
        ]
        output.emit_table(("name", "kind", "revision", "digest", "files", "MiB", "licence"), rows)


def _licence(facts: dict[str, object]) -> str:
    return str(facts.get("licence", "unknown"))
