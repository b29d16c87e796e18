"""Who is champion: the version that carries the alias, as a reference that the evaluate step understands.

1. `register` writes the tags below on every version; `promote` adds which report the version was measured against, and moves the
   alias.
2. `present` reads them at the start of a run. The champion is then evaluated like any candidate, on the same items, and found in
   the store under the key it had as a candidate. `look` reads them for those who only ask, and makes nothing.

`against` is what keeps a repeated run still: a champion that runs again as its own candidate is compared with what it was
compared with then, so its decision has the same key and is reused, instead of being measured against itself.
"""

from __future__ import annotations

import contextlib
import time

from components.platform import peek
from components.platform.reference import NONE, Reference
from components.platform.settings import Settings
from components.platform.tracking import Tracking

ALIAS, PREVIOUS = "champion", "previous"
CHECKPOINT_DIGEST, CHECKPOINT_PATH = "biovlm.checkpoint", "biovlm.checkpoint_path"
MIRROR_SECONDS = 60.0
RECEIPT_KEY, AGAINST = "biovlm.receipt_key", "biovlm.against"


def present(settings: Settings, registered_model: str) -> tuple[Reference, str]:
    """The champion's checkpoint (kind `none` without one), and the mark of the tracking store.

    Raises:
        MissingInputError: The tracking store does not answer.
    """
    try:
        mark = _mark(settings)
        tags = peek.version_tags(settings.tracking_uri, registered_model, ALIAS)
    except peek.Unknown:
        mark, tags = None, None
    if mark is None:
        tracking = Tracking(settings)
        mark, tags = tracking.store_id, tracking.version_tags(registered_model, ALIAS)
    return as_reference(settings, tags), mark


def look(settings: Settings, registered_model: str) -> tuple[Reference, str | None]:
    """The champion's checkpoint, and the mark of the tracking store if it has one; a store that does not exist stays so.

    Raises:
        MissingInputError: The tracking store does not answer.
    """
    uri = settings.tracking_uri
    if peek.is_missing(uri):
        return Reference(kind=NONE), None
    try:
        return as_reference(settings, peek.version_tags(uri, registered_model, ALIAS)), peek.store_id(uri, settings.experiment)
    except peek.Unknown:
        return present(settings, registered_model)


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


def as_reference(settings: Settings, tags: dict[str, str] | None) -> Reference:
    """The checkpoint that a version's tags name; a version that biovlm did not register counts as none."""
    if not tags or CHECKPOINT_DIGEST not in tags or CHECKPOINT_PATH not in tags:
        return Reference(kind=NONE)
    facts = {"version": tags["version"], "against": tags.get(AGAINST, NONE)}
    folder = settings.store / tags[CHECKPOINT_PATH]
    return Reference(kind="checkpoint", uri=str(folder), digest=tags[CHECKPOINT_DIGEST], facts=facts)
