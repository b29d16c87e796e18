"""Every object of both overlays passes the schema of its kind.

Core kinds are checked by the package kubernetes-validate (strict: an unknown field fails) against the oldest supported Kubernetes;
KubeRay's and Kueue's against their published resource definitions, closed in the same way. Kinds of the Prometheus operator have no
schema here: `test_monitoring.py` looks at them field by field.

Not proven without a server: CEL rules of the definitions beyond those written out below, admission webhooks, and what controllers do.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import jsonschema
import pytest

from tests.manifests import GONE, OVERLAYS, ROOT, changed, find, parsed, rendered

KUBERNETES = "1.32"
SCHEMAS = Path(os.environ.get("BIOVLM_SCHEMAS") or ROOT.parent / "shared" / "schemas")
WITHOUT_SCHEMA = {"monitoring.coreos.com/v1"}
OF_DEFINITIONS = {"kueue.x-k8s.io/v1beta2": "kueue", "ray.io/v1": "kuberay"}


def closed(schema):
    """The schema with every object of known fields closed to others, as a server prunes or refuses them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: closed(value) for key, value in schema.items()}
    if done.get("type") == "object" and "properties" in done and not done.get("x-kubernetes-preserve-unknown-fields"):
        done.setdefault("additionalProperties", False)
    return done


@functools.cache
def definitions():
    """(apiVersion, kind) -> validator, from the published definitions; skips where there are none."""
    found = {}
    for room in sorted(set(OF_DEFINITIONS.values())):
        if not (SCHEMAS / room).is_dir():
            pytest.skip(f"no published schemas in {SCHEMAS / room}: set BIOVLM_SCHEMAS")
        for path in sorted(set((SCHEMAS / room).glob("*.yaml")) - set((SCHEMAS / room).glob("*_rayjobs.yaml"))):
            spec = parsed(path.read_text(encoding="utf-8"))[0]["spec"]
            for version in spec["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return found


def complaints(document):
    """What is wrong with one object, by the schema of its kind; most objects are the same in both overlays and are asked about once."""
    return _complaints(json.dumps(document))


@functools.cache
def _complaints(text):
    document = json.loads(text)
    if document["apiVersion"] in OF_DEFINITIONS:
        validator = definitions()[document["apiVersion"], document["kind"]]
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: core kinds are not checked"
    )
    try:
        validate.validate(document, KUBERNETES, strict=True)
    except validate.ValidationError as error:
        return [f"{list(error.path)}: {error.message}"]
    return []


def core(document):
    return document["apiVersion"] not in OF_DEFINITIONS and document["apiVersion"] not in WITHOUT_SCHEMA


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_core_object_passes_the_schema_of_its_kind(overlay):
    wrong = {f"{d['kind']} {d['metadata']['name']}": complaints(d) for d in rendered(overlay) if core(d)}
    assert len(wrong) > 30
    assert {name: said for name, said in wrong.items() if said} == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_of_kuberay_and_kueue_passes_its_definition(overlay):
    kinds = [d for d in rendered(overlay) if d["apiVersion"] in OF_DEFINITIONS]
    assert {d["kind"] for d in kinds} == {
        "RayCluster", "ResourceFlavor", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass", "Topology",
    }  # fmt: skip
    assert {d["metadata"]["name"]: complaints(d) for d in kinds if complaints(d)} == {}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("Deployment mlflow", "spec/replicaz", 1),
        ("Deployment mlflow", "spec/template/spec/containers/0/securityContext/readOnlyRootFileSystem", True),
        ("CronJob biovlm-reaper", "spec/schedule", GONE),
        ("NetworkPolicy closed", "spec/podSelektor", {}),
        ("RayCluster biovlm", "spec/headGroupSpec/template", GONE),
        ("RayCluster biovlm", "spec/authOptions/mode", "tokens"),
        ("RayCluster biovlm", "spec/authOption", {}),
        ("ClusterQueue biovlm-h100", "spec/resourceGroups/0/coveredResources", GONE),
        ("ClusterQueue biovlm-h100", "spec/cohort", "x"),
        ("WorkloadPriorityClass biovlm-low", "value", "high"),
    ],
)
def test_a_wrong_field_is_seen(name, path, value):
    documents = [
        d for d in rendered("gpu") if d["metadata"].get("namespace") != "biovlm-tracking" or d["kind"] != "NetworkPolicy"
    ]
    assert complaints(find(changed(documents, name, path, value), name))


def quantity(value):
    """A Kubernetes quantity as a number; enough for those written here."""
    text, units = str(value), {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}
    return next((float(text.removesuffix(unit)) * size for unit, size in units.items() if text.endswith(unit)), None) or float(
        text
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kueue_checks_beyond_its_schema_holds(overlay):
    """Its CEL rules and webhooks: every flavor of a group has all covered resources, flavors and topologies exist."""
    documents = rendered(overlay)
    names = {
        kind: {d["metadata"]["name"] for d in documents if d["kind"] == kind}
        for kind in ("ResourceFlavor", "ClusterQueue", "Topology")
    }
    for queue in (d for d in documents if d["kind"] == "ClusterQueue"):
        for group in queue["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
                assert flavor["name"] in names["ResourceFlavor"]
                assert all(quantity(resource["nominalQuota"]) >= 0 for resource in flavor["resources"])
    flavors = [d["spec"] for d in documents if d["kind"] == "ResourceFlavor"]
    assert {spec["topologyName"] for spec in flavors if "topologyName" in spec} <= names["Topology"]
    assert {d["spec"]["clusterQueue"] for d in documents if d["kind"] == "LocalQueue"} == names["ClusterQueue"]
