"""DeepSpeed ZeRO-2 and ZeRO-3: the workers share out moments and gradients, and with ZeRO-3 the weights as well.

1. The network's heavy parts become one DeepSpeed engine over the process group that is open, or over one of this process alone.
   With ZeRO-3 each weight, frozen or not, is cut up on its way to the device: no device ever holds the whole model.
2. Hooks of the engine gather a layer's weights when it runs, in every worker together. Therefore all workers must run the same
   layers in the same order (`even`): the loop pads passes, and the objective leads every pass through every part.
3. The vision tower stays whole and outside. It is small beside the language model, and each worker encodes its own images when it
   comes to them, or has them in its cache: gathered by hooks, the tower would make the others wait for ever.
4. Moments live in flat pieces. `state` and `load` translate them to whole tensors by name, and back.

DeepSpeed is imported when the first engine is made: that takes seconds, and with `strategy: ddp` nobody needs it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import distributed, nn

from model.config import Strategy
from model.errors import ConfigError
from model.training.optimizer import MOMENTS, Group, adamw, check_moments, rates, set_rates
from model.training.ranks import Ranks
from model.training.sharing import Computable, Tensors

LEVELS = {Strategy.ZERO2: 2, Strategy.ZERO3: 3}
BUCKET_NUMEL = 50_000_000
"""Most gradients in one message."""
PERSISTENT_NUMEL = 100_000
"""ZeRO-3 keeps smaller weights whole between steps: norms, biases and most LoRA matrices, which are not worth a message."""
SHAPED = tuple(moment for moment in MOMENTS if moment != "step")


class Zero:
    """A strategy (sharing.Sharing) on DeepSpeed.

    Args:
        strategy: ZERO2 or ZERO3.
        parts: Modules whose weights are shared out; all that learns is in them.
        groups: What learns.
        betas: AdamW's decay rates.
        weight_decay: Of matrices.
        device: Of this worker.
        ranks: The workers.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """

    even = True

    def __init__(
        self,
        strategy: Strategy,
        parts: Sequence[nn.Module],
        groups: Sequence[Group],
        betas: tuple[float, float],
        weight_decay: float,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.device = device
        self._ranks, self._groups = ranks, tuple(groups)
        self._learned = {name: weight for group in groups for name, weight in group.weights.items()}
        # Of shape alone: ZeRO-3 leaves empty tensors where the weights were.
        self.weights: Tensors = {name: torch.empty_like(weight, device="meta") for name, weight in self._learned.items()}
        self._library = _import_deepspeed(strategy, device)
        _open_group(device)
        self._adam = adamw(groups, betas, weight_decay)
        self._engine = self._make_engine(LEVELS[strategy], _Parts(parts))
        self._pieces = self._make_moments()

    def loss_sum(self, objective: Computable, micro: Sequence[int]) -> torch.Tensor:
        return self._engine(objective, list(micro))

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self._ranks.world_size)  # the engine takes the mean over the ranks

    def move(
        self, message: torch.Tensor, share: float, clip_norm: float, accept: Callable[[float], bool] = math.isfinite
    ) -> tuple[list[float], float]:
        values = self._ranks.sum(message).tolist()
        if not accept(values[0]):
            self._discard()
            return values, math.nan
        set_rates(self._adam, share)
        self._engine.optimizer.clip_grad = clip_norm
        self._engine.step()  # with a norm that is not finite it leaves the weights alone
        return values, float(self._engine.get_global_grad_norm())

    def rates(self, share: float) -> dict[str, float]:
        return rates(self._groups, share)

    def state(self) -> tuple[Tensors, Tensors]:
        utils = self._library.utils
        weights: dict[str, torch.Tensor] = {}
        moments: dict[str, torch.Tensor] = {}
        step = self._adam.state[self._pieces[0]]["step"]
        for name, weight in self._learned.items():
            own = {f"{moment}/{name}": utils.safe_get_full_optimizer_state(weight, moment) for moment in SHAPED}
            value = utils.safe_get_full_fp32_param(weight)
            if self._ranks.leads:  # the others take part in the messages, and keep nothing
                weights[name] = value.cpu()
                moments |= {key: tensor.cpu() for key, tensor in own.items()} | {f"step/{name}": step.cpu()}
        return weights, moments

    def load(self, weights: Tensors, moments: Tensors, where: str) -> None:
        check_moments(moments, self.weights, where)
        with torch.no_grad(), self._gathered(self._learned.values(), modifier_rank=0):
            for name, weight in self._learned.items():
                weight.copy_(weights[name])
        self._engine.optimizer.refresh_fp32_params()
        for name, weight in self._learned.items():
            for moment in SHAPED:
                self._put(weight, moments[f"{moment}/{name}"].to(self.device), moment)
            for piece in self._pieces:
                self._adam.state[piece]["step"].copy_(moments[f"step/{name}"])  # the same for all weights

    def fingerprint(self) -> torch.Tensor | None:
        return None

    def whole(self, parameters: Iterable[nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        return self._gathered(parameters)

    def _discard(self) -> None:
        """Throw the gradients of this step away.

        The engine spreads them over buffers that differ between its levels, and has one way to clean them all up: that of a step
        whose gradient is not finite. So it gets one.
        """
        for pieces in self._engine.optimizer.averaged_gradients.values():
            for gradient in pieces or ():
                gradient.fill_(math.nan)
        self._engine.step()

    def _gathered(
        self, parameters: Iterable[nn.Parameter], modifier_rank: int | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Inside, the parameters are whole; changes on `modifier_rank` then go to all. Nothing happens to weights not cut up."""
        gathered: contextlib.AbstractContextManager[None] = self._library.zero.GatheredParameters(list(parameters), modifier_rank)
        return gathered

    def _make_engine(self, level: int, parts: _Parts) -> Any:
        largest, total = (take(weight.numel() for weight in self._learned.values()) for take in (max, sum))
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # means nothing here, but must be said
            "managed_gradient_accumulation": False,  # the loop knows when a step ends
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": level,
                "reduce_bucket_size": max(largest, min(total, BUCKET_NUMEL)),
                "stage3_param_persistence_threshold": PERSISTENT_NUMEL,
            },
        }
        if level == LEVELS[Strategy.ZERO3]:
            # Before the engine, which would first move the whole model to the device.
            self._library.zero.Init(module=parts, config_dict_or_path=settings, dtype=torch.float32)
            for buffer in parts.buffers():
                buffer.data = buffer.data.to(self.device)
        engine, *_ = self._library.initialize(model=parts, optimizer=self._adam, config=settings)
        return engine

    def _make_moments(self) -> list[torch.Tensor]:
        """The flat pieces of weights that this rank's AdamW moves, each with moments of its own.

        AdamW would make them in its first step; but then there would be nothing to `load` into, and the engine, which ties names to
        moments after the first group's step, would miss those of the other groups.
        """
        engine_optimizer = self._engine.optimizer
        if hasattr(engine_optimizer, "fp32_partitioned_groups_flat"):
            pieces = list(engine_optimizer.fp32_partitioned_groups_flat)
        else:
            pieces = list(engine_optimizer.single_partition_of_fp32_groups)
        for piece in pieces:
            moments = {moment: torch.zeros_like(piece, requires_grad=False) for moment in SHAPED}
            self._adam.state[piece] = {"step": torch.zeros((), device=piece.device), **moments}
        if hasattr(engine_optimizer, "_lazy_init_hp_params_optimizer_state"):
            engine_optimizer._lazy_init_hp_params_optimizer_state()
        return pieces

    def _put(self, weight: nn.Parameter, value: torch.Tensor, moment: str) -> None:
        """Set the part of a moment that this rank holds."""
        utils = self._library.utils
        if not hasattr(weight, "ds_tensor"):
            utils.safe_set_full_optimizer_state(weight, value, moment)
            return
        # DeepSpeed's setter of whole values fails where they do not divide evenly; its getter does not.
        size = weight.ds_tensor.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self._ranks.world_size - value.numel()))
        utils.safe_set_local_optimizer_state(weight, padded.narrow(0, size * self._ranks.rank, size), moment)


class _Parts(nn.Module):
    """The root that the engine's hooks hang on; a forward pass is the whole of an objective's pass."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, objective: Computable, micro: Sequence[int]) -> torch.Tensor:
        return objective.loss_sum(micro)


def _import_deepspeed(strategy: Strategy, device: torch.device) -> ModuleType:
    """DeepSpeed for the device, and quiet: a run's output belongs to its own words."""
    os.environ["DS_ACCELERATOR"] = device.type  # else it takes a GPU where it sees one, whatever the recipe says
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # by which it finds its device
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"strategy {strategy} needs DeepSpeed, which cannot be imported: {error}",
            "install deepspeed, after torch and with --no-build-isolation; or set `strategy: ddp`",
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU it would compile (minutes, and a compiler) sums in shared memory; gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    library: ModuleType = deepspeed
    return library


def _open_group(device: torch.device) -> None:
    """DeepSpeed wants a process group also where there is one process; a launcher's is left as it is."""
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
