"""A data registry that a team writes in one home and pods read from others: Git by URL, bytes in a bucket."""

from __future__ import annotations

import subprocess

import pytest

from components.data.registry_url import FollowedRegistry, open_registry
from components.platform.settings import Settings
from model import manifest
from model.errors import MissingInputError, UsageError
from tests.pipelines import micro


def in_home(folder, **more):
    return Settings.from_environment({"BIOVLM_HOME": str(folder), **more})


@pytest.fixture
def written(tmp_path, shared, client):
    """Settings of the home where the registry is written; its bytes are in the bucket."""
    settings = in_home(tmp_path / "writer", BIOVLM_DVC_REMOTE=f"{shared}/dvc")
    open_registry(settings).add("mini", lambda folder: micro.write_set(folder, (("train", 2),)), "mini")
    return settings


def test_a_pod_reads_what_a_team_wrote_elsewhere_and_follows_it(written, tmp_path):
    reader = in_home(tmp_path / "pod", BIOVLM_DATA=str(written.data_registry))
    source, followed = open_registry(written), open_registry(reader)
    assert followed.version("mini") == source.version("mini")
    (found,) = followed.materialise(["mini"], "HEAD", reader.store).values()
    assert manifest.verify(found.path).digest == source.version("mini").digest
    assert not (reader.home / "data").exists()

    first = source.version("mini").revision
    git = ("git", "-C", str(written.data_registry), "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty")
    subprocess.run([*git, "-m", "another"], check=True)
    assert followed.resolve("HEAD") == first  # not in the middle of a run
    followed.ensure(["mini"])
    assert followed.resolve("HEAD") == source.resolve("HEAD") != first
    assert followed.version("mini").revision == first  # the commit that brought it, which a shallow clone would not know


def test_nothing_is_written_to_a_registry_that_is_followed(tmp_path):
    followed = FollowedRegistry(tmp_path, "https://user:secret@host/registry.git")
    for act in (followed.build, lambda: followed.add("mini", micro.write_set, "mini")):
        with pytest.raises(UsageError, match="at https://host/registry.git is only read"):
            act()


def test_a_registry_that_cannot_be_read_is_a_letter_without_its_password(tmp_path):
    followed = FollowedRegistry(tmp_path, "https://user:secret@127.0.0.1:9/registry.git")
    with pytest.raises(MissingInputError, match=r"at https://127\.0\.0\.1:9/registry\.git cannot be read") as caught:
        followed.version("mini")
    assert "secret" not in str(caught.value)
