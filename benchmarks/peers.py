"""Training side by side with ms-swift, LLaMA-Factory and TRL: documents a CPU second, memory, FLOPs, isolation of packs.

    python -m benchmarks.peers [--quick] [--repeats N] [--models a,b] [--workloads a,b] [--only "label;label"] [--results DIR]

1. The peers' environments are made or found (versus/environments), the models and workloads written (versus/models, versus/workloads).
2. Every framework writes the token ids and labels that it will learn from; they must equal ours, document by document, or the row says
   what differs. A contender of ours with the same weights, images, trainable set, optimizer, rate, float32 and threads.
3. Runs are interleaved: in every round each contender once. Costs are slopes between two steps of a run (versus/tables): the peers make
   `--steps` steps of documents in random order, ours the whole workload, since a row of ours holds many documents.
4. FLOPs are counted in runs of their own; peers that pack are audited: gradient of one document by another's inputs, share of loss on text.
5. Raw JSON, a markdown table and a plot go to `bench-results/` (kept out of git); what is worth keeping goes into LOG.md by hand.

Not compared: GPU kernels, MFU, ZeRO. What happens before the first step (start-up, tokenising ahead) is in no slope; the processor
seconds of whole runs stand in the raw files. One thread by default: with two the same work costs more processor seconds, in every
framework, and how many more depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.versus import environments, models, runs, tables, workloads
from benchmarks.versus.adapters.job import IGNORE, Job
from benchmarks.versus.runs import CONTENDERS, Contender, RunError
from benchmarks.versus.workloads import MissingDataError, Sized

RESULTS = Path("bench-results")
IMAGES = {"c1": 60, "vqa_rad": 60, "slake_like": 40}
"""Enough for several rows of ours."""
REPEATS, QUICK_REPEATS = 5, 2
STEPS, QUICK_STEPS, FLOP_STEPS = 12, 6, 4
BATCH, ROW_TOKENS = 4, 4096
RATE, RANK, ALPHA = 1e-4, 16, 32


@dataclass(frozen=True)
class Options:
    """What to measure."""

    repeats: int
    steps: int
    """Of the peers."""
    threads: int
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
class Entry:
    """A contender and its job on one workload."""

    contender: Contender
    job: Job


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
                (sized,) = workloads.make(name, environments.home() / "data" / name, [IMAGES[name]])
            except MissingDataError as missing:
                _say(f"{model}, {name}: skipped. {missing}")
                continue
            title = f"{model}, {name}"
            found[title] = _measure_one(title, bases, sized, options)
            _write(options.results, found)
    return found


def _measure_one(title: str, bases: models.Bases, sized: Sized, options: Options) -> list[dict[str, Any]]:
    """One table: ids, rounds, FLOPs, audits."""
    entries, failed, extra = [], {}, {}
    known: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    ours = _ids(_entry(CONTENDERS[0], title, bases, sized, 0, options), known)
    longest = max(len(row["input_ids"]) for row in ours)
    for contender in options.contenders():
        entry = _entry(contender, title, bases, sized, longest, options)
        try:
            extra[contender.label] = _differences(ours, entry, known) | _audit(entry)
            if contender.cached:
                runs.run(contender.framework, runs.with_mode(entry.job, "warm"))
            entries.append(entry)
        except RunError as error:
            failed[contender.label] = _shortened(error)
            _say(f"{title}, {contender.label}: {error}")
    raw = _rounds(title, entries, options, failed)
    rows = []
    for contender in options.contenders():
        if contender.label in failed:
            rows.append({"label": contender.label, "failed": failed[contender.label]})
            continue
        entry = next(e for e in entries if e.contender == contender)
        more = extra[contender.label] | ({"flops_per_document": _flops(entry)} if options.flops else {})
        rows.append(tables.row(contender.label, raw[contender.label], more))
    return rows


def _entry(contender: Contender, title: str, bases: models.Bases, sized: Sized, longest: int, options: Options) -> Entry:
    folder = environments.home() / "runs" / title.replace(", ", "-") / contender.label.replace(", ", "-").replace(" ", "-")
    job = Job(
        mode="train", llava=str(bases.llava), documents=str(sized.listed), out=str(folder / "run"), tuned=contender.tuned,
        packing=contender.packing, row_tokens=ROW_TOKENS, batch=BATCH, epochs=1.0, batch_tokens=max(64, BATCH * longest), rate=RATE,
        rank=RANK, alpha=ALPHA, threads=options.threads, dataset=str(sized.dataset),
        bases={name: str(path) for name, path in bases.mapping.items()}, cache=str(folder / "features") if contender.cached else "",
        passes=contender.passes, most_steps=0 if contender.framework == "ours" else options.steps,
    )  # fmt: skip
    return Entry(contender, job)


def _ids(entry: Entry, known: dict[tuple[str, bool], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Token ids and labels as the framework makes them: the same with and without packing."""
    key = (entry.contender.framework, entry.contender.tuned)
    if key not in known:
        asked = runs.with_mode(replace(entry.job, packing="none"), "dump")
        runs.run(entry.contender.framework, asked)
        known[key] = [json.loads(line) for line in (asked.folder / "dump.jsonl").read_text().splitlines()]
    return known[key]


