"""A model card in Hugging Face's format: what the version is for, what it learned from, under which terms, how good it is, where it fails.

1. The head is YAML as the hub reads it: licence, data sets, base models, and every metric with its data set (`model-index`).
2. The body says the same to people: intended use, data, licences, metrics with intervals beside the blind control, slices, limits.

Everything comes from the lineage and the evaluation's report; nothing is made up. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from components.platform.lineage import licences
from components.platform.lineage.graph import Document, Kind, Node
from components.platform.lineage.licences import Taint
from components.platform.lineage.text import label
from model.evaluation.results import BenchmarkResult, Figure, Report

HUB_LICENCES = {
    **{name: name for name in ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")},
    **{name: name for name in ("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "bsd-3-clause", "bsd-2-clause", "gpl-3.0", "unlicense")},
}
"""Licences that the hub knows by name; others are `other` with a `license_name`."""
FEW = 30
"""A slice with fewer items says little."""


def render(document: Document, report: Report) -> str:
    """The card as text.

    Args:
        document: The lineage of a version.
        report: The evaluation that it was registered with.
    """
    taint = licences.strictest(document)
    head = yaml.safe_dump(_head(document, report, taint), sort_keys=False, allow_unicode=True)
    parts = (
        _what(document),
        _use(),
        _data(document),
        _terms(taint),
        _metrics(report),
        _limits(document, report),
        _trace(document),
    )
    return f"---\n{head}---\n\n" + "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(document: Document, report: Report, taint: Taint) -> dict[str, Any]:
    strictest = taint.strictest.lower()
    known = (
        {"license": HUB_LICENCES[strictest]}
        if strictest in HUB_LICENCES
        else {"license": "other", "license_name": taint.strictest}
    )
    learned = _learned(document)
    return {
        **known,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["medical", "vision-language", "research-only", "biovlm"],
        "datasets": [node.label for node in learned if node.kind is Kind.SET],
        "base_model": [node.label for node in learned if node.kind is Kind.BASE],
        "model-index": [{"name": _name(document), "results": [_result(one, report) for one in report.benchmarks]}],
    }


def _result(result: BenchmarkResult, report: Report) -> dict[str, Any]:
    figures = [(metric.name, metric.model) for metric in result.metrics]
    figures += [("image_gain", result.image_gain)] if result.image_gain else []
    return {
        "task": {"type": "visual-question-answering", "name": result.title},
        "dataset": {"name": result.set, "type": result.set, "split": result.split, "revision": result.set_digest},
        "metrics": [
            {"type": name, "value": round(figure.value, 6), "name": f"{name}, {interval(figure, report.confidence)}"}
            for name, figure in figures
        ],
    }


def interval(figure: Figure, confidence: float) -> str:
    """The interval of a figure in words."""
    if figure.low is None or figure.high is None:
        return f"no interval, {figure.items} items"
    return f"{confidence:.0%} interval {figure.low:.3f} to {figure.high:.3f}, {figure.items} items in {figure.groups} groups"


def _what(document: Document) -> list[str]:
    stages = [label(node) for node in _learned(document) if node.kind is Kind.CHECKPOINT]
    return [
        f"# {_name(document)}",
        "",
        "**Research use only: not a medical device, not for clinical decisions.**",
        "",
        "A biomedical vision-language assistant: it answers questions about an image. Vision tower, connector and language model are put",
        f"together as transformers' LLaVA. Weights of {len(stages)} stages: {', '.join(stages)}.",
    ]


def _use() -> list[str]:
    return [
        "## Intended use",
        "",
        "Research on assistants for biomedical images, on data like those below, by people who can judge the answers.",
        "",
        "Out of scope: diagnosis, treatment, triage, or any decision about a patient; images of kinds that it was not trained on;",
        "use without a person who checks every answer.",
    ]


def _data(document: Document) -> list[str]:
    holds = {edge.target: edge.facts for edge in document.edges if edge.role == "holds"}
    asked = {edge.target for edge in document.edges if edge.role == "asked"}
    learned = _learned(document)
    sources = [node for node in document.nodes if node.kind in (Kind.SET, Kind.BASE)]
    rows = [
        (
            node.label,
            str(node.kind),
            " and ".join(word for word, true in (("learned from", node in learned), ("asked", node.id in asked)) if true)
            or "read",
            str(holds.get(node.id, {}).get("revision", ""))[:12],
            node.digest[:12],
        )
        for node in sources
    ]
    return ["## Data and base models", "", *_table(("name", "kind", "how", "revision", "digest"), rows)]


def _terms(taint: Taint) -> list[str]:
    named = ", ".join(f"{licence} ({name})" for name, licence in taint.sources)
    said = [
        "## Licences",
        "",
        f"What it learned from stands under: {', '.join(taint.licences) or 'unknown'}. The strictest decides: {named or 'unknown'},",
        f"that is: {licences.WORDS[taint.terms]}. A reading of names, not legal advice.",
    ]
    return [*said, f"Only asked in the evaluation: {', '.join(taint.only_asked)}."] if taint.only_asked else said


def _metrics(report: Report) -> list[str]:
    found = ["## Evaluation", ""]
    for result in report.benchmarks:
        rows = [
            (metric.name, f"{metric.model.value:.3f}", *_ends(metric.model), f"{metric.blind.value:.3f}", str(metric.model.items))
            for metric in result.metrics
        ]
        if result.image_gain:
            rows.append(
                ("image_gain", f"{result.image_gain.value:+.3f}", *_ends(result.image_gain), "", str(result.image_gain.items))
            )
        found += [f"### {result.title}: {result.set}/{result.split}, version {result.version}", ""]
        found += [*_table(("metric", "value", "low", "high", "without the image", "items"), rows), ""]
        found += [
            f"Intervals: {report.confidence:.0%}, bootstrap over {result.groups} groups, {report.bootstrap_samples} samples."
        ]
        found += [f"{result.seen_items} of {result.items} questions are about images that also stand in training.", ""]
        found += _slices(result)
    return found[:-1] if found[-1] == "" else found


def _slices(result: BenchmarkResult) -> list[str]:
    rows = [
        (part.field, part.value, metric.name, f"{metric.model.value:.3f}", *_ends(metric.model), str(metric.model.items))
        for part in result.slices
        for metric in part.metrics
        if metric.name == result.headline
    ]
    return _table(("slice", "part", "metric", "value", "low", "high", "items"), rows) if rows else []


def _limits(document: Document, report: Report) -> list[str]:
    return ["## Limits", "", *(f"- {sentence}" for sentence in _weak(document, report))]


def _weak(document: Document, report: Report) -> Iterator[str]:
    """What a reader must know before trusting a number, from the figures themselves."""
    for result in report.benchmarks:
        scored = [(part, metric) for part in result.slices for metric in part.metrics if metric.name == result.headline]
        if scored:
            part, metric = min(scored, key=lambda pair: pair[1].model.value)
            yield f"Weakest slice of {result.key}: {part.field} {part.value}, {metric.name} {metric.model.value:.3f} on {part.items} items."
        small = sorted({f"{part.field} {part.value}" for part in result.slices if part.items < FEW})
        if small:
            yield f"Fewer than {FEW} items, so nearly nothing is known: {', '.join(small)}."
        if result.unasked or result.cut:
            yield f"{result.unasked} questions were too long for its context, {result.cut} answers were cut."
        if result.image_gain and result.image_gain.low is not None and result.image_gain.low <= 0:
            yield f"It is not shown that it looks at the image on {result.key}: the gain's interval reaches {result.image_gain.low:+.3f}."
    yield "It was measured on the data sets above alone; how it does on images of other devices, sites and patients is not known."
    failed = sorted({str(check) for node in document.of(Kind.DECISION) for check in _list(node.facts.get("failed"))})
    if failed:
        yield f"The gate held it back for: {', '.join(failed)}."


def _trace(document: Document) -> list[str]:
    commits = sorted({node.name for node in document.of(Kind.COMMIT)})
    return [
        "## Where it comes from",
        "",
        f"Lineage of {len(document.nodes)} things, SHA-256 `{document.digest}`; commits {', '.join(commits)}.",
        f"`biovlm lineage verify models:/{_name(document)}` hashes all of it again.",
    ]


def _learned(document: Document) -> tuple[Node, ...]:
    return document.ancestors(document.about, licences.LEARNED)


def _name(document: Document) -> str:
    return document.about.partition(":")[2]


def _ends(figure: Figure) -> tuple[str, str]:
    low, high = ("" if end is None else f"{end:.3f}" for end in (figure.low, figure.high))
    return low, high


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    line = "| {} |".format
    return [line(" | ".join(columns)), line(" | ".join("---" for _ in columns)), *(line(" | ".join(row)) for row in rows)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
