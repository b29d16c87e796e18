"""What the model registry holds, for readers: models, their versions, and where a version's artifacts are.

1. `parse` reads an address as MLflow writes it: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.
2. `find` looks one up, by the ledger where it decides; an unknown one is a letter that names the nearest known model.
3. `models` and `history` list what there is.

A version's tags (components/register/step.py) name its artifacts relative to the store.
"""

from __future__ import annotations

import difflib
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from components.platform import champion, lineage, peek
from components.platform.ledger import registry
from components.platform.ledger.entry import ALIASES
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from components.platform.tracking import Tracking
from model import manifest
from model.errors import DataError, MissingInputError, RefusedError, UsageError

ADDRESS = re.compile(
    r"models:/(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]{0,99})(?:@(?P<alias>[A-Za-z][A-Za-z0-9_-]{0,49})|/(?P<number>\d{1,9}))"
)


class Version(BaseModel):
    """One version of a registered model."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    created: str = Field(default="", description="ISO 8601, UTC.")
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = Field(default_factory=dict)

    def receipt(self, settings: Settings) -> Path:
        """The folder of its receipt in the store. MissingInputError if biovlm did not register this version."""
        return _brought(open_store(settings), f"steps/register/{self._tag(champion.RECEIPT_KEY)}")

    def export(self, settings: Settings) -> Path:
        """The plain transformers folder of this version."""
        return _brought(open_store(settings), self._tag("biovlm.export"))

    def _tag(self, name: str) -> str:
        if name not in self.tags:
            raise MissingInputError(
                f"models:/{self.name}/{self.version} has no tag {name}: biovlm did not register it", "name another version"
            )
        return self.tags[name]


def parse(address: str) -> tuple[str, str, str]:
    """Name, alias and number of an address; alias or number is empty. UsageError if it is not one."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address!r} is not the address of a model version", "write models:/NAME@champion or models:/NAME/3")
    return match["name"], match["alias"] or "", match["number"] or ""


def find(settings: Settings, address: str) -> Version:
    """The version at `address`.

    Raises:
        UsageError: Not an address.
        MissingInputError: No such model or version, or the tracking store does not answer.
    """
    name, alias, number = parse(address)
    if alias:
        tags = champion.version_of(settings, name, alias)
        if tags is not None:
            return Version(name=name, version=tags.pop("version"), aliases=(alias,), tags=tags)
    else:
        for version in history(settings, name):
            if version.version == number:
                return version
    known = models(settings)
    near = difflib.get_close_matches(name, known, n=1)
    if name in known:
        raise MissingInputError(f"{address} does not exist", f"`biovlm registry history {name}` lists the versions of {name}")
    guess = f"; did you mean `{near[0]}`?" if near else ""
    raise MissingInputError(
        f"no registered model {name!r}{guess}", f"registered: {', '.join(known) or 'none yet: see `biovlm run`'}"
    )


def models(settings: Settings) -> list[str]:
    """Names of all registered models, sorted."""
    if peek.is_missing(settings.tracking_uri):
        return []
    return sorted(found.name for found in _pages(Tracking(settings).client.search_registered_models))


def history(settings: Settings, name: str) -> list[Version]:
    """All versions of a model, newest first; empty if there is none of that name."""
    if peek.is_missing(settings.tracking_uri):
        return []
    client = Tracking(settings).client
    found = list(_pages(client.search_model_versions, filter_string=f"name = '{name}'"))
    if not found:
        return []
    aliases: dict[str, list[str]] = {}
    for alias, number in _aliases(settings, name).items():
        aliases.setdefault(number, []).append(alias)
    versions = [
        Version(
            name=name,
            version=str(one.version),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.creation_timestamp / 1000)),
            aliases=tuple(sorted(aliases.get(str(one.version), ()))),
            tags=dict(one.tags),
        )
        for one in found
    ]
    return sorted(versions, key=lambda one: -int(one.version))


def _aliases(settings: Settings, name: str) -> dict[str, str]:
    """Alias -> version: of the registry, but for those about which the ledger decides."""
    facts, standing = registry.registered(settings, name), registry.standing(settings, name)
    held = dict(facts.aliases) if facts else {}
    if standing is None or not standing.entries:
        return held
    return {alias: version for alias, version in held.items() if alias not in ALIASES} | dict(standing.state.aliases)


def tree(settings: Settings, version: Version) -> lineage.Node:
    """The lineage that was written when the version was registered."""
    path = version.receipt(settings) / "lineage.json"
    try:
        return lineage.Node.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"no lineage at {path}", "the store was emptied; run the recipe again") from None
    except ValueError:
        raise DataError(f"{path} is not a lineage", "it was changed; `biovlm lineage verify` says more") from None


def verify(settings: Settings, version: Version) -> list[str]:
    """Re-hash everything in the store that the version was made from; a line for each artifact that is whole.

    Raises:
        RefusedError: A byte is not what the lineage says, or the lineage is not what the store says.
        MissingInputError: An artifact is gone.
    """
    store = open_store(settings)
    receipt = version.receipt(settings)
    manifest.verify(receipt)
    report = store.record("register", receipt.name)
    if report is None:
        raise MissingInputError(f"no record beside {receipt}", "the store was emptied in part; run the recipe again")
    stored, found = tree(settings, version).children, lineage.tree(store, report.inputs["report"].uri)
    if stored != (found,):
        raise RefusedError(
            "the lineage of the receipt is not what the store says", "an artifact was replaced; run the recipe again"
        )
    exported = manifest.verify(version.export(settings))
    if exported.parents.get("checkpoint") != version.tags[champion.CHECKPOINT_DIGEST]:
        raise RefusedError(
            f"{version.export(settings)} is the export of another checkpoint", "remove it and run the recipe again"
        )
    lines = {f"receipt {receipt.name[:12]}": None, f"export {exported.digest[:12]}": None}
    for kind, digest, uri in _artifacts(store, "register", receipt.name):
        store.fetch(uri, digest)
        lines[f"{kind} {digest[:12]}"] = None
    return list(lines)


def _brought(store: Store, uri: str) -> Path:
    """The folder of `uri`, from the other machine that made it if it is not here. Who reads it verifies it."""
    folder = store.root / uri
    return folder if folder.exists() or type(store) is Store else store.fetch(uri)


def _artifacts(store: Store, kind: str, key: str) -> list[tuple[str, str, str]]:
    """Every artifact that a step read, that its inputs were made from, and so on; data sets and base models too."""
    record = store.record(kind, key)
    found: list[tuple[str, str, str]] = []
    for source in record.inputs.values() if record else ():
        found.append((source.kind, source.digest, source.uri))
        found += _artifacts(store, *PurePosixPath(source.uri).parts[-2:])
        facts = store.manifest_of(source.uri).facts if source.kind == "data" else {}
        for entry in [*facts.get("sets", {}).values(), *facts.get("bases", {}).values()]:
            found.append(("data set or base model", entry["digest"], entry["uri"]))
    return list(dict.fromkeys(found))


def _pages(search: Any, **query: Any) -> list[Any]:
    """All pages of an MLflow search."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        found += page
        token = page.token
        if not token:
            return found
