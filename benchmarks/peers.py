"""Training side by side with ms-swift, LLaMA-Factory and TRL: documents a CPU second, memory, FLOPs, isolation of packs.

    python -m benchmarks.peers [--quick] [--repeats N] [--models a,b] [--workloads a,b] [--only "label;label"] [--results DIR]

1. The peers' environments are made or found (versus/environments), the models and workloads written (versus/models, versus/workloads).
2. Every framework writes the token ids and labels that it will learn from; they must equal ours, document by document, or the row says
   what differs. A contender of ours with the same weights, images, trainable set, optimizer, rate, float32 and threads.
3. Runs are interleaved: in every round each contender once, small and large size; costs are slopes (versus/tables).
4. FLOPs are counted in runs of their own; peers that pack are audited: gradient of one document by another's inputs, share of loss on text.
5. Raw JSON, a markdown table and a plot go to `bench-results/` (kept out of git); what is worth keeping goes into LOG.md by hand.

Not compared: GPU kernels, MFU, ZeRO. Start-up is left out of slopes and stands in the raw files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.versus import environments, models, runs, tables, workloads
from benchmarks.versus.adapters.job import IGNORE, Job
from benchmarks.versus.runs import CONTENDERS, Contender, RunError
from benchmarks.versus.workloads import MissingDataError, Sized

RESULTS = Path("bench-results")
SIZES = {"c1": (12, 48), "vqa_rad": (6, 24), "slake_like": (5, 20)}
QUICK_SIZES = {"c1": (12, 24), "vqa_rad": (6, 12), "slake_like": (5, 10)}
"""Images of the small and the large size. Both fill several rows: ours looks at its first batch before it trains (isolation, share of the
loss on text), and what that costs cancels out only where the first rows are alike."""
REPEATS, QUICK_REPEATS = 5, 2
BATCH, ROW_TOKENS, THREADS = 4, 4096, 2
RATE, RANK, ALPHA = 1e-4, 16, 32


@dataclass(frozen=True)
class Options:
    """What to measure."""

    repeats: int
    sizes: Mapping[str, tuple[int, int]]
    models: tuple[str, ...]
    workloads: tuple[str, ...]
    only: tuple[str, ...]
    results: Path
    flops: bool
    """Whether to count them, in two further runs of each contender."""

    def contenders(self) -> list[Contender]:
        """Those asked for, in the order of the table."""
        return [c for c in CONTENDERS if not self.only or c.label in self.only]


@dataclass(frozen=True)
class Pair:
    """The two jobs of a contender on one workload, and how many documents lie between them."""

    contender: Contender
    small: Job
    large: Job
    documents: int


def measure() -> dict[str, float]:
    """A quick round on the head-heavy model unless BIOVLM_BENCH_FULL is set; documents a CPU second of each contender."""
    found = compare(_options([] if os.environ.get("BIOVLM_BENCH_FULL") else ["--quick", "--models", "head_heavy"]))
    return {
        f"{title} {row['label']} documents_per_cpu_second": row["documents_per_cpu_second"]
        for title, rows in found.items()
        for row in rows
        if "failed" not in row
    }


def compare(options: Options) -> dict[str, list[dict[str, Any]]]:
    """All tables, written and returned: title -> rows."""
    for name in sorted({c.framework for c in options.contenders()} - {"ours"}):
        environments.make(name)
    options.results.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for model in options.models:
        bases = models.make(environments.home() / "models" / model, models.SHAPES[model], workloads.texts())
        models.check_same(bases)
        for name in options.workloads:
            try:
                sizes = workloads.make(name, environments.home() / "data" / name, options.sizes[name])
            except MissingDataError as missing:
                _say(f"{model}, {name}: skipped. {missing}")
                continue
            title = f"{model}, {name}"
            found[title] = _measure_one(title, bases, sizes, options)
            _write(options.results, found)
    return found


def _measure_one(title: str, bases: models.Bases, sizes: Sequence[Sized], options: Options) -> list[dict[str, Any]]:
    """One table: ids, rounds, FLOPs, audits."""
    pairs, failed, extra = [], {}, {}
    known: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    ours = _ids(_pair(CONTENDERS[0], title, bases, sizes, 0), known)
    longest = max(len(row["input_ids"]) for row in ours)
    for contender in options.contenders():
        pair = _pair(contender, title, bases, sizes, longest)
        try:
            extra[contender.label] = _differences(ours, pair, known) | _audit(pair)
            if contender.cached:
                runs.run(contender.framework, runs.with_mode(pair.large, "warm"))
            pairs.append(pair)
        except RunError as error:
            failed[contender.label] = _shortened(error)
            _say(f"{title}, {contender.label}: {error}")
    raw = _rounds(title, pairs, options, failed)
    rows = []
    for contender in options.contenders():
        if contender.label in failed:
            rows.append({"label": contender.label, "failed": failed[contender.label]})
            continue
        pair = next(p for p in pairs if p.contender == contender)
        more = extra[contender.label] | ({"flops_per_document": _flops(pair)} if options.flops else {})
        rows.append(tables.row(contender.label, pair.documents, raw[contender.label], more))
    return rows


def _pair(contender: Contender, title: str, bases: models.Bases, sizes: Sequence[Sized], longest: int) -> Pair:
    small, large = sizes
    folder = environments.home() / "runs" / title.replace(", ", "-") / contender.label.replace(", ", "-").replace(" ", "-")
    first = Job(
        mode="train", llava=str(bases.llava), documents=str(small.listed), out=str(folder / "small"), tuned=contender.tuned,
        packing=contender.packing, row_tokens=ROW_TOKENS, batch=BATCH, epochs=1.0, batch_tokens=max(64, BATCH * longest), rate=RATE,
        rank=RANK, alpha=ALPHA, threads=THREADS, dataset=str(small.dataset),
        bases={name: str(path) for name, path in bases.mapping.items()}, cache=str(folder / "features") if contender.cached else "",
    )  # fmt: skip
    second = replace(first, documents=str(large.listed), dataset=str(large.dataset), out=str(folder / "large"))
    return Pair(contender, first, second, large.documents - small.documents)


def _ids(pair: Pair, known: dict[tuple[str, bool], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Token ids and labels of the small size, as the framework makes them: the same with and without packing."""
    key = (pair.contender.framework, pair.contender.tuned)
    if key not in known:
        asked = runs.with_mode(replace(pair.small, packing="none"), "dump")
        runs.run(pair.contender.framework, asked)
        known[key] = [json.loads(line) for line in (asked.folder / "dump.jsonl").read_text().splitlines()]
    return known[key]


