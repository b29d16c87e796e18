"""A stage ends with the same bytes whether its features come from the tower, from memory, or from a cache in any state."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from model import manifest
from model.architecture import feature_cache
from model.architecture.features import Disk, FeatureSource
from model.training import material
from model.training.reporter import ListReporter
from model.training.stage import StageInputs, run_stage
from tests.model.tiny_stages import piece


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Images that the tower looked at."""
    seen: list[Path] = []
    together = FeatureSource._encode_together

    def watched(source: FeatureSource, paths: list[Path]) -> torch.Tensor:
        seen.extend(paths)
        return together(source, paths)

    monkeypatch.setattr(FeatureSource, "_encode_together", watched)
    return seen


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that leave nothing in the background, so that the next one finds all of it."""
    put = feature_cache.FeatureCache.put

    def at_once(cache: feature_cache.FeatureCache, digest: str, features: torch.Tensor) -> None:
        put(cache, digest, features)
        cache.flush()

    monkeypatch.setattr(feature_cache.FeatureCache, "put", at_once)
    monkeypatch.setattr(material, "BUDGET_BYTES", 0)


def run(inputs: StageInputs, root: Path, disk: Disk | None) -> tuple[manifest.Manifest, ListReporter]:
    reporter = ListReporter()
    given = dataclasses.replace(inputs, feature_cache=disk)
    return run_stage(piece("instruct", epochs=1), given, root / "work", root / "final", reporter), reporter


def test_a_cold_a_warm_a_damaged_a_full_and_no_cache_give_the_same_bytes(
    inputs: StageInputs, tmp_path: Path, encoded: list[Path], flushed: None
) -> None:
    none, _ = run(inputs, tmp_path / "none", None)
    shown, images = len(encoded), len(set(encoded))
    assert shown > images, "without a cache and without memory, the tower looks anew each time"
    disk, looks = Disk(tmp_path / "cache", 2**24), []
    for state in ("cold", "warm", "damaged", "tight"):
        encoded.clear()
        if state == "damaged":
            entries = sorted(path for path in (tmp_path / "cache").rglob("*") if len(path.name) == 62)
            assert len(entries) == images
            for path in random.Random(0).sample(entries, 5):
                path.write_bytes(path.read_bytes()[:200])
        if state == "tight":
            disk = Disk(tmp_path / "tight", 10_000)
        found, reporter = run(inputs, tmp_path / state, disk)
        assert found.digest == none.digest, state
        looks.append(len(encoded))
        told = [note for note in reporter.notes if note.startswith("feature cache")]
        assert len(told) == (state in ("damaged", "tight")), told
    assert looks[:3] == [images, 0, 5]
    assert images < looks[3] < shown, "a few fitted"


def test_in_memory_each_image_is_encoded_once(inputs: StageInputs, tmp_path: Path, encoded: list[Path]) -> None:
    run(inputs, tmp_path, None)
    assert len(encoded) == len(set(encoded)) > 0
