"""Rules for rights: who may do what through the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterator

from infra.policy.documents import Object, at
from infra.policy.rule import Fault, Rule

GROUPS_OF_ALL = {"system:authenticated", "system:unauthenticated", "system:masters", "system:serviceaccounts"}


def no_wildcard(document: Object) -> Iterator[Fault]:
    """A right names its groups, resources and verbs, and is none that leads to all others."""
    if document["kind"] not in ("Role", "ClusterRole"):
        return
    for number, rule in enumerate(document.get("rules") or []):
        place, resources, verbs = f"rules[{number}]", set(rule.get("resources") or []), set(rule.get("verbs") or [])
        for name in ("apiGroups", "resources", "verbs", "resourceNames", "nonResourceURLs"):
            if any("*" in str(value) for value in rule.get(name) or []):
                yield f"{place}.{name}", "holds a wildcard"
        if {"escalate", "bind", "impersonate"} & verbs:
            yield f"{place}.verbs", "lets an account take other rights"
        if {"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "serviceaccounts/token", "nodes/proxy"} & resources:
            yield f"{place}.resources", "lets an account into other pods"
        if "secrets" in resources and (verbs - {"get"} or not rule.get("resourceNames")):
            yield f"{place}.resources", "secrets other than one by name"


def no_cluster_role(document: Object) -> Iterator[Fault]:
    """Rights end at the namespace."""
    if document["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        yield "kind", f"is {document['kind']}"


def known_subjects(document: Object) -> Iterator[Fault]:
    """Rights go to accounts by name, never to everyone or to `default`."""
    if document["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
        return
    if at(document, "roleRef.name") in ("cluster-admin", "admin", "edit"):
        yield "roleRef.name", f"is {at(document, 'roleRef.name')}"
    for number, subject in enumerate(document.get("subjects") or []):
        name = str(subject.get("name"))
        if name in GROUPS_OF_ALL or name.startswith("system:serviceaccounts:") or "*" in name:
            yield f"subjects[{number}].name", f"{name} is everyone"
        if subject.get("kind") == "ServiceAccount" and name == "default":
            yield f"subjects[{number}].name", "is `default`"


def token_unmounted(document: Object) -> Iterator[Fault]:
    """An account does not push its token into pods that say nothing."""
    if document["kind"] == "ServiceAccount" and document.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken", "is not false"


RULES = (
    Rule(
        "no-wildcard",
        "object",
        "an account with more rights than it uses lends them to whoever takes over its pod",
        "name group, resource and verb; a secret by resourceNames with `get`",
        no_wildcard,
    ),
    Rule(
        "no-cluster-role",
        "object",
        "what works in one namespace needs no right in others",
        "make it a Role; what has no namespace gets a line in infra/policy/permissions.py",
        no_cluster_role,
    ),
    Rule("known-subjects", "object", "a right given to everyone is no right", "bind one ServiceAccount by name", known_subjects),
    Rule(
        "token-unmounted",
        "object",
        "a pod that says nothing would get the account's token",
        "set automountServiceAccountToken: false",
        token_unmounted,
    ),
)
