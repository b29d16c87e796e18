"""Checkpoints in a bucket: the real client against moto's server."""

from __future__ import annotations

import threading

import boto3
import pytest

from components.platform import objects
from components.platform.bucket import open_place
from model import manifest
from model.errors import CannotWriteError, ConfigError, InternalError, MissingInputError, PreemptedError, RefusedError
from model.training.loop import train
from model.training.places import Entry, Folder
from model.training.reporter import ListReporter
from tests.model.tiny_stages import stop_after
from tests.toy_run import finish, toy_training


@pytest.fixture
def place(client, request):
    return open_place(f"s3://b{abs(hash(request.node.nodeid))}/runs", "train", "key")


def keys(client, place):
    found = client.list_objects_v2(Bucket=place._bucket, Prefix=place._prefix).get("Contents", ())
    return [entry["Key"].removeprefix(f"{place._prefix}/") for entry in found]


def stopped(work, step, reporter=None):
    training, _ = toy_training(work, reporter, stop_after(step))
    with pytest.raises(PreemptedError):
        train(training)


def test_a_run_goes_on_from_the_bucket_as_if_nothing_had_been(client, place, tmp_path):
    whole, _ = toy_training(tmp_path / "whole")
    expected = finish(whole)
    stopped(place, 10)
    assert place.entries() == [Entry(10, 1), Entry(8, 1)]
    stopped(place, 3)  # three further steps, on "another node": nothing but the bucket is shared
    resumed, _ = toy_training(place)
    assert finish(resumed) == expected
    resumed.store.clear()
    assert keys(client, place) == []


def test_a_checkpoint_copied_from_a_folder_to_the_bucket_and_back_stays_valid(client, place, tmp_path):
    whole, _ = toy_training(tmp_path / "whole")
    expected = finish(whole)
    stopped(tmp_path / "work", 10)
    for path in (tmp_path / "work").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), place._bucket, f"{place._prefix}/{path.relative_to(tmp_path / 'work')}")
    client.put_object(Bucket=place._bucket, Key=f"{place._prefix}/attempt-000001/claim", Body=b"")
    stopped(place, 3)
    back = tmp_path / "back"
    for name in keys(client, place):
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        client.download_file(place._bucket, f"{place._prefix}/{name}", str(back / name))
    assert Folder(back).entries()[0] == Entry(13, 2)
    for path in back.rglob("claim"):
        path.unlink()
    resumed, _ = toy_training(back)
    assert finish(resumed) == expected


def damage(client, place, entry, how):
    key = f"{place._prefix}/{entry.name}/weights.safetensors"
    content = bytearray(client.get_object(Bucket=place._bucket, Key=key)["Body"].read())
    if how == "missing":
        client.delete_object(Bucket=place._bucket, Key=key)
    else:
        content[-1] ^= 1
        client.put_object(Bucket=place._bucket, Key=key, Body=bytes(content if how == "flipped" else content[:-9]))


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_bad_one_goes_to_the_quarantine_and_all_bad_start_nothing(client, place, how):
    stopped(place, 10)
    damage(client, place, Entry(10, 1), how)
    reporter = ListReporter()
    stopped(place, 1, reporter)
    assert reporter.resumes == [8]
    assert reporter.notes[0].startswith("checkpoint attempt-000001/step-000010 set aside: ")
    assert "quarantine/attempt-000001-step-000010/manifest.json" in keys(client, place)
    for entry in place.entries():
        damage(client, place, entry, how)
    training, _ = toy_training(place)
    with pytest.raises(MissingInputError, match=r"attempt-000001-step-000010: .*; attempt-000001/step-000008: "):
        train(training)


def test_files_without_a_manifest_are_no_checkpoint_and_later_attempts_remove_them(client, place):
    stopped(place, 10)
    client.delete_object(Bucket=place._bucket, Key=f"{place._prefix}/{Entry(10, 1).name}/{manifest.FILE_NAME}")
    assert place.entries() == [Entry(8, 1)]
    place.claim()
    assert not [name for name in keys(client, place) if "step-000010" in name]
    assert place.entries() == [Entry(8, 1)]


def test_of_two_that_start_at_once_each_gets_a_number_of_its_own(place):
    claimed, threads = [], []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: claimed.append(place.claim())))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
    assert sorted(claimed) == list(range(1, 9))


