"""All rules over all documents.

1. `RULES` is the whole list; `check` gives each rule what it is about, and takes out what a permission allows.
2. `unused` tells permissions that nothing needed: they would hide a fault to come.
"""

from __future__ import annotations

from collections.abc import Iterator

from infra.policy import network, objects, pods, rights, steps
from infra.policy.documents import Object, where
from infra.policy.documents import pods as lift
from infra.policy.documents import steps as tasks
from infra.policy.permissions import PERMISSIONS
from infra.policy.rule import Finding, Permission, Rule

RULES = (*pods.RULES, *objects.RULES, *rights.RULES, *network.RULES, *steps.RULES)


def check(documents: list[Object], *, release: bool = False) -> list[Finding]:
    """What breaks a rule and has no permission to; with `release` also what only an example may."""
    given = {(permission.rule, permission.place) for permission in PERMISSIONS}
    return [found for found in _all(documents, release) if (found.rule.name, found.place) not in given]


def unused(documents: list[Object]) -> list[Permission]:
    """Permissions that no finding needs."""
    needed = {(found.rule.name, found.place) for found in _all(documents, False)}
    return [permission for permission in PERMISSIONS if (permission.rule, permission.place) not in needed]


def _all(documents: list[Object], release: bool) -> Iterator[Finding]:
    objects_ = [document for document in documents if "kind" in document]
    for rule in RULES:
        if not rule.for_release or release:
            yield from _of(rule, objects_, documents)


def _of(rule: Rule, objects_: list[Object], documents: list[Object]) -> Iterator[Finding]:
    if rule.about == "object":
        yield from (Finding(rule, where(one), *fault) for one in objects_ for fault in rule.check(one))
    elif rule.about == "pod":
        yield from (Finding(rule, where(one), *fault) for one in objects_ for pod in lift(one) for fault in rule.check(pod))
    elif rule.about == "step":
        yield from (
            Finding(rule, f"step {step.pipeline}/{step.name}", *fault) for step in tasks(documents) for fault in rule.check(step)
        )
    else:
        for place, what in rule.check(objects_):
            name, _, field = place.partition(": ")
            yield Finding(rule, name, field, what)
