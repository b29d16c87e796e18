"""A LoRA step on random weights: our form, transformers' own, FLOPs needed and MFU. Needs torch, transformers and peft.

`our_step` is the form of model/ written out, since this folder must run where the project is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from benchmarks.onegpu.shapes import Row, Sizes, flex, timed

IGNORE, PEAK_FLOPS, LORA_TARGETS = -100, 989e12, r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
NAME = "bench_flex"


def make_model(tower: dict[str, int], language: dict[str, Any], sizes: Sizes, siglip: bool = False) -> Any:
    """A LLaVA with LoRA on the language model and a full connector, random weights, on the device."""
    kind: Any = Qwen2Config if siglip else LlamaConfig
    config = LlavaConfig(
        vision_config=(SiglipVisionConfig if siglip else CLIPVisionConfig)(**tower),
        text_config=kind(**language, max_position_embeddings=32_768, tie_word_embeddings=False),
        image_token_index=language["vocab_size"] - 1,
        vision_feature_layer=-1 if siglip else -2,
        vision_feature_select_strategy="full" if siglip else "default",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(sizes.dtype)
    try:
        with torch.device(sizes.device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    lora = LoraConfig(
        r=sizes.rank, lora_alpha=2 * sizes.rank, target_modules=LORA_TARGETS, modules_to_save=["multi_modal_projector"]
    )
    wrapped = get_peft_model(model, lora)
    wrapped.train()
    wrapped.base_model.model.config.use_cache = False
    return wrapped


def step_flops(model: Any, tokens: int, squares: float, supervised: int, images: int, cached: bool = False) -> float:
    """FLOPs that a LoRA step needs: tower forward, language model forward and its gradient by inputs, adapters, supervised head."""
    net = model.base_model.model
    text, vision = net.config.text_config, net.config.vision_config
    layers = net.model.language_model.layers
    linear = sum(w.numel() for n, w in layers.named_parameters() if w.ndim == 2 and "lora_" not in n)
    adapters = sum(w.numel() for n, w in layers.named_parameters() if "lora_" in n)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    forward = 2 * linear * tokens + 2 * text.num_hidden_layers * text.num_attention_heads * head_dim * squares
    patches = (vision.image_size // vision.patch_size) ** 2
    encoder = sum(w.numel() for w in net.model.vision_tower.parameters() if w.ndim == 2)
    tower = images * (2 * encoder * patches + 4 * vision.num_hidden_layers * patches**2 * vision.hidden_size)
    head = 4 * text.hidden_size * text.vocab_size * supervised
    return 2 * forward + 6 * adapters * tokens + head + (0 if cached else tower)


@dataclass(frozen=True)
class Work:
    """One step's data: a packed row, or padded documents if `row` is None."""

    ids: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor
    row: Row | None
    documents: tuple[int, ...]
    """Lengths of the documents, each with its own image; of branches, those of the questions."""


def work(net: Any, sizes: Sizes, row: Row | None, count: int, text: int, supervised: int) -> Work:
    """`count` documents of one image and `text` tokens; packed behind each other, or one a row."""
    vision = net.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    image = net.config.image_token_id
    each = patches + text
    rows = (1, row.length) if row else (count, each)
    ids = torch.randint(1, image - 1, rows, generator=torch.Generator().manual_seed(2))
    labels = torch.full_like(ids, IGNORE)
    starts = (
        [(0, start, trunk, branches) for start, trunk, branches in row.documents]
        if row
        else [(n, 0, each, ()) for n in range(count)]
    )
    images = 0
    for line, start, trunk, branches in starts:
        if trunk >= patches:
            ids[line, start : start + patches] = image
            images += 1
        end = start + trunk
        for size in branches or (0,):
            end += size
            last = max(end - supervised, start + trunk if branches else start + min(patches, trunk - 1))
            labels[line, last:end] = ids[line, last:end]
    labels[ids == image] = IGNORE
    pixels = torch.randn(images, 3, vision.image_size, vision.image_size, dtype=sizes.dtype)
    lengths = tuple(trunk + sum(branches) for _, _, trunk, branches in starts)
    return Work(ids.to(sizes.device), labels.to(sizes.device), pixels.to(sizes.device), row, lengths)