def test_an_attempt_that_fell_asleep_at_its_claim_tidies_nothing_of_a_newer_one_when_it_wakes(client, place):
    stopped(place, 10)
    place.claim()
    half = f"{place._prefix}/{Entry(11, 2).name}/weights.safetensors"
    client.put_object(Bucket=place._bucket, Key=half, Body=b"of attempt 2, still being written")
    before = keys(client, place)
    place._sweep(1)
    assert keys(client, place) == before
    assert place.claim() == 3
    assert half.removeprefix(f"{place._prefix}/") not in keys(client, place)


def test_an_attempt_that_was_asleep_can_neither_commit_nor_purge(client, place, tmp_path):
    stopped(place, 10)
    training, _ = toy_training(place)
    training.store.resume(training.sharing)  # attempt 2, and falls asleep
    stopped(place, 1)
    assert place.entries()[0] == Entry(11, 3)
    training.store.save(20, training.sharing)
    with pytest.raises(RefusedError, match="attempt 3 has begun since"):
        training.store.settle()
    with pytest.raises(RefusedError):
        place.remove(Entry(11, 3), 2)
    assert place.entries()[0] == Entry(11, 3)


def test_a_manifest_is_never_put_over_another(place, tmp_path):
    attempt = place.claim()
    for content, fails in (("a", False), ("b", True)):
        with place.stage(Entry(1, attempt)) as folder:
            (folder / "file").write_text(content)
            manifest.seal(folder, "step")
            if fails:
                with pytest.raises(RefusedError):
                    place.commit(folder, Entry(1, attempt))
            else:
                place.commit(folder, Entry(1, attempt))


def test_a_store_that_is_gone_ends_the_run_with_70_and_quarantines_nothing(client, place, monkeypatch, server):
    stopped(place, 10)
    monkeypatch.setattr(objects, "MOST_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    gone, _ = toy_training(open_place(place.label))
    with pytest.raises(InternalError, match="does not answer"):
        train(gone)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    assert place.entries()[0] == Entry(10, 1)


def test_a_store_that_is_lost_while_training_is_told_at_a_step_boundary(place, monkeypatch):
    training, _ = toy_training(place)
    monkeypatch.setattr(place, "_client", Lost(place._client, "upload_file", "get_object", "put_object"))
    with pytest.raises(InternalError, match="fails: ServiceUnavailable"):
        train(training)


def test_a_store_that_is_lost_while_a_checkpoint_is_read_condemns_none(client, place, monkeypatch):
    stopped(place, 10)
    before = keys(client, place)
    monkeypatch.setattr(place, "_client", Lost(place._client, "get_object"))  # what is read wrong could be set aside
    training, _ = toy_training(place)
    with pytest.raises(InternalError, match="fails: ServiceUnavailable"):
        train(training)
    assert [name for name in keys(client, place) if "claim" not in name] == [name for name in before if "claim" not in name]


class Lost:
    """A client for which some calls fail. A claim always gets through: the attempt shall begin."""

    def __init__(self, client, *calls):
        self._client, self._calls = client, calls

    def __getattr__(self, name):
        return self._fail if name in self._calls else getattr(self._client, name)

    def put_object(self, **given):
        lost = "put_object" in self._calls and "IfNoneMatch" not in given
        return self._fail() if lost else self._client.put_object(**given)

    def _fail(self, *_, **__):
        raise boto3.exceptions.botocore.exceptions.ClientError({"Error": {"Code": "ServiceUnavailable"}}, "GetObject")


def test_a_bucket_that_is_not_there_or_not_named_is_a_letter(client):
    nowhere, _ = toy_training(open_place("s3://nowhere-to-be-found/x"))
    with pytest.raises(CannotWriteError, match="NoSuchBucket"):
        train(nowhere)
    for wrong in ("s3:/b", "gs://b/x", "s3://"):
        with pytest.raises(ConfigError, match="no place for checkpoints"):
            open_place(wrong)


def test_what_is_fetched_cannot_leave_its_folder(client, place, tmp_path):
    attempt = place.claim()
    with place.stage(Entry(1, attempt)) as folder:
        (folder / "file").write_text("x")
        manifest.seal(folder, "step")
        place.commit(folder, Entry(1, attempt))
    client.put_object(Bucket=place._bucket, Key=f"{place._prefix}/{Entry(1, attempt).name}/../../evil", Body=b"x")
    with pytest.raises(RefusedError), place.fetch(Entry(1, attempt)):
        pass
