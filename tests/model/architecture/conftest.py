from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.tiny_bases import make_language, make_tower


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"tower": make_tower(root / "tower"), "language": make_language(root / "language")}
