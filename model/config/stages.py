"""The training stages of a recipe: what learns, from what, how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from model.config.choices import (
    Fraction,
    Kind,
    Memory,
    Name,
    Packing,
    Part,
    Precision,
    Schedule,
    Strategy,
    Strict,
    Template,
    TooLong,
)


class Mixture(Strict):
    """One ingredient of a stage's training data."""

    set: Name
    """Name of a data set under `data.sets`."""
    split: Name = "train"
    kinds: tuple[Kind, ...] = ()
    """Kinds of record to take; empty takes all."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often an epoch shows each record: 2 shows it twice, 0.5 shows a seeded half."""


class Lora(Strict):
    """A low-rank adapter on the language model (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of linear layers inside the language model's blocks; vision tower and connector are never matched."""


class Guard(Strict):
    """When an optimizer step is not taken, and when training gives up. A loss or gradient that is not finite is never taken."""

    window: Annotated[int, Field(ge=4, le=10_000)] = 64
    """Accepted steps with whose losses a new loss is compared; before a quarter of them are there, none is called a spike."""
    spike: Annotated[float, Field(gt=0)] | None = 10.0
    """A loss so many robust standard deviations above the window's median is a spike, and its step not taken; empty: never."""
    drift: Annotated[float, Field(gt=0)] = 3.0
    """A warning is given when the newer half of the window lies so many robust standard deviations above the older half."""
    max_skips: Annotated[int, Field(ge=0)] = 4
    """With more steps not taken among `skip_window`, training goes back to a checkpoint and round the data of those steps; a second
    time it ends with exit 79."""
    skip_window: Annotated[int, Field(ge=1)] = 100
    compare_every: Annotated[int, Field(ge=1)] = 100
    """Steps between two comparisons of the workers' weights under `ddp`; they are also compared before each checkpoint."""


class Stage(Strict):
    """One training stage: what learns, from what, how."""

    data: tuple[Mixture, ...] = Field(min_length=1)
    trainable: tuple[Part, ...] = Field(min_length=1)
    template: Template | None = None
    """Template of this stage; empty takes the model's."""
    learning_rates: dict[Part, Annotated[float, Field(gt=0, lt=1)]]
    """Peak learning rate of each part named in `trainable`."""
    schedule: Schedule = Schedule.COSINE
    warmup: Fraction = 0.03
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient over all trainable weights."""
    batch_tokens: Annotated[int, Field(ge=64)]
    """Tokens of one optimizer step over all workers, padding excluded, image tokens included."""
    micro_batch_tokens: Annotated[int, Field(ge=64)] | None = None
    """Tokens, padding included, of one forward pass on one worker; empty takes `batch_tokens` / workers."""
    packing: Packing = Packing.NONE
    """With `rows` and `shared_image`, `micro_batch_tokens` is the length of a row (empty takes `batch_tokens`)."""
    pack_images: Annotated[int, Field(ge=1)] | None = None
    """Most images in one packed row; empty leaves it to the tokens."""
    too_long: TooLong = TooLong.SET_ASIDE
    """What happens to a record that is longer than the model's context."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    precision: Precision = Precision.FLOAT32
    lora: Lora | None = None
    strategy: Strategy = Strategy.DDP
    """`zero2` and `zero3` need DeepSpeed; `zero3` is for a language model too large for one device, and slower otherwise."""
    compile: bool = True
    """On a GPU, with packing: compile the language model's blocks for rows of one length; the first step waits for it."""
    memory: Memory = Memory.AUTO
    """What is computed again in the backward pass."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between checkpoints."""
    guard: Guard = Guard()

    @property
    def row_tokens(self) -> int:
        """Tokens of a packed row."""
        return self.micro_batch_tokens or self.batch_tokens

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        learns_lora = Part.LANGUAGE_LORA in self.trainable
        if learns_lora and self.lora is None:
            raise ValueError("`trainable` names language_lora but `lora` is missing: give rank, alpha and targets")
        if self.lora is not None and not learns_lora:
            raise ValueError("`lora` is given but `trainable` does not name language_lora: add it, or remove `lora`")
        if set(self.learning_rates) != set(self.trainable):
            named, learning = sorted(self.learning_rates), sorted(self.trainable)
            raise ValueError(f"`learning_rates` names {named}, `trainable` names {learning}: they must be the same")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens > self.batch_tokens:
            raise ValueError(f"micro_batch_tokens {self.micro_batch_tokens:,} > batch_tokens {self.batch_tokens:,}")
        return self


class Stages(Strict):
    """The three stages, each starting from the one before."""

    align: Stage
    instruct: Stage
    task: Stage
