"""Who may speak to whom: NetworkPolicies, evaluated as Kubernetes says they act.

1. A pod is isolated in a direction as soon as one policy of that direction selects it; then only what some policy names may pass.
2. A connection needs both: the sender's egress and the receiver's ingress.
3. `allowed` answers for one pair and port. An address outside the cluster has no ingress to ask.

Not covered: what a network plug-in adds or leaves out (a cluster without one that knows policies lets everything pass), and that many
plug-ins apply `ipBlock` to addresses outside the cluster only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from infra.policy.documents import Object, Pod, at, pods, where
from infra.policy.rule import Fault, Rule

METADATA = ("169.254.169.254", "fd00:ec2::254")
"""Where AWS, Google and Azure hand out the credentials of a node; the second is AWS's over IPv6."""
EITHER = ("Ingress", "Egress")


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or an address outside."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def of_pod(pod: Pod, documents: list[Object]) -> Peer:
    """A lifted pod as one end."""
    return Peer(pod.namespace, pod.labels, namespace_labels(pod.namespace, documents))


def namespace_labels(name: str, documents: list[Object]) -> dict[str, str]:
    """Labels of a namespace, with the one that Kubernetes adds."""
    told = [at(d, "metadata.labels") or {} for d in documents if d.get("kind") == "Namespace" and at(d, "metadata.name") == name]
    return {"kubernetes.io/metadata.name": name, **(told[0] if told else {})}


def allowed(sender: Peer, receiver: Peer, port: int, protocol: str, policies: list[Object]) -> bool:
    """Whether a connection passes."""
    return all(
        _passes(one, other, direction, port, protocol, policies)
        for one, other, direction in ((sender, receiver, "Egress"), (receiver, sender, "Ingress"))
        if not one.address
    )


def _passes(one: Peer, other: Peer, direction: str, port: int, protocol: str, policies: list[Object]) -> bool:
    mine = [policy for policy in policies if _selects(policy, one, direction)]
    way, key = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    rules = [rule for policy in mine for rule in at(policy, f"spec.{way}") or []]
    policy_namespace = one.namespace
    return not mine or any(_names(rule, key, other, policy_namespace) and _port(rule, port, protocol) for rule in rules)


def _selects(policy: Object, peer: Peer, direction: str) -> bool:
    types = at(policy, "spec.policyTypes") or (EITHER if at(policy, "spec.egress") is not None else ("Ingress",))
    here = at(policy, "metadata.namespace") == peer.namespace
    return here and direction in types and _matches(at(policy, "spec.podSelector") or {}, peer.labels)


def _names(rule: Object, key: str, other: Peer, policy_namespace: str) -> bool:
    return not rule.get(key) or any(_peer(told, other, policy_namespace) for told in rule[key])


def _peer(told: Object, other: Peer, policy_namespace: str) -> bool:
    if "ipBlock" in told:
        return bool(other.address) and _inside(told["ipBlock"], other.address)
    if other.address:
        return False
    if "namespaceSelector" in told:
        in_namespace = _matches(told["namespaceSelector"] or {}, other.namespace_labels)
    else:
        in_namespace = other.namespace == policy_namespace
    return in_namespace and _matches(told.get("podSelector") or {}, other.labels)


def _inside(block: Object, address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip in ipaddress.ip_network(block["cidr"]) and not any(
        ip in ipaddress.ip_network(hole) for hole in block.get("except") or []
    )


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    wanted = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return wanted and all(_expression(one, labels) for one in selector.get("matchExpressions") or [])


def _expression(one: Object, labels: dict[str, str]) -> bool:
    value, values = labels.get(one["key"]), one.get("values") or []
    answers = {"In": value in values, "NotIn": value not in values, "Exists": value is not None, "DoesNotExist": value is None}
    return answers[one["operator"]]


def _port(rule: Object, port: int, protocol: str) -> bool:
    return not rule.get("ports") or any(
        told.get("protocol", "TCP") == protocol
        and ("port" not in told or (isinstance(told["port"], int) and told["port"] <= port <= told.get("endPort", told["port"])))
        for told in rule["ports"]
    )


def policies_of(documents: list[Object]) -> list[Object]:
    """The network policies among the documents."""
    return [document for document in documents if document.get("kind") == "NetworkPolicy"]


def _ours(documents: list[Object]) -> set[str]:
    return {str(at(document, "metadata.name")) for document in documents if document.get("kind") == "Namespace"}


def closed_by_default(documents: list[Object]) -> Iterator[Fault]:
    """A pod that no file describes may speak to nobody."""
    for name in sorted(_ours(documents)):
        stranger = Peer(name, {}, namespace_labels(name, documents))
        mine = [policy for policy in policies_of(documents) if at(policy, "metadata.namespace") == name]
        for direction in EITHER:
            closing = [p for p in mine if _selects(p, stranger, direction) and not at(p, f"spec.{direction.lower()}")]
            if not closing:
                yield f"Namespace {name}: {direction.lower()}", "no NetworkPolicy closes it for all pods"


def no_metadata(documents: list[Object]) -> Iterator[Fault]:
    """No pod reaches the address where clouds hand out credentials: those described here, any step of a pipeline, any other."""
    policies, ours = policies_of(documents), _ours(documents)
    known = [
        (where(pod.owner), of_pod(pod, documents)) for document in documents for pod in pods(document) if pod.namespace in ours
    ]
    for name in sorted(ours):
        labels = namespace_labels(name, documents)
        step = {"workflows.argoproj.io/workflow": "any"}
        known += [(f"any pod of {name}", Peer(name, {}, labels)), (f"any step in {name}", Peer(name, step, labels))]
    for place, peer in dict(known).items():
        for address in METADATA:
            for port in (80, 443):
                if allowed(peer, Peer(address=address), port, "TCP", policies):
                    yield f"{place}: egress", f"reaches {address}:{port}"


RULES = (
    Rule(
        "closed-by-default",
        "set",
        "what was forgotten must be closed, not open",
        "add a NetworkPolicy with podSelector: {}, both policyTypes and no rule",
        closed_by_default,
    ),
    Rule(
        "no-metadata",
        "set",
        "the metadata service hands out the node's credentials to whoever asks",
        "take 169.254.0.0/16 out of the ipBlock with `except`",
        no_metadata,
    ),
)
