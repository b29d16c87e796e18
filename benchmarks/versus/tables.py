"""From raw runs to a table and a plot. Pure but for the drawing.

1. `slope` is the cost of a document between two stamps of a run, so that what a run costs once is in neither.
2. `row` gives median and spread (least and largest) of documents a CPU second, wall seconds, peak memory, FLOPs a document.
3. `markdown` sets contenders under each other with their ratio to the best tuned ms-swift; `plot` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

REFERENCE = "ms-swift tuned"
WARM_STEPS = 1
"""Steps left out at the beginning: memory is asked for the first time, kernels are chosen."""


def slope(run: Mapping[str, Any], unit: str) -> float:
    """Cost of a document in `unit`, from the stamp behind the warm-up to the last one. ValueError: too few steps."""
    stamps = run["stamps"]
    if len(stamps) < WARM_STEPS + 2:
        raise ValueError(f"{len(stamps)} stamps are too few for a slope")
    first, last = stamps[WARM_STEPS], stamps[-1]
    return float((last[unit] - first[unit]) / (last["documents"] - first["documents"]))


def row(label: str, found: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one contender on one workload and model.

    Args:
        label: Of the contender.
        found: What its runs wrote, in the order in which they ran: `stamps`, `peak_mib`.
        extra: `flops_per_document`, `supervised_per_document`, audit and differences, as they are.
    """
    rates = sorted(1 / slope(run, "cpu_seconds") for run in found)
    return {
        "label": label,
        "runs": len(found),
        "documents_per_cpu_second": median(rates),
        "least": rates[0],
        "largest": rates[-1],
        "documents_measured": sum(run["stamps"][-1]["documents"] - run["stamps"][WARM_STEPS]["documents"] for run in found),
        "wall_milliseconds": 1e3 * median(slope(run, "wall_seconds") for run in found),
        "peak_mib": median(run["peak_mib"] for run in found),
        **extra,
    }


def markdown(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One table; absent figures stay empty."""
    reference = next((r["documents_per_cpu_second"] for r in rows if r["label"] == REFERENCE), None)
    lines = [
        f"### {title}",
        "",
        "| | docs / CPU-s | least - largest | x tuned ms-swift | supervised / CPU-s | GFLOP / doc | ms / doc | peak MiB | runs | differs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['label']} | | | | | | | | | {r['failed']} |")
            continue
        rate = r["documents_per_cpu_second"]
        ratio = f"{rate / reference:.2f}" if reference else ""
        supervised = f"{rate * r['supervised_per_document']:.1f}" if r.get("supervised_per_document") else ""
        flops = f"{r['flops_per_document'] / 1e9:.2f}" if r.get("flops_per_document") else ""
        lines.append(
            f"| {r['label']} | {rate:.3f} | {r['least']:.3f} - {r['largest']:.3f} | {ratio} | {supervised} | {flops} "
            f"| {r['wall_milliseconds']:.0f} | {r['peak_mib']:,.0f} | {r['runs']} | {r.get('differs', '')} |"
        )
    return "\n".join(lines) + "\n"


def plot(tables: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> None:
    """Bars of documents a CPU second with their spread, one panel a model and workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(tables), 1, figsize=(9, 2 + 3 * len(tables)), squeeze=False)
    for (title, rows), panel in zip(tables.items(), panels[:, 0], strict=True):
        drawn = [r for r in rows if "failed" not in r][::-1]
        rates = [r["documents_per_cpu_second"] for r in drawn]
        spread = [
            [r["documents_per_cpu_second"] - r["least"] for r in drawn],
            [r["largest"] - r["documents_per_cpu_second"] for r in drawn],
        ]
        colours = ["tab:blue" if r["label"].startswith("ours") else "tab:grey" for r in drawn]
        panel.barh([r["label"] for r in drawn], rates, xerr=spread, color=colours)
        panel.set_title(title)
        panel.set_xlabel("documents a CPU second")
    figure.tight_layout()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
