"""From raw runs to a table and a plot. Pure but for the drawing.

1. `slope` is the cost of the documents that the large size has more than the small one, pair by pair of interleaved runs.
2. `row` gives median and spread (least and largest) of documents a CPU second, wall seconds, peak memory, FLOPs a document.
3. `markdown` sets contenders under each other with their ratio to the best tuned ms-swift; `plot` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

REFERENCE = "ms-swift tuned"


def slope(pairs: Sequence[Mapping[str, Mapping[str, float]]], unit: str) -> list[float]:
    """Cost in `unit` of what the large run has more than the small one, a pair each."""
    return [pair["large"][unit] - pair["small"][unit] for pair in pairs]


def row(
    label: str, more_documents: int, pairs: Sequence[Mapping[str, Mapping[str, float]]], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The figures of one contender on one workload and model.

    Args:
        label: Of the contender.
        more_documents: What the large size has more than the small one.
        pairs: Raw costs, small and large, in the order in which they ran.
        extra: `flops_per_document`, `supervised_per_document`, audit and differences, as they are.
    """
    user, system = slope(pairs, "user_seconds"), slope(pairs, "system_seconds")
    rates = sorted(more_documents / (u + s) for u, s in zip(user, system, strict=True) if u + s > 0)
    return {
        "label": label,
        "runs": len(pairs),
        "documents_per_cpu_second": median(rates) if rates else float("nan"),
        "least": rates[0] if rates else float("nan"),
        "largest": rates[-1] if rates else float("nan"),
        "user_seconds": median(user),
        "system_seconds": median(system),
        "wall_seconds": median(slope(pairs, "wall_seconds")),
        "peak_mib": median(pair["large"]["peak_mib"] for pair in pairs),
        **extra,
    }


def markdown(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One table; absent figures stay empty."""
    reference = next((r["documents_per_cpu_second"] for r in rows if r["label"] == REFERENCE), None)
    lines = [
        f"### {title}",
        "",
        "| | docs / CPU-s | least - largest | x tuned ms-swift | supervised / CPU-s | GFLOP / doc | wall s | peak MiB | runs | differs |",
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
            f"| {r['wall_seconds']:.1f} | {r['peak_mib']:,.0f} | {r['runs']} | {r.get('differs', '')} |"
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
