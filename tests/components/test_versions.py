"""What readers see of the model registry: a real store and a real tracking store, a chain of steps that write one file each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.platform import champion, lineage, reference, versions
from components.platform.reference import Reference
from components.platform.step import run_step
from components.platform.store import Store
from components.platform.tracking import Tracking
from model import manifest
from model.errors import MissingInputError, RefusedError, UsageError


def make_set(store):
    folder = store / "data" / "mini-1"
    with manifest.commit(folder, "data", facts={"name": "mini"}) as aside:
        (aside / "a.txt").write_text("a record")
    facts = {"uri": "data/mini-1", "digest": manifest.read(folder).digest, "revision": "abc", "dvc_path": "data/mini", "md5": "m"}
    return {**facts, "licence": "CC0-1.0"}


def run_chain(store, tmp_path):
    """data -> align -> evaluate -> register; the references by name."""
    found: dict[str, Reference] = {}
    entry = make_set(store)

    def step(kind, name, artifact, **facts):
        def produce(work):
            with manifest.commit(work.final, artifact, work.parents, {"figures": {}, **facts}) as folder:
                (folder / "content").write_text(name)
                if name == "register":
                    tree = lineage.tree(Store(store), f"steps/evaluate/{Path(found['evaluate'].uri).name}")
                    top = lineage.Node(kind="version", name="mini 1", children=(tree,))
                    (folder / "lineage.json").write_text(top.model_dump_json())

        given = {role: str(tmp_path / f"{role}.json") for role in found}
        run_step(kind, name, {}, given, str(tmp_path / f"{name}.json"), produce)
        found[name] = reference.read(tmp_path / f"{name}.json", store)

    step("data", "data", "data", sets={"mini": entry}, bases={})
    step("train", "align", "checkpoint")
    step("evaluate", "evaluate", "report")
    # The receipt of a real run names its inputs report and checkpoint.
    found["report"], found["checkpoint"] = found["evaluate"], found["align"]
    for role in ("report", "checkpoint"):
        found[role].write(tmp_path / f"{role}.json", store)
    step("register", "register", "receipt")
    return found


@pytest.fixture
def version(settings, tmp_path):
    """A registered champion, and what it was made from."""
    found = run_chain(settings.store, tmp_path)
    export = settings.store / "exports" / found["align"].digest
    with manifest.commit(export, "export", {"checkpoint": found["align"].digest}) as folder:
        (folder / "weights").write_text("w")
    tags = {
        champion.CHECKPOINT_DIGEST: found["align"].digest,
        champion.RECEIPT_KEY: Path(found["register"].uri).name,
        "biovlm.export": export.relative_to(settings.store).as_posix(),
    }
    client = Tracking(settings).client
    client.create_registered_model("mini")
    client.create_model_version("mini", source=str(export), tags=tags)
    client.set_registered_model_alias("mini", "champion", "1")
    return versions.find(settings, "models:/mini@champion")


def test_a_version_is_found_shown_and_proved_and_a_changed_byte_is_refused(settings, version):
    """One test, because opening a tracking store takes seconds."""
    assert (version.name, version.version) == ("mini", "1")
    assert versions.find(settings, "models:/mini/1").tags == version.tags
    (known,) = versions.history(settings, "mini")
    assert known.aliases == ("champion",)
    assert versions.models(settings) == ["mini"]
    assert versions.history(settings, "nothing") == []
    assert "set mini" in lineage.render(versions.tree(settings, version))

    whole = versions.verify(settings, version)
    assert [line.rsplit(" ", 1)[0] for line in whole].count("data set or base model") == 1
    assert {line.split()[0] for line in whole} == {"receipt", "export", "report", "checkpoint", "data"}

    for victim in (settings.store / "data" / "mini-1" / "a.txt", version.export(settings) / "weights"):
        before = victim.read_text()
        victim.write_text("x" * len(before))
        with pytest.raises(RefusedError, match="SHA-256"):
            versions.verify(settings, version)
        victim.write_text(before)
    assert versions.verify(settings, version) == whole

    with pytest.raises(MissingInputError, match="did you mean `mini`"):
        versions.find(settings, "models:/minni@champion")
    with pytest.raises(MissingInputError, match="does not exist"):
        versions.find(settings, "models:/mini/7")
    shutil.rmtree(version.receipt(settings))
    with pytest.raises(MissingInputError, match="run the recipe again"):
        versions.tree(settings, version)


@pytest.mark.parametrize(
    "address", ["mini", "models:/mini", "models:/mini@", "models:/mini/x", "models:/../x/1", "models:/a b@c"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="not the address"):
        versions.parse(address)


def test_a_version_that_biovlm_did_not_register_is_a_letter(settings):
    foreign = versions.Version(name="theirs", version="1")
    with pytest.raises(MissingInputError, match="biovlm did not register it"):
        foreign.export(settings)
