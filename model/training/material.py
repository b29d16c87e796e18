"""What a stage learns from: its data sets opened, its examples tokenised, their order planned, their images seen.

1. `opened` verifies every file of the data sets that the stage names.
2. `tokenised` makes their records into examples on disk; `planned` says which stand in which step, a pure function of recipe and data.
3. `features` is where the vision tower's output comes from: memory, the cache on disk, or the tower.
4. `audit` looks at the first batch before anything learns from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model.architecture.assembly import Assistant
from model.architecture.features import BUDGET_BYTES, Disk, FeatureSource
from model.config import Packing, TrainSlice
from model.data.dataset import file_digests
from model.data.loading import DataSet, Examples, PixelSource, Plan, Prompter, Rules, check_rows, examples, open_dataset
from model.data.pixels import READING
from model.training.objective import AnswerObjective
from model.training.reporter import Reporter


def opened(
    piece: TrainSlice, folders: Mapping[str, Path], exclude: Mapping[str, Sequence[str]], max_quarantined: float
) -> dict[str, DataSet]:
    """The data sets that the stage uses, every file verified; errors as `open_dataset`."""
    used = dict.fromkeys(mixture.set for mixture in piece.stage.data)
    return {
        name: open_dataset(folders[name], max_quarantined=max_quarantined, exclude=exclude.get(name, ()))
        for name in used
        if name in folders
    }


def tokenised(piece: TrainSlice, prompter: Prompter, sources: Mapping[str, DataSet], reporter: Reporter) -> Examples:
    """The examples of the stage; what was left out is told. Errors as `examples`."""
    learned = examples(piece.stage.data, sources, prompter, piece.model.context_tokens, piece.stage.too_long)
    for name, count in learned.set_aside.items():
        if count:
            reporter.note(f"{name}: {count:,} records are longer than {piece.model.context_tokens} tokens and left out")
    return learned


def planned(piece: TrainSlice, learned: Examples, world_size: int) -> Plan:
    """All optimizer steps. ConfigError if an example is longer than a packed row."""
    stage = piece.stage
    if stage.packing is Packing.NONE:
        micro = stage.micro_batch_tokens or max(1, stage.batch_tokens // world_size)
    else:
        # Not by the number of workers: rows, and so the order of samples, stay what they are when it changes.
        micro = stage.row_tokens
        check_rows(learned.metadata, learned.names, micro, stage.pack_images)
    rules = Rules(stage.batch_tokens, micro, stage.packing, stage.pack_images)
    return Plan(learned.metadata, rules, world_size, piece.seed, stage.epochs, learned.weights)


def features(
    assistant: Assistant,
    learned: Examples,
    sources: Mapping[str, DataSet],
    piece: TrainSlice,
    cache: Disk | None,
    max_image_pixels: int,
    reporter: Reporter,
) -> FeatureSource:
    """What the tower sees, computed once where that saves something."""
    alone = piece.stage.packing is not Packing.SHARED_IMAGE and len(np.unique(learned.metadata.group)) < len(learned)
    again = piece.stage.epochs > 1 or alone
    return FeatureSource(
        assistant,
        PixelSource(assistant.image_processor, cache_bytes=0, max_pixels=max_image_pixels),
        READING,
        cache,
        file_digests(sources.values()),
        kept_bytes=BUDGET_BYTES if again else 0,
        tell=reporter.note,
    )


def audit(objective: AnswerObjective, steps: Plan, rank: int, end_token_id: int, reporter: Reporter) -> None:
    """Look at this rank's first batch, before the random numbers of the run begin. InternalError if packing leaks."""
    first = steps[0]
    own = first[rank] or next(passes for passes in first if passes)
    found = objective.audit(own[0], end_token_id)
    reporter.note(
        f"first batch: {found.text_share:.1%} of the loss on the assistant's text; a probed document is blind to "
        f"{found.blind_positions} positions of its row"
    )
