"""What learns in a stage: exactly the parts that it names.

    trainable                      learns
    [connector]                    the connector (of a linear one: its only layer, not the identity behind it)
    [connector, language_lora]     the connector and a new LoRA adapter on the language model
    [language_lora]                a new LoRA adapter; adapters of earlier stages are merged before

1. `prepare` freezes everything, attaches the adapter if one is asked for, and thaws the named parts.
2. It sets the network up for training: no cache, and the tower left in evaluation mode, since it never learns.
3. It returns one optimizer group a part, with the part's learning rate.
"""

from __future__ import annotations

from torch import nn

from model.architecture import adapters
from model.architecture.assembly import Assistant
from model.config import ConnectorKind, Part, Stage
from model.errors import InternalError
from model.training.optimizer import Group


def prepare(assistant: Assistant, stage: Stage, seed: int) -> tuple[Assistant, list[Group]]:
    """Make the parts that `stage` names learn, and nothing else.

    Args:
        assistant: With all adapters of earlier stages merged.
        stage: Recipe part.
        seed: For the new adapter.

    Returns:
        The assistant, with the new adapter attached if there is one, and the groups in the order of `stage.trainable`.

    Raises:
        ConfigError: `lora.targets` names layers that the language model lacks.
    """
    if assistant.adapter is not None:
        raise InternalError("an adapter of an earlier stage is attached and not merged", "load the checkpoint with merge=True")
    if stage.lora is not None:
        assistant = adapters.attach(assistant, stage.lora, seed)
    network = assistant.model
    network.requires_grad_(False)
    network.config.use_cache = False
    network.train()
    network.model.vision_tower.eval()
    groups = [Group(part.value, stage.learning_rates[part], _weights(assistant, part)) for part in stage.trainable]
    for group in groups:
        for weight in group.weights.values():
            weight.requires_grad_(True)
    return assistant, groups


def _weights(assistant: Assistant, part: Part) -> dict[str, nn.Parameter]:
    """Live name -> weight of a part."""
    if part is Part.LANGUAGE_LORA:
        return adapters.parameters(assistant)
    prefix = "model.multi_modal_projector."
    linear = assistant.settings.connector.kind is ConnectorKind.LINEAR
    layers = (f"{prefix}linear_1.",) if linear else (prefix,)
    return {name: weight for name, weight in assistant.model.named_parameters() if name.startswith(layers)}
