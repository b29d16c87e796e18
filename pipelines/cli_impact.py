"""`biovlm lineage impact`: the question of lineage asked backwards, and the withdrawal that follows from it.

1. `impact` reads what is asked for, or a withdrawal list, and asks the index (components/platform/impact).
2. With a list it says what follows (`_followed`), and marks it unless `--dry-run`.
3. `--undo` takes back a withdrawal that was a mistake, by the digest of its list.
4. An answer that is not complete is printed, and then ends with 66: who acts on it must know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import MissingInputError, RefusedError, UsageError
from pipelines import output
from pipelines.cli_options import SHOWN, Json

if TYPE_CHECKING:
    from components.platform.impact.answer import Answer, Touched
    from components.platform.impact.ask import Told
    from components.platform.impact.question import Item, Withdrawal
    from components.platform.settings import Settings

MOST_LINES = 20
"""Of a long list, the rest is counted; `--json` has all."""


def impact(
    image: Annotated[list[str] | None, typer.Option("--image", help="An image file, or sha256:HEX.", metavar="FILE")] = None,
    record: Annotated[list[str] | None, typer.Option("--record", help="Id of a record, or SET/ID.", metavar="ID")] = None,
    patient: Annotated[
        list[str] | None, typer.Option("--patient", help="Group of records: patient or study.", metavar="ID")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A data set, NAME@REVISION, or a digest.", metavar="NAME")
    ] = None,
    base: Annotated[list[str] | None, typer.Option("--base", help="A base model, or its digest.", metavar="NAME")] = None,
    licence: Annotated[list[str] | None, typer.Option("--licence", help="A licence of data or weights.", metavar="NAME")] = None,
    withdraw: Annotated[
        Path | None, typer.Option("--withdraw", help="Withdrawal list: `KIND VALUE` a line; marks what learned.", metavar="FILE")
    ] = None,
    undo: Annotated[
        str,
        typer.Option("--undo", help="Take back the withdrawal of the list with this digest, or its beginning.", metavar="LIST"),
    ] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; stands in the registry, so no names.", metavar="TEXT")] = "",
    by: Annotated[str, typer.Option("--by", help="Who orders it; this user.", metavar="NAME")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a withdrawal would mark, and mark nothing.")] = False,
    json: Json = False,
) -> None:
    """Every model version that learned from an image, record, patient, data set, base model or licence."""
    from components.platform.impact import ask, question
    from components.platform.impact.question import Subject
    from components.platform.settings import Settings

    given = {
        Subject.IMAGE: image,
        Subject.RECORD: record,
        Subject.PATIENT: patient,
        Subject.DATA: data,
        Subject.BASE: base,
        Subject.LICENCE: licence,
    }
    items = [question.item(subject, value) for subject, values in given.items() for value in values or ()]
    if bool(items) + (withdraw is not None) + bool(undo) != 1:
        raise UsageError(
            "give what is asked for, or a withdrawal list, or one to take back",
            "`biovlm lineage impact --patient ID`, or `--withdraw FILE --reason TEXT`, or `--undo LIST --reason TEXT`",
        )
    settings = Settings.from_environment()
    if undo:
        _undo(settings, undo, reason, by, dry_run, json)
        return
    if withdraw is None:
        told = ask.ask(settings, items, output.say)
        _tell(told, len(items), json, {})
    else:
        wanted = question.read_list(withdraw)
        if not reason.strip():
            raise UsageError("a withdrawal needs a reason", "--reason TEXT, without names of patients: it stands in the registry")
        told = ask.ask(settings, wanted.items, output.say)
        _tell(told, len(wanted.items), json, _withdraw(settings, told, wanted, reason, by, dry_run))
    _refuse_incomplete(told, wanted.items if withdraw else items)


def _undo(settings: Settings, beginning: str, reason: str, by: str, dry_run: bool, json: bool) -> None:
    """Take back a withdrawal. Where a site has approvers, only somebody whose key is among theirs may."""
    from components.platform.impact import withdrawals
    from components.platform.ledger import acts

    if not reason.strip():
        raise UsageError(
            "taking back a withdrawal needs a reason", "--reason TEXT, without names of patients: it stands in the registry"
        )
    who = acts.person(settings)
    if settings.approvers and not who.proven:
        raise RefusedError("nobody knows who takes the withdrawal back", "set BIOVLM_ACTOR_KEY to the file of your own key")
    found = withdrawals.find(settings, beginning)
    if dry_run:
        freed = withdrawals.withdrawn_by(settings, found)
    else:
        freed = withdrawals.undo(settings, found, who.name if who.proven else by or who.name, reason.strip())
    named = [f"{model} {number}" for model, number in freed]
    if json:
        output.emit_json({"list": found, "undone": not dry_run, "versions": named})
        return
    state = "would be" if dry_run else "is"
    output.emit(f"the withdrawal of list {found[:SHOWN]} {state} taken back: {_count(len(named), 'version')}")
    for name in named[:MOST_LINES]:
        output.emit(f"not withdrawn by it any more: {name}")


def _withdraw(settings: Settings, told: Told, wanted: Withdrawal, reason: str, by: str, dry_run: bool) -> dict[str, Any]:
    """Mark what the answer names; what follows from it, as JSON."""
    import getpass

    from components.platform.impact import marks, withdrawals

    answer = told.answer
    found = _followed(settings, answer)
    if not dry_run:
        notice = marks.Notice(wanted.digest, by or settings.actor or getpass.getuser(), reason.strip())
        withdrawals.withdraw(settings, wanted.items, answer, notice)
    return {"list": wanted.digest, "marked": not dry_run, **found}


def _followed(settings: Settings, answer: Answer) -> dict[str, Any]:
    """What a withdrawal asks for: versions to take out of service, models to train again, reports to make again."""
    from components.platform import versions

    names = sorted({one.model for one in answer.learned})
    aliases = {
        (name, one.version): list(one.aliases) for name in names for one in versions.history(settings, name) if one.aliases
    }
    serving = [one for one in answer.learned if (one.model, one.number) in aliases]
    return {
        "withdraw": [f"{one.model} {one.number}" for one in answer.learned],
        "serving": {f"{one.model} {one.number}": aliases[one.model, one.number] for one in serving},
        "retrain": {one.model: list(one.through) for one in serving},
        "evaluate_again": [f"{one.model} {one.number}" for one in answer.evaluated],
        "import_again": [f"{found.name} {found.digest[:SHOWN]}" for found in answer.sets],
    }


def _tell(told: Told, asked: int, json: bool, followed: dict[str, Any]) -> None:
    from dataclasses import asdict

    if len(told.answer.nowhere) == asked and not json and told.alike is None:
        return  # the letter says it
    if json:
        value = asdict(told)
        for part in (value["answer"], value["alike"] or {}):
            # Names of patients stay where they were asked: the answer says the line, or the place among those asked for.
            part["nowhere"] = [{"subject": str(item["subject"]), "line": item["line"]} for item in part.get("nowhere", ())]
        output.emit_json({**value, **({"withdrawal": followed} if followed else {})})
        return
    answer = told.answer
    output.emit(f"{_count(len(answer.learned), 'version')} learned from it; {len(answer.evaluated):,} more only evaluated on it")
    _versions("learned", answer.learned)
    _versions("evaluated", answer.evaluated)
    for found in answer.sets[:MOST_LINES]:
        output.emit(f"data set  {found.name} {found.digest[:SHOWN]}  {_count(found.records, 'record')}")
    if told.alike is not None:
        output.emit(
            f"alike, which proves nothing: {_count(told.alike_images, 'further image')}, "
            f"{_count(len(told.alike.learned), 'version')} learned from them"
        )
        _versions("alike", told.alike.learned)
    for line in _followed_lines(followed):
        output.emit(line)


def _versions(what: str, found: Sequence[Touched]) -> None:
    for one in found[:MOST_LINES]:
        through = f"  through {', '.join(one.through)}" if one.through else ""
        records = f"  {_count(one.records, 'record')}" if one.records else ""
        output.emit(f"{what:<9} {one.model} {one.number}{records}{through}{'  (deleted)' if one.gone else ''}")
    if len(found) > MOST_LINES:
        output.emit(f"{what:<9} ... and {len(found) - MOST_LINES:,} more; --json has all")


def _followed_lines(followed: dict[str, Any]) -> list[str]:
    if not followed:
        return []
    state = "is marked as withdrawn" if followed["marked"] else "would be marked as withdrawn"
    said = [f"withdraw: {_count(len(followed['withdraw']), 'version')} {state} (list {followed['list'][:SHOWN]})"]
    said += [
        f"in service: {name} is {', '.join(aliases)}: roll back, or retrain" for name, aliases in followed["serving"].items()
    ]
    said += [f"retrain: {model}, without it, from {through[0]} on" for model, through in followed["retrain"].items() if through]
    said += [f"evaluate again: {name}" for name in followed["evaluate_again"][:MOST_LINES]]
    said += [f"import again without it: {name}" for name in followed["import_again"][:MOST_LINES]]
    return said


def _refuse_incomplete(told: Told, items: Sequence[Item]) -> None:
    """Raise what keeps the answer from being the whole one."""
    answer = told.answer
    if len(answer.nowhere) == len(items):
        kinds = sorted({str(item.subject) for item in answer.nowhere})
        alike = f"; {_count(told.alike_images, 'image')} only look alike" if told.alike_images else ""
        raise MissingInputError(
            f"no data set, base model or licence behind any version has this {' or '.join(kinds)}{alike}",
            "check the id or the file; `biovlm data list` names the data sets, and only what a registered version read is known here",
        )
    if answer.nowhere:
        lines = ", ".join(str(item.line) if item.line else f"--{item.subject}" for item in answer.nowhere[:MOST_LINES])
        output.say(f"note: {_count(len(answer.nowhere), 'thing')} of {len(items):,} stand nowhere: {lines}")
    if answer.unknown:
        model, number, why = answer.unknown[0]
        raise MissingInputError(
            f"the answer is not complete: of {_count(len(answer.unknown), 'version')} it is not known what they learned from; "
            f"the first is {model} {number}: {why}",
            "restore what is missing in the store and ask again, or take those versions as affected",
        )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
