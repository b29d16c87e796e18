"""What the model registry holds, for readers: models, their versions, and where a version's artifacts are.

1. `parse` reads an address as MLflow writes it: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.
2. `find` looks one up, by the ledger where it decides; an unknown one is a letter that names the nearest known model.
3. `models` and `history` list what there is.

A version's tags (components/platform/lineage/tracked.py) name its artifacts relative to the store.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from components.platform import champion, peek
from components.platform.ledger import registry
from components.platform.ledger.entry import ALIASES
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from components.platform.tracking import Tracking
from model.errors import MissingInputError, UsageError
from model.recipe import nearest

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

    @property
    def export_uri(self) -> str:
        """Place of the plain transformers folder in the store. MissingInputError if biovlm did not register this version."""
        return self.tag(champion.EXPORT)

    def export(self, settings: Settings) -> Path:
        """The plain transformers folder of this version, brought here if another machine made it. Who reads it verifies it."""
        store = open_store(settings)
        folder = store.root / self.export_uri
        return folder if folder.exists() or type(store) is Store else store.fetch(self.export_uri)

    def tag(self, name: str) -> str:
        """The value of a tag. MissingInputError if biovlm did not register this version."""
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
    if name in known:
        raise MissingInputError(f"{address} does not exist", f"`biovlm registry history {name}` lists the versions of {name}")
    raise MissingInputError(
        f"no registered model {name!r}{nearest(name, known)}", f"registered: {', '.join(known) or 'none yet: see `biovlm run`'}"
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
