"""Recipes: everything that decides what a run does, as frozen and strict data.

A `Recipe` is one complete value; two runs differ as two recipes differ. It is read from YAML by `model.recipe.load`. Unknown keys,
wrong types and contradictions are errors that name the field. Each pipeline step sees only its own slice (`model.recipe.slices`), so
a change of the task stage does not touch the key of the alignment stage.

Closed choices are string enums; each member says what it does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Frozen; an unknown key is an error; no number hides in a string."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class Kind(StrEnum):
    """What a record is for; data mixtures select by it."""

    CAPTION = "caption"
    """The user asks for a description, the assistant gives the caption of the figure."""
    QUESTION = "question"
    """One question, one answer: the unit of evaluation."""
    DIALOGUE = "dialogue"
    """Several questions about one image, closed by a summary."""
    GROUNDING = "grounding"
    """A place is asked for or given as `<box>(x1,y1),(x2,y2)</box>`, integers 0..999 of width and height."""


class Template(StrEnum):
    """How a conversation becomes text, and which tokens are targets (model/data/templates.py)."""

    PLAIN = "plain"
    """`<image>CAPTION` and a newline; the caption is the target. For alignment."""
    LLAMA3 = "llama3"
    """Llama-3 headers; the answer and its `<|eot_id|>` are targets."""
    VICUNA_V1 = "vicuna_v1"
    """`USER: ... ASSISTANT: ...</s>`; the answer and `</s>` are targets."""
    VISION_BIOLLM = "vision_biollm"
    """As vicuna_v1, closed by `<|end_of_text|>`."""
    CHATML = "chatml"
    """`<|im_start|>role ... <|im_end|>`; the answer and its `<|im_end|>` are targets."""
    MISTRAL = "mistral"
    """`[INST] ... [/INST] answer</s>`; the answer and `</s>` are targets."""


class ConnectorKind(StrEnum):
    """What carries image features into the language model's embedding space."""

    LINEAR = "linear"
    """One linear layer (LLaVA-Med v1)."""
    MLP2X_GELU = "mlp2x_gelu"
    """Linear, GELU, linear (LLaVA-1.5, Vision-BioLLM, Llama3-Med)."""


class Part(StrEnum):
    """A part of the model that a stage may train."""

    CONNECTOR = "connector"
    """All weights of the connector."""
    LANGUAGE_LORA = "language_lora"
    """A new LoRA adapter on the linear layers of the language model."""


class Precision(StrEnum):
    """Number format of the forward and backward pass; optimizer states and LoRA weights stay float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Schedule(StrEnum):
    """Learning rate after the warm-up."""

    COSINE = "cosine"
    """Falls to zero along half a cosine."""
    CONSTANT = "constant"
    """Stays as it is."""


class Strategy(StrEnum):
    """How several workers share one model."""

    DDP = "ddp"
    """Every worker holds the whole model; gradients are averaged."""
    ZERO2 = "zero2"
    """DeepSpeed ZeRO stage 2: optimizer states and gradients are split over the workers."""
    ZERO3 = "zero3"
    """DeepSpeed ZeRO stage 3: the weights are split as well."""


class ModelSource(Strict):
    """Where a part's weights come from: a `source`, or a `config` for random weights (tests)."""

    source: str | None = None
    """`registry:NAME` (a base model of the data registry), a local folder, or a hub name `org/name`."""
    revision: str | None = None
    """Commit of a hub repository; required for hub names, so that the weights cannot change under the recipe."""
    config: dict[str, Any] | None = None
    """A transformers config with `model_type`; weights are drawn from the recipe's seed."""
    licence: str = "unknown"
    """SPDX identifier, or the name under which the weights are offered. Carried into the lineage."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSource:
        if (self.source is None) == (self.config is None):
            raise ValueError("give either `source` or `config`, not both and not neither")
        return self


class Connector(Strict):
    """The layer between vision tower and language model."""

    kind: ConnectorKind = ConnectorKind.MLP2X_GELU


class Model(Strict):
    """Vision tower + connector + language model, put together as transformers' LLaVA."""

    tower: ModelSource
    connector: Connector = Connector()
    language: ModelSource
    template: Template = Template.LLAMA3
    system: str = ""
    """System text in front of every conversation; empty for none."""
    feature_layer: int = -2
    """Index into the tower's hidden states; -2 is the output of the last layer but one. The class token is dropped."""
    context_tokens: Annotated[int, Field(ge=16, le=131_072)] = 512
    """Longest sequence in tokens, image tokens included; a longer record is set aside and counted."""


