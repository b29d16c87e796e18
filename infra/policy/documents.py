"""What the rules look at: objects, the pods that they make, the steps of a compiled pipeline.

1. `read` takes YAML or JSON files with any number of documents, and lists of objects apart.
2. `pods` lifts every pod template out of the kinds that carry one. KubeRay and Kubernetes add labels of their own to pods, by which
   network policies find them; they are added here too.
3. `steps` joins the two documents of a compiled KFP pipeline: what an executor runs, and what its pod gets on Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
TEMPLATES = {
    "Pod": "",
    "Deployment": "spec.template",
    "ReplicaSet": "spec.template",
    "StatefulSet": "spec.template",
    "DaemonSet": "spec.template",
    "Job": "spec.template",
    "CronJob": "spec.jobTemplate.spec.template",
    "RayJob": "spec.submitterPodTemplate",
}
CLUSTERS = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig"}


class UnreadableError(Exception):
    """A file that holds no Kubernetes objects; the text is the letter."""


@dataclass(frozen=True)
class Pod:
    """A pod as its object would make it."""

    owner: Object
    path: str
    """Where the template stands in its owner."""
    spec: Object
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """Empty for an object that names none."""
        return str(self.owner.get("metadata", {}).get("namespace", ""))

    def containers(self) -> Iterator[tuple[str, Object]]:
        """(path in the owner, container), those that run first included."""
        for kind in ("initContainers", "containers", "ephemeralContainers"):
            for number, container in enumerate(self.spec.get(kind) or []):
                yield f"{self.path}.spec.{kind}[{number}]".lstrip("."), container


@dataclass(frozen=True)
class Step:
    """One task of a compiled pipeline."""

    pipeline: str
    name: str
    task: Object
    container: Object
    pod: Object
    """What kfp-kubernetes says of its pod."""
    passed_on: frozenset[str] = frozenset()
    """What its component hands to its function instead of its own pod (KFP's TaskConfig): RESOURCES and others."""


def read(paths: list[Path]) -> list[Object]:
    """All objects of the files. UnreadableError: not there, not YAML, or a document that is no object."""
    return [document for path in paths for document in _read_one(path)]


def _read_one(path: Path) -> Iterator[Object]:
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    for number, document in enumerate(document for document in documents if document is not None):
        if not isinstance(document, dict) or not ({"kind", "pipelineInfo", "platforms"} & set(document)):
            raise UnreadableError(f"{path}: document {number + 1} is neither a Kubernetes object nor a compiled pipeline")
        yield from document["items"] if str(document.get("kind", "")).endswith("List") else [document]


def at(tree: Any, path: str) -> Any:
    """What stands at `a.b.c`, or None."""
    for part in filter(None, path.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def where(document: Object) -> str:
    """`Kind namespace/name`."""
    metadata = document.get("metadata", {})
    name = metadata.get("name") or f"{metadata.get('generateName', '?')}..."
    return f"{document.get('kind', '?')} {metadata.get('namespace', '')}/{name}".replace(" /", " ")


def ray_specs(document: Object) -> Iterator[tuple[str, Object]]:
    """(path, specification) of the Ray cluster that an object brings."""
    path = CLUSTERS.get(str(document.get("kind")))
    spec = at(document, path) if path else None
    if path and isinstance(spec, dict):
        yield path, spec


def pods(document: Object) -> Iterator[Pod]:
    """The pods that an object makes."""
    path = TEMPLATES.get(str(document.get("kind")))
    template = at(document, path) if path is not None else None
    if path is not None and isinstance(template, dict):
        yield _pod(document, path, template, {})
    for place, spec in ray_specs(document):
        groups = [("headGroupSpec", "head", spec.get("headGroupSpec"))]
        groups += [(f"workerGroupSpecs[{n}]", "worker", group) for n, group in enumerate(spec.get("workerGroupSpecs") or [])]
        for part, node, group in groups:
            added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": node}
            if isinstance(group, dict) and isinstance(group.get("template"), dict):
                yield _pod(document, f"{place}.{part}.template", group["template"], added)


def _pod(owner: Object, path: str, template: Object, added: dict[str, str]) -> Pod:
    metadata = template.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), **added}
    return Pod(owner, path, template.get("spec") or {}, labels, metadata.get("annotations") or {})


def steps(documents: list[Object]) -> Iterator[Step]:
    """The tasks of all compiled pipelines among the documents, sub-pipelines included."""
    pipelines = [document for document in documents if "pipelineInfo" in document]
    platforms = [document["platforms"] for document in documents if "platforms" in document]
    told = {name: pod for p in platforms for name, pod in (at(p, "kubernetes.deploymentSpec.executors") or {}).items()}
    for pipeline in pipelines:
        executors = at(pipeline, "deploymentSpec.executors") or {}
        components = pipeline.get("components") or {}
        dags = [pipeline.get("root"), *components.values()]
        for task in (task for dag in dags for task in (at(dag, "dag.tasks") or {}).values()):
            component = components.get(at(task, "componentRef.name"), {})
            label = component.get("executorLabel")
            if "container" in executors.get(label, {}):
                name = str(at(task, "taskInfo.name"))
                passed = component.get("taskConfigPassthroughs") or []
                passed_on = frozenset(one["field"] for one in passed if not one.get("applyToTask"))
                yield Step(
                    str(at(pipeline, "pipelineInfo.name")),
                    name,
                    task,
                    executors[label]["container"],
                    told.get(label, {}),
                    passed_on,
                )
