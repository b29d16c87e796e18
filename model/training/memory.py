"""What a training step takes of a worker's memory, and how much of it is computed again so that it fits.

1. `shapes_of` reads the sizes from the configs of the two base models; no weight is needed, and no torch.
2. `estimate` adds up what is there all the time (weights, gradients, moments, tower, process) and what a pass keeps for its backward
   pass: of each block of the language model, the tensors that its operations save.
3. `choose` compares with the budget: everything is kept if it fits; else as few blocks as needed are computed again from their
   inputs; if even all of them do not help, a letter says which strategy or which smaller pass would.

The sums follow transformers' Llama, Mistral and Qwen2 blocks with PEFT's LoRA, operation by operation; benchmarks/memory.py compares
them with the peak of real steps. Recomputing changes no result, so the choice may differ from machine to machine.

T tokens of a pass, W width, I width of the MLP, K width of keys or values, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model.config import Lora, Memory, Model, Packing, Part, Precision, Resources, Stage, Strategy
from model.errors import ConfigError

MIB = 2**20
PROCESS_BYTES = 450 * MIB
"""Of a worker before any weight: Python, torch, transformers and peft; on a GPU, what CUDA takes for itself."""
HEAP_SHARE, HEAP_BLOCKS = 1.4, 6.5
"""What glibc's heap adds on a CPU, measured: to what is kept, and for the many short-lived tensors of a pass, in blocks. Kept and
short-lived tensors lie mixed, so a third to a half of the heap is holes. Giving each tensor a mapping of its own avoids the holes and
costs 40 % more processor time (benchmarks/LOG.md)."""
POOL_SHARE, POOL_BLOCKS = 1.1, 1.0
"""The same for the pool of a GPU, where one block is whole while it is computed again."""
FEATURES_BYTES = 512 * MIB
"""Most that a worker keeps of the tower's features (`model.architecture.features.BUDGET_BYTES`)."""
HEAD_BYTES = 64 * MIB
"""Logits and their gradient, made in chunks (`model.architecture.head`), with the copies on the way."""
MOMENTS = 2
FLOAT32 = 4
WORKERS_TRIED = (2, 4, 8, 16, 32, 64)
LEAST_MICRO = 64


@dataclass(frozen=True)
class Shapes:
    """Sizes of the network, in numbers of values."""

    width: int
    mlp: int
    keys: int
    """K: heads of keys times their width."""
    queries: int
    """Heads of queries times their width."""
    heads: int
    blocks: int
    vocabulary: int
    tied: bool
    biases: bool
    tower_width: int
    tower_values: int
    """Weights of the vision tower."""
    image_tokens: int

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Name of each linear layer of a block -> values in, values out."""
        return {
            "q_proj": (self.width, self.queries),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.queries, self.width),
            "gate_proj": (self.width, self.mlp),
            "up_proj": (self.width, self.mlp),
            "down_proj": (self.mlp, self.width),
        }

    @property
    def block_values(self) -> int:
        """Weights of a block."""
        return sum(given * made for given, made in self.linear.values()) + 2 * self.width + 3 * self.biases * self.keys

    @property
    def connector_values(self) -> int:
        """Weights of the connector, of either kind."""
        return self.tower_width * self.width + self.width**2 + 2 * self.width

    def lora_values(self, lora: Lora) -> int:
        """Weights of an adapter on all blocks."""
        return self.blocks * sum(lora.rank * sum(self.linear[name]) for name in lora.targets if name in self.linear)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one worker."""

    weights: int
    gradients: int
    moments: int
    tower: int
    """The tower, and features that are kept."""
    process: int
    head: int
    passing: int
    """What comes and goes while a pass runs."""
    kept_block: int
    """Kept for the backward pass of a block."""
    recomputed_block: int
    """Kept of a block that is computed again: its input."""
    share: float
    """What the allocator takes for a byte that is kept."""
    blocks: int

    def total(self, recomputed: int) -> int:
        """Peak with so many blocks computed again."""
        fixed = self.weights + self.gradients + self.moments + self.tower + self.process
        kept = (self.blocks - recomputed) * self.kept_block + recomputed * self.recomputed_block
        return fixed + self.head + self.passing + int(self.share * kept)


