from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model.errors import ConfigError
from model.evaluation import benchmark


def changed(folder: Path, **changes: object) -> Path:
    content = yaml.safe_load((benchmark.FOLDER / "vqa.yaml").read_text())
    (folder / "vqa.yaml").write_text(yaml.safe_dump(content | changes))
    return folder


def test_every_benchmark_that_comes_with_biovlm_loads() -> None:
    assert "vqa" in benchmark.names()
    for name in benchmark.names():
        assert benchmark.load(name).headline


def test_an_unknown_benchmark_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean `vqa`"):
        benchmark.load("vqaa")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrik": ["open_recall"]}, "did you mean `metrics`"),
        ({"metrics": ["closed_acuracy"], "headline": "closed_acuracy"}, "did you mean `closed_accuracy`"),
        ({"slices": ["modalty"]}, "did you mean `modality`"),
        ({"headline": "closed_accuracy_contains"}, "must be strict"),
        ({"metrics": ["open_recall"]}, "not among the metrics"),
        ({"prompt": "Answer briefly."}, "exactly once"),
        ({"name": "other"}, "calls itself"),
    ],
)
def test_a_wrong_benchmark_is_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark.load("vqa", changed(tmp_path, **changes))


def test_the_wording_goes_around_the_question(tmp_path: Path) -> None:
    assert benchmark.load("vqa", changed(tmp_path, prompt="{question} Briefly.")).worded("Why {x}?") == "Why {x}? Briefly."
