"""Base models: where their weights come from, and what is refused before anything is read.

1. `locate` turns a `ModelSource` into a folder and a digest: `registry:NAME` through the mapping of base models, a local folder, or
   a hub name at a pinned commit (downloaded as safetensors and JSON only). An inline config has no folder.
2. `check_folder` looks at the folder with the eyes of an enemy: no code and no pickles in it, no `auto_map` in any JSON file, a
   `model_type` on the allow-list, every weight file real safetensors, every shard inside the folder and listed once.
3. `load_tower` and `load_language` read the weights and refuse missing, unknown and non-finite ones.

Remote code is never run, and nothing is fetched unless the recipe names a hub repository with its commit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from model import manifest
from model.architecture import tensors
from model.config import ModelSource
from model.errors import ConfigError, DataError, MissingInputError
from model.folders import check_type, read_json, refuse_code
from model.recipe import REGISTRY_PREFIX

HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
COMMIT = re.compile(r"[0-9a-f]{40}")
# A whole CLIP holds a text tower and two projections beside the vision tower; nothing else may be left over.
CLIP_LEFTOVERS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


@dataclass(frozen=True)
class Origin:
    """A base model that can be read."""

    digest: str
    """Name of the content: the manifest's digest, a hash of the files, `hub:NAME@COMMIT`, or `config:DIGEST` for random weights."""
    folder: Path | None
    """Where the files are; None for random weights."""
    config: dict[str, Any] | None = None
    """The inline config, for random weights."""


def locate(source: ModelSource, bases: Mapping[str, Path], allowed: tuple[str, ...], verify: bool = True) -> Origin:
    """Find and check a base model.

    Args:
        source: From the recipe.
        bases: Name in the registry -> folder.
        allowed: `model_type`s that are understood.
        verify: Hash the files of a registry model against its manifest.

    Raises:
        ConfigError: A hub name without a commit, or a type that is not on the list.
        MissingInputError: No such folder or registry name.
        RefusedError: The folder holds code, pickles, or was changed.
    """
    if source.config is not None:
        check_type(source.config, allowed, "the inline config")
        return Origin(f"config:{manifest.digest_of(source.config)}", None, dict(source.config))
    name = source.source or ""
    if name.startswith(REGISTRY_PREFIX):
        folder = registered(name, bases)
        digest = (manifest.verify(folder) if verify else manifest.read(folder)).digest
    elif Path(name).is_dir():
        folder = Path(name)
        digest = manifest.read(folder).digest if (folder / manifest.FILE_NAME).is_file() else _hash_files(folder)
    else:
        folder, digest = _download(name, source.revision), f"hub:{name}@{source.revision}"
    check_folder(folder, allowed, pickles_refused=not digest.startswith("hub:"))
    return Origin(digest, folder)


def registered(name: str, bases: Mapping[str, Path]) -> Path:
    """The folder of `registry:NAME`; MissingInputError if `bases` does not name it."""
    key = name.removeprefix(REGISTRY_PREFIX)
    if key not in bases:
        raise MissingInputError(
            f"the recipe takes the base model {key!r} from the registry, given are {sorted(bases)}",
            f"give it with --base {key}=DIR, or let the data step hand it out",
        )
    return Path(bases[key])


def check_folder(folder: Path, allowed: tuple[str, ...], pickles_refused: bool = True) -> None:
    """Refuse a folder that could run code or is not whole; see the module's journey, step 2."""
    refuse_code(folder, pickles_refused)
    check_type(read_json(folder / "config.json"), allowed, str(folder / "config.json"))
    _check_weight_files(folder)


def load_tower(origin: Origin, seed: int, dtype: torch.dtype) -> CLIPVisionModel:
    """The vision tower, every weight accounted for and finite. A whole CLIP gives its vision part."""
    if origin.config is not None:
        settings = {k: v for k, v in origin.config.items() if k != "model_type"}
        config = AutoConfig.for_model("clip_vision_model", **settings)
        return _random(lambda: CLIPVisionModel(config), seed, dtype)
    return _load(CLIPVisionModel, origin, dtype, leftovers=CLIP_LEFTOVERS)


def load_language(origin: Origin, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """The language model with its head, every weight accounted for and finite."""
    if origin.config is not None:
        settings = {k: v for k, v in origin.config.items() if k not in ("model_type", "tokenizer")}
        config = AutoConfig.for_model(origin.config["model_type"], **settings)
        return _random(lambda: AutoModelForCausalLM.from_config(config), seed, dtype)
    return _load(AutoModelForCausalLM, origin, dtype, leftovers=())


def _load(kind: Any, origin: Origin, dtype: torch.dtype, leftovers: tuple[str, ...]) -> Any:
    # Its bars go to stderr, where the one progress display of a run is drawn.
    transformers_logging.disable_progress_bar()
    loaded, report = kind.from_pretrained(
        str(origin.folder),
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    unknown = [n for n in report["unexpected_keys"] if not n.startswith(leftovers)] if leftovers else report["unexpected_keys"]
    tensors.check_names(set(unknown), set(report["missing_keys"]), f"{origin.folder}")
    if report["mismatched_keys"]:
        raise DataError(
            f"{origin.folder}: {len(report['mismatched_keys'])} weights have another shape than config.json says",
            "config.json and the weights belong to different models; fetch both again",
        )
    tensors.check_finite(loaded.state_dict(), str(origin.folder))
    return loaded


def _random(make: Any, seed: int, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype)


def _download(name: str, revision: str | None) -> Path:
    """Files of a hub repository at one commit, weights as safetensors only."""
    if Path(name).is_absolute():
        raise MissingInputError(f"no folder {name} for a base model", "correct its path in the recipe, or bring the folder there")
    if revision is None or not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"the base model {name!r} is no folder here, and as a hub name it needs `revision`, given {revision!r}",
            "give the full commit (40 hex digits) of the repository, or the path of a local folder, or registry:NAME",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS))
    except (OSError, ValueError) as error:
        raise MissingInputError(
            f"cannot fetch {name}@{revision[:12]}: {type(error).__name__}",
            "check the name, the access and HF_HUB_OFFLINE; or bring the model into the registry",
        ) from error


def _hash_files(folder: Path) -> str:
    files = (p for p in folder.rglob("*") if p.is_file())
    return manifest.digest_of({p.relative_to(folder).as_posix(): manifest.sha256_file(p) for p in files})


def _check_weight_files(folder: Path) -> None:
    """Every weight file opens as safetensors; an index names shards inside the folder that hold what it says."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        tensors.names(folder / "model.safetensors")
        return
    shards: dict[str, set[str]] = {}
    for tensor, shard in read_json(index).get("weight_map", {}).items():
        shards.setdefault(str(shard), set()).add(tensor)
    for shard, listed in sorted(shards.items()):
        tensors.check_names(tensors.names(manifest.safe_join(folder, shard)), listed, f"{folder / shard}")
