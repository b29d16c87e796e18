"""Licences taint: what may be done with a version is what the strictest licence of everything it was made from allows.

1. `terms(name)` reads a licence by its SPDX identifier, or the name under which weights are offered. One that is not known, or that
   nobody wrote down, allows nothing but to be looked at: an unknown licence is never a permission.
2. `strictest(document)` goes through every data set and base model that the weights depend on. What was only asked in an evaluation
   does not change the weights, and is named apart.
3. `against(licence, purpose)` says what speaks against a use, and `forbidden` of several at once: doctor and preflight ask of what a
   recipe names, the gate of everything.

A reading of names, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from components.platform.lineage.graph import Document, Kind
from model.config import Purpose

LEARNED = frozenset({"weights of", "continues", "learned from", "built on"})
"""Roles that lead from a version to all that its weights depend on."""


class Terms(IntEnum):
    """What a licence allows, from the freest to the strictest."""

    FREE = 0
    """Any use, without conditions."""
    ATTRIBUTION = 1
    """Any use, if the source is named."""
    SHARE_ALIKE = 2
    """Any use; what is derived stands under the same terms."""
    ACCEPTABLE_USE = 3
    """A list of uses is forbidden, and whoever gets the model is bound by it."""
    NON_COMMERCIAL = 4
    """No commercial use."""
    RESEARCH_ONLY = 5
    """Research alone, or under an agreement of the holder; nothing may be passed on without it."""
    UNKNOWN = 6
    """Nobody wrote it down: nothing is allowed."""


READ: tuple[tuple[str, Terms], ...] = (
    (r"cc0(-.*)?|pddl(-.*)?|unlicense|public[ -]domain|0bsd", Terms.FREE),
    (r"cc-by-nc-nd(-.*)?|cc-by-nd(-.*)?|physionet.*|.*research[ -]only.*|.*credentialed.*", Terms.RESEARCH_ONLY),
    (r"cc-by-nc(-.*)?|.*non-?commercial.*", Terms.NON_COMMERCIAL),
    (r"cc-by-sa(-.*)?|a?gpl-.*|lgpl-.*|mpl-.*|odbl-.*|eupl-.*", Terms.SHARE_ALIKE),
    (r"cc-by(-[0-9.]+.*)?|apache-2\.0|mit|bsd-.*|isc|odc-by(-.*)?|zlib", Terms.ATTRIBUTION),
    (r"llama[0-9. -]*.*|gemma.*|.*openrail.*|.*\brail\b.*|tongyi.*|qwen.*", Terms.ACCEPTABLE_USE),
)
"""Pattern of a name in small letters -> terms; the first that matches counts."""
WORDS = {
    Terms.FREE: "any use",
    Terms.ATTRIBUTION: "any use, naming the source",
    Terms.SHARE_ALIKE: "any use; what is derived stands under the same terms",
    Terms.ACCEPTABLE_USE: "uses on the holder's list are forbidden, and the list goes with the model",
    Terms.NON_COMMERCIAL: "no commercial use",
    Terms.RESEARCH_ONLY: "research only; not to be passed on without the holder's agreement",
    Terms.UNKNOWN: "nothing is allowed until somebody names the licence",
}


ALLOWED: dict[Purpose, Terms] = {
    Purpose.RESEARCH: Terms.RESEARCH_ONLY,
    Purpose.SHARING: Terms.NON_COMMERCIAL,
    Purpose.COMMERCIAL: Terms.ACCEPTABLE_USE,
}
"""Purpose -> the strictest terms under which it is allowed."""


@dataclass(frozen=True)
class Taint:
    """What the ancestors' licences come to."""

    terms: Terms
    licences: tuple[str, ...]
    """All licences of what the weights depend on, sorted."""
    sources: tuple[tuple[str, str], ...]
    """(name of a data set or base model, licence) that is as strict as the strictest."""
    only_asked: tuple[str, ...]
    """Licences of data sets that were asked and not learned from."""

    @property
    def strictest(self) -> str:
        """The name of the strictest licence; of several equally strict ones, all."""
        return ", ".join(sorted({licence for _, licence in self.sources}))


def terms(licence: str) -> Terms:
    """What a licence allows."""
    name = licence.strip().lower()
    return next((found for pattern, found in READ if re.fullmatch(pattern, name)), Terms.UNKNOWN)


def against(licence: str, purpose: Purpose) -> str:
    """What a licence allows, if that is less than the purpose; else empty."""
    found = terms(licence)
    return WORDS[found] if found > ALLOWED[purpose] else ""


def forbidden(licences: Iterable[str], purpose: Purpose) -> dict[str, str]:
    """Licence -> what it allows, of those that do not allow the purpose."""
    return {licence: words for licence in licences if (words := against(licence, purpose))}


def strictest(document: Document) -> Taint:
    """What the licences of a version's ancestors come to. A source without any licence counts as `unknown`."""
    learned = {node.id for node in document.ancestors(document.about, LEARNED)}
    pairs = list(_pairs(document, learned))
    all_pairs = list(_pairs(document, {node.id for node in document.nodes}))
    worst = max((terms(licence) for _, licence in pairs), default=Terms.UNKNOWN)
    inside = {licence for _, licence in pairs}
    return Taint(
        terms=worst,
        licences=tuple(sorted(inside)),
        sources=tuple(sorted({pair for pair in pairs if terms(pair[1]) is worst})),
        only_asked=tuple(sorted({licence for _, licence in all_pairs} - inside)),
    )


def _pairs(document: Document, ids: Iterable[str]) -> list[tuple[str, str]]:
    """(source, licence) of each data set and base model among `ids`."""
    found: list[tuple[str, str]] = []
    names = {node.id: node for node in document.nodes}
    wanted = set(ids)
    for node in document.nodes:
        if node.id in wanted and node.kind in (Kind.SET, Kind.BASE):
            under = [names[edge.target].name for edge in document.out_of(node.id) if edge.role == "under"]
            found += [(node.label, licence) for licence in under or ["unknown"]]
    return found
