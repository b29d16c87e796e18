"""Read a recipe, change it for a trial, and cut it into one slice for each step.

1. `load(name_or_path, folder, overrides)` reads the YAML, follows `extends:` (deep merge, the child wins), applies `--set a.b=1`
   overrides, and validates. Every complaint is a ConfigError that names the file or the `--set`, the field and, for an unknown
   key, the nearest known one.
2. `slices(recipe)` gives each step what it may see, as plain JSON values.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from model.config import STAGE_NAMES, DataSlice, EvaluateSlice, Model, PromoteSlice, Recipe, RegisterSlice, TrainSlice
from model.errors import ConfigError
from model.manifest import digest_of

REGISTRY_PREFIX = "registry:"
MAX_EXTENDS = 10
SUFFIXES = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once in its mapping: the standard loader takes the last one without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node


def load(name: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a file in `folder`, without .yaml) or the YAML file at the path `name`.

    Args:
        name: Name or path.
        folder: Where named recipes live; `extends` is looked up beside the extending file first, then here.
        overrides: `dotted.path=value` strings, values in YAML.

    Raises:
        ConfigError: Unknown recipe, unreadable YAML, unknown key, wrong value or contradiction.
    """
    path = _find(name, (folder,))
    raw = _read_extended(path, folder, ())
    for override in overrides:
        raw = _override(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(*_letter(error, path, overrides)) from None


def names(folder: Path) -> list[str]:
    """Names of the recipes in `folder`, sorted."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def digest(recipe: Recipe) -> str:
    """The recipe's name by content: 64 hex digits."""
    return digest_of(recipe.model_dump(mode="json"))


def registered_bases(model: Model) -> tuple[str, ...]:
    """Names of the base models that come from the data registry."""
    sources = (model.tower.source, model.language.source)
    return tuple(s.removeprefix(REGISTRY_PREFIX) for s in sources if s and s.startswith(REGISTRY_PREFIX))


def slices(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """One JSON slice for each step: data, align, instruct, task, evaluate, register, promote."""
    uses = tuple(mix for stage in STAGE_NAMES for mix in getattr(recipe.stages, stage).data)
    bases = registered_bases(recipe.model)
    models: dict[str, BaseModel] = {
        "data": DataSlice(data=recipe.data, uses=uses, evaluated=recipe.evaluation.benchmarks, bases=bases),
        "evaluate": EvaluateSlice(seed=recipe.seed, evaluation=recipe.evaluation, resources=recipe.resources),
        "register": RegisterSlice(registered_model=recipe.registered_model, recipe=recipe.name, recipe_digest=digest(recipe)),
        "promote": PromoteSlice(registered_model=recipe.registered_model, promotion=recipe.promotion),
    }
    for stage in STAGE_NAMES:
        models[stage] = TrainSlice(
            stage_name=stage,
            seed=recipe.seed,
            model=recipe.model,
            stage=getattr(recipe.stages, stage),
            resources=recipe.resources,
        )
    return {name: model.model_dump(mode="json") for name, model in models.items()}


def key_content(piece: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a slice that can change its step's result: all but the resources other than the number of workers."""
    content = dict(piece)
    if "resources" in content:
        content["resources"] = {"workers": content["resources"]["workers"]}
    return content


def json_schema() -> dict[str, Any]:
    """JSON Schema of recipe files for editors. Fields are optional throughout, since a recipe may extend another."""
    schema = Recipe.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    schema["properties"]["extends"] = {"type": "string", "description": "Name of the recipe this one changes."}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _find(name: str, folders: Sequence[Path]) -> Path:
    path = Path(name)
    if path.suffix in SUFFIXES and path.is_file():
        return path
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(f"no recipe at {name}: {what}", "give the path of a YAML file, or the name of a recipe of biovlm")
    known = sorted({n for folder in folders for n in names(folder)})
    raise ConfigError(f"unknown recipe {name!r}{nearest(name, known)}", f"known recipes: {', '.join(known) or 'none'}")


def _read_extended(path: Path, folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen or len(seen) > MAX_EXTENDS:
        chain = " -> ".join(p.stem for p in (*seen, path))
        raise ConfigError(f"recipes extend each other in a circle: {chain}", "remove one `extends:`")
    raw = read_yaml(path)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    try:
        above = _find(str(parent), (path.parent, folder))
    except ConfigError as error:
        raise ConfigError(f"{path}: extends: {error.message}", error.hint) from None
    return _merge(_read_extended(above, folder, (*seen, path)), raw)


def read_yaml(path: Path, what: str = "a recipe") -> dict[str, Any]:
    """The mapping in a YAML file, in which every key stands once. ConfigError, with the line, if it is none."""
    try:
        raw = _parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", "save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check its path and permissions") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {_problem(error)}", "mend the line") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: {what} is a mapping of fields, this is {type(raw).__name__}", "see pipelines/recipes/tiny.yaml"
        )
    return raw


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _problem(error: Exception) -> str:
    """What is wrong, in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _merge(base: Any, change: Any) -> Any:
    """Mappings are merged field by field; anything else is replaced."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return {**base, **{k: _merge(base.get(k), v) for k, v in change.items()}}


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"cannot read --set {override!r}", "write it as --set stages.task.epochs=2")
    try:
        value = _parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {path}: {reprlib.repr(text)} is not a YAML value: {_problem(error)}", "quote it") from None
    for key in reversed(path.strip().split(".")):
        value = {key: value}
    return dict(_merge(raw, value))


def _letter(error: ValidationError, path: Path, overrides: Sequence[str]) -> tuple[str, str]:
    """Message and hint for the first complaint; the others are counted."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    where = _origin(first["loc"], overrides) or str(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        return f"{where}: unknown key `{field}`{nearest(str(first['loc'][-1]), known)}{more}", f"keys there: {', '.join(known)}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f", given {reprlib.repr(first['input'])}"
    return f"{where}: {field or 'recipe'}: {message}{given}{more}", "pipelines/recipes/schema.json describes every field"


def _origin(location: tuple[int | str, ...], overrides: Sequence[str]) -> str:
    """The last `--set` that wrote the field at `location`, or something in it; empty where none did."""
    for override in reversed(overrides):
        path = override.partition("=")[0].strip()
        if location and all(part == str(at) for part, at in zip(path.split("."), location, strict=False)):
            return f"--set {path}"
    return ""


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model at `location` inside a recipe, found by walking the JSON Schema."""
    schema = Recipe.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(node, schema)
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return sorted(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref` and the first non-null branch of `anyOf`."""
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        else:
            node = next(branch for branch in node["anyOf"] if branch.get("type") != "null")
    return node


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` for a misspelt word; empty if nothing known is like it."""
    match = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{match[0]}`?" if match else ""


def strict_letter(
    error: ValidationError, path: Path, known: Callable[[tuple[int | str, ...]], Iterable[str]], described: str
) -> tuple[str, str]:
    """Message and hint for the first complaint about a strict YAML file.

    Args:
        error: Pydantic's.
        path: The file.
        known: Place of a mapping in it -> the keys that it may have.
        described: Where its fields are described.
    """
    # A misspelt key is also a missing one; the first says more.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the file"
    if first["type"] == "extra_forbidden":
        keys = sorted(known(first["loc"][:-1]))
        return f"{path}: unknown key `{place}`{nearest(str(first['loc'][-1]), keys)}", f"keys there: {', '.join(keys)}"
    return f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}", f"{described} describes every field"
