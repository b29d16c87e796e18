"""What an image is built from, as decided; the build itself is in the docker lane (tests/pipelines/test_containers.py)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from components.platform import code
from infra import bootstrap
from infra.images import base, build, inside

PINNED = "registry.example/python@sha256:" + "a" * 64


@pytest.fixture
def root():
    return Path(__file__).resolve().parents[2]


@pytest.fixture
def facts():
    return build.Facts(target="launcher", commit="c" * 40, dirty=False, lock="1" * 64, code="2" * 64, version="0.1.0")


@pytest.fixture
def no_registry(tmp_path):
    """A docker that knows no image and reaches no registry."""
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    return str(program)


def arguments(command):
    return dict(part.split("=", 1) for part, before in zip(command[1:], command, strict=False) if before == "--build-arg")


def test_the_base_is_pinned_by_digest(root):
    assert re.search(r"@sha256:[0-9a-f]{64}$", base.pinned((root / "infra/images/Containerfile").read_text()))
    with pytest.raises(bootstrap.StopError, match="digest"):
        base.pinned("ARG BASE=python:3.11\n")


def test_every_argument_of_the_containerfile_is_given(root, facts):
    declared = set(re.findall(r"^ARG (\w+)", (root / "infra/images/Containerfile").read_text(), re.M))
    command = build.build_command("docker", facts, root, base.Base("b", "b", complete=True))
    assert declared == set(arguments(command))


def test_a_complete_base_is_built_on_without_any_network(root, facts):
    for complete, network in ((True, "none"), (False, "host")):
        command = build.build_command("docker", facts, root, base.Base("b", "b", complete=complete))
        assert command[command.index("--network") + 1] == network


def test_nothing_of_the_machines_index_enters_a_build(root, facts, monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "https://user:password@mirror.example/simple")
    assert "mirror.example" not in " ".join(build.build_command("docker", facts, root, base.Base("b", "b", complete=True)))
    told = {"PIP_FIND_LINKS", "PIP_INDEX_URL", "index-url", "find-links", "http"}
    spoken = "\n".join(line for line in build.CONTAINERFILE.read_text().splitlines() if not line.startswith("#"))
    assert not {word for word in told if word in spoken}


def test_the_container_runs_as_a_numeric_user(root):
    users = re.findall(r"^USER (.+)$", (root / "infra/images/Containerfile").read_text(), re.M)
    assert users == ["10001:0"]


def test_what_an_image_must_not_hold_is_refused():
    good = inside.NEEDED
    assert not [complaint for target, names in good.items() for complaint in inside.complaints(target, names)]
    assert inside.complaints("launcher", [*good["launcher"], "Torch"]) == ["torch is in the launcher image"]
    assert inside.complaints("train", [*good["train"], "kfp_server_api"]) == ["kfp-server-api is in the train image"]
    assert inside.complaints("train", good["train"][1:]) == ["torch is not in the train image"]
    assert inside.complaints("mlflow", ["mlflow", "boto3"])[0] == "flask-wtf is not in the mlflow image"


@pytest.mark.parametrize("target", [*build.NAMES])
def test_the_lock_of_an_image_holds_what_it_needs_and_nothing_that_is_forbidden(root, target):
    locks = [f"images/{target}.txt", *(["torch.txt"] if target == "train" else [])]
    names = [inside.name_of(entry) for lock in locks for entry in inside.entries((root / "requirements" / lock).read_text())]
    assert not inside.complaints(target, names)


def test_an_image_has_the_versions_of_the_environment(root):
    """One set of versions for the machine of a developer and both images: a key does not see them. What lists an image's content is
    thrown away while it is built."""
    read = {path: inside.entries(path.read_text()) for path in (root / "requirements").rglob("*.txt") if path.stem != "sbom"}
    versions = {path: {inside.name_of(e): e.split()[0] for e in found} for path, found in read.items()}
    master = {name: pin for path, pins in versions.items() if path.parent.name != "images" for name, pin in pins.items()}
    others = {path.stem: {n: p for n, p in pins.items() if master.get(n) != p} for path, pins in versions.items()}
    assert not {name: wrong for name, wrong in others.items() if wrong}


def test_every_package_of_an_image_has_its_hashes(root):
    for path in (root / "requirements/images").glob("*.txt"):
        assert not [entry for entry in inside.entries(path.read_text()) if "--hash=sha256:" not in entry], path.name


def test_a_lock_is_split_into_wheels_and_sources():
    lock = "# title\na==1 \\\n    --hash=sha256:aa\nb==2 ; python_version > '3' \\\n    --hash=sha256:bb\n"
    wheels, sources = build.split(lock, "b==2 \\\n    --hash=sha256:bb\n")
    assert [inside.name_of(entry) for entry in wheels] == ["a"]
    assert [inside.name_of(entry) for entry in sources] == ["b"]
    assert all("--hash" in entry for entry in (*wheels, *sources))


def test_a_build_of_torch_for_this_machine_keeps_the_hashes_of_the_lock():
    entry = "torch==2.13.0 --hash=sha256:aa --hash=sha256:bb"
    assert inside.as_it_came(entry, ["torch-2.13.0+cpu-cp311-cp311-x.whl"]) == entry.replace("2.13.0", "2.13.0+cpu")
    assert inside.as_it_came(entry, ["torch-2.13.0-cp311-cp311-x.whl", "torchmetrics-2.13.0+cpu-x.whl"]) == entry


def test_debian_packages_are_in_the_sbom():
    made = inside.with_debian({"components": [{"name": "kfp"}]}, "libc6 2.36-9+deb12u14 amd64\ngit 1:2.39.5-0 amd64\n")
    assert [entry["name"] for entry in made["components"]] == ["kfp", "libc6", "git"]
    assert made["components"][2]["purl"] == "pkg:deb/debian/git@1%3A2.39.5-0?arch=amd64"


def test_a_launcher_past_its_limit_is_told():
    assert not build.oversize("launcher", 899_000_000)
    assert "limit is 900 MB" in build.oversize("launcher", 901_000_000)
    assert not build.oversize("train", 20_000_000_000)


def test_an_unreachable_registry_leads_to_debootstrap_only_where_nobody_named_a_base(no_registry, monkeypatch, tmp_path, capsys):
    made = base.Base("made", "made", complete=True)
    monkeypatch.setattr(base, "make", lambda *_: made)
    assert base.get(no_registry, "launcher", "auto", f"ARG BASE={PINNED}\n", tmp_path) is made
    assert "no registry gives" in capsys.readouterr().err
    with pytest.raises(bootstrap.StopError, match="no registry gives"):
        base.get(no_registry, "launcher", "127.0.0.1:1/none", f"ARG BASE={PINNED}\n", tmp_path)


def test_no_daemon_is_a_letter(no_registry, capsys):
    assert build.main(["launcher"], {"DOCKER": no_registry}) == 1
    assert "has no daemon" in capsys.readouterr().err
    assert build.main(["launcher"], {"DOCKER": "no-such-program"}) == 1
    assert "hint: install docker" in capsys.readouterr().err


def test_the_code_of_an_image_is_known_by_the_bytes_that_keys_depend_on(root, tmp_path):
    for name in build.kept(root):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tmp_path / name)
    assert code.everything(tmp_path) == code.everything(root)
    assert {kind: code.digest(kind, tmp_path) for kind in code.CODE} == {kind: code.digest(kind, root) for kind in code.CODE}
    (tmp_path / "model" / "batch.py").write_text("changed = True\n")
    assert code.everything(tmp_path) != code.everything(root)


def test_code_in_an_image_knows_its_commit(tmp_path):
    (tmp_path / code.REVISION).write_text(json.dumps({"commit": "c" * 40, "dirty": False}))
    assert code.revision(tmp_path) == {"commit": "c" * 40, "dirty": False}


def test_tidying_touches_images_of_its_own_target_alone():
    """Others are built beside it, and a person's machine has images of other projects."""
    command = build.tidy_command("docker", "train")
    filters = [word for word, before in zip(command[1:], command, strict=False) if before == "--filter"]
    assert filters == ["dangling=true", "label=io.biovlm.target=train"]
    assert 'io.biovlm.target="${TARGET}"' in build.CONTAINERFILE.read_text()
