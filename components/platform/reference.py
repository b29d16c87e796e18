"""What travels on a pipeline edge: a small JSON file that names an artifact.

A step writes one where KFP asks for its output, and the next step reads it. The bytes it names stay in the store: on a cluster
KFP copies every output artifact to its bucket and downloads every input whole before a step starts, so big things must not be
one.

In a file, the `uri` of an artifact in the store is relative to the store, so that the next step may have its store elsewhere, on
another machine. In memory it is the whole path on this machine: `read` and `write` translate.

`kind` is what the folder holds (`data`, `checkpoint`, `report`, `receipt`, `decision`), or `none` where there is nothing to name,
such as the champion of a new registry. What a step makes that was passed over, because a policy skips the run, is `none` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import DataError, MissingInputError
from model.manifest import Manifest, cannot_write, safe_join

NONE = "none"
SKIPPED = "skipped"
"""Fact of a reference that names nothing because the run was skipped: the reason."""
SHOWN = ("closed_accuracy", "open_recall", "image_gain", "items")


class Reference(BaseModel):
    """The name of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(description="Kind of the artifact's manifest, or `none`.")
    uri: str = Field(default="", description="Folder of the artifact; in a file relative to the store if it is there.")
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

    @property
    def skipped(self) -> str:
        """Why there is nothing, if a policy skipped the run; else empty."""
        return str(self.facts.get(SKIPPED, "")) if self.is_none else ""

    def write(self, path: Path, store: Path) -> None:
        """Write the JSON file, making its folder. `store` is the root of this machine's store."""
        inside = not self.is_none and self.folder.is_relative_to(store)
        travelling = self.model_copy(update={"uri": self.folder.relative_to(store).as_posix()}) if inside else self
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(travelling.model_dump_json(indent=1), encoding="utf-8")
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


def read(path: str | Path, store: Path) -> Reference:
    """The reference in the file at `path`, its folder in the store whose root is `store` on this machine.

    Raises:
        MissingInputError: There is none. DataError: It is not one. RefusedError: It leaves the store.
    """
    try:
        found = Reference.model_validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"no reference at {path}", "the step before did not finish; run the command again") from None
    except ValidationError as error:
        raise DataError(f"{path} is not a reference: {error.errors()[0]['msg']}", "run the command again") from None
    if found.is_none or Path(found.uri).is_absolute():
        return found
    return found.model_copy(update={"uri": str(safe_join(store, found.uri))})
