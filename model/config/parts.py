"""Parts of a recipe beside the stages: model, data, evaluation, promotion, resources."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from model.config.choices import Against, ConnectorKind, Fraction, Name, Purpose, Strict, Template


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
    against_champion: Against = Against.NON_INFERIOR
    """What must be shown against the present champion on the same items."""
    max_loss_to_champion: Fraction = 0.03
    """Margin of non-inferiority: how much lower than the champion's a metric may be, with the whole interval of the differences.

    A candidate as good as its champion, with 10 % of the answers different, passes in this share of all cases (benchmarks/gate_power.py):

        items   251    451   1061   2000   6719
        0.01   0.06   0.11   0.16   0.27   0.72
        0.02   0.19   0.26   0.52   0.79   1.00
        0.03   0.31   0.48   0.84   0.98   1.00
        0.05   0.65   0.91   1.00   1.00   1.00

    0.03 is the narrowest that decides on a set of about a thousand questions. One truly worse by the margin passes in 1 to 4 % whatever
    the size. Losses within it can add up over promotions: `against_champion: superior` now and then, or a narrower margin on a larger
    set, bounds that.
    """
    max_slice_loss: Fraction = 0.05
    """How much lower than the champion's the closed accuracy may be in any modality."""
    min_slice_items: Annotated[int, Field(ge=1)] = 20
    """A modality with fewer items says too little to be judged, which the decision notes."""
    max_seen_in_training: Fraction = 0.0
    """Largest share of the questions whose image also stands in training."""
    purpose: Purpose = Purpose.RESEARCH
    """What the version shall be used for."""
    frozen_items: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Digest of the first benchmark's items (`items_digest` of its report); a report of any other items is refused. Empty takes any."""
    approvals: Annotated[int, Field(ge=0, le=9)] = 0
    """Persons, other than who promotes, that must approve a version that passed the gate; with 0 it is promoted at once."""
    approval_hours: Annotated[int, Field(ge=1, le=8760)] = 168
    """How long an approval holds."""


class Resources(Strict):
    """What the heavy steps ask for. Only `workers` can change a result, so only it belongs to a step's key."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Memory of one worker in GiB."""
    max_failures: Annotated[int, Field(ge=0, le=2)] = 2
    """How often a stage may lose a worker and go on from its last checkpoint."""
    stall_seconds: Annotated[float, Field(gt=0)] = 900.0
    """Longest time that a worker may stand still, or wait for another one; then its stacks are told and it ends with exit 70."""
    pool: Name | None = None
    """Pool of machines that the workers are taken from (pools.yaml) where the step runs on a cluster; empty takes `cpu`."""
    deadline_hours: Annotated[float, Field(gt=0, le=720)] = 24.0
    """Longest time that a heavy step may work on a cluster, over all restarts; waiting in a queue is not counted."""
    pre_running_minutes: Annotated[float, Field(gt=0, le=1440)] = 30.0
    """Longest time from admission by the queue until the workers run: machines, images, Ray."""
    queue_hours: Annotated[float, Field(gt=0, le=8760)] = 168.0
    """Longest time that a heavy step may wait in queues, evictions included; then it is withdrawn."""
