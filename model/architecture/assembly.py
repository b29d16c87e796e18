"""An assistant: vision tower, connector and language model, put together as transformers' LLaVA.

1. `build` finds both base models (`bases`), and checks and reads their weights.
2. It makes sure of the placeholder token `<image>` and of a token for padding.
3. It makes a `LlavaForConditionalGeneration` without weights and puts the two models, as they are, into their places; only the
   connector is new, drawn from the seed. So no weight is copied or renamed, and what transformers can do with LLaVA holds for it.
4. It returns an `Assistant`: the model with everything needed to feed it.

A linear connector is LLaVA's own projector with the identity as activation and as (frozen) second layer: plain transformers reads
its export, and multiplying by the identity changes no bit of a float32 value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from model.architecture import bases as base_models
from model.architecture.bases import Origin
from model.config import ConnectorKind, Model, Template
from model.errors import ConfigError
from model.folders import LANGUAGE_TYPES, TOWER_TYPES, refuse_code
from model.recipe import REGISTRY_PREFIX

IMAGE_TOKEN = "<image>"
ACTIVATIONS = {ConnectorKind.MLP2X_GELU: "gelu", ConnectorKind.LINEAR: "linear"}


@dataclass(frozen=True, eq=False)
class Assistant:
    """A model that sees and speaks, with what is needed to feed it. P image tokens an image."""

    model: LlavaForConditionalGeneration
    """The whole network. LoRA layers, if any, stand inside it, in the places of the linear layers that they change."""
    tokenizer: PreTrainedTokenizerBase
    image_processor: CLIPImageProcessorPil
    """Image to pixels; the PIL variant everywhere, since the torchvision one gives slightly other pixels."""
    template: Template
    system: str
    image_tokens: int
    """P: placeholders and features of one image."""
    context_tokens: int
    settings: Model
    """The part of the recipe that it was built from."""
    seed: int
    """What random weights were drawn from."""
    base_digests: Mapping[str, str]
    """`tower` and `language` -> name of the content."""
    merged: tuple[Path, ...] = ()
    """Folders of the adapters that are merged into the language model, in order."""
    adapter: PeftModel | None = field(default=None, repr=False)
    """PEFT's handle of the adapter that is attached and not merged."""

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder."""
        return int(self.model.config.image_token_id)

    @property
    def connector(self) -> LlavaMultiModalProjector:
        """The layer between tower and language model."""
        return self.model.model.multi_modal_projector

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.connector.linear_1.weight.device


def build(
    model: Model, bases: Mapping[str, Path], seed: int, dtype: torch.dtype = torch.float32, verify: bool = True
) -> Assistant:
    """Put an assistant together from base models; the connector is new.

    Args:
        model: Recipe part.
        bases: Name in the registry -> folder, for `registry:NAME`.
        seed: For the connector, and for the weights of inline configs.
        dtype: Number format of the frozen weights; the connector is always float32.
        verify: Hash registry models against their manifests.

    Raises:
        ConfigError: The parts do not fit each other. MissingInputError, RefusedError, DataError: see `bases`.
    """
    tower_origin = base_models.locate(model.tower, bases, TOWER_TYPES, verify)
    language_origin = base_models.locate(model.language, bases, LANGUAGE_TYPES, verify)
    tower = base_models.load_tower(tower_origin, seed, dtype)
    language = base_models.load_language(language_origin, seed + 1, dtype)
    tokenizer = _tokenizer(language_origin, bases)
    _fit_vocabulary(tokenizer, language)
    _check_fit(model, tower, language)
    image_tokens = (tower.config.image_size // tower.config.patch_size) ** 2
    return Assistant(
        model=_join(model, tower, language, tokenizer, image_tokens, seed),
        tokenizer=tokenizer,
        image_processor=_image_processor(tower_origin, tower.config.image_size),
        template=model.template,
        system=model.system,
        image_tokens=image_tokens,
        context_tokens=model.context_tokens,
        settings=model,
        seed=seed,
        base_digests={"tower": tower_origin.digest, "language": language_origin.digest},
    )


def _join(
    model: Model,
    tower: CLIPVisionModel,
    language: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_tokens: int,
    seed: int,
) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=image_tokens,
        projector_hidden_act=ACTIVATIONS[model.connector.kind],
        vision_feature_layer=model.feature_layer,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"):  # shapes only: the real modules replace every one of these
        joined = LlavaForConditionalGeneration(config)
    joined.model.vision_tower = tower
    joined.model.language_model = language.model
    joined.lm_head = language.lm_head
    joined.model.multi_modal_projector = _connector(config, model.connector.kind, seed)
    joined.generation_config = language.generation_config
    return joined.eval()


def _connector(config: LlavaConfig, kind: ConnectorKind, seed: int) -> LlavaMultiModalProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        connector = LlavaMultiModalProjector(config).float()  # torch's own initialisation, as in LLaVA
    if kind is ConnectorKind.LINEAR:
        nn.init.eye_(connector.linear_2.weight)
        nn.init.zeros_(connector.linear_2.bias)
    return connector


def _tokenizer(origin: Origin, bases: Mapping[str, Path]) -> PreTrainedTokenizerBase:
    """The language model's tokenizer; an inline config names the folder (or `registry:NAME`) of one in its key `tokenizer`."""
    folder = origin.folder
    if origin.config is not None:
        named = origin.config.get("tokenizer")
        if not isinstance(named, str):
            raise ConfigError("model.language.config has no key `tokenizer`", "name a folder that holds one, or registry:NAME")
        folder = base_models.registered(named, bases) if named.startswith(REGISTRY_PREFIX) else Path(named)
        refuse_code(folder)
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _fit_vocabulary(tokenizer: PreTrainedTokenizerBase, language: PreTrainedModel) -> None:
    """Make sure of `<image>`, of a padding token, and of one embedding for each token."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any token will do
    known = language.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= known:
        return
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        # New rows are the mean of the old ones: no random number, and no logit that beats those of real tokens.
        for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
            layer.weight[known:] = layer.weight[:known].float().mean(dim=0).to(layer.weight.dtype)


def _check_fit(model: Model, tower: CLIPVisionModel, language: PreTrainedModel) -> None:
    layers = tower.config.num_hidden_layers
    # transformers takes 0 for "no layer"; the embeddings that it would mean can be named from the other end.
    if not -layers - 1 <= model.feature_layer <= layers or model.feature_layer == 0:
        raise ConfigError(
            f"model.feature_layer is {model.feature_layer}, the tower has {layers} layers ({layers + 1} hidden states)",
            f"choose from {-layers - 1} to {layers}, other than 0; -2 is usual",
        )
    longest = language.config.max_position_embeddings
    if model.context_tokens > longest:
        raise ConfigError(
            f"model.context_tokens is {model.context_tokens:,}, the language model was made for {longest:,} positions",
            f"set model.context_tokens to {longest} or less",
        )


def _image_processor(origin: Origin, image_size: int) -> CLIPImageProcessorPil:
    if origin.folder is None:
        square = {"height": image_size, "width": image_size}
        return CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=square)
    processor = CLIPImageProcessorPil.from_pretrained(str(origin.folder), local_files_only=True)
    given = (processor.crop_size["height"], processor.crop_size["width"])
    if given != (image_size, image_size):
        raise ConfigError(
            f"{origin.folder}: preprocessor_config.json crops to {given}, the tower takes {image_size} x {image_size} pixels",
            "mend crop_size in preprocessor_config.json",
        )
    return processor
