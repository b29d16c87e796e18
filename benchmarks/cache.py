"""The feature cache: processor seconds of epochs without it, while it fills, and from it; what writing adds to a step; many writers."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from model.architecture.assembly import Assistant
from model.architecture.feature_cache import FeatureCache
from model.architecture.features import Disk, FeatureSource
from model.data.pixels import READING, PixelSource

TOWERS = {
    "demo_4x64": ({"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}, 64, 8, 400),
    "clip_6x192": ({"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3}, 336, 14, 24),
    "clip_l_2_layers": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 16}, 336, 14, 8,
    ),
}  # fmt: skip
"""Config, image size, patch size, images. Of the last layer nothing is run."""
WRITERS, ENTRIES = 3, 200


def measure() -> dict[str, float]:
    """Milliseconds of the processor for an image; how long a call waits for the writer; entries of several writers a second."""
    torch.set_num_threads(1)
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, size, patch, count) in TOWERS.items():
            root = Path(folder) / name
            images = _images(root, size, count)
            assistant = _seeing(CLIPVisionConfig(**config, image_size=size, patch_size=patch))
            results |= {f"{name}_{key}": value for key, value in _epochs(assistant, images, root / "cache").items()}
        return results | _together(Path(folder) / "writers")


def _epochs(assistant: Assistant, images: list[Path], cache: Path) -> dict[str, float]:
    found = {}
    for name, disk in (("none", None), ("cold", Disk(cache, 2**34)), ("warm", Disk(cache, 2**34))):
        source = FeatureSource(assistant, PixelSource(assistant.image_processor, cache_bytes=0), READING, disk, kept_bytes=0)
        source(images[:1])  # opening a cache hashes the weights, once a stage
        waits, began = [], time.process_time()
        for path in images:
            asked = time.perf_counter()
            source([path])
            waits.append(1000 * (time.perf_counter() - asked))
        source.flush()
        found[f"{name}_cpu_ms_an_image"] = 1000 * (time.process_time() - began) / len(images)
        found[f"{name}_wall_ms_an_image_median"] = statistics.median(waits)
    return found


def _together(root: Path) -> dict[str, float]:
    """Several processes that write the same entries at once."""
    fork = multiprocessing.get_context("fork")
    began = time.perf_counter()
    writers = [fork.Process(target=_write, args=(root,)) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    seconds = time.perf_counter() - began
    reader = _cache(root)
    whole = sum(reader.get(f"{number:064x}") is not None for number in range(ENTRIES))
    return {f"{WRITERS}_writers_entries_a_second": ENTRIES / seconds, f"{WRITERS}_writers_whole_of_{ENTRIES}": whole}


def _write(root: Path) -> None:
    cache, rows = _cache(root), torch.randn(576, 1024)
    for number in range(ENTRIES):
        cache.put(f"{number:064x}", rows)
        if number % 16 == 0:
            cache.flush()
    cache.flush()


def _cache(root: Path) -> FeatureCache:
    return FeatureCache(root, 2**34, {}, (576, 1024), torch.float32, reserve_bytes=0)


def _seeing(config: CLIPVisionConfig) -> Assistant:
    """As much of an assistant as looks at images."""
    from benchmarks.memory import _assistant, _recipe

    model, _ = _recipe({"width": 64, "layers": 1, "heads": 1, "tokens": 512})
    tower = model.tower.model_copy(update={"config": {**config.to_dict(), "model_type": "clip_vision_model"}})
    with tempfile.TemporaryDirectory() as folder:
        assistant: Assistant = _assistant(model.model_copy(update={"tower": tower}), Path(folder))
    assistant.model.requires_grad_(False)
    return assistant


def _images(root: Path, size: int, count: int) -> list[Path]:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [root / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(path)
    return paths
