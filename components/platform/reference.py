"""What travels on a pipeline edge: a small JSON file that names an artifact.

A step writes one where KFP asks for its output, and the next step reads it. The bytes it names stay in the store: on a cluster
KFP copies every output artifact to its bucket and downloads every input whole before a step starts, so big things must not be
one.

`kind` is what the folder holds (`data`, `checkpoint`, `report`, `receipt`, `decision`), or `none` where there is nothing to name,
such as the champion of a new registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import DataError, MissingInputError
from model.manifest import Manifest, cannot_write

NONE = "none"
SHOWN = ("closed_accuracy", "open_recall", "image_gain", "items")


class Reference(BaseModel):
    """The name of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="Kind of the artifact's manifest, or `none`.")
    uri: str = Field(default="", description="Folder of the artifact.")
    digest: str = Field(default="", description="Digest of its manifest; empty for `none`.")
    facts: dict[str, Any] = Field(
        default_factory=dict, description="The manifest's facts and `figures`, for readers without the store."
    )

    @classmethod
    def to(cls, folder: Path, manifest: Manifest) -> Reference:
        """A reference to the artifact in `folder`."""
        facts = {**manifest.facts, "figures": key_figures(manifest.facts)}
        return cls(kind=manifest.kind, uri=str(folder), digest=manifest.digest, facts=facts)

    @property
    def folder(self) -> Path:
        """The artifact's folder."""
        return Path(self.uri)

    @property
    def is_none(self) -> bool:
        """Whether this names nothing."""
        return self.kind == NONE

    def write(self, path: Path) -> None:
        """Write the JSON file, making its folder."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from error


def key_figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers of an artifact that a table shows: its own choice, or those of its first benchmark or of its training."""
    if "figures" in facts:
        return dict(facts["figures"])
    benchmarks = list(facts.get("benchmarks", {}).values())
    if benchmarks:
        return {name: benchmarks[0][name] for name in SHOWN if name in benchmarks[0]}
    return {name: facts[name] for name in ("step", "records") if name in facts}


def read(path: str | Path) -> Reference:
    """The reference in the file at `path`. MissingInputError if there is none, DataError if it is not one."""
    try:
        return Reference.model_validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"no reference at {path}", "the step before did not finish; run the command again") from None
    except ValidationError as error:
        raise DataError(f"{path} is not a reference: {error.errors()[0]['msg']}", "run the command again") from None
