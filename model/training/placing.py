"""Where a stage's network lives: on which device, whole or shared among the workers, and what of a pass it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from model.architecture import fused, heap, last_block, packed
from model.architecture.assembly import Assistant
from model.config import Packing, Stage, Strategy, TrainSlice
from model.errors import ConfigError
from model.training import memory
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


def speed_up(assistant: Assistant, piece: TrainSlice, device: torch.device) -> int:
    """Make the language model compute by layout, and in the cheapest form that the device has.

    Returns:
        Length that packed rows are padded to, for blocks compiled for one length; 0 for none.

    Raises:
        ConfigError: The language model cannot be packed (`packed.install`).
    """
    stage, language = piece.stage, assistant.model.model.language_model
    packs = stage.packing is not Packing.NONE
    if packs:
        packed.install(language, piece.model.context_tokens)
    if device.type == "cpu":
        heap.keep()
        last_block.install(language)
        if stage.strategy is Strategy.DDP:
            fused.install(language)
        return 0
    if packs and stage.compile:
        packed.compile_blocks(language)
        return stage.row_tokens
    return 0


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


def spare(assistant: Assistant, piece: TrainSlice, device: torch.device, ranks: Ranks) -> memory.Choice:
    """Decide what a pass keeps for its backward pass, and make the other blocks of the language model compute theirs again.

    Args:
        assistant: Prepared for training, on the CPU.
        piece: The stage.
        device: Of this worker. A GPU's free memory is the budget; on a CPU it is what the recipe gives a worker.
        ranks: The workers; the one with the least memory decides for all, since they run the same layers together.

    Raises:
        ConfigError: Even computing everything again does not make it fit.
    """
    network = assistant.model
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else int(piece.resources.memory_gib * 2**30)
    budget = min(int(each) for each in ranks.gather(torch.tensor([free])))
    shapes = memory.shapes_of(network.config.text_config.to_dict(), network.config.vision_config.to_dict())
    resources = piece.resources.model_copy(update={"workers": ranks.world_size})
    choice = memory.choose(shapes, piece.model, piece.stage, resources, budget)
    recompute(assistant, choice.recomputed)
    return choice


def recompute(assistant: Assistant, count: int) -> None:
    """Let the first `count` blocks of the language model keep their inputs alone, and compute the rest again in the backward pass.

    Random numbers (dropout) are the same the second time; whatever a block is called with is passed on by name.
    """
    for block in assistant.model.model.language_model.layers[:count]:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