def our_step(model: Any, data: Work, sizes: Sizes, mask: Any = None, features: torch.Tensor | None = None) -> torch.Tensor:
    """Loss in our form: no autograd in the tower, supervised positions alone; `mask` for a packed row, `features` if cached."""
    net = model.base_model.model
    layer, strategy = net.config.vision_feature_layer, net.config.vision_feature_select_strategy
    if features is None:
        with torch.no_grad():
            features = net.model.vision_tower(data.pixels, output_hidden_states=True).hidden_states[layer]
            features = features[:, 1:] if strategy == "default" else features
    embedded = net.get_input_embeddings()(data.ids)
    projected = net.model.multi_modal_projector(features.to(sizes.device, non_blocking=True))
    where = (data.ids == net.config.image_token_id)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(where, projected.to(embedded.dtype))
    more: dict[str, Any] = {}
    if data.row is not None:
        _CURRENT["mask"], more["position_ids"] = mask, data.row.numbered(sizes.device)[2][None]
    hidden = net.model.language_model(inputs_embeds=embedded, use_cache=False, **more).last_hidden_state
    # The first token of a branch is foretold by the end of its trunk, in none of these rows a target.
    counted = data.labels[:, 1:] != IGNORE
    logits = net.lm_head(hidden[:, :-1][counted])
    return functional.cross_entropy(logits.float(), data.labels[:, 1:][counted])


def their_step(model: Any, data: Work) -> torch.Tensor:
    """Loss as transformers' Trainer asks for it: everything in the model's own forward, logits of all positions."""
    return model(input_ids=data.ids, pixel_values=data.pixels, labels=data.labels, use_cache=False).loss


_CURRENT: dict[str, Any] = {}


def use_flex(net: Any, sizes: Sizes) -> None:
    """Let the language model attend by `_CURRENT['mask']`."""
    kernel = flex(sizes)

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float | None = None, **more: Any) -> tuple[Any, None]:
        return kernel(q, k, v, block_mask=_CURRENT["mask"], scale=scaling, enable_gqa=True).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    net.model.language_model.config._attn_implementation = NAME


def train_step(model: Any, loss: Callable[[], torch.Tensor], sizes: Sizes) -> dict[str, float]:
    """Median milliseconds of loss, backward and AdamW, and the peak in GiB of everything."""
    learned = [w for w in model.parameters() if w.requires_grad]
    adam = torch.optim.AdamW(learned, lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        adam.step()
        adam.zero_grad()

    found = timed(step, sizes)
    found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if sizes.device == "cuda" else 0.0
    return found


def rates(found: dict[str, float], model: Any, data: Work, cached: bool = False) -> dict[str, float]:
    """Tokens a second and MFU of a step."""
    seconds = found["ms"] / 1e3
    tokens, supervised = sum(data.documents), int((data.labels[..., 1:] != IGNORE).sum())
    squares = data.row.squares() if data.row else float(sum(n**2 for n in data.documents))
    needed = step_flops(model, tokens, squares, supervised, len(data.pixels), cached)
    return found | {
        "tokens_per_second": tokens / seconds,
        "supervised_per_second": supervised / seconds,
        "mfu": needed / seconds / PEAK_FLOPS,
    }


def compiled(net: Any, sizes: Sizes) -> None:
    """Compile the blocks one by one: short compilation, no graph across blocks."""
    if sizes.device == "cuda":
        for block in net.model.language_model.layers:
            block.compile(dynamic=False)


class checkpointed:
    """Inside, the model recomputes its blocks and embeddings require gradients, as transformers' Trainer sets it up with LoRA."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.enable_input_require_grads()
        self._model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})

    def __exit__(self, *_: object) -> None:
        self._model.base_model.model.gradient_checkpointing_disable()
        self._model.base_model.model.disable_input_require_grads()
