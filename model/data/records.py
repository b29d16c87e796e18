"""Records: one JSON line for one conversation about one or more images.

A data set version is a folder:

    manifest.json            kind "data"; facts: name, licence, synthetic, counts by split, source, repairs (model/manifest.py)
    records/train.jsonl      one `Record` a line, one file a split
    records/test.jsonl
    images/...               PNG, JPEG or BMP files; records name them relative to the folder of the data set

User text never holds an image placeholder: a record lists its images, and the chat template places them. `group` is the unit that
must not be split between training and test: the patient, study or image.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.config import Kind


class Role(StrEnum):
    """Who speaks in a turn."""

    USER = "user"
    ASSISTANT = "assistant"


class AnswerType(StrEnum):
    """Closed questions name their possible answers (yes/no, left/right); open ones do not."""

    OPEN = "open"
    CLOSED = "closed"


class Turn(BaseModel):
    """One utterance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    text: Annotated[str, Field(min_length=1, max_length=20_000)]


class Record(BaseModel):
    """One conversation: user and assistant in turn, ending with the assistant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(min_length=1, max_length=200, description="Unique in the data set.")]
    group: Annotated[str, Field(min_length=1, max_length=200, description="Patient, study or image; never split between splits.")]
    kind: Kind
    images: tuple[str, ...] = Field(default=(), description="Paths relative to the data set's folder, in order of appearance.")
    turns: tuple[Turn, ...] = Field(min_length=2)
    answer_type: AnswerType | None = Field(default=None, description="For questions only.")
    question_type: str = Field(default="", description="Slice of evaluation: presence, position, count, ...")
    modality: str = Field(default="", description="Slice of evaluation: ct, mr, xray, ultrasound, histology, ...")
    source: str = Field(default="", description="Where it comes from: name of the data set or generator.")

    @model_validator(mode="after")
    def _turns_alternate(self) -> Record:
        for index, turn in enumerate(self.turns):
            expected = Role.USER if index % 2 == 0 else Role.ASSISTANT
            if turn.role is not expected:
                raise ValueError(f"turn {index} is {turn.role}, expected {expected}: user and assistant speak in turn")
            if not turn.text.strip():
                raise ValueError(f"turn {index} is blank")
        if len(self.turns) % 2:
            raise ValueError(f"{len(self.turns)} turns: the last one must be the assistant's")
        return self

    @property
    def question(self) -> str:
        """Text of the first user turn."""
        return self.turns[0].text

    @property
    def answer(self) -> str:
        """Text of the first assistant turn."""
        return self.turns[1].text
