"""Where a stage's network lives: on which device, and whole or shared among the workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.architecture.assembly import Assistant
from model.config import Stage, Strategy, TrainSlice
from model.errors import ConfigError
from model.training.optimizer import Group, Optimizer
from model.training.ranks import Ranks
from model.training.sharing import Replicated, Sharing
from model.training.zero import Zero


def device_of(piece: TrainSlice) -> torch.device:
    """The GPU that the launcher chose, if the recipe asks for one; else the CPU. ConfigError if there is none."""
    if not piece.resources.gpus_per_worker:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("the recipe asks for a GPU on each worker, torch sees none", "set resources.gpus_per_worker=0")
    return torch.device("cuda", torch.cuda.current_device())


def place(assistant: Assistant, groups: Sequence[Group], stage: Stage, device: torch.device, ranks: Ranks) -> Sharing:
    """Bring the network to the device, shared among the workers as the stage's strategy says.

    Args:
        assistant: Prepared for training, on the CPU.
        groups: What learns.
        stage: Recipe part.
        device: Of this worker.
        ranks: The workers.

    Raises:
        ConfigError: The strategy needs DeepSpeed, and it is not installed.
    """
    network = assistant.model
    if stage.strategy is Strategy.DDP:
        network.to(device)
        return Replicated(Optimizer(groups, stage.betas, stage.weight_decay), ranks)
    network.model.vision_tower.to(device)  # whole on every worker: see zero
    parts = (network.model.multi_modal_projector, network.model.language_model, network.lm_head)
    return Zero(stage.strategy, parts, groups, stage.betas, stage.weight_decay, device, ranks)
