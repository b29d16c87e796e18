"""What is common to all parts of a recipe: strict values, and the closed choices as string enums whose members say what they do."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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


class Against(StrEnum):
    """What a candidate must show against the present champion, on the same items, by the interval of the paired differences."""

    NON_INFERIOR = "non_inferior"
    """The lower end of the interval is not further below 0 than the margin."""
    SUPERIOR = "superior"
    """The lower end of the interval is above 0."""


class Purpose(StrEnum):
    """What a version shall be used for; the licences of all that it was made from must allow it."""

    RESEARCH = "research"
    """Research inside the institution that trains."""
    SHARING = "sharing"
    """Research, and the weights are passed on to others."""
    COMMERCIAL = "commercial"
    """Any use, also commercial."""


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


class Packing(StrEnum):
    """How the examples of a step share forward passes. The loss is the same in all; so is the gradient."""

    NONE = "none"
    """One example a row, padded to the longest of its pass; a step is a plain random sample of the examples."""
    ROWS = "rows"
    """Several examples behind each other in one row, each blind to the others; no padding."""
    SHARED_IMAGE = "shared_image"
    """As rows, and an image stands once for all its conversations, which see it and not each other. Random over images."""


class Memory(StrEnum):
    """What is computed again in the backward pass instead of being kept."""

    AUTO = "auto"
    """Nothing if an estimate says that it fits, else as few blocks of the language model as needed; `biovlm plan` says which."""
    KEEP = "keep"
    """Nothing: fastest."""
    RECOMPUTE = "recompute"
    """Every block of the language model: a third more computing, least memory."""


class TooLong(StrEnum):
    """What happens to a record that is longer than the model's context. None is ever cut inside an answer or an image."""

    SET_ASIDE = "set_aside"
    """It is left out, and counted."""
    SPLIT = "split"
    """A dialogue is divided between turns, the image in front of each part; what is still too long is set aside."""
    REFUSE = "refuse"
    """The run ends with exit 65, naming the longest."""
