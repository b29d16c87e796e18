"""Exports of checkpoints in the store: plain transformers folders, made once, under the checkpoint's digest.

Here data's templates and the architecture meet. torch and transformers are imported when an export is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from components.platform.reference import Reference
from components.platform.store import Store
from model.errors import DataError, MissingInputError, RefusedError


def ensure(checkpoint: Reference, bases: Callable[[], Mapping[str, Path]], store: Store) -> Path:
    """The export of a checkpoint, made unless the store has one that verifies.

    Args:
        checkpoint: The checkpoint.
        bases: Gives its base models by their name in the registry; asked only if there is something to make.
        store: Where exports are; one that was damaged is set aside.
    """
    uri = uri_of(checkpoint)
    final = store.root / uri
    try:
        return store.fetch(uri)
    except (RefusedError, DataError, MissingInputError):
        if final.exists():
            store.set_aside(final)
    _export(checkpoint.folder, bases(), final)
    store.publish(uri)
    return final


def uri_of(checkpoint: Reference) -> str:
    """Where a checkpoint's export is in the store."""
    return f"exports/{checkpoint.digest}"


def is_there(checkpoint: Reference, store: Store) -> bool:
    """Whether the store has the export, its bytes unseen."""
    try:
        return bool(store.manifest_of(uri_of(checkpoint)))
    except (DataError, MissingInputError):
        return False


def _export(checkpoint: Path, bases: Mapping[str, Path], final: Path) -> None:
    from model.architecture import checkpoint as checkpoints
    from model.architecture.export import export
    from model.data.templates import Prompter, chat_template

    assistant = checkpoints.load(checkpoint, bases)
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    template, end_token_id = chat_template(assistant.template, assistant.system), prompter.end_token_id
    del assistant, prompter  # `export` loads it again, merged: one at a time
    export(checkpoint, bases, final, template, end_token_id)