def _differences(
    ours: Sequence[Mapping[str, Any]], entry: Entry, known: dict[tuple[str, bool], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Supervised tokens a document, and in words how ids and labels differ from ours; nothing where they are equal."""
    theirs = _ids(entry, known)
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
    if entry.contender.tuned and told:
        raise RunError(f"{entry.contender.label} does not learn from the same tokens: {', '.join(told)}")
    return {"supervised_per_document": supervised, "differs": "; ".join(told)}


def _audit(entry: Entry) -> dict[str, Any]:
    """Of a peer that packs: how far documents see each other."""
    if entry.contender.framework == "ours" or entry.contender.packing == "none":
        return {}
    asked = runs.with_mode(entry.job, "audit")
    runs.run(entry.contender.framework, asked)
    found = runs.result(asked)
    leak = found.get("gradient_on_other")
    what = "isolation not testable: one document a row" if leak is None else f"gradient on another document {leak:.1e}"
    return {"audit": found, "differs": f"{what}; {found['loss_on_image']} of {found['loss_tokens']} loss tokens on image"}


def _rounds(title: str, entries: list[Entry], options: Options, failed: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What the runs of every contender wrote; one that fails once is left out of the rest."""
    raw: dict[str, list[dict[str, Any]]] = {entry.contender.label: [] for entry in entries}
    for number in range(options.repeats):
        for entry in entries:
            label = entry.contender.label
            if label in failed:
                continue
            try:
                seconds = runs.run(entry.contender.framework, entry.job)
                found = runs.result(entry.job) | {"whole_cpu_seconds": seconds}
                rate = 1 / tables.slope(found, "cpu_seconds")
            except (RunError, ValueError) as error:
                failed[label] = _shortened(error)
                _say(f"{title}, {label}: {error}")
                continue
            raw[label].append(found)
            _say(f"{title}, round {number + 1}, {label}: {rate:.3f} docs / CPU-s, {found['peak_mib']:,.0f} MiB")
            record = {"title": title, "label": label, "round": number, "threads": options.threads, **found}
            with (options.results / "raw.jsonl").open("a") as stream:
                stream.write(json.dumps(record) + "\n")
    return raw


def _flops(entry: Entry) -> float | None:
    """Executed FLOPs a document, in a run in which they are counted."""
    asked = runs.with_mode(replace(entry.job, most_steps=min(entry.job.most_steps, FLOP_STEPS)), "flops")
    try:
        runs.run(entry.contender.framework, asked)
        return tables.slope(runs.result(asked), "flops")
    except (RunError, ValueError) as error:
        _say(f"{entry.contender.label}: FLOPs not counted. {_shortened(error)}")
        return None


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
    parser.add_argument("--quick", action="store_true", help="two rounds, fewer steps of the peers, no FLOPs")
    parser.add_argument("--repeats", type=int, help=f"rounds (default {REPEATS}, quick {QUICK_REPEATS})")
    parser.add_argument("--steps", type=int, help=f"of the peers (default {STEPS}, quick {QUICK_STEPS})")
    parser.add_argument("--threads", type=int, default=1, help="of every contender")
    parser.add_argument("--models", default=",".join(models.SHAPES), help="of " + ", ".join(models.SHAPES))
    parser.add_argument("--workloads", default=",".join(workloads.NAMES), help="of " + ", ".join(workloads.NAMES))
    parser.add_argument("--only", default="", help="labels of contenders, separated by semicolons")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for raw files, table and plot")
    given = parser.parse_args(arguments)
    return Options(
        repeats=given.repeats or (QUICK_REPEATS if given.quick else REPEATS),
        steps=given.steps or (QUICK_STEPS if given.quick else STEPS),
        threads=given.threads,
        models=tuple(given.models.split(",")),
        workloads=tuple(given.workloads.split(",")),
        only=tuple(filter(None, given.only.split(";"))),
        results=given.results.resolve(),
        flops=not given.quick,
    )


if __name__ == "__main__":
    compare(_options(sys.argv[1:]))
