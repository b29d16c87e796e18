"""What tests of infra/ share: the overlays as `kubectl kustomize` renders them, each once a session, and ways to change an object."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
OVERLAYS = ("local", "gpu")
GONE = object()
"""As a value of `changed`: the field is taken away."""


def parsed(text: str) -> list[dict]:
    """All documents of a YAML text, read by libyaml where PyYAML has it: ten times as fast, and resource definitions are long."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    documents = []
    while loader.check_data():
        documents.append(loader.get_data())
    return documents


@functools.cache
def _rendered(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(ROOT / "infra" / "kubernetes" / "overlays" / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def _parsed(overlay: str) -> list[dict]:
    return parsed(_rendered(overlay))


def rendered(overlay: str) -> list[dict]:
    """The objects of an overlay, the caller's own; skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: overlays cannot be rendered")
    return copy.deepcopy(_parsed(overlay))


def find(documents: list[dict], name: str) -> dict:
    """The one object called `Kind name`; for a compiled pipeline `pipeline` or `platforms`."""
    kind, _, rest = name.partition(" ")
    if kind in ("pipeline", "platforms"):
        key = {"pipeline": "pipelineInfo"}.get(kind, kind)
        (found,) = [document for document in documents if key in document]
    else:
        (found,) = [d for d in documents if d.get("kind") == kind and d["metadata"]["name"] == rest]
    return found


def changed(documents: list[dict], name: str, path: str, value: object) -> list[dict]:
    """A copy in which one field of one object is another, or gone. The field's parents must be there."""
    documents = copy.deepcopy(documents)
    tree = find(documents, name)
    *parents, last = path.split("/")
    for part in parents:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    if value is GONE:
        del tree[int(last) if isinstance(tree, list) else last]
    elif isinstance(tree, list):
        tree.insert(int(last), value)
    else:
        tree[last] = value
    return documents
