"""The data step: one revision of every data set and base model in the store, verified, looked at, compared.

1. Demo data that is asked for and missing is built (`registry.ensure`).
2. The key is made of the digests that the revisions name, so `HEAD` is reused exactly as long as it names the same bytes. What was
   withdrawn is refused (exit 77).
3. Sets and base models are laid into the store, verified byte by byte, and published for the steps on other machines.
4. Every record and image of the sets is read once; too many bad ones end the run with exit 65.
5. Images and groups of what trains and of what is asked are compared; shared ones are said, and shown in the report.
6. The artifact holds `audit.json`; its facts name the folders, relative to the store, with digests, licences and revisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from components.data import look
from components.data.registry import Materialised, Registry
from components.data.registry_url import open_registry
from components.platform import inputs
from components.platform.events import EventLog, EventType
from components.platform.impact import listed, marks
from components.platform.reference import Reference
from components.platform.settings import Settings
from components.platform.step import Work, run_step
from components.platform.store import open_store
from model import manifest
from model.config import Benchmark, DataSlice, Mixture

KIND = "data"


def run(piece: str, data: str, question: str = "") -> None:
    """Make or reuse the data artifact, and write its reference to the path `data`.

    Args:
        piece: The slice, as JSON.
        data: Where the reference goes.
        question: Of a scheduled run: whether to train again (components/platform/retraining/question.py); empty otherwise.
    """
    content = json.loads(piece)
    skip = partial(look.skips, question, DataSlice.model_validate(content)) if question else None
    run_step("data", "data", content, {}, data, _produce, partial(_build_and_identify, content), _still_good, skip=skip)


def identity(wanted: DataSlice, registry: Registry) -> dict[str, str]:
    """What belongs to the key: the digests that the revisions name, read from Git alone."""
    sets = {f"set {name}": registry.version(name, entry.revision).digest for name, entry in wanted.data.sets.items()}
    return sets | {f"base {name}": registry.version(name).digest for name in wanted.bases}


def is_built(wanted: DataSlice, registry: Registry) -> bool:
    """Whether the data step would find everything in the registry without building demo data."""
    return registry.is_built((*wanted.data.sets, *wanted.bases))


def _build_and_identify(content: dict[str, Any], given: Mapping[str, Reference]) -> dict[str, str]:
    wanted, settings = DataSlice.model_validate(content), Settings.from_environment()
    registry = open_registry(settings)
    log = EventLog(settings.events, "data")

    def tell(line: str) -> None:
        log.write(EventType.NOTE, message=line)

    registry.ensure((*wanted.data.sets, *wanted.bases), tell)
    found = identity(wanted, registry)
    marks.refuse(open_store(settings), found)  # before the key is looked up: a stored result is not to be used either
    return found


def _still_good(stored: manifest.Manifest) -> bool:
    """Whether the folders that the artifact names are as they were."""
    store = open_store(Settings.from_environment())
    named = [entry for group in ("sets", "bases") for entry in stored.facts[group].values()]
    if not set(listed.known(store)) <= set(stored.facts.get("withdrawals", ())):
        return False  # a list came since: the records are looked at again
    return all(store.holds(entry["uri"], entry["digest"]) for entry in named)


def _produce(work: Work) -> None:
    wanted = DataSlice.model_validate(work.piece)
    store, registry = work.settings.store, open_registry(work.settings)
    sets: dict[str, Materialised] = {}
    for name, entry in wanted.data.sets.items():
        sets |= registry.materialise([name], entry.revision, store)
    bases = registry.materialise(wanted.bases, "HEAD", store) if wanted.bases else {}
    for found in (*sets.values(), *bases.values()):
        work.store.publish(work.store.uri(found.path))
    lists = listed.known(work.store)
    audit, learned = _audit(wanted, sets, work)
    facts = {
        "sets": {name: _facts(found, store) for name, found in sets.items()},
        "bases": {name: _facts(found, store) for name, found in bases.items()},
        "limits": {"max_quarantined": wanted.data.max_quarantined, "max_image_pixels": wanted.data.max_image_pixels},
        "excluded": {name: part["excluded"] for name, part in audit["sets"].items()},
        **({"withdrawals": lists} if lists else {}),
        "figures": {"records": sum(sum(part["kept"].values()) for part in audit["sets"].values())},
    }
    with manifest.commit(work.final, KIND, facts=facts) as folder:
        (folder / "audit.json").write_text(json.dumps(audit, indent=1, sort_keys=True), encoding="utf-8")
        (folder / inputs.LEARNED).write_text("".join(f"{digest}\n" for digest in sorted(learned)), encoding="utf-8")


def _facts(found: Materialised, store: Path) -> dict[str, Any]:
    """What later steps and the lineage need; the path is relative, so that the digest does not depend on where the store is."""
    return {
        "uri": found.path.relative_to(store).as_posix(),
        "digest": found.digest,
        "revision": found.revision,
        "dvc_path": found.dvc_path,
        "md5": found.md5,
        "licence": str(found.manifest.facts.get("licence", "unknown")),
    }


def _audit(wanted: DataSlice, sets: dict[str, Materialised], work: Work) -> tuple[dict[str, Any], set[str]]:
    """Look at every record and image, and compare what trains with what is asked: what was found, and the digests of all image
    files that train. DataError if too many are bad."""
    from model.data.audit import leakage, statistics  # torch-free, but images and hashes cost a second that a reused step saves
    from model.data.check import check
    from model.data.dataset import Audit, DataSet, file_digests

    opened: dict[str, DataSet] = {}
    parts: dict[str, Any] = {}
    withdrawn = listed.Lists.of(work.store)
    for done, (name, found) in enumerate(sets.items()):
        report = check(found.path, wanted.data)
        report.refuse()
        audit = Audit({name: report.excluded}, wanted.data.max_quarantined, wanted.data.max_image_pixels)
        opened[name] = audit.open(name, found.path, verify=False)
        withdrawn.refuse(name, opened[name])
        counts = {split: statistics(opened[name], split) for split in opened[name].splits}
        parts[name] = {**report.facts(), "excluded": report.excluded, "splits": counts}
        work.log.write(EventType.PROGRESS, done=done + 1, total=len(sets) + 1, unit="data sets")
    training, evaluated = _images(opened, wanted.uses), _images(opened, wanted.evaluated)
    leaks = leakage(
        {"training": training[0], "evaluation": evaluated[0]},
        {"training": training[1], "evaluation": evaluated[1]},
        max_pixels=wanted.data.max_image_pixels,
    )
    work.log.write(EventType.PROGRESS, done=len(sets) + 1, total=len(sets) + 1, unit="data sets")
    if not leaks.clean:
        # Not an error: VQA-RAD's published split shares images. The report shows such questions as a slice of their own.
        work.log.write(EventType.NOTE, message=f"what is asked was partly trained on: {'; '.join(leaks.lines())}")
    return {"sets": parts, "leakage": leaks.facts()}, set(map(file_digests(opened.values()), training[0]))


def _images(opened: dict[str, Any], used: Iterable[Mixture | Benchmark]) -> tuple[set[Path], set[str]]:
    """Image files and groups of all records that are used."""
    from model.data.audit import images_and_groups

    files: set[Path] = set()
    groups: set[str] = set()
    for entry in used:
        found = images_and_groups(opened[entry.set], entry.split, entry.kinds if isinstance(entry, Mixture) else ())
        files |= found[0]
        groups |= {f"{entry.set}/{group}" for group in found[1]}
    return files, groups
