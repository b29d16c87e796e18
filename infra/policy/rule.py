"""A rule is data: its name, why it is there, what to do, and the function that finds what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Fault = tuple[str, str]
"""(field, what is wrong with it)."""
About = Literal["pod", "object", "set", "step"]


@dataclass(frozen=True)
class Rule:
    """One thing that must hold."""

    name: str
    about: About
    """What `check` is given: a Pod, an object, all objects together (then a field is `Kind namespace/name: field`), or a Step."""
    why: str
    remedy: str
    check: Callable[[Any], Iterator[Fault]]
    for_release: bool = False
    """Asked only of what is about to be applied: a committed example may break it."""


@dataclass(frozen=True)
class Finding:
    """A rule that something breaks."""

    rule: Rule
    place: str
    field: str
    what: str

    def letter(self) -> str:
        """What, where, why, and the way out."""
        return f"{self.place}: {self.field}: {self.what}  [{self.rule.name}]\n  why: {self.rule.why}\n  hint: {self.rule.remedy}"


@dataclass(frozen=True)
class Permission:
    """Someone who may break a rule, and why."""

    rule: str
    place: str
    """`Kind namespace/name`."""
    reason: str
