"""Who may speak to whom, as a table; every other pair of the pods named here is refused, on every port that one of them listens on.

The policies are evaluated by infra/policy/network.py, whose own rules are tested in the second half. Whether a cluster's network plug-in
acts on them cannot be seen here.
"""

from __future__ import annotations

import itertools

import pytest

from infra.policy.documents import pods
from infra.policy.network import METADATA, Peer, allowed, namespace_labels, of_pod, policies_of
from tests.manifests import OVERLAYS, rendered

PORTS = (53, 443, 1234, 5000, 5432, 6379, 6443, 8080, 8265, 8333, 8887, 8888, 10001)
OUTSIDE = {
    "s3": "10.0.16.9",
    "kubernetes": "10.0.0.1",
    "metadata": METADATA[0],
    "metadata6": METADATA[1],
    "internet": "198.51.100.9",
}
RAY = {
    (a, b): {1234, 5000, 5432, 6379, 6443, 8080, 8265, 8333, 8887, 8888, 10001}
    for a in ("head", "worker")
    for b in ("head", "worker")
}
PAIRS = {
    **RAY,
    ("step", "head"): {8265},
    ("operator", "head"): {8265},
    ("prometheus", "head"): {8080},
    ("prometheus", "worker"): {8080},
    ("step", "kfp"): {8080, 8887, 8888},
    ("reaper", "kfp"): {8888},
    ("step", "mlflow"): {5000},
    ("gateway", "mlflow"): {5000},
    ("prometheus", "mlflow"): {5000},
    ("mlflow", "postgres"): {5432},
    ("grafana", "postgres"): {5432},
    **{(pod, "dns"): {53} for pod in ("step", "reaper", "head", "worker", "stranger", "mlflow")},
    **{(pod, "s3"): {443} for pod in ("step", "head", "worker", "mlflow")},
    **{(pod, "kubernetes"): {443, 6443} for pod in ("step", "reaper")},
}


@pytest.fixture(scope="module")
def gpu():
    return rendered("gpu")


