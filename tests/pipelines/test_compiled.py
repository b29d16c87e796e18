"""The compiled pipeline in Git is what the graph says, and says what it must."""

from __future__ import annotations

import pytest
import yaml

from pipelines import biovlm
from pipelines.summary import STEPS


def documents(path):
    """All documents: settings for Kubernetes stand in a second one."""
    found = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    for document in found:
        document.pop("sdkVersion", None)
    return found


@pytest.fixture(scope="module")
def tasks():
    return documents(biovlm.COMPILED)[0]["root"]["dag"]["tasks"]


def test_the_compiled_pipeline_is_up_to_date(tmp_path):
    biovlm.compile_to(tmp_path / "now.yaml")
    assert documents(tmp_path / "now.yaml") == documents(biovlm.COMPILED), "run `biovlm compile` and commit the result"


def test_every_step_is_there_once_and_is_never_cached_by_kfp(tasks):
    assert sorted(task["taskInfo"]["name"] for task in tasks.values()) == sorted(STEPS)
    assert not [name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")]


def test_order_follows_from_artifacts_alone(tasks):
    for name, task in tasks.items():
        artifacts = task.get("inputs", {}).get("artifacts", {}).values()
        parameters = task.get("inputs", {}).get("parameters", {}).values()
        needed = {entry["taskOutputArtifact"]["producerTask"] for entry in artifacts}
        needed |= {entry["taskOutputParameter"]["producerTask"] for entry in parameters if "taskOutputParameter" in entry}
        assert set(task.get("dependentTasks", ())) == needed, name


def test_the_champion_is_evaluated_by_the_same_component_on_the_same_questions(tasks):
    candidate, champion = (next(t for t in tasks.values() if t["taskInfo"]["name"] == n) for n in ("evaluate", "champion"))
    for part in ("piece", "who"):
        assert part in candidate["inputs"]["parameters"]
    assert candidate["inputs"]["parameters"]["piece"] == champion["inputs"]["parameters"]["piece"]
    assert candidate["inputs"]["artifacts"]["data"] == champion["inputs"]["artifacts"]["data"]


def test_components_install_nothing_and_call_our_package():
    executors = documents(biovlm.COMPILED)[0]["deploymentSpec"]["executors"].values()
    for executor in executors:
        text = " ".join(map(str, [*executor["container"]["command"], *executor["container"].get("args", ())]))
        assert "pip install" not in text
        assert ".step import run" in text
