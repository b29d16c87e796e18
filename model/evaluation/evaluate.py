"""Ask a finished model every question of its benchmarks, twice, and count.

The journey of an evaluation:
1. For each benchmark of the recipe the questions are read, checked and, with a limit, chosen by the digest of their ids.
2. The model answers them with their images, and again *blind*: every image replaced by the mean training image (pixels after
   preprocessing, over at most 512 images chosen by the digest of their names).
3. Training answers give two baselines that need no model: the most frequent answer by question, and the most frequent of all.
4. Every item is scored by every metric; figures with intervals are made overall and by slice (`summary`).
5. Questions about images that also stand in training are counted and shown as a slice of their own.
6. `report.json` and `predictions.jsonl` become an artifact of kind `report`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import manifest
from model.architecture.assembly import Assistant
from model.architecture.features import Disk, FeatureSource
from model.architecture.joint import encode
from model.config import Benchmark, EvaluateSlice, Kind
from model.data.dataset import Audit, DataSet, file_digests
from model.data.pixels import READING, PixelSource
from model.data.records import Record
from model.data.templates import Prompter
from model.errors import DataError, MissingInputError
from model.evaluation import benchmark as benchmarks
from model.evaluation import vllm_engine
from model.evaluation.baseline import Majority
from model.evaluation.benchmark import BenchmarkFile
from model.evaluation.bootstrap import Draws
from model.evaluation.generate import Engine, Features, Prediction, Progress, answer_all, blinded, mean_image
from model.evaluation.results import KIND, BenchmarkResult, Item, Report, write
from model.evaluation.sharing import Shard, answered_together
from model.evaluation.summary import Answered, summarise

TRAIN = "train"
MAX_BLIND_IMAGES = 512


@dataclass(frozen=True)
class Training:
    """What the blind control, the baselines and the leak check need of the training records."""

    majority: Majority
    mean: torch.Tensor
    """(C, H, W) mean training image after preprocessing."""
    mean_of: int
    """Images averaged."""
    images: frozenset[str]
    """SHA-256 of the files of all training images."""


def evaluate(
    piece: EvaluateSlice,
    assistant: Assistant,
    checkpoint: str,
    sets: Mapping[str, Path],
    out: Path,
    training_images: Collection[str] | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    audit: Audit | None = None,
    feature_cache: Disk | None = None,
    export: Path | None = None,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Evaluate `assistant` and commit the report artifact at `out`.

    Args:
        piece: Slice of the recipe.
        assistant: The model of the checkpoint.
        checkpoint: Digest of the checkpoint's manifest.
        sets: Name of each data set -> its folder.
        out: Where the report appears; its parents are the checkpoint and the data sets.
        training_images: SHA-256 of all image files that the checkpoint learned from; none takes the evaluated set's train split.
        progress: Called with (answers done, all, "answers").
        verify: Hash the data sets against their manifests.
        audit: Records to leave out and limits, as training had them; none leaves out nothing.
        export: The assistant as `model.architecture.export` wrote it: vLLM answers from it, where it is installed and a GPU is asked for.
        feature_cache: Where the tower's features of images are kept, as training keeps them.
        shard: This worker, if several share the questions; the first one writes the report.

    Returns:
        The facts of the artifact: the headline figures of each benchmark.

    Raises:
        DataError: No question to ask, a question without answer type, or no training record for baselines and blind control.
        MissingInputError: A data set or split that is not there.
        ConfigError: An unknown benchmark.
    """
    audit, shard = audit or Audit(), shard or Shard()
    opened = {name: audit.open(name, folder, verify) for name, folder in sets.items()}
    source = PixelSource(assistant.image_processor, cache_bytes=0, max_pixels=audit.max_image_pixels)
    assistant.model.requires_grad_(False)
    features = FeatureSource(assistant, source, READING, feature_cache, file_digests(opened.values()), kept_bytes=0)
    asked = _asked(piece, opened)
    total = 2 * sum(len(records) for _, _, records in asked)
    engine = _engine(piece, assistant, export, [record for _, _, records in asked for record in records])
    done = 0
    results: list[BenchmarkResult] = []
    items: list[Item] = []
    for entry, file, records in asked:
        training = _training(entry.set, opened, source, training_images)
        answered = _answer(
            piece, assistant, file, opened[entry.set], records, training, features, engine, _shifted(progress, done, total), shard
        )
        done += 2 * len(records)
        result = summarise(file, entry, opened[entry.set].manifest, answered, training.mean_of, _draws(piece, records))
        results.append(result)
        items += [one.item(result.key) for one in answered]
    report = _report(piece, checkpoint, results)
    return _commit(report, items, opened, out) if shard.leads else facts_of(report)


