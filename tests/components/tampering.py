"""One byte changed somewhere in the chain behind a version: where it can be, and what must then be said."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.platform import champion
from components.platform.ledger import registry
from components.platform.lineage import auditing
from components.platform.lineage.graph import Kind
from components.platform.places import Folder
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from components.platform.versions import Version

KINDS = {"checkpoint": "weights", "set": "data", "base": "base models", "export": "weights", "signature": "signature"}


@dataclass(frozen=True)
class Place:
    """A file in which a byte may change."""

    part: str
    """Weights, data, report, lineage, ..."""
    path: Path
    named: str
    """What an auditor must read then: the artifact, the step's key, the run, or the number of the entry."""


def places(settings: Settings, found: Version) -> list[Place]:
    """Every file that a version depends on, with what MLflow keeps and serves of it, and its ledger."""
    document, store = auditing.read(settings, found), settings.store
    listed: dict[Path, Place] = {}

    def add(part: str, path: Path, named: str) -> None:
        if path.is_file():
            listed.setdefault(path, Place(part, path, named))

    def folder(part: str, uri: str) -> None:
        for path in sorted((store / uri).rglob("*")):
            add("lineage" if path.name == "lineage.json" else part, path, Path(uri).name)

    for edge in document.edges:
        if "uri" in edge.facts:
            kind = edge.target.partition(":")[0]
            folder(KINDS.get(kind, kind), str(edge.facts["uri"]))
    for step in document.of(Kind.STEP):
        for path in store.glob(f"steps/*/{step.digest}*.json"):
            add("lineage" if ".lineage." in path.name else "record", path, step.digest)
        folder("decision", f"steps/promote/{step.digest}")
    receipt = f"steps/register/{found.tag(champion.RECEIPT_KEY)}"
    folder("receipt", receipt)
    signature = next((node.digest for node in document.of(Kind.RECEIPT)), "")
    folder("signature", f"signatures/{signature}")
    _mlflow(settings, found, str(document.of(Kind.RECEIPT)[0].facts["model_id"]), add)
    return list(listed.values())


def _mlflow(settings: Settings, found: Version, model_id: str, add: Callable[[str, Path, str], None]) -> None:
    tracking = Tracking(settings)
    kept = Path(tracking.client.get_experiment(tracking.experiment_id).artifact_location)
    run = tracking.run_of(found.name, found.version)
    digest = found.tags["biovlm.lineage"]
    for path in kept.glob(f"{run}/artifacts/lineage/{digest[:16]}/*.json"):
        add("lineage", path, run)
    for path in sorted((kept / "models" / model_id).rglob("*")):
        add("served", path, path.name)
    facts = registry.registered(settings, found.name)
    assert facts is not None
    place = registry.ledger_of(settings, found.name, facts).place
    assert isinstance(place, Folder)
    for path in sorted(place.root.glob("entries/*")):
        add("ledger", path, f"entry {int(path.stem)}")


@contextlib.contextmanager
def one_byte(path: Path, draw: random.Random) -> Iterator[int]:
    """Inside, one random byte of the file is another; gives where."""
    before = path.read_bytes()
    at = draw.randrange(len(before))
    path.write_bytes(before[:at] + bytes([before[at] ^ draw.randrange(1, 256)]) + before[at + 1 :])
    try:
        yield at
    finally:
        path.write_bytes(before)


def said(settings: Settings, found: Version) -> str:
    """All that a verification finds broken, as one text."""
    return "\n".join(f"{place}: {problem}" for place, problem in auditing.verify(settings, found).broken)
