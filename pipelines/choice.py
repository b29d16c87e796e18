"""The recipe of a command: a named one, on other data if asked (`--data`), with changes for a trial (`--set`).

1. `chosen` reads the recipe. `--data NAME` becomes changes of the recipe like any other; those of `--set` come last and win.
2. `on_data` says which: the task stage learns from the questions of NAME's `train` split, and the evaluation asks those of its test
   splits. One that shares no image with `train` (`..._disjoint`) comes first, since promotion looks at the first one. Name and
   registered model change too, so that each kind of data has its own champion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import recipe as recipes
from model.config import Recipe
from model.errors import ConfigError, DataError

RECIPES = Path(__file__).parent / "recipes"
NAME_CHARS = 40
QUESTION = "question"


def chosen(name: str, data: str | None, changes: Sequence[str]) -> Recipe:
    """The recipe `name`, on the data set `data` of the registry if that is given, with the `changes` of `--set`."""
    if data is None:
        return recipes.load(name, RECIPES, changes)
    from components.data.registry_url import open_registry
    from components.platform.settings import Settings

    version = open_registry(Settings.from_environment()).version(data)
    swapped = on_data(recipes.load(name, RECIPES), data, version.facts.get("splits", {}))
    return recipes.load(name, RECIPES, [*swapped, *changes])


def on_data(recipe: Recipe, name: str, splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The changes that let `recipe` train its task stage and be evaluated on the data set `name`.

    Args:
        recipe: The recipe to change.
        name: A data set.
        splits: Its splits, as its manifest says: name -> counts, with `by_kind`.

    Raises:
        DataError: It has no questions to train on, or none to ask.
    """
    asked = [split for split, counts in splits.items() if counts.get("by_kind", {}).get(QUESTION)]
    tests = sorted((split for split in asked if split.startswith("test")), key=lambda split: not split.endswith("_disjoint"))
    if "train" not in asked or not tests:
        raise DataError(
            f"the data set {name!r} has questions in {', '.join(asked) or 'no split'}: `train` and a split `test...` are needed",
            "write a recipe that names the splits, and pass it with --recipe",
        )
    benchmarks = ", ".join(f"{{benchmark: vqa, set: {name}, split: {split}}}" for split in tests)
    return [
        f"name={f'{recipe.name}-{name}'[:NAME_CHARS].rstrip('-_')}",
        f"registered_model={recipe.registered_model}-{name}",
        f"data.sets.{name}={{revision: HEAD}}",
        f"stages.task.data=[{{set: {name}, split: train, kinds: [{QUESTION}]}}]",
        f"evaluation.benchmarks=[{benchmarks}]",
    ]


def named_beside(path: Path, recipe: str) -> str:
    """The recipe that a file names: a YAML file beside it if there is one, else as it stands."""
    beside = path.parent / recipe
    return str(beside) if beside.suffix in recipes.SUFFIXES and beside.is_file() else recipe


def must_know(names: Sequence[str], sets: Iterable[str]) -> None:
    """ConfigError, with the nearest name, if one of `names` (`follow_data` of a file) is not among a recipe's data sets."""
    known = list(sets)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"follow_data: the recipe has no data set {name!r}{recipes.nearest(name, known)}",
                f"its data sets: {', '.join(known)}",
            )
