"""Steps in homes of their own that share nothing but a bucket: moto's server, the real client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.platform import events, objects, reference
from components.platform.settings import Settings
from components.platform.shared_store import SharedStore
from components.platform.step import run_step
from components.platform.store import Store, open_store
from model import manifest
from model.errors import CannotWriteError, ConfigError, InternalError, MissingInputError, RefusedError

PIECE = {"seed": 0, "rate": 0.1}


class Pod:
    """A machine with an empty disk; steps run in it one after the other, as KFP hands their references around."""

    def __init__(self, home, monkeypatch, shared):
        self.home, self.runs, self.content = home, 0, "weights of the first"
        self._patch, self._shared = monkeypatch, shared

    @property
    def settings(self):
        self._patch.setenv("BIOVLM_HOME", str(self.home))
        self._patch.setenv("BIOVLM_STORE", self._shared)
        return Settings.from_environment()

    @property
    def store(self):
        return open_store(self.settings)

    def step(self, out, piece=PIECE, name="align", before=None, **inputs):
        """Run a step whose reference goes to `out`; its reference as this pod reads it."""

        def produce(work):
            self.runs += 1
            if before:
                before()
            with manifest.commit(work.final, "checkpoint", work.parents, {"figures": {"loss": 0.5}}) as folder:
                (folder / "weights").write_text(self.content)
                (folder / "part").mkdir()
                (folder / "part" / "second").write_text(str(sorted(piece.items())))
            work.scratch.mkdir(parents=True, exist_ok=True)

        settings = self.settings
        run_step("train", name, piece, inputs, str(out), produce)
        return reference.read(out, settings.store)

    def notes(self):
        return [event.message for event in events.read(self.settings.events) if event.type == "note"]


@pytest.fixture
def pod(tmp_path, monkeypatch, shared, settings):
    pods = iter(range(9))
    return lambda where=shared: Pod(tmp_path / f"pod-{next(pods)}", monkeypatch, where)


def blob(client, shared, wanted):
    """Bucket and key of the one object whose name ends so."""
    bucket = shared.removeprefix("s3://").split("/")[0]
    found = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ()) if entry["Key"].endswith(wanted)]
    (key,) = found
    return {"Bucket": bucket, "Key": key}


def flip(client, where):
    content = bytearray(client.get_object(**where)["Body"].read())
    content[0] ^= 1
    client.put_object(**where, Body=bytes(content))


def test_two_homes_that_share_a_bucket_make_what_one_home_makes(pod, tmp_path):
    alone, first, second = pod(""), pod(), pod()
    expected = [alone.step(tmp_path / "a.json")]
    expected.append(alone.step(tmp_path / "b.json", {"seed": 2}, "instruct", parent=str(tmp_path / "a.json")))
    found = [first.step(tmp_path / "c.json")]
    found.append(second.step(tmp_path / "d.json", {"seed": 2}, "instruct", parent=str(tmp_path / "c.json")))
    assert [ref.digest for ref in found] == [ref.digest for ref in expected]
    assert [ref.folder.name for ref in found] == [ref.folder.name for ref in expected]  # the keys
    assert (tmp_path / "c.json").read_text() == (tmp_path / "a.json").read_text()
    assert not Path(json.loads((tmp_path / "c.json").read_text())["uri"]).is_absolute()
    records = [home.store.record("train", ref.folder.name) for home, ref in ((alone, expected[1]), (first, found[1]))]
    assert records[0].inputs == records[1].inputs


def test_a_reused_step_downloads_nothing_and_its_reader_verifies_every_byte(pod, tmp_path):
    first, second = pod(), pod()
    made = first.step(tmp_path / "a.json")
    reused = second.step(tmp_path / "b.json")
    assert (second.runs, reused.digest) == (0, made.digest)
    assert not reused.folder.exists()
    third = second.step(tmp_path / "c.json", {"seed": 2}, "instruct", parent=str(tmp_path / "b.json"))
    assert manifest.verify(reused.folder).digest == made.digest
    brought = sum(entry.size_bytes for entry in manifest.read(reused.folder).files)
    assert second.store.record("train", third.folder.name).cost.bytes_received >= brought > 0


def test_of_two_that_make_the_same_the_first_stands_and_the_second_takes_it(pod, tmp_path):
    first, second = pod(), pod()
    second.content = "weights of another processor"
    made = []
    found = second.step(tmp_path / "b.json", before=lambda: made.append(first.step(tmp_path / "a.json")) or second.settings)
    assert (first.runs, second.runs, found.digest) == (1, 1, made[0].digest)
    assert (second.store.fetch(second.store.uri(found.folder), found.digest) / "weights").read_text() == first.content
    assert second.store.record("train", found.folder.name) == first.store.record("train", found.folder.name)


def test_of_two_that_publish_at_the_same_moment_one_stands_whole_for_both(tmp_path, shared, client):
    first, second = (SharedStore(tmp_path / name, shared) for name in ("a", "b"))
    for store in (first, second):
        with manifest.commit(store.root / "steps/train/k", "checkpoint") as folder:
            (folder / "weights").write_text(store.root.name)
    upload, begun = second.objects.upload, []

    def late(path, name):
        upload(path, name)
        begun.append(first.publish("steps/train/k"))  # after the second looked, and before it puts its manifest

    second.objects.upload = late
    assert second.publish("steps/train/k") == begun[0]
    for store in (first, second):
        assert (store.fetch("steps/train/k", begun[0].digest) / "weights").read_text() == "a"


def test_a_local_copy_that_was_changed_is_downloaded_again(pod, tmp_path):
    first = pod()
    made = first.step(tmp_path / "a.json")
    (made.folder / "weights").write_text("something else")
    folder = first.store.fetch(first.store.uri(made.folder), made.digest)
    assert manifest.verify(folder).digest == made.digest


def test_a_byte_that_is_hurt_on_the_way_is_downloaded_once_more(pod, tmp_path, monkeypatch):
    made = pod().step(tmp_path / "a.json")
    reader, real, hurt = pod().store, objects.Objects.download, []

    def download(self, name, path):
        real(self, name, path)
        if name.endswith("weights") and not hurt:
            hurt.append(path.write_text("#" * path.stat().st_size))

    monkeypatch.setattr(objects.Objects, "download", download)
    assert manifest.verify(reader.fetch(f"steps/train/{made.folder.name}", made.digest)).digest == made.digest
    assert hurt


def test_a_byte_that_was_changed_in_the_bucket_is_refused_and_comes_back_with_the_step(pod, tmp_path, client, shared):
    made = pod().step(tmp_path / "a.json")
    where = blob(client, shared, f"files/{made.digest}/weights")
    flip(client, where)
    second = pod()
    with pytest.raises(SystemExit) as stopped:
        second.step(tmp_path / "c.json", {"seed": 2}, "instruct", parent=str(tmp_path / "a.json"))
    assert stopped.value.code == 77
    assert "remove it" in events.read(second.settings.events)[-1].hint
    client.delete_object(**where)  # as the hint says
    assert second.step(tmp_path / "b.json").digest == made.digest
    assert second.runs == 1
    assert "lacked some of its files" in second.notes()[0]
    second.step(tmp_path / "c.json", {"seed": 2}, "instruct", parent=str(tmp_path / "b.json"))


def test_a_published_file_that_is_gone_comes_back_from_a_machine_that_has_it(pod, tmp_path, client, shared):
    first = pod()
    made = first.step(tmp_path / "a.json")
    client.delete_object(**blob(client, shared, f"files/{made.digest}/weights"))
    first.step(tmp_path / "a.json")
    assert first.runs == 1
    assert manifest.verify(pod().store.fetch(f"steps/train/{made.folder.name}", made.digest)).digest == made.digest


def test_a_result_that_was_never_published_is_published_when_it_is_reused(pod, tmp_path, monkeypatch):
    first = pod()
    with monkeypatch.context() as patch:
        patch.setattr(SharedStore, "publish", lambda self, uri, record=None: manifest.read(self.root / uri))
        with pytest.raises(SystemExit):
            first.step(tmp_path / "a.json")
    made = first.step(tmp_path / "a.json")
    assert first.runs == 1
    pod().store.fetch(f"steps/train/{made.folder.name}", made.digest)


def test_what_a_killed_publisher_left_is_no_artifact(pod, tmp_path, monkeypatch, client, shared):
    first, real = pod(), objects.Objects.upload

    def upload(self, path, name):
        if name.endswith("second"):
            raise InternalError("killed")
        real(self, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(objects.Objects, "upload", upload)
        with pytest.raises(SystemExit):
            first.step(tmp_path / "a.json")
    second = pod()
    second.step(tmp_path / "b.json")
    assert second.runs == 1


def test_without_its_manifest_an_artifact_does_not_exist(pod, tmp_path, client, shared):
    made = pod().step(tmp_path / "a.json")
    client.delete_object(**blob(client, shared, f"steps/train/{made.folder.name}/manifest.json"))
    second = pod()
    with pytest.raises(MissingInputError, match="no artifact"):
        second.store.fetch(f"steps/train/{made.folder.name}")
    second.step(tmp_path / "b.json")
    assert second.runs == 1


def test_a_reference_to_what_was_made_again_otherwise_is_refused(pod, tmp_path):
    made = pod().step(tmp_path / "a.json")
    with pytest.raises(RefusedError, match="expected 000000000000"):
        pod().store.fetch(f"steps/train/{made.folder.name}", "0" * 64)


def test_a_bucket_that_is_lost_ends_the_step_with_70_and_sets_nothing_aside(pod, tmp_path, monkeypatch, server):
    first = pod()
    made = first.step(tmp_path / "a.json")
    monkeypatch.setattr(objects, "MOST_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stopped:
        first.step(tmp_path / "a.json")
    assert stopped.value.code == 70
    assert "does not answer" in events.read(first.settings.events)[-1].message
    assert manifest.verify(made.folder).digest == made.digest
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    assert first.step(tmp_path / "a.json").digest == made.digest


def test_a_bucket_whose_conditional_put_replaces_is_refused_before_a_run(pod, monkeypatch):
    pod().store.check()
    monkeypatch.setattr(objects.Objects, "put_new", lambda self, name, content: self.put(name, content) or True)
    with pytest.raises(CannotWriteError, match="conditional put"):
        pod().store.check()


def test_what_a_manifest_names_cannot_leave_its_folder(pod, tmp_path, client, shared):
    made = pod().step(tmp_path / "a.json")
    where = blob(client, shared, f"steps/train/{made.folder.name}/manifest.json")
    content = json.loads(client.get_object(**where)["Body"].read())
    content["files"][0]["path"] = "../../../../evil"
    tampered = manifest.Manifest.model_validate(content)
    client.put_object(**where, Body=tampered.model_dump_json().encode())
    old = where["Key"].split("steps/")[0] + "files/"
    for entry, now in zip(manifest.read(made.folder).files, tampered.files, strict=True):
        source = {"Bucket": where["Bucket"], "Key": f"{old}{made.digest}/{entry.path}"}
        client.copy_object(CopySource=source, Bucket=where["Bucket"], Key=f"{old}{tampered.digest}/{now.path}")
    with pytest.raises(RefusedError, match="leaves its folder"):
        pod().store.fetch(f"steps/train/{made.folder.name}")
    for uri in ("../outside", "steps/../../outside"):
        with pytest.raises(RefusedError, match="leaves its folder"):
            pod().store.fetch(uri)


@pytest.mark.parametrize("wrong", ["s3:/b", "gs://b/x", "s3://"])
def test_a_store_that_is_no_bucket_is_a_letter(tmp_path, wrong):
    with pytest.raises(ConfigError, match="no place for a shared store"):
        open_store(Settings.from_environment({"BIOVLM_HOME": str(tmp_path), "BIOVLM_STORE": wrong}))


def test_a_bucket_that_is_not_there_is_a_letter(pod):
    with pytest.raises(CannotWriteError, match="NoSuchBucket"):
        pod("s3://nowhere-to-be-found/x").store.check()


def test_without_a_bucket_the_store_is_the_folder(settings):
    assert type(open_store(settings)) is Store


def test_a_store_that_does_not_answer_says_so_and_is_no_verdict_on_a_download(pod, tmp_path, monkeypatch):
    made = pod().step(tmp_path / "a.json")
    reader = pod().store

    def lost(self, name, path):
        raise InternalError("the bucket fails: ServiceUnavailable")

    monkeypatch.setattr(objects.Objects, "download", lost)
    with pytest.raises(InternalError, match="ServiceUnavailable"):
        reader.fetch(f"steps/train/{made.folder.name}")
    assert not reader.folder("train", made.folder.name).exists()