@dataclass(frozen=True)
class Choice:
    """What a stage does about memory."""

    recomputed: int
    """Blocks of the language model that are computed again."""
    blocks: int
    needed_bytes: int
    kept_bytes: int
    """What keeping everything would take."""
    budget_bytes: int

    def __str__(self) -> str:
        what = {0: "keeps everything", self.blocks: f"computes all {self.blocks} blocks again"}.get(
            self.recomputed, f"computes {self.recomputed} of {self.blocks} blocks again"
        )
        why = f" (all kept: {gib(self.kept_bytes)})" if self.recomputed else ""
        return f"{what}: about {gib(self.needed_bytes)} of {gib(self.budget_bytes)}{why}"


def shapes_of(language: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    """From the `config.json` of both base models; a whole CLIP's tower is its `vision_config`.

    Raises:
        ConfigError: A size is missing.
    """
    tower = tower.get("vision_config") or tower
    try:
        heads = int(language["num_attention_heads"])
        head_width = int(language.get("head_dim") or language["hidden_size"] // heads)
        tower_width, patches = int(tower["hidden_size"]), (int(tower["image_size"]) // int(tower["patch_size"])) ** 2
        layer = 4 * tower_width**2 + 2 * tower_width * int(tower["intermediate_size"])
        return Shapes(
            width=int(language["hidden_size"]),
            mlp=int(language["intermediate_size"]),
            keys=int(language.get("num_key_value_heads") or heads) * head_width,
            queries=heads * head_width,
            heads=heads,
            blocks=int(language["num_hidden_layers"]),
            vocabulary=int(language["vocab_size"]),
            tied=bool(language.get("tie_word_embeddings", False)),
            biases=language.get("model_type") == "qwen2",
            tower_width=tower_width,
            tower_values=int(tower["num_hidden_layers"]) * layer + tower_width * (3 * int(tower["patch_size"]) ** 2 + patches),
            image_tokens=patches,
        )
    except KeyError as error:
        raise ConfigError(
            f"the config of a base model has no {error.args[0]}: its memory cannot be estimated",
            "give the field in config.json, or set `memory: keep`",
        ) from None


def estimate(shapes: Shapes, model: Model, stage: Stage, resources: Resources) -> Estimate:
    """Bytes of one worker in a step of `stage`."""
    workers, gpu = resources.workers, resources.gpus_per_worker > 0
    size = 2 if stage.precision is Precision.BFLOAT16 else FLOAT32
    base = shapes.blocks * shapes.block_values + shapes.vocabulary * shapes.width * (1 if shapes.tied else 2)
    lora = shapes.lora_values(stage.lora) if stage.lora is not None else 0
    learned = lora + (shapes.connector_values if Part.CONNECTOR in stage.trainable else 0)
    split = workers if stage.strategy is not Strategy.DDP else 1
    held = workers if stage.strategy is Strategy.ZERO3 else 1
    # With ZeRO-3 the weights of two blocks and of the head are gathered while they are used.
    gathered = (2 * shapes.block_values + shapes.vocabulary * shapes.width) * size if held > 1 else 0
    tokens = _tokens(model, stage, workers)
    kept = _kept(shapes, stage, tokens, size)
    return Estimate(
        weights=(base * size + (lora + shapes.connector_values) * FLOAT32) // held + gathered,
        gradients=learned * FLOAT32 // split,
        moments=MOMENTS * learned * FLOAT32 // split,
        tower=shapes.tower_values * size + min(FEATURES_BYTES, 64 * shapes.image_tokens * shapes.tower_width * size),
        process=PROCESS_BYTES,
        head=HEAD_BYTES + 2 * tokens * shapes.width * size,
        passing=tokens * 3 * (shapes.mlp + shapes.width) * size + int((POOL_BLOCKS if gpu else HEAP_BLOCKS) * kept),
        kept_block=kept,
        recomputed_block=tokens * shapes.width * size,
        share=POOL_SHARE if gpu else HEAP_SHARE,
        blocks=shapes.blocks,
    )


def choose(shapes: Shapes, model: Model, stage: Stage, resources: Resources, budget_bytes: int) -> Choice:
    """What `stage` keeps and what it computes again.

    Args:
        shapes: Of the network.
        model: Recipe part.
        stage: Recipe part; its `memory` may have decided already.
        resources: The workers.
        budget_bytes: Memory of one worker.

    Raises:
        ConfigError: With `memory: auto`, it does not fit even if every block is computed again. The letter says what would.
    """
    found = estimate(shapes, model, stage, resources)
    recomputed = {Memory.KEEP: 0, Memory.RECOMPUTE: found.blocks}.get(stage.memory, _fewest(found, budget_bytes))
    if recomputed is None:
        raise ConfigError(
            f"the stage takes about {gib(found.total(found.blocks))} on each of {resources.workers} workers even if all "
            f"{found.blocks} blocks are computed again; a worker has {gib(budget_bytes)} ({_parts(found)})",
            _way_out(shapes, model, stage, resources, budget_bytes),
        )
    return Choice(recomputed, found.blocks, found.total(recomputed), found.total(0), budget_bytes)


def _tokens(model: Model, stage: Stage, workers: int) -> int:
    """Most positions of one pass on one worker."""
    if stage.packing is not Packing.NONE:
        return stage.micro_batch_tokens or stage.batch_tokens
    # An example that is longer than the pass stands alone in it.
    return max(stage.micro_batch_tokens or stage.batch_tokens // workers, model.context_tokens)


def _kept(shapes: Shapes, stage: Stage, tokens: int, size: int) -> int:
    """Bytes that a block's operations save for their backward passes."""
    width, mlp, queries = shapes.width, shapes.mlp, shapes.queries
    # Both norms compute in float32: their input, and in another format a copy of it.
    norms = 2 * width * (FLOAT32 + (size if size != FLOAT32 else 0))
    # The kernel keeps queries, keys and values as it got them (keys and values for every head), its result, and one number a head.
    attention = (3 * queries + queries) * size + FLOAT32 * shapes.heads
    gated = 3 * mlp * size  # gate, its SiLU, up
    return tokens * (norms + attention + gated + _lora_values(shapes, stage.lora) * size + _dropout_bytes(shapes, stage.lora))


def _lora_values(shapes: Shapes, lora: Lora | None) -> int:
    """Values a token that the adapter's layers save: their inputs, and what is between their two matrices."""
    if lora is None:
        return 0
    targets = [name for name in lora.targets if name in shapes.linear]
    if lora.dropout:
        inputs = sum(shapes.linear[name][0] for name in targets)
    else:  # layers that read the same tensor keep it once
        readers = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
        inputs = sum(shapes.linear[group[0]][0] for group in readers if any(name in targets for name in group))
    return inputs + lora.rank * len(targets)


def _dropout_bytes(shapes: Shapes, lora: Lora | None) -> int:
    """A mask in float32 for every input that is thinned out: PEFT thins out what it has brought to the adapter's format."""
    if lora is None or not lora.dropout:
        return 0
    return FLOAT32 * sum(shapes.linear[name][0] for name in lora.targets if name in shapes.linear)


def _fewest(found: Estimate, budget_bytes: int) -> int | None:
    """Fewest blocks to compute again; None if all are not enough."""
    return next((count for count in range(found.blocks + 1) if found.total(count) <= budget_bytes), None)


def _way_out(shapes: Shapes, model: Model, stage: Stage, resources: Resources, budget_bytes: int) -> str:
    def fits(other: Stage, workers: int) -> bool:
        asked = resources.model_copy(update={"workers": workers})
        return _fewest(estimate(shapes, model, other, asked), budget_bytes) is not None

    ways = [f"set {what}" for what, other, workers in _others(stage, resources.workers) if fits(other, workers)]
    return "; or ".join(ways[:3]) or "take a smaller language model, or workers with more memory"


def _others(stage: Stage, workers: int) -> Iterator[tuple[str, Stage, int]]:
    """What could be tried instead, with its name; nearest first."""
    micro = stage.micro_batch_tokens or stage.batch_tokens
    while micro > LEAST_MICRO:
        micro = max(LEAST_MICRO, micro // 2)
        yield f"micro_batch_tokens={micro}", stage.model_copy(update={"micro_batch_tokens": micro}), workers
    for strategy in (Strategy.ZERO2, Strategy.ZERO3):
        for count in WORKERS_TRIED:
            if count >= workers:
                yield f"strategy={strategy} with {count} workers", stage.model_copy(update={"strategy": strategy}), count


def _parts(found: Estimate) -> str:
    held = {
        "weights": found.weights,
        "gradients and moments": found.gradients + found.moments,
        "tower": found.tower,
        "a block's activations": found.kept_block,
    }
    return ", ".join(f"{name} {gib(size)}" for name, size in held.items())


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB"