class Mixture(Strict):
    """One ingredient of a stage's training data."""

    set: Name
    """Name of a data set under `data.sets`."""
    split: Name = "train"
    kinds: tuple[Kind, ...] = ()
    """Kinds of record to take; empty takes all."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often an epoch shows each record: 2 shows it twice, 0.5 shows a seeded half."""


class DataSet(Strict):
    """A version of a data set in the data registry."""

    revision: str = "HEAD"
    """Git revision of the data registry."""


class Data(Strict):
    """The data sets of a run and the limits of their audit."""

    sets: dict[Name, DataSet]
    max_quarantined: Fraction = 0.02
    """Largest share of records that may be set aside before the run stops with exit 65."""
    max_image_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Largest width x height in pixels of an image."""


class Lora(Strict):
    """A low-rank adapter on the language model (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of linear layers inside the language model's blocks; vision tower and connector are never matched."""


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
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    precision: Precision = Precision.FLOAT32
    lora: Lora | None = None
    strategy: Strategy = Strategy.DDP
    """`zero2` and `zero3` need DeepSpeed; `zero3` is for a language model too large for one device, and slower otherwise."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between checkpoints."""

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


class Benchmark(Strict):
    """Questions to answer: a benchmark file (model/evaluation/benchmarks) on a split of a data set."""

    benchmark: Name = "vqa"
    set: Name
    split: Name = "test"
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many questions, taken by the digest of their ids; empty asks all."""


class Evaluation(Strict):
    """What is asked of a finished model. The first benchmark is the one that promotion looks at."""

    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 16
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Questions answered at once."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Promotion(Strict):
    """When a version becomes the champion."""

    min_closed_accuracy: Fraction = 0.0
    min_open_recall: Fraction = 0.0
    min_image_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Least closed accuracy above the blind control; the lower end of its interval must be above it."""
    min_items: Annotated[int, Field(ge=1)] = 50
    """With fewer items the decision is not_enough_data."""
    max_loss_to_champion: Fraction = 0.01
    """How much lower than the champion's the closed accuracy may be on the same items."""


class Resources(Strict):
    """What the heavy steps ask for. Only `workers` can change a result, so only it belongs to a step's key."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Memory of one worker in GiB."""
    max_failures: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a stage may lose a worker and go on from its last checkpoint."""


class Recipe(Strict):
    """A run, completely."""

    name: Name
    description: str = ""
    registered_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = "biovlm"
    """Name in the model registry."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    model: Model
    stages: Stages
    evaluation: Evaluation
    promotion: Promotion = Promotion()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _sets_exist(self) -> Recipe:
        used = [(f"stages.{stage}.data", mix.set) for stage in STAGE_NAMES for mix in getattr(self.stages, stage).data]
        used += [("evaluation.benchmarks", bench.set) for bench in self.evaluation.benchmarks]
        for field, name in used:
            if name not in self.data.sets:
                raise ValueError(f"{field} uses the data set {name!r}, but data.sets names {sorted(self.data.sets)}")
        return self


STAGE_NAMES = ("align", "instruct", "task")


class DataSlice(Strict):
    """What the data step sees."""

    data: Data
    uses: tuple[Mixture, ...]
    """Every mixture and benchmark of the recipe, for the audit of leakage between training and evaluation."""
    evaluated: tuple[Benchmark, ...]
    bases: tuple[str, ...]
    """Names of base models in the data registry (`registry:NAME`)."""


class TrainSlice(Strict):
    """What one training step sees."""

    stage_name: Name
    seed: int
    model: Model
    stage: Stage
    resources: Resources


class EvaluateSlice(Strict):
    """What the evaluation step sees."""

    seed: int
    evaluation: Evaluation
    resources: Resources


class RegisterSlice(Strict):
    """What the registration step sees."""

    registered_model: str
    recipe: Name
    recipe_digest: str


class PromoteSlice(Strict):
    """What the promotion step sees."""

    registered_model: str
    promotion: Promotion