def _differences(
    ours: Sequence[Mapping[str, Any]], pair: Pair, known: dict[tuple[str, bool], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Supervised tokens a document, and in words how ids and labels differ from ours; nothing where they are equal."""
    theirs = _ids(pair, known)
    by_id = {row["id"]: row for row in theirs}
    ids = sum(row["input_ids"] != by_id[row["id"]]["input_ids"] for row in ours if row["id"] in by_id)
    labels = sum(row["labels"] != by_id[row["id"]]["labels"] for row in ours if row["id"] in by_id)
    missing = sum(row["id"] not in by_id for row in ours)
    supervised = sum(sum(label != IGNORE for label in row["labels"]) for row in theirs) / max(1, len(theirs))
    told = [
        f"{count} of {len(ours)} documents {what}"
        for count, what in ((missing, "missing"), (ids, "other ids"), (labels, "other labels"))
        if count
    ]
    if pair.contender.tuned and told:
        raise RunError(f"{pair.contender.label} does not learn from the same tokens: {', '.join(told)}")
    return {"supervised_per_document": supervised, "differs": "; ".join(told)}


def _audit(pair: Pair) -> dict[str, Any]:
    """Of a peer that packs: how far documents see each other."""
    if pair.contender.framework == "ours" or pair.contender.packing == "none":
        return {}
    asked = runs.with_mode(pair.large, "audit")
    runs.run(pair.contender.framework, asked)
    found = runs.result(asked)
    leak = found.get("gradient_on_other")
    what = "isolation not testable: one document a row" if leak is None else f"gradient on another document {leak:.1e}"
    return {"audit": found, "differs": f"{what}; {found['loss_on_image']} of {found['loss_tokens']} loss tokens on image"}


def _rounds(
    title: str, pairs: list[Pair], options: Options, failed: dict[str, str]
) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Raw costs of every contender; one that fails once is left out of the rest."""
    raw: dict[str, list[dict[str, dict[str, float]]]] = {pair.contender.label: [] for pair in pairs}
    for number in range(options.repeats):
        for pair in pairs:
            label = pair.contender.label
            if label in failed:
                continue
            try:
                costs = {size: _cost(pair.contender, job) for size, job in (("small", pair.small), ("large", pair.large))}
            except RunError as error:
                failed[label] = _shortened(error)
                _say(f"{title}, {label}: {error}")
                continue
            raw[label].append(costs)
            used = [costs["large"][f"{kind}_seconds"] - costs["small"][f"{kind}_seconds"] for kind in ("user", "system")]
            _say(f"{title}, round {number + 1}, {label}: {pair.documents / sum(used):.3f} docs / CPU-s")
            record = {"title": title, "label": label, "round": number, "documents": pair.documents, **costs}
            with (options.results / "raw.jsonl").open("a") as stream:
                stream.write(json.dumps(record) + "\n")
    return raw


def _cost(contender: Contender, job: Job) -> dict[str, float]:
    cost = runs.run(contender.framework, job)
    return {**asdict(cost), "peak_mib": runs.result(job)["peak_mib"]}


def _flops(pair: Pair) -> float | None:
    """Executed FLOPs a document, from two counted runs."""
    counted = []
    for job in (pair.small, pair.large):
        asked = runs.with_mode(job, "flops")
        try:
            runs.run(pair.contender.framework, asked)
            counted.append(runs.flops(asked))
        except RunError as error:
            _say(f"{pair.contender.label}: FLOPs not counted. {_shortened(error)}")
            return None
    return (counted[1] - counted[0]) / pair.documents


def _write(folder: Path, found: Mapping[str, list[dict[str, Any]]]) -> None:
    about = {"machine": platform.platform(), "cores": os.cpu_count(), "at": time.strftime("%Y-%m-%d %H:%M"), "tables": found}
    (folder / "tables.json").write_text(json.dumps(about, indent=1))
    (folder / "tables.md").write_text("\n".join(tables.markdown(title, rows) for title, rows in found.items()))
    tables.plot(found, folder / "documents_per_cpu_second.png")


def _shortened(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"not run: {lines[-1][:200]}" if lines else "not run"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds, no FLOPs")
    parser.add_argument("--repeats", type=int, help=f"rounds (default {REPEATS}, quick {QUICK_REPEATS})")
    parser.add_argument("--models", default=",".join(models.SHAPES), help="of " + ", ".join(models.SHAPES))
    parser.add_argument("--workloads", default=",".join(workloads.NAMES), help="of " + ", ".join(workloads.NAMES))
    parser.add_argument("--only", default="", help="labels of contenders, separated by semicolons")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for raw files, table and plot")
    given = parser.parse_args(arguments)
    return Options(
        repeats=given.repeats or (QUICK_REPEATS if given.quick else REPEATS),
        sizes=QUICK_SIZES if given.quick else SIZES,
        models=tuple(given.models.split(",")),
        workloads=tuple(given.workloads.split(",")),
        only=tuple(filter(None, given.only.split(";"))),
        results=given.results.resolve(),
        flops=not given.quick,
    )


if __name__ == "__main__":
    compare(_options(sys.argv[1:]))
