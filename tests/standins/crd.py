"""Published custom resource definitions as the API server applies them: strict validation, CEL rules, defaults.

1. `crd("kuberay/ray.io_rayjobs.yaml")` reads a definition from the folder of published schemas (BIOVLM_SCHEMAS, by default
   `../shared/schemas` beside the checkout). Tests are skipped, with the reason, where the folder is missing.
2. Its structural schema becomes a JSON Schema in which a field that is not declared is an error, as with `fieldValidation: Strict`.
3. CEL rules are translated by hand, one by one; a rule that is met and not known here is an error, so none is passed over in silence.

What it cannot prove: list-map-key uniqueness, cost limits of CEL and the order of error messages are not reproduced.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
INTEGERS = {"int32": 2**31 - 1, "int64": 2**63 - 1}
NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
LABEL = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$")
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
OWNER = {
    "type": "object",
    "required": ["apiVersion", "kind", "name", "uid"],
    "additionalProperties": False,
    "properties": {
        **{field: {"type": "string", "minLength": 1} for field in ("apiVersion", "kind", "name", "uid")},
        **{field: {"type": "boolean"} for field in ("controller", "blockOwnerDeletion")},
    },
}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        **{
            field: {"type": "string"}
            for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "generateName")
        },
        "generation": {"type": "integer"},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL.pattern}},
        "annotations": TEXTS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": OWNER},
        "managedFields": {"type": "array"},
    },
}


def _has(value, *names):
    return all(name in value for name in names)


MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
CEL = {
    "self == oldSelf": lambda value: (
        True
    ),  # no update of ours touches a field that is immutable; `unchanged` compares the whole spec
    "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']": lambda value: value in MANAGERS,
    "!(has(self.jobStatus) && has(self.jobDeploymentStatus))": lambda value: not _has(value, "jobStatus", "jobDeploymentStatus"),
    "has(self.jobStatus) || has(self.jobDeploymentStatus)": lambda value: (
        _has(value, "jobStatus") or _has(value, "jobDeploymentStatus")
    ),
    "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))": lambda value: (
        not ((_has(value, "onSuccess") or _has(value, "onFailure")) and _has(value, "deletionRules"))
    ),
    "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))": lambda value: (
        _has(value, "onSuccess", "onFailure") or _has(value, "deletionRules")
    ),
    (  # of a ClusterQueue, as are those below
        "!has(self.cohortName) && has(self.resourceGroups) ? self.resourceGroups.all(rg, rg.flavors.all(f, f.resources.all(r, "
        "!has(r.borrowingLimit)))) : true"
    ): lambda value: (
        "cohortName" in value
        or not any("borrowingLimit" in r for g in value.get("resourceGroups", []) for f in g["flavors"] for r in f["resources"])
    ),
    "!has(self.preference) || (self.whenCanBorrow == 'TryNextFlavor' && self.whenCanPreempt == 'TryNextFlavor')": lambda value: (
        "preference" not in value or value.get("whenCanBorrow") == value.get("whenCanPreempt") == "TryNextFlavor"
    ),
    "!(self.reclaimWithinCohort == 'Never' && has(self.borrowWithinCohort) &&  self.borrowWithinCohort.policy != 'Never')": lambda value: (
        not (
            value.get("reclaimWithinCohort") == "Never" and value.get("borrowWithinCohort", {}).get("policy", "Never") != "Never"
        )
    ),
    "self.flavors.all(x, size(x.resources) == size(self.coveredResources))": lambda value: all(
        len(flavor["resources"]) == len(value["coveredResources"]) for flavor in value["flavors"]
    ),
}


class Definition:
    """One version of a custom resource."""

    def __init__(self, raw, version):
        found = next(v for v in raw["spec"]["versions"] if v["name"] == version)
        self.group, self.version, self.names = raw["spec"]["group"], version, raw["spec"]["names"]
        self.schema = found["schema"]["openAPIV3Schema"]
        strict = _strict(self.schema)
        strict["properties"]["metadata"] = METADATA
        strict["required"] = ["apiVersion", "kind", "metadata"]
        self._validator = jsonschema.Draft202012Validator(strict)

    def errors(self, body):
        """What the API server would refuse in `body`, all of it."""
        found = [f"{error.json_path}: {error.message[:300]}" for error in self._validator.iter_errors(body)]
        if body.get("apiVersion") != f"{self.group}/{self.version}" or body.get("kind") != self.names["kind"]:
            found.append(f"{body.get('apiVersion')} {body.get('kind')} is not {self.group}/{self.version} {self.names['kind']}")
        if not NAME.match(str(body.get("metadata", {}).get("name", ""))):
            found.append("metadata.name: not a DNS subdomain")
        return found or list(_cel(self.schema, self.defaulted(body), "$"))

    def defaulted(self, body):
        """`body` with the defaults of the schema."""
        return _default(self.schema, body)


@functools.cache
def crd(path, version="v1"):
    """The definition in the file at `path` below the folder of published schemas."""
    folder = Path(os.environ.get("BIOVLM_SCHEMAS") or ROOT.parent / "shared" / "schemas")
    if not (folder / path).is_file():
        pytest.skip(f"the published schema {path} is not in {folder}; set BIOVLM_SCHEMAS")
    return Definition(yaml.load((folder / path).read_text(), Loader=LOADER), version)  # noqa: TID251 - a safe loader, in C


def _strict(node):
    """The JSON Schema of a structural schema: what is not declared is not allowed."""
    kept = {
        key: node[key]
        for key in ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")
        if key in node
    }
    if node.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    if node.get("nullable"):
        kept["type"] = [kept["type"], "null"]
    if node.get("format") in INTEGERS:
        kept["maximum"] = min(kept.get("maximum", 2**63), INTEGERS[node["format"]])
    if "properties" in node:
        kept["properties"] = {name: _strict(child) for name, child in node["properties"].items()}
        kept["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        kept["additionalProperties"] = _strict(node["additionalProperties"])
    if "items" in node:
        kept["items"] = _strict(node["items"])
    return kept


def _children(node, value):
    if isinstance(value, dict):
        for name, child in value.items():
            inner = node.get("properties", {}).get(name) or node.get("additionalProperties")
            if isinstance(inner, dict):
                yield name, inner, child
    elif isinstance(value, list) and "items" in node:
        yield from ((str(place), node["items"], child) for place, child in enumerate(value))


def _cel(node, value, where):
    for rule in node.get("x-kubernetes-validations", []):
        if not CEL[rule["rule"]](value):
            yield f"{where}: {rule['message']}"
    for name, inner, child in _children(node, value):
        yield from _cel(inner, child, f"{where}.{name}")


def _default(node, value):
    if isinstance(value, list):
        return [_default(node.get("items", {}), child) for child in value]
    if not isinstance(value, dict):
        return value
    filled = {name: child["default"] for name, child in node.get("properties", {}).items() if "default" in child} | value
    inner = {name: child for name, child, _ in _children(node, filled)}
    return {name: _default(inner[name], child) if name in inner else child for name, child in filled.items()}
