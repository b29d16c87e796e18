"""What a training is made of: the last one, from the registry of models and the records in the store; and one now, from recipe and code.

1. `last` takes the newest version of the model that this recipe made, and walks from its receipt to the records of its three stages: the
   parts of their keys, as the stages made them.
2. `wanted` says the same of a recipe: what its stages' keys would hold, with digests of data that the caller looked up.

So two `Made` are equal if the keys of the stages are, whoever asks, here or in a pod.
"""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.platform import ancestry, champion, code, versions
from components.platform.retraining.decision import Basis, CodeState, Made
from components.platform.settings import Settings
from components.platform.store import Store, open_store
from model.config import STAGE_NAMES
from model.manifest import digest_of
from model.recipe import key_content


def wanted(slices: Mapping[str, Mapping[str, Any]], data: Mapping[str, str], bases: Mapping[str, str]) -> Made:
    """What a training of a recipe is made of.

    Args:
        slices: Of the recipe (`model.recipe.slices`).
        data: Data set -> digest of the version that would be taken.
        bases: The same of base models.
    """
    stages = {stage: digest_of(key_content(slices[stage])) for stage in STAGE_NAMES}
    return Made(data=dict(data), bases=dict(bases), recipe=stages, code=code.digest("train"))


def last(settings: Settings, registered_model: str, recipe: str) -> Basis | None:
    """The last training by a recipe that made a version of the model; None without one.

    A version whose records are gone from the store is passed over: nobody can say what it was made of.

    Raises:
        MissingInputError: The tracking store does not answer.
    """
    store = open_store(settings)
    for version in versions.history(settings, registered_model):
        if version.tags.get("biovlm.recipe") != recipe or champion.RECEIPT_KEY not in version.tags:
            continue
        made = _made(store, version.tags[champion.RECEIPT_KEY])
        if made is not None:
            created = datetime.datetime.fromisoformat(version.created)
            return Basis(version=version.version, made=made[0], revisions=made[1], created=created)
    return None


def _made(store: Store, receipt_key: str) -> tuple[Made, dict[str, str]] | None:
    """What a version was made of, and the revisions of its data sets."""
    found = ancestry.records(store, receipt_key)
    if not {*STAGE_NAMES, "data", "register"} <= found.keys():
        return None
    facts = store.manifest_of(found["register"].inputs["data"].uri).facts
    digests = [{name: str(entry["digest"]) for name, entry in facts[group].items()} for group in ("sets", "bases")]
    recipe = {stage: digest_of(found[stage].piece) for stage in STAGE_NAMES}
    made = Made(data=digests[0], bases=digests[1], recipe=recipe, code=found["task"].code)
    return made, {name: str(entry["revision"]) for name, entry in facts["sets"].items()}


def code_state(pattern: str, root: Path = code.ROOT) -> CodeState:
    """Commit of the code, and those of its tags that match the pattern."""
    revision = code.revision(root)
    matching = tuple(tag for tag in code.tags(root) if fnmatch.fnmatchcase(tag, pattern))
    return CodeState(commit=str(revision["commit"]), dirty=bool(revision["dirty"]), tags=matching)
