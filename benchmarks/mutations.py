"""Each safety control removed, one at a time, in a copy of the tree: the test that must turn red, and whether it did.

    python -m benchmarks.mutations [WORD ...]     only those whose name holds a word

1. `TABLE`, put together from the `_controls_*` files, says for each control: a small change of the text that removes it, and the
   test that is there for it.
2. In a copy of the tree, each of those tests is run once as the code is (it must pass) and once without the control (it must fail),
   in processes forked from this one, which has imported the libraries and nothing of the project.
3. A control whose test stays green has survived: the test proves nothing. Survivors end the program with 1.

tests/house checks that every change still fits the code and every test exists, so that the table does not rot unseen.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import (
    _controls_cluster,
    _controls_gate,
    _controls_impact,
    _controls_kfp,
    _controls_ledger,
    _controls_lineage,
    _controls_retraining,
    _controls_speed,
    _controls_store,
)
from benchmarks._controls_crash import CONTROLS, Mutation

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("model", "components", "pipelines", "tests", "benchmarks", "infra")
FILES = ("pyproject.toml", "README.md", "dvc.yaml", "dvc.lock")
DEADLINE_SECONDS = 120
LIBRARIES = ("transformers", "peft", "safetensors.torch", "boto3", "moto.server", "pydantic", "numpy")


TABLE: tuple[Mutation, ...] = (
    *CONTROLS,
    *_controls_cluster.CONTROLS,
    *_controls_gate.CONTROLS,
    *_controls_impact.CONTROLS,
    *_controls_kfp.CONTROLS,
    *_controls_ledger.CONTROLS,
    *_controls_lineage.CONTROLS,
    *_controls_retraining.CONTROLS,
    *_controls_speed.CONTROLS,
    *_controls_store.CONTROLS,
)


def measure() -> dict[str, float]:
    """How many controls there are, and how many of them survived their removal."""
    found = run(TABLE)
    return {"controls": float(len(found)), "survivors": float(sum(state != "red" for state in found.values()))}


def run(mutations: Sequence[Mutation]) -> dict[str, str]:
    """Control -> `red` (its test failed without it), `survived`, or `broken` (the test fails, or does not run, as it is)."""
    found = {}
    os.environ.setdefault("BIOVLM_SCHEMAS", str(ROOT.parent / "shared" / "schemas"))  # the copy has another place
    _warm()
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        copy = Path(name)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in FILES:
            shutil.copy(ROOT / file, copy / file)
        for mutation in mutations:
            began = time.monotonic()
            found[mutation.control] = _try(copy, mutation)
            seconds = time.monotonic() - began
            print(f"{found[mutation.control]:<9} {mutation.control:<60} {mutation.test} ({seconds:.0f} s)", flush=True)
    return found


def _try(copy: Path, mutation: Mutation) -> str:
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.before) != 1 or _test(copy, mutation.test) != 0:
        return "broken"
    path.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
    try:
        return "red" if _test(copy, mutation.test) == 1 else "survived"
    finally:
        path.write_text(text, encoding="utf-8")


def _test(copy: Path, test: str) -> int:
    """pytest's exit status for one test: 0 passed, 1 failed; a test that does not end has failed."""
    process = os.fork()
    if process == 0:
        os.setsid()
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", test])))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 1


def _warm() -> None:
    """Import what the tests need. torch loads half of itself at the first step of an optimizer."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True  # else a file that was changed twice within a second could be taken for its former self
    for name in LIBRARIES:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    torch.optim.AdamW([weight]).step()


def main(words: Sequence[str]) -> int:
    """Run all, or those whose control holds one of the words."""
    chosen = [mutation for mutation in TABLE if not words or any(word in mutation.control for word in words)]
    found = run(chosen)
    survivors = [control for control, state in found.items() if state != "red"]
    print(f"{len(found)} controls, {len(survivors)} without a test that turned red")
    return 1 if survivors or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
