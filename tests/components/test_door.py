"""What a step's door does with what KFP gives it: the keys of a pod become files, and who began the run a fact of its lineage."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess

import pytest

from components.platform import door, keys, origin, signing
from components.platform.lineage import steps, text
from components.platform.lineage.graph import Kind
from components.platform.settings import CHECKOUT, Settings
from components.platform.step import run_step
from components.platform.store import open_store
from model import manifest
from model.errors import MissingInputError, RefusedError


@pytest.fixture(autouse=True)
def pod(monkeypatch, tmp_path):
    """The environment of a pod that nobody has given anything yet."""
    for name in (
        *door.KEYS,
        *door.KEYS.values(),
        "BIOVLM_TRIGGER",
        "BIOVLM_TASK_CONFIG",
        "BIOVLM_SIGNING",
        "BIOVLM_RUN_ID",
        "CI",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("BIOVLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BIOVLM_POD_NAME", "step-1")
    return monkeypatch


@pytest.fixture
def made(tmp_path):
    """Keys as the platform team makes them: by the commands of infra/README.md, up to where a cluster is needed."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, with which infra/README.md makes the keys, is not installed")
    told = (CHECKOUT / "infra" / "README.md").read_text()
    lines = next(block for block in re.findall(r"```sh\n(.*?)```", told, re.S) if "signing.pem" in block)
    script = "\n".join(line for line in lines.splitlines() if line.startswith(("umask", "openssl", "cp ")))

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(["sh", "-ec", script], cwd=folder, check=True, capture_output=True)
        return {path.name: path.read_text() for path in folder.iterdir()}

    return make


def artifact(store):
    with manifest.commit(store.root / "thing", "report", {}, {"figures": {}}) as folder:
        (folder / "report.json").write_text("{}")
    return store.root / "thing"


def test_keys_that_a_platform_team_makes_sign_in_one_pod_and_are_believed_in_another(pod, made, tmp_path):
    mine, other = made("mine"), made("other")
    pod.setenv("BIOVLM_SIGNING_KEY_PEM", mine["signing.pem"])
    pod.setenv("BIOVLM_TRUSTED_KEYS_PEM", other["trusted.pem"] + mine["trusted.pem"])  # as after a change of keys
    door.enter()
    settings = Settings.from_environment()
    store = open_store(settings)
    artifact(store)
    signed = signing.ensure(store, settings, "thing")
    assert (signed.method, signed.key) == (signing.KEY, keys.fingerprint_of(settings.signing_key))
    assert len(keys.trusted(settings)) == 2
    pod.setenv("BIOVLM_SIGNING_KEY", "")
    pod.setenv("BIOVLM_TRUSTED_KEYS_PEM", mine["trusted.pem"])
    door.enter()
    assert signing.verify(store, Settings.from_environment(), "thing") == signed
    pod.setenv("BIOVLM_TRUSTED_KEYS_PEM", other["trusted.pem"])
    door.enter()
    with pytest.raises(RefusedError, match="is signed by the key"):
        signing.verify(store, Settings.from_environment(), "thing")


def test_a_key_is_a_file_of_its_owner_alone_and_leaves_the_environment(pod, made):
    pod.setenv("BIOVLM_SIGNING_KEY_PEM", made("mine")["signing.pem"])
    door.enter()
    path = Settings.from_environment().signing_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not [name for name, value in os.environ.items() if "PRIVATE KEY" in value]
    assert keys.private(Settings.from_environment()) == path


def test_a_pod_without_a_key_makes_none(pod):
    door.enter()
    settings = Settings.from_environment()
    with pytest.raises(MissingInputError, match="no key to sign with") as refused:
        keys.private(settings)
    assert "biovlm-signing" in refused.value.hint
    assert not (settings.home / "keys").exists()


def test_before_a_run_the_key_that_will_sign_must_be_trusted(pod, made):
    mine, other = made("mine"), made("other")

    def ask(signer, trusted):
        pod.setenv("BIOVLM_SIGNER_PEM", signer)
        pod.setenv("BIOVLM_TRUSTED_KEYS_PEM", trusted)
        pod.setenv("BIOVLM_SIGNER", "")
        pod.setenv("BIOVLM_TRUSTED_KEYS", "")
        door.enter()
        keys.refuse_stranger(Settings.from_environment())

    ask(mine["signing.pub"], mine["trusted.pem"])
    with pytest.raises(RefusedError, match="signs in this cluster, trusted are"):
        ask(mine["signing.pub"], other["trusted.pem"])
    with pytest.raises(MissingInputError, match=r"biovlm-signing with the key `signing\.pub`"):
        ask("", mine["trusted.pem"])
    with pytest.raises(MissingInputError, match="biovlm-trusted-keys"):
        ask(mine["signing.pub"], "")
    pod.setenv("BIOVLM_SIGNING", "off")
    ask("", "")


def test_without_a_word_from_kfp_the_environment_says_who_began_the_run(pod):
    def told():
        door.enter("")
        return origin.here(Settings.from_environment()).trigger

    assert told() == "person"
    pod.setenv("CI", "true")
    assert told() == Settings.from_environment().for_children()["BIOVLM_TRIGGER"] == "ci"  # containers do not inherit CI itself
    pod.setenv("BIOVLM_TRIGGER", "ci:nightly")
    assert told() == "ci:nightly"


def test_the_lineage_of_a_step_names_who_began_the_run_and_the_images_by_digest(pod, tmp_path):
    def produce(work):
        with manifest.commit(work.final, "data", {}, {"figures": {}}) as folder:
            (folder / "a.json").write_text("{}")

    digest = "registry.example/launcher@sha256:" + 64 * "a"
    pod.setenv("BIOVLM_LAUNCHER_IMAGE", digest)
    pod.setenv("BIOVLM_TRAIN_IMAGE", "biovlm-train")  # a name alone may be any image
    pod.setenv("BIOVLM_KFP_RUN_ID", "7d0f")
    pod.setenv("BIOVLM_MIRRORED", "1")
    door.enter("schedule:monthly")
    made = run_step("data", "data", {"seed": 1}, {}, str(tmp_path / "out.json"), produce)
    found = steps.read(open_store(Settings.from_environment()), "data", made.folder.name)
    (step,) = found.of(Kind.STEP)
    assert (step.facts["trigger"], step.facts["images"]) == ("schedule:monthly", {"launcher": digest})
    assert [run.name for run in found.of(Kind.RUN)] == ["7d0f"]
    assert "trigger schedule:monthly" in text.facts(step)
