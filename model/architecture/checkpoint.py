"""Checkpoints: what the stages learned, as small files beside the base models they were learned on.

    manifest.json                    kind "checkpoint"; parents: bases, data, parent checkpoint; facts: see `CheckpointFacts`
    connector.safetensors            the connector, float32
    adapters/1-instruct/             adapter_config.json and adapter_model.safetensors, as PEFT writes them
    adapters/2-task/                 the next one, trained on the language model with the first merged into it

1. `save` writes all adapters in order, so a checkpoint and its base models are the whole assistant; the file appears in one step.
2. `load` verifies every hash, builds the assistant from the base models, refuses other base models than those it was trained on,
   checks names, shapes and finiteness of all weights, and merges the adapters in order, the last one only if asked to.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model import config, manifest
from model.architecture import adapters, tensors
from model.architecture.assembly import Assistant, build
from model.errors import DataError, RefusedError

KIND = "checkpoint"
CONNECTOR = "connector.safetensors"
ADAPTERS = "adapters"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CheckpointFacts(BaseModel):
    """The facts in a checkpoint's manifest that are needed to read it; a stage adds its own (step, epoch, ...)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    stage: str = Field(description="Name of the stage that wrote it.")
    seed: int = Field(description="What random weights were drawn from.")
    model: config.Model = Field(description="The part of the recipe that the assistant is built from.")
    dtype: str = Field(pattern="^(float32|bfloat16)$", description="Number format of the frozen weights it was trained on.")
    adapters: tuple[str, ...] = Field(description="Folders below adapters/, in the order in which they are merged.")


def save(
    final: Path, assistant: Assistant, stage_name: str, parents: Mapping[str, str], facts: Mapping[str, Any]
) -> manifest.Manifest:
    """Write the assistant's checkpoint as the folder `final`.

    Args:
        final: Where it appears; an artifact already there is replaced.
        assistant: With the adapter of this stage attached, if the stage has one.
        stage_name: For the adapter's folder and the facts.
        parents: Role -> digest, beyond the base models: the parent checkpoint and the data.
        facts: Further small facts.
    """
    own: dict[str, Any] = {
        "stage": stage_name,
        "seed": assistant.seed,
        "model": assistant.settings.model_dump(mode="json"),
        "dtype": str(assistant.model.lm_head.weight.dtype).removeprefix("torch."),
        "adapters": [folder.name for folder in assistant.merged],
    }
    if assistant.adapter is not None:
        own["adapters"].append(adapter_name(assistant, stage_name))
    with manifest.commit(final, KIND, {**assistant.base_digests, **parents}, {**facts, **own}) as folder:
        for source in assistant.merged:
            shutil.copytree(source, folder / ADAPTERS / source.name)
        tensors.write(folder / CONNECTOR, assistant.connector.state_dict())
        if assistant.adapter is not None:
            adapters.write(assistant, folder / ADAPTERS / own["adapters"][-1])
    return manifest.read(final)


def load(
    folder: Path, bases: Mapping[str, Path], verify: bool = True, merge: bool = False, dtype: torch.dtype | None = None
) -> Assistant:
    """The assistant that a checkpoint and its base models are.

    Args:
        folder: The checkpoint.
        bases: Name in the registry -> folder.
        verify: Hash all files against their manifests.
        merge: Merge the last adapter as well; else it is attached.
        dtype: Number format of the frozen weights; empty takes the one that it was trained on.

    Raises:
        RefusedError: A file was changed, or the base models are not those of the training.
        DataError: It is no checkpoint, or weights have other names or shapes, or are not finite.
    """
    record = manifest.verify(folder) if verify else manifest.read(folder)
    facts = read_facts(record, folder)
    assistant = build(facts.model, bases, facts.seed, dtype or DTYPES[facts.dtype], verify)
    for role, digest in assistant.base_digests.items():
        if record.parents.get(role) != digest:
            raise RefusedError(
                f"{folder} was trained on the {role} {record.parents.get(role, 'none')[:18]}, given is {digest[:18]}",
                "give the base models of the same data revision as in the training",
            )
    _load_connector(folder, assistant)
    for index, name in enumerate(facts.adapters):
        source = manifest.safe_join(folder, f"{ADAPTERS}/{name}")
        assistant = adapters.read(assistant, source)
        if merge or index < len(facts.adapters) - 1:
            assistant = adapters.merge(assistant, source)
    return dataclasses.replace(assistant, model=assistant.model.eval())


def read_facts(record: manifest.Manifest, folder: Path) -> CheckpointFacts:
    """The facts of a checkpoint; DataError if the manifest is of another kind, or lacks some."""
    try:
        if record.kind == KIND:
            return CheckpointFacts.model_validate(record.facts)
        reason = f"its kind is {record.kind!r}"
    except ValidationError as error:
        reason = f"its facts lack or misstate {'.'.join(map(str, error.errors()[0]['loc']))}"
    raise DataError(f"{folder} is not a checkpoint: {reason}", "give the folder that a training stage wrote")


def adapter_name(assistant: Assistant, stage_name: str) -> str:
    """Folder of the attached adapter: its place in the order, and the stage."""
    return f"{len(assistant.merged) + 1}-{stage_name}"


def _load_connector(folder: Path, assistant: Assistant) -> None:
    stored = tensors.read(folder / CONNECTOR)
    tensors.check_shapes(stored, assistant.connector.state_dict(), str(folder / CONNECTOR))
    tensors.check_finite(stored, str(folder / CONNECTOR))
    assistant.connector.load_state_dict(stored)
