"""LoRA adapters on the language model: attached, merged, written and read.

1. `attach` puts a new adapter into the linear layers that a stage names, in the blocks of the language model and nowhere else.
2. `write` stores it as PEFT does (adapter_config.json, adapter_model.safetensors), so that PEFT alone can read it.
3. `read` attaches a stored one: its settings must be plain LoRA, its tensors exactly those of this model, and finite.
4. `merge` adds the attached adapter to the weights below it; the next one starts from there.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from model.architecture import tensors
from model.architecture.assembly import Assistant
from model.config import Lora
from model.errors import ConfigError, DataError, InternalError, MissingInputError, RefusedError

BLOCKS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\."
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
LORA_NAME = re.compile(BLOCKS + r"\w+\.lora_[AB]\.default\.weight")
# What a stored adapter may say beyond PEFT's defaults.
KNOWN_SETTINGS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "target_modules", "peft_version", "auto_mapping", "inference_mode"}
)


def attach(assistant: Assistant, lora: Lora, seed: int) -> Assistant:
    """The assistant with a new adapter: B is zero, A is drawn from the seed, so nothing changes before the first step.

    Raises:
        ConfigError: A name in `lora.targets` is no linear layer of the language model's blocks.
    """
    _check_targets(assistant, lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=BLOCKS + f"({'|'.join(lora.targets)})"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _wrap(assistant, config)


def merge(assistant: Assistant, source: Path | None) -> Assistant:
    """The assistant with its adapter added to the weights, if it has one; `source` is the folder the adapter is stored in."""
    if assistant.adapter is None:
        return assistant
    network = assistant.adapter.merge_and_unload(safe_merge=True)
    merged = assistant.merged if source is None else (*assistant.merged, source)
    return dataclasses.replace(assistant, model=network, adapter=None, merged=merged)


def parameters(assistant: Assistant) -> dict[str, torch.nn.Parameter]:
    """Live name -> weight of the attached adapter; empty if there is none."""
    return {name: weight for name, weight in assistant.model.named_parameters() if ".lora_" in name}


def write(assistant: Assistant, folder: Path) -> None:
    """Store the attached adapter in `folder`."""
    if assistant.adapter is None:
        raise InternalError(
            "no adapter is attached", "this is a defect: `attach` one, or `read` a stored one, before it is written"
        )
    folder.mkdir(parents=True)
    settings = assistant.adapter.peft_config["default"].to_dict() | {"inference_mode": True}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, sort_keys=True, default=str), encoding="utf-8")
    tensors.write(folder / WEIGHTS, get_peft_model_state_dict(assistant.adapter))


def read(assistant: Assistant, folder: Path) -> Assistant:
    """The assistant with the adapter stored in `folder` attached.

    Raises:
        MissingInputError: A file is missing.
        RefusedError: It is not safetensors, or its settings are other than plain LoRA on the language model's blocks.
        DataError: Names or shapes are other than this model's, or a value is not finite.
    """
    config = _read_settings(folder / SETTINGS)
    with torch.random.fork_rng(devices=[]):
        wrapped = _wrap(assistant, config)
    load_weights(wrapped, folder)
    return wrapped


def load_weights(assistant: Assistant, folder: Path) -> None:
    """Fill the attached adapter with the weights in `folder`; errors as `read`."""
    stored = tensors.read(folder / WEIGHTS)
    tensors.check_shapes(stored, get_peft_model_state_dict(assistant.adapter), str(folder / WEIGHTS))
    tensors.check_finite(stored, str(folder / WEIGHTS))
    set_peft_model_state_dict(assistant.adapter, stored)


def _wrap(assistant: Assistant, config: LoraConfig) -> Assistant:
    wrapped = dataclasses.replace(assistant, adapter=get_peft_model(assistant.model, config))
    outside = [name for name in parameters(wrapped) if not LORA_NAME.fullmatch(name)]
    if outside:
        raise InternalError(
            f"the adapter reaches outside the language model's blocks: {outside[:3]}",
            "this is a defect: it would not be exported with the rest",
        )
    return wrapped


def _check_targets(assistant: Assistant, targets: tuple[str, ...]) -> None:
    pattern = re.compile(BLOCKS + r"(\w+)")
    modules = assistant.model.named_modules()
    linear = {
        match.group(2) for name, module in modules if (match := pattern.fullmatch(name)) and isinstance(module, torch.nn.Linear)
    }
    unknown = sorted(set(targets) - linear)
    if unknown or not targets:
        raise ConfigError(
            f"lora.targets names {unknown or 'nothing'}; linear layers of this language model are {', '.join(sorted(linear))}",
            "choose `targets` from these",
        )


def _read_settings(path: Path) -> LoraConfig:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        config = LoraConfig(
            r=int(stored["r"]),
            lora_alpha=float(stored["lora_alpha"]),
            lora_dropout=float(stored["lora_dropout"]),
            target_modules=str(stored["target_modules"]),
        )
    except FileNotFoundError:
        raise MissingInputError(f"no adapter settings at {path}", "the checkpoint is not whole; take an earlier one") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is no LoRA configuration: {type(error).__name__}", "take an earlier checkpoint") from None
    _refuse_other_settings(stored, config.to_dict(), path)
    return config


def _refuse_other_settings(stored: Mapping[str, Any], plain: Mapping[str, Any], path: Path) -> None:
    """Refuse what PEFT could do beyond plain LoRA: other methods, other modules, weights or configs from elsewhere."""
    other = sorted(
        key
        for key, value in stored.items()
        if key not in KNOWN_SETTINGS and value not in (None, False, [], {}) and value != plain.get(key)
    )
    if not str(stored["target_modules"]).startswith(BLOCKS):
        other.append("target_modules")
    if other:
        raise RefusedError(
            f"{path} sets {other[:5]}, which a biovlm adapter does not", "only adapters that biovlm has trained are read"
        )
