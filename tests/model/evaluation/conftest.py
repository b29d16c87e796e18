from __future__ import annotations

from pathlib import Path

import pytest

from model.architecture.assembly import Assistant, build
from model.config import Kind
from model.data.dataset import DataSet, open_dataset
from model.data.records import Record
from model.data.sources.phantom import write_phantom
from model.data.sources.phantom_facts import Split
from tests.model.tiny_bases import make_language, make_tower, model_settings


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"tower": make_tower(root / "tower"), "language": make_language(root / "language")}


@pytest.fixture(scope="session")
def assistant(bases: dict[str, Path]) -> Assistant:
    """As `evaluate` has it: nothing learns, so that its layers are those that a CPU makes cheaper."""
    assistant = build(model_settings(), bases, seed=3)
    assistant.model.requires_grad_(False)
    return assistant


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("sets") / "phantom"
    write_phantom(folder, {Split.TRAIN: 10, Split.VALIDATION: 1, Split.TEST: 5})
    return open_dataset(folder)


@pytest.fixture(scope="session")
def questions(phantom: DataSet) -> list[Record]:
    return phantom.records("test", [Kind.QUESTION])


@pytest.fixture(scope="session")
def phantom_folder(phantom: DataSet) -> Path:
    return phantom.folder