def _commit(report: Report, items: Sequence[Item], opened: Mapping[str, DataSet], out: Path) -> dict[str, Any]:
    """Write the artifact; its facts."""
    facts = facts_of(report)
    parents = {f"data:{name}": dataset.manifest.digest for name, dataset in opened.items()}
    with manifest.commit(out, KIND, {"checkpoint": report.checkpoint, **parents}, facts) as folder:
        write(folder, report, items)
    return facts


def facts_of(report: Report) -> dict[str, Any]:
    """Small facts for references and tables: strict closed accuracy, open recall, image gain and counts of each benchmark."""
    facts: dict[str, Any] = {"checkpoint": report.checkpoint, "benchmarks": {}}
    for result in report.benchmarks:
        chosen = {name: result.metric(name) for name in (result.headline, "closed_accuracy", "open_recall")}
        numbers: dict[str, Any] = {name: metric.model.value for name, metric in chosen.items() if metric is not None}
        if result.image_gain is not None:
            numbers["image_gain"] = result.image_gain.value
            numbers["image_gain_low"] = result.image_gain.low
        facts["benchmarks"][result.key] = numbers | {"items": result.items, "groups": result.groups}
    return facts


def _report(piece: EvaluateSlice, checkpoint: str, results: Sequence[BenchmarkResult]) -> Report:
    return Report(
        checkpoint=checkpoint,
        seed=piece.seed,
        bootstrap_samples=piece.evaluation.bootstrap_samples,
        confidence=piece.evaluation.confidence,
        max_new_tokens=piece.evaluation.max_new_tokens,
        benchmarks=tuple(results),
    )


def _asked(piece: EvaluateSlice, opened: Mapping[str, DataSet]) -> list[tuple[Benchmark, BenchmarkFile, list[Record]]]:
    """Every benchmark of the recipe, its file, and what it asks."""
    files = [(entry, benchmarks.load(entry.benchmark)) for entry in piece.evaluation.benchmarks]
    return [(entry, file, _questions(entry, file, opened)) for entry, file in files]


def _draws(piece: EvaluateSlice, records: Sequence[Record]) -> Draws:
    """How the intervals are drawn."""
    wanted = piece.evaluation
    return Draws((record.group for record in records), wanted.bootstrap_samples, wanted.confidence, piece.seed)


def _questions(entry: Benchmark, file: BenchmarkFile, opened: Mapping[str, DataSet]) -> list[Record]:
    """The records that a benchmark asks, in the order of the file."""
    if entry.set not in opened:
        raise MissingInputError(
            f"the benchmark asks the data set {entry.set!r}, given are {sorted(opened)}", "hand in its folder"
        )
    records = opened[entry.set].records(entry.split, file.kinds)
    if entry.limit is not None and len(records) > entry.limit:
        chosen = sorted(records, key=lambda record: _digest(record.id))[: entry.limit]
        names = {record.id for record in chosen}
        records = [record for record in records if record.id in names]
    if not records:
        raise DataError(
            f"{entry.set}/{entry.split} has no records of kind {', '.join(file.kinds)} to ask",
            "choose another split or data set in evaluation.benchmarks",
        )
    bare = [record.id for record in records if record.answer_type is None]
    if bare:
        raise DataError(
            f"{entry.set}/{entry.split}: {len(bare)} of {len(records)} questions have no answer_type, the first is {bare[0]!r}",
            "say open or closed where the data set is imported",
        )
    return records


