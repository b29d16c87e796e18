"""A few facts of MLflow, read without importing MLflow.

Every run must know the present champion and whether the store answers, also the run that reuses every step. Importing MLflow and
opening its store takes five to ten seconds on two cores, so these questions are asked directly: of a server by its public
REST interface, of the embedded SQLite file by a few tables that have had this form since MLflow 2.0. A test holds both against
MLflow's own client. A store of another kind, or of another form, is asked through MLflow (`components.platform.tracking`).
"""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.errors import MissingInputError

TIMEOUT_SECONDS = 5.0
STORE_ID = "biovlm.store_id"
PAGE = "10000"
"""Versions that a server is asked for at once."""


@dataclass(frozen=True)
class Registered:
    """A registered model as the registry holds it."""

    mark: str
    """When it was made, in milliseconds since 1970: one of this name in another registry has another mark."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias -> version."""
    tags: Mapping[str, str] = field(default_factory=dict)


class Unknown(Exception):
    """This store cannot be asked directly; ask MLflow."""


def is_missing(uri: str) -> bool:
    """Whether this is an embedded store that nobody has made yet: it holds nothing, and MLflow would make it by opening it."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()


def store_id(uri: str, experiment: str) -> str | None:
    """The mark that the first run left on the experiment; None in a store without one.

    Raises:
        MissingInputError: The store does not answer.
        Unknown: It must be asked through MLflow.
    """
    if uri.startswith(("http://", "https://")):
        answer = _get(uri, "experiments/get-by-name", {"experiment_name": experiment})
        tags = (answer or {}).get("experiment", {}).get("tags", [])
        return next((str(tag["value"]) for tag in tags if tag["key"] == STORE_ID), None)
    sql = """SELECT t.value FROM experiment_tags t JOIN experiments e USING (experiment_id)
             WHERE e.name = ? AND e.lifecycle_stage = 'active' AND t.key = ?"""
    rows = _select(uri, sql, (experiment, STORE_ID))
    return str(rows[0][0]) if rows else None


def registered(uri: str, name: str) -> Registered | None:
    """The registered model `name`; None without one. Errors as `version_tags`."""
    if uri.startswith(("http://", "https://")):
        answer = _get(uri, "registered-models/get", {"name": name})
        if answer is None:
            return None
        found = answer["registered_model"]
        aliases = {str(one["alias"]): str(one["version"]) for one in found.get("aliases", [])}
        tags = {str(one["key"]): str(one["value"]) for one in found.get("tags", [])}
        return Registered(str(found["creation_timestamp"]), aliases, tags)
    made = _select(uri, "SELECT creation_time FROM registered_models WHERE name = ?", (name,))
    if not made:
        return None
    rows = _select(uri, "SELECT alias, version FROM registered_model_aliases WHERE name = ?", (name,))
    pairs = _select(uri, "SELECT key, value FROM registered_model_tags WHERE name = ?", (name,))
    return Registered(str(made[0][0]), {str(a): str(v) for a, v in rows}, {str(key): str(value) for key, value in pairs})


def numbered_tags(uri: str, name: str, version: str) -> dict[str, str] | None:
    """Tags of version `version` of the registered model `name`, with its number; None without one. Errors as `version_tags`."""
    if uri.startswith(("http://", "https://")):
        answer = _get(uri, "model-versions/get", {"name": name, "version": version})
        return None if answer is None else _tags(answer["model_version"])
    sql = "SELECT version FROM model_versions WHERE name = ? AND version = ? AND current_stage <> 'Deleted_Internal'"
    if not _select(uri, sql, (name, version)):
        return None
    rows = _select(uri, "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", (name, version))
    return {**{str(key): str(value) for key, value in rows}, "version": version}


def version_tags(uri: str, name: str, alias: str) -> dict[str, str] | None:
    """Tags of the version of the registered model `name` that carries `alias`, with its number as `version`; None without one.

    Raises:
        MissingInputError: The store does not answer.
        Unknown: It must be asked through MLflow.
    """
    if uri.startswith(("http://", "https://")):
        answer = _get(uri, "registered-models/alias", {"name": name, "alias": alias})
        return None if answer is None else _tags(answer["model_version"])
    found = _select(uri, "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", (name, alias))
    if not found:
        return None
    rows = _select(uri, "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", (name, found[0][0]))
    return {**{str(key): str(value) for key, value in rows}, "version": str(found[0][0])}


def versions(uri: str) -> list[tuple[str, str, dict[str, str]]]:
    """Every version of every registered model: name, number and tags. Ten thousand of them take well under a second.

    Raises:
        MissingInputError: The store does not answer.
        Unknown: It must be asked through MLflow.
    """
    if uri.startswith(("http://", "https://")):
        return _searched(uri)
    rows = _select(uri, "SELECT name, version FROM model_versions WHERE current_stage != 'Deleted_Internal'", ())
    found: dict[tuple[str, int], dict[str, str]] = {(str(name), int(number)): {} for name, number in rows}
    for name, number, key, value in _select(uri, "SELECT name, version, key, value FROM model_version_tags", ()):
        if (name, number) in found:
            found[name, number][str(key)] = str(value)
    return [(name, str(number), tags) for (name, number), tags in sorted(found.items())]


def _searched(uri: str) -> list[tuple[str, str, dict[str, str]]]:
    """As `versions`, page by page from a server."""
    found, token = [], ""
    while True:
        answer = _get(uri, "model-versions/search", {"max_results": PAGE, **({"page_token": token} if token else {})}) or {}
        for one in answer.get("model_versions", ()):
            tags = {str(tag["key"]): str(tag.get("value", "")) for tag in one.get("tags", ())}
            found.append((str(one["name"]), str(one["version"]), tags))
        token = answer.get("next_page_token", "")
        if not token:
            return sorted(found, key=lambda one: (one[0], int(one[1])))


def _tags(version: Mapping[str, Any]) -> dict[str, str]:
    return {**{str(tag["key"]): str(tag["value"]) for tag in version.get("tags", [])}, "version": str(version["version"])}


def _select(uri: str, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    if not uri.startswith("sqlite:///"):
        raise Unknown
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_file():
        return []
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True, timeout=TIMEOUT_SECONDS)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()
    except sqlite3.OperationalError:
        raise Unknown from None  # another form of the tables, or not yet made
    except sqlite3.DatabaseError:
        raise unreachable(uri, "it is not a database") from None


def _get(uri: str, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise Unknown from None  # for instance a login, which MLflow's client knows how to give
    except (OSError, ValueError) as error:
        raise unreachable(uri, str(getattr(error, "reason", error))) from None


def unreachable(uri: str, reason: str) -> MissingInputError:
    """The letter for a tracking store that does not answer; credentials in the address are not repeated."""
    shown = urllib.parse.urlsplit(uri)
    place = uri if "@" not in uri else f"{shown.scheme}://{shown.hostname}"
    return MissingInputError(
        f"the tracking store {place} does not answer: {reason}",
        "start it, correct MLFLOW_TRACKING_URI, or unset that variable to use the embedded store in BIOVLM_HOME",
    )
