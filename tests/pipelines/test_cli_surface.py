"""The public face of `biovlm`: growing it is a deliberate act, done here."""

from __future__ import annotations

import typer.main

from pipelines.cli import app

SURFACE = {
    "run": {"--recipe", "-r", "--data", "--set", "--json", "--runner", "--if-changed", "--policy"},
    "plan": {"--recipe", "-r", "--data", "--set", "--policy", "--json"},
    "compile": {"--out", "--launcher-image", "--train-image"},
    "submit": {"--recipe", "-r", "--data", "--set", "--budget", "--package", "--wait", "--logs", "--json"},
    "status": {"run", "--last", "--wait", "--logs", "--json"},
    "stop": {"run"},
    "retry": {"run", "--wait", "--logs", "--json"},
    "reap": {"--json"},
    "schedule apply": {"file", "--prune"},
    "schedule diff": {"file", "--json"},
    "schedule list": {"--json"},
    "schedule pause": {"file"},
    "schedule resume": {"file"},
    "data build": {"--json"},
    "data import": {"name", "--path", "--json"},
    "data corrections": {"policy", "--json"},
    "data check": {"name", "--revision", "--json"},
    "data list": {"--json"},
    "train": {"--stage", "--out", "--parent", "--recipe", "-r", "--data", "--set"},
    "evaluate": {"--recipe", "-r", "--data", "--set", "--json"},
    "chat": {"question", "--image", "--model", "--json"},
    "serve": {"--model", "--host", "--port"},
    "registry list": {"--json"},
    "registry history": {"name", "--json"},
    "registry approve": {"model", "--json"},
    "registry promote": {"model", "--json"},
    "registry rollback": {"name", "--to", "--reason", "--json"},
    "registry reconcile": {"name", "--json"},
    "lineage show": {"model", "--json", "--html"},
    "lineage verify": {"model", "--json"},
    "lineage impact": {
        "--image",
        "--record",
        "--patient",
        "--data",
        "--base",
        "--licence",
        "--withdraw",
        "--undo",
        "--reason",
        "--by",
        "--dry-run",
        "--json",
    },
    "lineage export": {"model", "--format", "--out"},
    "cost": {"subject", "--json"},
    "reproduce": {"model", "--tolerance", "--keep", "--json"},
    "doctor": {"--cluster", "--recipe", "-r", "--budget", "--json"},
    "schema": set(),
}


def walk(command, path=()):
    """Every command with its options (as typed) and arguments (by name)."""
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from walk(child, (*path, name))
        return
    typed = set()
    for parameter in command.params:
        typed |= set(parameter.opts) if parameter.param_type_name == "option" else {parameter.name}
    yield " ".join(path), typed


def test_the_commands_and_their_options_are_these():
    assert dict(walk(typer.main.get_command(app))) == SURFACE


def test_every_command_and_option_says_what_it_does():
    def mute(command, path=()):
        if not (command.help or "").strip():
            yield " ".join(path)
        for name, child in getattr(command, "commands", {}).items():
            yield from mute(child, (*path, name))
        yield from (f"{' '.join(path)} {p.name}" for p in command.params if not getattr(p, "help", None))

    assert not list(mute(typer.main.get_command(app)))
