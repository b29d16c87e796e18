"""What a training would find in the data registry now, and how far its mix has moved since the last one.

1. `digests` reads from Git alone which version of each data set and base model a recipe names. Nothing is fetched.
2. `shifts` lays the old and the new version of each set that changed into the store, where the data step would lay the new one anyway,
   and compares how their training records are spread over the values of each variable. An unchanged set costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from components.data.registry import Registry
from components.platform.retraining.drift import Shift, shift
from components.platform.retraining.policy import Variable
from components.platform.settings import Settings
from model.config import DataSlice, Kind, Mixture

UNBUILT = "not built yet"
"""In the place of a digest: this version is made before the run trains."""


def digests(wanted: DataSlice, registry: Registry, to_come: Collection[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of data sets, and of base models, by name; of those `to_come`, that they are not built yet.

    Raises:
        MissingInputError: As `Registry.version`.
    """
    registry.ensure(())  # builds nothing, and brings the newest commits of a registry that is followed
    if not registry.is_built((*wanted.data.sets, *wanted.bases)):
        return dict.fromkeys(wanted.data.sets, UNBUILT), dict.fromkeys(wanted.bases, UNBUILT)
    present = {name: entry.revision for name, entry in wanted.data.sets.items() if name not in to_come}
    sets = {name: registry.version(name, revision).digest for name, revision in present.items()} | dict.fromkeys(to_come, UNBUILT)
    return sets, {name: registry.version(name).digest for name in wanted.bases}


def shifts(
    wanted: DataSlice,
    registry: Registry,
    settings: Settings,
    before: Mapping[str, str],
    variables: Collection[Variable],
) -> tuple[Shift, ...]:
    """How far each variable moved in each data set that changed and is trained on.

    Args:
        wanted: What the data step would see.
        registry: The data registry.
        settings: Where the store is.
        before: Data set -> revision that was trained on.
        variables: What to compare.

    Raises:
        MissingInputError: The bytes of a version are gone. DataError: It cannot be read.
    """
    found: list[Shift] = []
    for name, revision in sorted(before.items()):
        used = [mixture for mixture in wanted.uses if mixture.set == name]
        entry = wanted.data.sets.get(name)
        if entry is None or not used or registry.version(name, entry.revision).revision == revision:
            continue
        old, new = (registry.materialise([name], at, settings.store)[name].path for at in (revision, entry.revision))
        tables = [_tables(folder, used, variables) for folder in (old, new)]
        found += [shift(name, str(variable), tables[0][variable], tables[1][variable]) for variable in variables]
    return tuple(found)


def _tables(folder: Path, used: Iterable[Mixture], variables: Collection[Variable]) -> dict[Variable, Counter[str]]:
    """Variable -> value -> records that training reads, each once."""
    from model.data.dataset import open_dataset

    opened = open_dataset(folder, verify=False)  # materialising has just hashed it
    tables: dict[Variable, Counter[str]] = {variable: Counter() for variable in variables}
    seen: set[str] = set()
    for split, kinds in dict.fromkeys((mixture.split, mixture.kinds) for mixture in used):
        for record in opened.stream(split, kinds) if split in opened.splits else ():
            if record.id in seen:
                continue
            seen.add(record.id)
            for variable in variables:
                if record.kind is Kind.QUESTION or variable in (Variable.KIND, Variable.MODALITY):
                    tables[variable][str(getattr(record, variable.value) or "none")] += 1
    return tables
