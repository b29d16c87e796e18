"""One stage of the curriculum, from data sets and base models to a checkpoint. Align, instruct and task differ in data alone.

1. If `final` already holds this stage's checkpoint, it is returned; one of another configuration is refused.
2. The assistant is built from the base models, or loaded from the parent's checkpoint with all adapters merged.
3. The data sets are verified and tokenised; the plan of all epochs is made: a pure function of recipe and data.
4. `trainable` makes the named parts learn; `placing` brings the network to its device, shared among the workers as the strategy says;
   `loop` runs the plan, from the newest good checkpoint in `work` if there is one.
5. Rank 0 writes the checkpoint with its lineage: recipe part, digests of base models, data and parent.

Runs in one process, or in each process of an open `torch.distributed` group; nothing of a platform is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from model import manifest
from model.architecture import adapters, checkpoint, heap
from model.architecture.assembly import Assistant, build
from model.architecture.features import Disk
from model.config import Precision, TrainSlice
from model.data.dataset import MAX_QUARANTINED, DataSet
from model.data.images import MAX_PIXELS
from model.data.loading import Prompter
from model.errors import ConfigError
from model.recipe import key_content
from model.training import material
from model.training.loop import Settings, Training, train
from model.training.objective import AnswerObjective
from model.training.optimizer import warmup_steps
from model.training.places import Place
from model.training.placing import device_of, place, spare, speed_up
from model.training.ranks import Ranks, ending_together
from model.training.reporter import Reporter, SilentReporter
from model.training.resume import Store, differences
from model.training.trainable import prepare

DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
# What must not change between a stage and the one it starts from; templates and context may.
INHERITED = ("tower", "connector", "language", "feature_layer")


@dataclass(frozen=True)
class StageInputs:
    """The artifacts that a stage reads."""

    sets: Mapping[str, Path]
    """Name in the recipe -> folder of the data set."""
    bases: Mapping[str, Path]
    """Name in the registry -> folder of the base model."""
    parent: Path | None = None
    """Checkpoint of the stage before; none starts from the base models."""
    exclude: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Data set -> ids of records to leave out, as the audit found."""
    max_quarantined: float = MAX_QUARANTINED
    """Largest share of records that may be left out, as in the recipe's `data`."""
    max_image_pixels: int = MAX_PIXELS
    """Largest width x height in pixels of an image, as in the recipe's `data`."""
    feature_cache: Disk | None = None
    """Where the tower's features of images are kept for further stages and runs; None keeps them in memory alone."""


@ending_together
def run_stage(
    piece: TrainSlice,
    inputs: StageInputs,
    work: Path | Place,
    final: Path,
    reporter: Reporter,
    stop: Callable[[], bool] | None = None,
) -> manifest.Manifest:
    """Train one stage, or finish one that was interrupted.

    Args:
        piece: The stage's slice of the recipe.
        inputs: Data sets, base models, parent.
        work: Folder for intermediate checkpoints, of this run alone, or another place for them; removed at the end.
        final: Where the checkpoint appears.
        reporter: Hears metrics and notes, from rank 0 alone.
        stop: Becomes true when the run shall save and end.

    Returns:
        The manifest of the checkpoint.

    Raises:
        PreemptedError: Stopped; the same call goes on. DivergedError, ConfigError, DataError, MissingInputError, RefusedError,
        CannotWriteError: as their classes say.
    """
    device = device_of(piece)
    ranks = Ranks.current(device, piece.resources.stall_seconds)
    if not ranks.leads:
        reporter = SilentReporter()
    sources = material.opened(piece, inputs.sets, inputs.exclude, inputs.max_quarantined)
    parents = _parents(inputs, sources)
    configuration = _configuration(piece, inputs, parents, ranks)
    finished = _finished(final, configuration) if ranks.leads else None  # the other ranks may be on machines without it
    if ranks.same(int(finished is not None)):
        reporter.note(f"{final} is already there and verifies")
        return _manifest(finished, ranks)
    assistant, training, facts = _assemble(piece, inputs, sources, configuration, device, ranks, reporter, work)
    done = train(replace(training, stop=stop or (lambda: False)))
    facts |= {"skipped_steps": done.num_skips, "left_out_steps": done.jumped, "world_sizes": training.store.world_sizes}
    learned = [*assistant.connector.parameters(), *adapters.parameters(assistant).values()]

    def write() -> int:
        checkpoint.save(final, assistant, piece.stage_name, parents, facts)
        training.store.clear()
        return 0

    with training.sharing.whole(learned):
        ranks.together(write)
    return _manifest(manifest.read(final) if ranks.leads else None, ranks)


def _manifest(mine: manifest.Manifest | None, ranks: Ranks) -> manifest.Manifest:
    """Rank 0's manifest on every rank."""
    return manifest.Manifest.model_validate_json(ranks.told(mine.model_dump_json() if mine else ""))


