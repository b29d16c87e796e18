"""Fixtures of the data tests: a tokenizer, and data sets in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.manifest import commit
from tests.model.data.tiny_data import build_tokenizer

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here has to outlive a power cut; hundreds of small files would wait for it one by one."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def write_set(tmp_path: Path) -> Writer:
    """Writes a data set folder from lines (JSON values, or bytes as they are) by split, and images by name."""

    def write(splits: dict[str, list[Any]], images: dict[str, Any] | None = None, name: str = "set", **facts: Any) -> Path:
        with commit(tmp_path / name, kind="data", facts={"name": name, **facts}) as folder:
            (folder / "records").mkdir()
            (folder / "images").mkdir()
            for split, lines in splits.items():
                raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
                (folder / "records" / f"{split}.jsonl").write_bytes(b"".join(line + b"\n" for line in raw))
            for image, content in ({"a.png": 0} if images is None else images).items():
                if isinstance(content, bytes):
                    (folder / "images" / image).write_bytes(content)
                else:
                    Image.new("RGB", (8, 8), (content, 100, 50)).save(folder / "images" / image)
        return tmp_path / name

    return write
