"""`biovlm reproduce`: make a version again, from what its lineage names, and compare."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UsageError
from pipelines import output
from pipelines.cli_options import SHOWN, Address, Json

if TYPE_CHECKING:
    from pipelines.reproduce import Compared

FOLDER = "reproductions"


def reproduce(
    model: Address,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="For key figures on another kind of machine; 0.02.", metavar="SHARE")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder that it was made again in.")] = False,
    json: Json = False,
) -> None:
    """Make a model version again from its lineage, and compare every artifact; exit code 77 if it is another."""
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise UsageError(f"--tolerance is {tolerance:g}", "give a share in 0..1, such as 0.02")
    from components.platform.settings import Settings
    from pipelines import reproduce as again

    settings = Settings.from_environment()
    original = again.gather(settings, model)
    folder = settings.home / FOLDER / f"{original.version.name}-{original.version.version}-{secrets.token_hex(4)}"
    other = again.differences_of_machine(original)
    try:
        rebuilt = again.rebuild(original, settings, folder)
    except BaseException:
        again.discard(folder)
        raise
    output.say(f"{original.address}: everything it was made of is here; making it again in {folder}")
    found = again.compare(original, settings, rebuilt, again.run(rebuilt))
    if json:
        rows = [{**asdict(one), "equal": one.equal} for one in found]
        output.emit_json({"model": original.address, "artifacts": rows, "other_machine": other, "folder": str(folder)})
    else:
        output.emit_table(("artifact", "was", "is", ""), [_row(one) for one in found])
    sentence = again.judge(original, found, other, again.TOLERANCE if tolerance is None else tolerance)
    output.say(sentence)
    if not keep:
        again.discard(folder)


def _row(one: Compared) -> tuple[str, str, str, str]:
    if one.equal:
        said = "equal to the bit"
    elif one.apart is not None:
        said = f"weights at most {one.apart:.2g} of their largest apart"
    elif one.figures is not None:
        said = ", ".join(f"{name} {value:.3g} apart" for name, value in one.figures.items())
    else:
        said = f"differs in {', '.join(one.files) or 'its facts'}"
    return one.step, one.was[:SHOWN], one.made[:SHOWN], said
