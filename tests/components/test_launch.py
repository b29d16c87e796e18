"""The head of a run's Ray, with a stand-in for `ray.init`: a node that is not up within Ray's own 30 seconds cannot be had at will."""

from __future__ import annotations

import contextlib
import socket
import sys
import types
from pathlib import Path

import pytest

from components.platform import launch
from components.platform.settings import Settings
from model.errors import InternalError


class Ray(types.ModuleType):
    """A Ray whose node is too slow `slow` times."""

    def __init__(self, slow: int) -> None:
        super().__init__("ray")
        self.slow, self.folders, self.ends = slow, [], 0

    def init(self, _temp_dir: str, **options):
        self.folders.append(Path(_temp_dir))
        if len(self.folders) <= self.slow:
            raise Exception("The current node timed out during startup")
        return types.SimpleNamespace(address_info={"gcs_address": "127.0.0.1:1"})

    def shutdown(self) -> None:
        self.ends += 1


@pytest.fixture
def ray(monkeypatch):
    def with_slow_starts(count: int) -> Ray:
        monkeypatch.setitem(sys.modules, "ray", Ray(count))
        return sys.modules["ray"]

    return with_slow_starts


def test_a_ray_that_is_slow_to_start_is_started_again_in_a_folder_of_its_own(ray):
    slow = ray(2)
    with contextlib.ExitStack() as stack:
        assert launch._begin(stack, 1) == "127.0.0.1:1"
        assert (len(set(slow.folders)), slow.ends) == (3, 2)
        assert all(folder.is_dir() for folder in slow.folders)
    assert slow.ends == 3
    assert not any(folder.exists() for folder in slow.folders)


def test_whoever_waits_for_a_head_that_ended_is_told_at_once(ray, tmp_path, monkeypatch):
    slow = ray(launch.START_TRIES)
    monkeypatch.setattr(launch, "START_SECONDS", 1e9)  # without the mark this test would not end
    with pytest.raises(Exception, match="timed out during startup"):
        launch.hold(tmp_path / "ray-address", 1)
    assert len(slow.folders) == launch.START_TRIES
    with pytest.raises(InternalError, match="did not start in 3 tries") as told:
        launch._wait_for(tmp_path / "ray-address", Settings.from_environment({"BIOVLM_HOME": str(tmp_path)}))
    assert "ray.log" in told.value.hint


def test_a_real_head_is_reached_and_leaves_nothing(tmp_path):
    settings = Settings.from_environment({"BIOVLM_HOME": str(tmp_path)})
    head = launch.start(settings, 1)
    try:
        host, _, port = launch._wait_for(head.address_file, settings).rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()
    finally:
        head.stop()
    assert [path.name for path in settings.run_folder.iterdir()] == ["ray.log"]
