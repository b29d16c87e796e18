"""Make a version of a model again, from what its lineage names, and compare.

1. `gather` reads the records behind the version: recipe, revisions of data sets and base models, digests of the code, libraries.
2. `rebuild` lays all of it into a folder of its own: the data registry as it stood, verified copies of data and base models, and the code
   of that time where this one is another. What is missing is named, all of it, before anything runs.
3. `run` starts `biovlm run` there, in a process of its own with an empty store: nothing that exists can be reused. It is asked to end
   when this process is gone.
4. `compare` looks at each artifact: to the bit, else how far apart.

On the same kind of machine (libraries, processor, threads, workers) all must be equal to the bit; elsewhere the key figures must agree
within the tolerance.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.registry import Registry
from components.data.registry_git import Git
from components.data.registry_url import open_registry
from components.platform import ancestry, champion, code, likeness, origin, versions
from components.platform.reference import key_figures
from components.platform.settings import Settings
from components.platform.step import versions as libraries_here
from components.platform.store import StepRecord, Store, open_store
from model import manifest
from model.config import STAGE_NAMES
from model.errors import BiovlmError, MissingInputError, RefusedError, kind_of
from pipelines.children import bound

COMPARED = ("data", *STAGE_NAMES, "evaluate")
"""Steps whose artifacts are compared."""
CODE_KINDS = ("data", "train", "evaluate")
"""Kinds of steps whose code must be that of the version."""
TOLERANCE = 0.02
"""How far apart a key figure (a share in 0..1) may be on another kind of machine."""
NOT_PASSED_ON = ("BIOVLM_", "MLFLOW_", "KF_PIPELINES_")
"""Variables that lead to a store, a registry or a cluster; the new run has its own."""
MACHINE = ("system", "processor", "gpus")
"""What of a machine bits depend on, beside libraries, threads and workers."""
UNKNOWN = "unknown"
GIT_SECONDS = 300
ASK_CODE = "import sys; from components.platform import code; print(*(code.digest(kind) for kind in sys.argv[1:]))"


@dataclass(frozen=True)
class Original:
    """What a version was made of."""

    address: str
    version: versions.Version
    records: Mapping[str, StepRecord]
    data: Mapping[str, Any]
    """Facts of the data artifact: `sets` and `bases` with digest and revision."""

    @property
    def artifacts(self) -> dict[str, tuple[str, str]]:
        """Step -> place in the store and digest of what it made."""
        top, evaluated = self.records["register"].inputs, {"evaluate": "report", "task": "checkpoint", "data": "data"}
        found = {step: (top[role].uri, top[role].digest) for step, role in evaluated.items()}
        for stage, after in itertools.pairwise(STAGE_NAMES):
            parent = self.records[after].inputs["parent"]
            found[stage] = (parent.uri, parent.digest)
        return found


@dataclass(frozen=True)
class Rebuilt:
    """Everything that a run needs to make a version again."""

    folder: Path
    code: Path
    """Root of the code that runs."""

    @property
    def home(self) -> Path:
        """The home of the new run."""
        return self.folder / "home"

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.folder / "recipe.yaml"

    @property
    def registry(self) -> Path:
        """The data registry as it stood."""
        return self.folder / "registry"


@dataclass(frozen=True)
class Compared:
    """One artifact, then and now."""

    step: str
    was: str
    made: str
    files: tuple[str, ...] = ()
    """That are not the same."""
    apart: float | None = None
    """Of a checkpoint: the largest difference of a weight, as a share of the largest of its tensor."""
    figures: Mapping[str, float] | None = None
    """Of a report: key figure -> how far apart."""

    @property
    def equal(self) -> bool:
        """To the bit."""
        return self.was == self.made


# ------------------------------------------------------------------------------------------------------------ what it was


def gather(settings: Settings, address: str) -> Original:
    """What the version at `address` was made of.

    Raises:
        MissingInputError: Its records are gone. RefusedError: They contradict each other. Else as `versions.find`.
    """
    version, store = versions.find(settings, address), open_store(settings)
    found = ancestry.records(store, version.tag(champion.RECEIPT_KEY))
    missing = [step for step in ancestry.MADE_BY if step not in found]
    if missing:
        raise MissingInputError(
            f"{address} cannot be made again: the store has no record of {', '.join(missing)}",
            "bring the store of its run back; without these records nobody knows what it was made of",
        )
    if said := ancestry.contradictions(found):
        raise RefusedError(
            f"the records behind {address} contradict each other: {'; '.join(said)}",
            "one of them was changed, or they are of several runs: `biovlm lineage verify` says more",
        )
    facts = store.manifest_of(found["register"].inputs["data"].uri).facts
    return Original(f"models:/{version.name}/{version.version}", version, found, facts)


# ------------------------------------------------------------------------------------------------------- laying it out


def rebuild(original: Original, settings: Settings, folder: Path) -> Rebuilt:
    """Lay everything that the version was made of into `folder`.

    Raises:
        MissingInputError: Inputs are missing; each is named. CannotWriteError: The disk does not take them.
    """
    home = folder / "home"
    try:
        home.mkdir(parents=True)
        recipe = ancestry.recipe(original.records, original.data["sets"]) | _resources(original, settings)
        (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML, too
    except OSError as error:
        raise manifest.cannot_write(folder, error) from error
    missing = _lay_data(original, settings, folder, home / "store")
    root = _lay_code(original, folder / "code")
    if root is None:
        commits = ", ".join(sorted({str(r.revision.get("commit", "unknown"))[:12] for r in original.records.values()}))
        missing.append(f"the code of its steps: it is not the code here, and not that of commit {commits} as it stands in Git")
    if missing or root is None:
        raise MissingInputError(
            f"{original.address} cannot be made again, {len(missing)} inputs are missing: {'; '.join(missing)}",
            "bring them back, and run the same command again",
        )
    return Rebuilt(folder, root)


def _resources(original: Original, settings: Settings) -> dict[str, Any]:
    """Resources of the run that made the task stage, if its folder is still here: threads can change bits."""
    path = settings.home / "runs" / original.records["task"].run_id / "recipe.json"
    try:
        return {"resources": json.loads(path.read_text(encoding="utf-8"))["resources"]}
    except (OSError, ValueError, KeyError):
        return {}


def _lay_data(original: Original, settings: Settings, folder: Path, store: Path) -> list[str]:
    """Copies of data sets and base models, verified, and a registry whose head has these base models; what is missing."""
    registry, missing = open_registry(settings), []
    for group, what in (("sets", "data set"), ("bases", "base model")):
        for name, facts in original.data[group].items():
            try:
                found = registry.materialise([name], facts["revision"], store)[name]
                if found.digest != facts["digest"]:
                    raise RefusedError(f"it is {found.digest[:12]} there, expected {facts['digest'][:12]}", "")
            except BiovlmError as error:
                if not _copied(facts, settings, store):
                    missing.append(f"{what} {name} at {facts['revision'][:12]}: {error.message}")
    if missing:
        return missing
    bases = {name: str(facts["digest"]) for name, facts in original.data["bases"].items()}
    commits = [str(facts["revision"]) for facts in original.data["bases"].values()] or [registry.resolve("HEAD")]
    head = next((c for c in commits if _has(registry, c, bases)), None)
    if head is None:
        return [f"a commit of the data registry that has the base models {', '.join(bases)} side by side"]
    Git(folder / "registry").copy_of(settings.data_url or str(registry.root), head)
    return []


def _has(registry: Registry, commit: str, bases: Mapping[str, str]) -> bool:
    """Whether a commit has all these base models; one from before the last of them was made has not."""
    try:
        return all(registry.version(name, commit).digest == digest for name, digest in bases.items())
    except MissingInputError:
        return False


def _copied(facts: Mapping[str, Any], settings: Settings, store: Path) -> bool:
    """Whether the store of the version still had these bytes, verified; the registry may have lost them, and inputs are no results."""
    try:
        source = open_store(settings).fetch(facts["uri"], facts["digest"])
        shutil.copytree(source, store / facts["uri"], dirs_exist_ok=True)
        manifest.verify(store / facts["uri"], facts["digest"])
    except (BiovlmError, OSError):
        return False
    return True


def _lay_code(original: Original, folder: Path) -> Path | None:
    """Root of code whose steps have the digests of the records: this one, else that of a commit of theirs; None if there is none."""
    wanted = [_code_of(original.records, kind) for kind in CODE_KINDS]
    if wanted == [code.digest(kind) for kind in CODE_KINDS]:
        return code.ROOT
    commits = dict.fromkeys(str(record.revision.get("commit", "unknown")) for record in original.records.values())
    for commit in commits:
        root = folder / commit
        if _checked_out(root, commit) and _digests_at(root) == wanted:
            return root
    return None


def _code_of(records: Mapping[str, StepRecord], kind: str) -> str:
    return next(record.code for record in records.values() if record.kind == kind)


def _checked_out(root: Path, commit: str) -> bool:
    """Whether the commit of this code's repository now lies at `root`; the repository itself is not touched."""
    quiet: dict[str, Any] = {"capture_output": True, "timeout": GIT_SECONDS, "check": True}
    try:
        subprocess.run(("git", "clone", "--quiet", "--shared", "--no-checkout", "--", str(code.ROOT), str(root)), **quiet)
        subprocess.run(("git", "-C", str(root), "checkout", "--quiet", "--detach", commit), **quiet)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _digests_at(root: Path) -> list[str]:
    """What that code calls its own steps: the table of what belongs to a step may have been another."""
    command = (sys.executable, "-c", ASK_CODE, *CODE_KINDS)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=GIT_SECONDS, check=False)
    return done.stdout.split() if done.returncode == 0 else []


