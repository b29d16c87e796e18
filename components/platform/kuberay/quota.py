"""Whether a job could ever be admitted by its queue: pure, over the ClusterQueue as the API server gives it (Kueue v1beta1 and v1beta2).

Kueue leaves a job that can never fit in the queue for ever, and says so only in the Workload's conditions. A pod set (the head, or all
pods of a worker group) must fit into one flavor; a flavor gives its nominal quota, and what it may borrow from its cohort.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from components.platform.kuberay.rules import groups

Object = dict[str, Any]


def never_fits(job: Object, queue: Object) -> str:
    """Why `job` can never be admitted by the ClusterQueue `queue`; empty if it can, or if nobody can say."""
    for name, group in groups(job):
        for resource, amount in _wanted(group).items():
            most = _most(queue["spec"], resource)
            if most is None:
                return f"{name} asks for {resource}, which the queue does not hold"
            if amount > most:
                return f"{name} asks for {_show(amount)} {resource}, the queue can give {_show(Decimal(most))} at most"
    return ""


def wanted_of(job: Object, resource: str) -> int:
    """How much of a countable resource all pods of `job` ask for."""
    return int(sum(_wanted(group).get(resource, Decimal(0)) for _, group in groups(job)))


def _wanted(group: Object) -> dict[str, Decimal]:
    """Requests of all pods of a group together, resource by resource."""
    total: dict[str, Decimal] = {}
    for container in group["template"]["spec"]["containers"]:
        for resource, text in container["resources"]["requests"].items():
            total[resource] = total.get(resource, Decimal(0)) + parse_quantity(text) * group.get("replicas", 1)
    return total


def _most(spec: Object, resource: str) -> Decimal | float | None:
    """The most of a resource that one flavor can give; infinite where it borrows without limit; None if no flavor has it."""
    borrows = bool(spec.get("cohortName") or spec.get("cohort"))
    flavors = [flavor for group in spec.get("resourceGroups") or [] for flavor in group["flavors"]]
    found = [_room(quota, borrows) for flavor in flavors for quota in flavor["resources"] if quota["name"] == resource]
    return max(found) if found else None


def _room(quota: Object, borrows: bool) -> Decimal | float:
    nominal = parse_quantity(quota["nominalQuota"])
    if not borrows:
        return nominal
    limit = quota.get("borrowingLimit")
    return math.inf if limit is None else nominal + parse_quantity(limit)


def _show(amount: Decimal) -> str:
    return f"{amount / 2**30:.0f}Gi" if amount >= 2**30 else f"{amount:f}"
