"""The export of a checkpoint: here data's templates and the architecture meet. Imports torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model.architecture import checkpoint as checkpoints
from model.architecture.export import export
from model.data.templates import Prompter, chat_template


def export_checkpoint(checkpoint: Path, bases: Mapping[str, Path], final: Path) -> None:
    """Write the merged assistant of `checkpoint` as a plain transformers folder at `final`.

    Args:
        checkpoint: A checkpoint folder.
        bases: Base models by their name in the registry.
        final: Where the artifact appears.
    """
    assistant = checkpoints.load(checkpoint, bases)
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    template, end_token_id = chat_template(assistant.template, assistant.system), prompter.end_token_id
    del assistant, prompter  # `export` loads it again, merged: one at a time
    export(checkpoint, bases, final, template, end_token_id)