# --------------------------------------------------------------------------------------------------- running, comparing


def run(rebuilt: Rebuilt) -> dict[str, Any]:
    """Run the recipe where everything was laid; what `biovlm run --json` says. The run's own error, if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
    own = {"BIOVLM_HOME": str(rebuilt.home), "BIOVLM_DATA": rebuilt.registry.as_uri(), "PYTHONPATH": str(rebuilt.code)}
    command = (*bound(signal.SIGTERM), sys.executable, "-m", "pipelines.cli", "run", "--recipe", str(rebuilt.recipe), "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=rebuilt.code, env=kept | own, check=False)
    with contextlib.suppress(ValueError):  # no result was printed
        found = dict(json.loads(done.stdout))
        if {step["name"] for step in found["steps"] if step["folder"]} >= set(COMPARED):
            return found  # how it would be promoted here is no part of the version
    raise kind_of(done.returncode)(
        f"the run that was to make it again ended with {done.returncode}",
        f"its letter stands above; {rebuilt.folder} is kept",
    )


def compare(original: Original, settings: Settings, rebuilt: Rebuilt, result: Mapping[str, Any]) -> list[Compared]:
    """Each artifact of the version beside the new one. Errors as `Store.fetch` where bytes have to be compared."""
    there, here = open_store(settings), Store(rebuilt.home / "store")
    folders = {step["name"]: Path(step["folder"]) for step in result["steps"] if step["folder"]}
    return [_compared(step, there, *original.artifacts[step], here, folders[step]) for step in COMPARED]


def _compared(step: str, there: Store, uri: str, digest: str, here: Store, folder: Path) -> Compared:
    made = here.manifest_of(here.uri(folder))
    if made.digest == digest:
        return Compared(step, digest, made.digest)
    was = there.manifest_of(uri)
    files = tuple(likeness.differing_files(was, made))
    apart = likeness.weights_apart(there.fetch(uri, digest), folder) if made.kind == "checkpoint" else None
    return Compared(step, digest, made.digest, files, apart, _figures(was, made) if made.kind == "report" else None)


def _figures(was: manifest.Manifest, made: manifest.Manifest) -> dict[str, float]:
    """Key figures of two reports -> how far apart; infinitely, where one lacks it."""
    old, new = (key_figures(one.facts) for one in (was, made))
    return {
        name: abs(float(old[name]) - float(new[name])) if name in old and name in new else float("inf")
        for name in sorted({*old, *new})
        if name != "items"
    }


def differences_of_machine(original: Original) -> list[str]:
    """Why bits may differ: what is of another kind here than where the task stage was trained."""
    record = original.records["task"]
    machine, gone = origin.machine(), dict.fromkeys(MACHINE, UNKNOWN)
    pairs = {
        **{name: (record.versions.get(name, "none"), here) for name, here in libraries_here().items()},
        **{name: ((record.origin.machine if record.origin else gone).get(name, UNKNOWN), machine[name]) for name in MACHINE},
    }
    return [f"{name} {then or 'none'} -> {here or 'none'}" for name, (then, here) in pairs.items() if then != here]


def judge(original: Original, found: list[Compared], other_machine: list[str], tolerance: float) -> str:
    """What was found, in a sentence.

    Args:
        original: What was to be made again.
        found: The artifacts.
        other_machine: How this machine differs.
        tolerance: For key figures.

    Raises:
        RefusedError: It is not what its lineage says.
    """
    differ = [one.step for one in found if not one.equal]
    if not differ:
        return f"{original.address} was made again, equal to the bit: {len(found)} artifacts"
    apart = {name: value for one in found for name, value in (one.figures or {}).items()}
    beyond = {name: value for name, value in apart.items() if value > tolerance}
    different = ", ".join(differ)
    hint = "its lineage leaves out something that it depends on, or a byte was changed: `biovlm lineage verify` says more"
    if beyond:
        said = ", ".join(f"{name} by {value:.3f}" for name, value in beyond.items())
        raise RefusedError(
            f"{original.address} was not reproduced: {said} apart, {tolerance:g} is let pass; {different} differ", hint
        )
    if not other_machine:
        raise RefusedError(f"{original.address} was not reproduced: {different} differ on the same kind of machine", hint)
    machine = ", ".join(other_machine)
    return (
        f"{original.address} was made again within {tolerance:g} in every key figure; bits differ in {different}, on another kind "
        f"of machine: {machine}"
    )


def discard(folder: Path) -> None:
    """Remove what was laid out."""
    shutil.rmtree(folder, ignore_errors=True)
