"""Who is champion: the version that the ledger says, as a reference that the evaluate step understands.

1. `register` writes the tags below on every version; `promote` adds which report the version was measured against, and moves the
   alias.
2. `present` asks the ledger who it is (components/platform/ledger), and reads them at the start of a run. The champion is then
   evaluated like any candidate, on the same items, and found in the store under the key it had as a candidate. `look` reads them for
   those who only ask, and makes nothing.

`against` is what keeps a repeated run still: a champion that runs again as its own candidate is compared with what it was
compared with then, so its decision has the same key and is reused, instead of being measured against itself.
"""

from __future__ import annotations

import contextlib
import time

from components.platform import peek
from components.platform.ledger import registry
from components.platform.ledger.entry import ALIASES, CHAMPION
from components.platform.reference import NONE, Reference
from components.platform.settings import Settings
from components.platform.tracking import Tracking
from model.errors import MissingInputError

CHECKPOINT_DIGEST, CHECKPOINT_PATH = "biovlm.checkpoint", "biovlm.checkpoint_path"
MIRROR_SECONDS = 60.0
RECEIPT_KEY, EXPORT, AGAINST = "biovlm.receipt_key", "biovlm.export", "biovlm.against"


def present(settings: Settings, registered_model: str) -> tuple[Reference, str]:
    """The champion's checkpoint (kind `none` without one), and the mark of the tracking store.

    Raises:
        MissingInputError: The tracking store does not answer.
    """
    try:
        mark = _mark(settings)
    except peek.Unknown:
        mark = None
    if mark is None:
        mark = Tracking(settings).store_id
    return _reigning(settings, registered_model), mark


def look(settings: Settings, registered_model: str) -> tuple[Reference, str | None]:
    """The champion's checkpoint, and the mark of the tracking store if it has one; a store that does not exist stays so.

    Raises:
        MissingInputError: The tracking store does not answer.
    """
    uri = settings.tracking_uri
    if peek.is_missing(uri):
        return Reference(kind=NONE), None
    try:
        return _reigning(settings, registered_model), peek.store_id(uri, settings.experiment)
    except peek.Unknown:
        return present(settings, registered_model)


def version_of(settings: Settings, registered_model: str, alias: str) -> dict[str, str] | None:
    """Tags of the version with an alias, with its number as `version`; None without one. The ledger decides about its aliases, also
    while the registry lags behind or was changed by hand; about others, and before a ledger begins, the registry does.

    Raises:
        MissingInputError: The tracking store does not answer, or the version is gone. RefusedError: The ledger was changed.
    """
    found = registry.standing(settings, registered_model) if alias in ALIASES else None
    if found is None or not found.entries:
        try:
            return peek.version_tags(settings.tracking_uri, registered_model, alias)
        except peek.Unknown:
            return Tracking(settings).version_tags(registered_model, alias)
    version = found.state.aliases.get(alias, "")
    if not version:
        return None
    tags = numbered_tags(settings, registered_model, version)
    if tags is None:
        raise MissingInputError(
            f"version {version} of {registered_model}, which the ledger has as {alias}, is gone from the registry",
            f"`biovlm registry rollback {registered_model} --to NUMBER --reason ...` makes an earlier champion champion again",
        )
    return tags


def numbered_tags(settings: Settings, registered_model: str, version: str) -> dict[str, str] | None:
    """Tags of a version, with its number as `version`; None without one."""
    try:
        return peek.numbered_tags(settings.tracking_uri, registered_model, version)
    except peek.Unknown:
        return Tracking(settings).numbered_tags(registered_model, version)


def _reigning(settings: Settings, registered_model: str) -> Reference:
    found = registry.standing(settings, registered_model)
    if found is None or not found.state.champion:
        return Reference(kind=NONE)
    return as_reference(settings, version_of(settings, registered_model, CHAMPION), found.since)


def _mark(settings: Settings) -> str | None:
    """The mark of the tracking store.

    In a new home the run's mirror is just making the embedded store; to wait for it costs less than to make it a second time.
    """
    deadline = time.monotonic() + MIRROR_SECONDS
    while settings.mirrored and settings.tracking_uri.startswith("sqlite:") and time.monotonic() < deadline:
        with contextlib.suppress(peek.Unknown):  # its tables are half made
            mark = peek.store_id(settings.tracking_uri, settings.experiment)
            if mark is not None:
                return mark
        time.sleep(0.2)
    return peek.store_id(settings.tracking_uri, settings.experiment)


def as_reference(settings: Settings, tags: dict[str, str] | None, since: int = 0) -> Reference:
    """The checkpoint that a version's tags name; a version that biovlm did not register counts as none.

    Args:
        settings: Of this process.
        tags: Of the version, with its number.
        since: Number of the ledger's entry that made it champion.
    """
    facts = {"version": tags["version"], "against": tags.get(AGAINST, NONE), "since": since} if tags else {}
    if not tags or CHECKPOINT_DIGEST not in tags or CHECKPOINT_PATH not in tags:
        return Reference(kind=NONE, facts=facts)
    folder = settings.store / tags[CHECKPOINT_PATH]
    return Reference(kind="checkpoint", uri=str(folder), digest=tags[CHECKPOINT_DIGEST], facts=facts)