def _training(name: str, opened: Mapping[str, DataSet], source: PixelSource, training_images: Collection[str] | None) -> Training:
    """From the train split of the data set `name`; if it has none (a test-only set), from those of all others."""
    with_train = [key for key, dataset in opened.items() if TRAIN in dataset.splits]
    chosen = [name] if name in with_train else sorted(with_train)
    records = [(key, record) for key in chosen for record in opened[key].records(TRAIN)]
    if not records:
        raise DataError(f"no train split beside {name!r}: no blind control and no baseline", "add a data set with a train split")
    names = sorted({(key, image) for key, record in records for image in record.images}, key=lambda pair: _digest("/".join(pair)))
    averaged = names[:MAX_BLIND_IMAGES]
    paths = [opened[key].path(image) for key, image in averaged]
    mean = mean_image([str(path) for path in paths], lambda wanted: source([Path(path) for path in wanted]))
    return Training(
        majority=Majority.of(record for _, record in records if record.kind is Kind.QUESTION),
        mean=mean,
        mean_of=len(averaged),
        images=frozenset(training_images if training_images is not None else (_file_digests(opened[k])[i] for k, i in names)),
    )


def _answer(
    piece: EvaluateSlice,
    assistant: Assistant,
    file: BenchmarkFile,
    dataset: DataSet,
    records: Sequence[Record],
    training: Training,
    features: FeatureSource,
    engine: Engine | None,
    progress: Progress | None,
    shard: Shard,
) -> list[Answered]:
    """All questions with their images and blind, joined with what the baselines say."""

    def ask(wanted: Sequence[Record], seen: Features, start: int, key: Callable[[Record], Hashable]) -> list[Prediction]:
        size, longest = piece.evaluation.batch_size, piece.evaluation.max_new_tokens

        def answer(mine: Sequence[Record]) -> list[Prediction]:
            told = _shifted(progress, start, 0, len(wanted) / len(mine))
            return answer_all(assistant, mine, seen, size, longest, told, file.worded, engine)

        return answered_together(wanted, key, answer, shard)

    mean = encode(assistant.model, training.mean[None].to(assistant.device))
    seeing = ask(records, lambda names: features([dataset.path(name) for name in names]), 0, lambda record: record.images)
    blind = ask(blinded(records), lambda names: mean.expand(len(names), -1, -1), len(records), lambda record: record.question)
    digests = _file_digests(dataset)
    return [
        Answered(
            record=record,
            prediction=said,
            blind=guessed,
            majority=training.majority.by_question(record),
            constant=training.majority.overall(record),
            image_digests=tuple(digests[image] for image in record.images),
            seen_in_training=any(digests[image] in training.images for image in record.images),
        )
        for record, said, guessed in zip(records, seeing, blind, strict=True)
    ]


def _engine(piece: EvaluateSlice, assistant: Assistant, export: Path | None, records: Sequence[Record]) -> Engine | None:
    if export is None or not vllm_engine.usable(piece.resources):
        return None
    end = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens).end_token_id
    images = max(1, *(len(record.images) for record in records))
    return vllm_engine.VllmEngine(export, assistant, end, piece.evaluation.max_new_tokens, images)


def _shifted(progress: Progress | None, start: int, total: int, scale: float = 1.0) -> Progress | None:
    """Progress of a part as progress of the whole; total 0 keeps the part's own. Others do as much, so that all did `scale` times."""
    if progress is None:
        return None
    call = progress
    return lambda done, all_done, _unit: call(start + round(done * scale), total or all_done, "answers")


def _file_digests(dataset: DataSet) -> dict[str, str]:
    """Path of each file of the data set -> SHA-256 of its bytes."""
    return {entry.path: entry.sha256 for entry in dataset.manifest.files}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
