"""Tower features of image files, computed once: the one way to a frozen tower, for training and for evaluation.

1. `tower_key` names everything that can change a bit of the features: the weights that are run and their number format, the layer,
   how files become pixels (settings, code, libraries), and the processor that computes.
2. A `FeatureSource` is asked for the features of image files. It looks into memory (up to a budget: the first images stay), then
   into the cache on disk, and runs the tower for the rest.
3. New features go to both; the disk is written in the background.

Nothing is kept where the tower learns or images are augmented: `fixed` is the condition, and then the tower runs every time.

On a CPU the tower looks at one image at a time. A matrix product of another height may differ in its last bits, and then features
would depend on the company in which an image was first seen, and a run with a cache would end with other bytes than one without.
It costs nothing for a tower of real size (CLIP 6 x 192 at 336 pixels: 78 ms an image, 65 to 93 in batches) and 2 ms an image
for the demo's. On a GPU, where bytes are not promised, images go in batches.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers

from model.architecture.assembly import Assistant
from model.architecture.feature_cache import FeatureCache
from model.architecture.joint import encode
from model.errors import DataError
from model.manifest import sha256_file

BUDGET_BYTES = 512 * 2**20
BATCH_ON_GPU = 32
Pixels = Callable[[Sequence[Path]], torch.Tensor]
"""N image files -> (N, C, H, W) float32."""
# What a config says about itself, and not about what is computed.
UNIMPORTANT = ("_name_or_path", "transformers_version", "architectures", "processor_class", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Disk:
    """Where features may be kept on disk."""

    folder: Path
    """Of all towers' caches."""
    limit_bytes: int
    """Of all of them together; 0 keeps none."""


class FeatureSource:
    """Tower features of image files, (N, P, D) for N paths; stands where `collate` asks for pixels.

    Args:
        assistant: Its tower; on its device already.
        pixels: Reads image files.
        reading: The code by which `pixels` reads, as text; belongs to the key.
        disk: Where to keep features; None keeps them in memory alone.
        digest: SHA-256 of an image file; the default reads the file.
        kept_bytes: Largest memory for features that are kept.
        augmented: Whether `pixels` draws anew how an image looks.
        tell: Hears of a cache that is full or damaged.
    """

    def __init__(
        self,
        assistant: Assistant,
        pixels: Pixels,
        reading: Iterable[Any],
        disk: Disk | None = None,
        digest: Callable[[Path], str] = sha256_file,
        kept_bytes: int = BUDGET_BYTES,
        augmented: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._assistant, self._pixels, self._reading = assistant, pixels, reading
        self._disk, self._digest, self._tell = disk, digest, tell
        self._free_bytes = kept_bytes
        self._kept: dict[Path, torch.Tensor] = {}
        self._lock = threading.Lock()
        self.fixed = not augmented and not _learns(assistant)
        """Whether an image has the same features whenever it is shown; nothing is kept otherwise."""

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        """(N, P, D) for N paths, on the tower's device; without paths an empty tensor."""
        if not paths:
            return torch.zeros(0)
        wanted = list(dict.fromkeys(paths))
        found = {path: known for path in wanted if (known := self._known(path)) is not None}
        missing = [path for path in wanted if path not in found]
        if missing:
            found |= dict(zip(missing, self._encode(missing), strict=True))
        self._keep({path: found[path] for path in wanted if path not in self._kept}, missing)
        device = self._assistant.device
        return torch.stack([found[path].to(device, non_blocking=True) for path in paths])

    @cached_property
    def cache(self) -> FeatureCache | None:
        """The cache on disk, opened when the first image is asked for; None if there is none for this tower."""
        if self._disk is None or not self._disk.limit_bytes or not self.fixed:
            return None
        tower = self._assistant.model.model.vision_tower
        shape = (self._assistant.image_tokens, tower.config.hidden_size)
        return FeatureCache(
            self._disk.folder, self._disk.limit_bytes, tower_key(self._assistant, self._reading), shape, tower.dtype
        )

    def flush(self) -> None:
        """Wait until the disk has what was handed to it."""
        if self.cache is not None:
            self.cache.flush()
            self._pass_on()

    def _known(self, path: Path) -> torch.Tensor | None:
        if path in self._kept or self.cache is None:
            return self._kept.get(path)
        return self.cache.get(self._digest(path))

    def _encode(self, paths: Sequence[Path]) -> torch.Tensor:
        at_once = 1 if self._assistant.device.type == "cpu" else BATCH_ON_GPU
        parts = [paths[start : start + at_once] for start in range(0, len(paths), at_once)]
        return torch.cat([self._encode_together(part) for part in parts])

    def _encode_together(self, paths: Sequence[Path]) -> torch.Tensor:
        pixels = self._pixels(paths)
        if len(pixels) != len(paths):
            raise DataError(
                f"{len(paths)} images were asked for, pixels of {len(pixels)} came; features of one image would stand for another",
                "check the image processor",
            )
        return encode(self._assistant.model, pixels.to(self._assistant.device))

    def _keep(self, features: dict[Path, torch.Tensor], fresh: Sequence[Path]) -> None:
        if not self.fixed:
            return
        with self._lock:
            for path, rows in features.items():
                size = rows.numel() * rows.element_size()
                if size <= self._free_bytes and path not in self._kept:
                    # A copy: rows of a batch share its memory, and would keep all of it.
                    self._kept[path] = rows.clone()
                    self._free_bytes -= size
        if self.cache is not None:
            for path in fresh:
                self.cache.put(self._digest(path), features[path])
            self._pass_on()

    def _pass_on(self) -> None:
        for text in self.cache.news() if self.cache is not None else ():
            self._tell(text)


def tower_key(assistant: Assistant, reading: Iterable[Any]) -> dict[str, Any]:
    """Everything that can change a bit of the features of an image file, as JSON values.

    Args:
        assistant: The tower, its layer and its image processor.
        reading: Modules, classes or functions whose code turns a file into pixels.
    """
    tower, layer = assistant.model.model.vision_tower, assistant.model.config.vision_feature_layer
    code = "".join(inspect.getsource(part) for part in (*reading, encode))
    return {
        "weights": _digest_of_weights(tower, layer % (len(tower.encoder.layers) + 1)),
        "config": _settings(tower.config.to_dict()) | {"attention": tower.config._attn_implementation},
        "layer": layer,
        "dtype": str(tower.dtype),
        "preprocessing": _settings(assistant.image_processor.to_dict()),
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "libraries": {library.__name__: library.__version__ for library in (torch, transformers, PIL, np)},
        "processor": _processor(assistant.device),
    }


def _learns(assistant: Assistant) -> bool:
    tower = assistant.model.model.vision_tower
    return tower.training or any(weight.requires_grad for weight in tower.parameters())


def _digest_of_weights(tower: torch.nn.Module, depth: int) -> str:
    """Of the weights that are run: up to the selected layer."""
    total = hashlib.blake2b(digest_size=32)  # nearly twice as fast as SHA-256
    for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:depth]):
        for name, weight in sorted(part.state_dict().items()):
            total.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            total.update(weight.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in sorted(content.items()) if name not in UNIMPORTANT}


def _plain(value: Any) -> Any:
    """As JSON: what it does not know becomes text."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _processor(device: torch.device) -> dict[str, Any]:
    """What computes: its kind decides in which order sums are made."""
    precision = torch.get_float32_matmul_precision()
    if device.type != "cpu":
        return {"kind": torch.cuda.get_device_name(device), "precision": precision}
    return {
        "kind": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
