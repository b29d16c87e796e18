from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.data.sources.phantom import Split, write_phantom
from model.training.stage import StageInputs
from tests.model.tiny_bases import make_language, make_tower


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantom"
    write_phantom(folder, {Split.TRAIN: 24, Split.VALIDATION: 1, Split.TEST: 1}, seed=7)
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"tower": make_tower(root / "tower"), "language": make_language(root / "language")}


@pytest.fixture
def inputs(phantom: Path, bases: dict[str, Path]) -> StageInputs:
    return StageInputs({"phantom": phantom}, bases)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the command does: equal bytes need equal numbers of threads, and a busy machine is slow with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