@pytest.fixture(scope="module")
def peers(gpu):
    """Name -> peer; those that manifests describe as they are, the others as their makers label them."""

    def at(namespace, labels, **more):
        return Peer(namespace, labels, {**namespace_labels(namespace, gpu), **more})

    known = {
        "step": at("biovlm", {"workflows.argoproj.io/workflow": "biovlm-abc"}),
        "stranger": at("biovlm", {}),
        "kfp": at("kubeflow", {"app": "ml-pipeline"}),
        "dns": at("kube-system", {"k8s-app": "kube-dns"}),
        "operator": at("kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
        "prometheus": at("monitoring", {"app.kubernetes.io/name": "prometheus"}),
        "grafana": at("monitoring", {"app.kubernetes.io/name": "grafana"}),
        "gateway": at("gateways", {}, **{"biovlm.io/gateway": "true"}),
        "tenant": at("others", {"ray.io/is-ray-node": "yes", "app.kubernetes.io/name": "mlflow"}),
        **{name: Peer(address=address) for name, address in OUTSIDE.items()},
    }
    lifted = {
        "head": ("RayCluster", "ray.io/node-type", "head"),
        "worker": ("RayCluster", "ray.io/node-type", "worker"),
        "reaper": ("CronJob", "app.kubernetes.io/name", "biovlm-reaper"),
        "mlflow": ("Deployment", "app.kubernetes.io/name", "mlflow"),
        "postgres": ("StatefulSet", "app.kubernetes.io/name", "postgres"),
    }
    every = [pod for document in gpu for pod in pods(document)]
    for name, (kind, label, value) in lifted.items():
        (pod,) = [pod for pod in every if pod.owner["kind"] == kind and pod.labels.get(label) == value]
        known[name] = of_pod(pod, gpu)
    return known


def open_ports(peers, sender, receiver, policies):
    return {
        port for port in PORTS if any(allowed(peers[sender], peers[receiver], port, proto, policies) for proto in ("TCP", "UDP"))
    }


def test_the_pairs_of_the_table_may_speak_and_no_others(gpu, peers):
    """A pair counts if one end is ours: policies of other namespaces are their owners'."""
    ours = ("biovlm", "biovlm-tracking")
    pairs = [(a, b) for a, b in itertools.product(peers, peers) if ours_in(peers, a, b, ours) and not peers[a].address]
    found = {(a, b): ports for a, b in pairs if (ports := open_ports(peers, a, b, policies_of(gpu)))}
    assert found == PAIRS


def ours_in(peers, sender, receiver, ours):
    return peers[sender].namespace in ours or peers[receiver].namespace in ours


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_policy_leads_nowhere_once_an_overlay_is_applied(overlay):
    """The base says 192.0.2.x where a site must say something; an overlay that forgets one stays closed, and is seen here."""
    blocks = [str(policy["spec"]) for policy in policies_of(rendered(overlay))]
    assert not [block for block in blocks if "192.0.2." in block]


def policy(**spec):
    return {"kind": "NetworkPolicy", "metadata": {"name": "x", "namespace": "a"}, "spec": spec}


A, B, C = Peer("a", {"app": "one"}), Peer("a", {"app": "two"}), Peer("b", {"app": "two"}, {"team": "blue"})
TO_TWO = {"podSelector": {"matchLabels": {"app": "two"}}}
EGRESS = {"podSelector": {}, "policyTypes": ["Egress"]}


@pytest.mark.parametrize(
    ("policies", "receiver", "port", "passes"),
    [
        ([], B, 80, True),
        ([policy(podSelector={}, policyTypes=["Ingress"])], B, 80, False),
        ([policy(podSelector={}, policyTypes=["Ingress"])], C, 80, True),
        ([policy(**EGRESS)], C, 80, False),
        ([policy(podSelector={"matchLabels": {"app": "two"}}, policyTypes=["Egress"])], C, 80, True),
        ([policy(**EGRESS, egress=[{}])], B, 80, True),
        ([policy(**EGRESS, egress=[{"to": [TO_TWO]}])], B, 80, True),
        ([policy(**EGRESS, egress=[{"to": [TO_TWO]}])], C, 80, False),
        ([policy(**EGRESS, egress=[{"to": [{"namespaceSelector": {}}]}])], C, 80, True),
        ([policy(**EGRESS, egress=[{"to": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]}])], C, 80, False),
        ([policy(**EGRESS, egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}])], C, 80, False),
        ([policy(**EGRESS, egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}])], Peer(address="203.0.113.7"), 80, True),
        ([policy(**EGRESS, egress=[{"ports": [{"port": 80}]}])], B, 80, True),
        ([policy(**EGRESS, egress=[{"ports": [{"port": 80}]}])], B, 81, False),
        ([policy(**EGRESS, egress=[{"ports": [{"port": 80, "endPort": 90}]}])], B, 85, True),
        ([policy(**EGRESS, egress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])], B, 80, False),
        ([policy(**EGRESS), policy(**EGRESS, egress=[{}])], B, 80, True),
        ([policy(podSelector={}, egress=[])], B, 80, False),
    ],
)
def test_policies_act_as_kubernetes_says(policies, receiver, port, passes):
    assert allowed(A, receiver, port, "TCP", policies) is passes


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ({"operator": "In", "values": ["one"]}, True),
        ({"operator": "In", "values": ["two"]}, False),
        ({"operator": "NotIn", "values": ["one"]}, False),
        ({"operator": "Exists"}, True),
        ({"operator": "DoesNotExist"}, False),
    ],
)
def test_expressions_of_a_selector_act_as_kubernetes_says(expression, matches):
    closing = policy(podSelector={"matchExpressions": [{"key": "app", **expression}]}, policyTypes=["Egress"])
    assert allowed(A, B, 80, "TCP", [closing]) is not matches
