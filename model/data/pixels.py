"""Pixels of image files, ready for the vision tower.

`PixelSource` decodes safely, preprocesses with the model's own image processor, and keeps what fits into a bounded memory, so that
from the second epoch on small data sets read no file.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.data import images
from model.data.images import MAX_PIXELS, decode

DEFAULT_CACHE_BYTES = 512 * 2**20


class PixelSource:
    """Pixels of image files, ready for the vision tower.

    Args:
        image_processor: A transformers image processor, e.g. `CLIPImageProcessorPil`.
        cache_bytes: Largest memory for preprocessed images; when it is full, further images are read again each time.
        max_pixels: Largest width x height in pixels of an image file.
    """

    def __init__(self, image_processor: Any, cache_bytes: int = DEFAULT_CACHE_BYTES, max_pixels: int = MAX_PIXELS) -> None:
        self._processor = image_processor
        self._free_bytes = cache_bytes
        self._max_pixels = max_pixels
        self._cache: dict[Path, torch.Tensor] = {}
        self._lock = threading.Lock()

    def __call__(self, paths: Sequence[Path]) -> torch.Tensor:
        """(N, C, H, W) float32 for N paths; N may be 0. Errors as `model.data.images.decode`."""
        fresh = {path: self._read(path) for path in dict.fromkeys(paths) if path not in self._cache}
        rows = [fresh[path] if path in fresh else self._cache[path] for path in paths]
        self._keep(fresh)
        return torch.stack(rows) if rows else torch.zeros(self._empty_shape())

    @property
    def cached(self) -> int:
        """Number of images in memory."""
        return len(self._cache)

    def _read(self, path: Path) -> torch.Tensor:
        image = decode(path, self._max_pixels)
        pixels: torch.Tensor = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.to(torch.float32)

    def _keep(self, fresh: dict[Path, torch.Tensor]) -> None:
        # The first images stay: every epoch asks for each image about once, so replacing old ones would only move the misses.
        with self._lock:
            for path, pixels in fresh.items():
                size = pixels.numel() * pixels.element_size()
                if path not in self._cache and size <= self._free_bytes:
                    self._cache[path] = pixels
                    self._free_bytes -= size

    def _empty_shape(self) -> tuple[int, int, int, int]:
        """Shape of no image: (0, 3, H, W), with the size that the processor would give."""
        size = getattr(self._processor, "crop_size", None) or self._processor.size
        return 0, 3, int(size["height"]), int(size["width"])


READING = (images, PixelSource)
"""The code that turns a file into pixels; whoever keeps what follows from pixels compares it."""