def _assemble(
    piece: TrainSlice,
    inputs: StageInputs,
    sources: Mapping[str, DataSet],
    configuration: Mapping[str, Any],
    device: torch.device,
    ranks: Ranks,
    reporter: Reporter,
    work: Path | Place,
) -> tuple[Assistant, Training, dict[str, Any]]:
    """The assistant ready to learn, everything the loop moves, and the facts of the checkpoint to be."""
    stage = piece.stage
    assistant = _start(piece, inputs)
    prompter = Prompter(assistant.tokenizer, stage.template or piece.model.template, piece.model.system, assistant.image_tokens)
    learned = material.tokenised(piece, prompter, sources, reporter)
    steps = material.planned(piece, learned, ranks.world_size)
    heap.give_back()
    assistant, groups = prepare(assistant, stage, piece.seed)
    row_tokens = speed_up(assistant, piece, device)
    reporter.note(f"memory: {spare(assistant, piece, device, ranks)}")
    sharing = place(assistant, groups, stage, device, ranks)
    features = material.features(assistant, learned, sources, piece, inputs.feature_cache, inputs.max_image_pixels, reporter)
    objective = AnswerObjective(assistant, learned, features, stage.precision, stage.packing, row_tokens, everywhere=sharing.even)
    material.audit(objective, steps, ranks.rank, prompter.end_token_id, reporter)
    # One stream of random numbers for each rank (dropout); its state travels in the checkpoints.
    torch.manual_seed(piece.seed * 1_000_003 + ranks.rank)
    training = Training(
        objective=objective,
        expect=objective.expect,
        plan=steps,
        sharing=sharing,
        settings=Settings(
            stage.schedule, warmup_steps(len(steps), stage.warmup), stage.clip_norm, stage.checkpoint_every, stage.guard
        ),
        store=Store(work, _without_workers(configuration), ranks, reporter, ranks.patience_seconds / 2),
        reporter=reporter,
        ranks=ranks,
        stop=lambda: False,
    )
    facts = {
        "step": len(steps),
        "epoch": stage.epochs,
        "records": len(learned),
        "set_aside": learned.set_aside,
        "configuration": configuration,
    }
    return assistant, training, facts


def _start(piece: TrainSlice, inputs: StageInputs) -> Assistant:
    """The assistant as the stage finds it."""
    dtype = DTYPES[piece.stage.precision]
    if inputs.parent is None:
        return build(piece.model, inputs.bases, piece.seed, dtype)
    facts = checkpoint.read_facts(manifest.read(inputs.parent), inputs.parent)
    was, now = (
        {name: value for name, value in m.model_dump(mode="json").items() if name in INHERITED}
        for m in (facts.model, piece.model)
    )
    changes = differences(was, now)
    if changes:
        raise ConfigError(
            f"{inputs.parent} was trained for another model; {len(changes)} fields differ: {'; '.join(changes[:4])}",
            "train the earlier stages with this recipe",
        )
    assistant = checkpoint.load(inputs.parent, inputs.bases, merge=True, dtype=dtype)
    own = piece.model
    return replace(assistant, settings=own, template=own.template, system=own.system, context_tokens=own.context_tokens)


def _parents(inputs: StageInputs, sources: Mapping[str, DataSet]) -> dict[str, str]:
    """Role -> digest of data and parent; the checkpoint adds the base models."""
    parents = {f"data:{name}": source.manifest.digest for name, source in sources.items()}
    if inputs.parent is not None:
        parents["parent"] = manifest.read(inputs.parent).digest
    return parents


def _configuration(piece: TrainSlice, inputs: StageInputs, parents: Mapping[str, str], ranks: Ranks) -> dict[str, Any]:
    """Everything that decides the result; intermediate checkpoints of another configuration are refused."""
    base_digests = {name: manifest.read(folder).digest for name, folder in sorted(inputs.bases.items())}
    return {
        "piece": key_content(piece.model_dump(mode="json")),
        "inputs": {**parents, **{f"base:{name}": digest for name, digest in base_digests.items()}},
        "exclude": {name: sorted(ids) for name, ids in sorted(inputs.exclude.items())},
        "world_size": ranks.world_size,
    }


def _without_workers(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What an intermediate checkpoint must agree with: the number of workers may change on the way."""
    piece = {name: value for name, value in configuration["piece"].items() if name != "resources"}
    return {**{name: value for name, value in configuration.items() if name != "world_size"}, "piece": piece}


def _finished(final: Path, configuration: Mapping[str, Any]) -> manifest.Manifest | None:
    """The checkpoint at `final`, if it is whole and of this configuration."""
    if not (final / manifest.FILE_NAME).is_file():
        return None
    record = manifest.verify(final)
    changes = differences(record.facts.get("configuration", {}), dict(configuration))
    if changes:
        raise ConfigError(
            f"{final} holds the result of another configuration; {len(changes)} fields differ: {'; '.join(changes[:8])}",
            "choose another folder, or remove this one",
        )
    return record
