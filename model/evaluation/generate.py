"""Greedy answers, many questions at once, each image seen once.

The journey of a question:
1. It becomes token ids by the template of the model, cut behind the last image: what stands before is shared by all questions of
   that image (`question`).
2. Questions with the same ids about the same images are asked once; for the blind control, where all images are one, most are.
3. Batches keep the questions of an image together. Its features are asked for once, and led through the connector once.
4. `shared_prefix` answers a batch from one cache for each image; `vllm_engine` does where vLLM serves an export.

A question gets the same answer in any company (up to the rounding of sums in another order: about 1e-6 of a logit). Nothing is drawn
at random.

P image tokens an image, D features of the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from model.architecture.assembly import Assistant
from model.data.records import Record
from model.data.templates import Prompter
from model.errors import DataError
from model.evaluation.question import Question, batches, question_of
from model.evaluation.shared_prefix import SharedPrefix

Features = Callable[[Sequence[str]], torch.Tensor]
"""Names of N images, as records have them -> what the tower gives for them (N, P, D)."""
Progress = Callable[[int, int, str], None]
"""done, total, unit."""


class Engine(Protocol):
    """What answers a batch: `SharedPrefix`, or `VllmEngine`."""

    def answer(self, questions: Sequence[Question], features: Mapping[str, torch.Tensor]) -> list[list[int]]:
        """New token ids of each question, up to and with the end token; features: image -> embeddings (P, width)."""


BLIND = "blind"
"""Name of the image that stands for every image in the blind control."""


@dataclass(frozen=True)
class Prediction:
    """What the model said."""

    record_id: str
    text: str
    """Without special tokens, trimmed."""
    new_tokens: int
    complete: bool
    """False if the answer was cut at `max_new_tokens`, or the question did not fit."""
    asked: bool = True
    """False if prompt and answer could exceed the model's context: the answer is empty then, and counts as wrong."""


def answer_all(
    assistant: Assistant,
    records: Sequence[Record],
    features: Features,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None = None,
    worded: Callable[[str], str] = str,
    engine: Engine | None = None,
) -> list[Prediction]:
    """Ask the first question of every record, each on its own, and return the answers in the order of the records.

    Args:
        assistant: The model.
        records: Their first user turn is the question.
        features: Gives the images' features by the names in the records; an image is asked for once.
        batch_size: Questions at once; bounds the memory, and does not change the answers.
        max_new_tokens: Longest answer in tokens.
        progress: Called with (questions done, all, "questions") after each batch.
        worded: Wording around the question (`BenchmarkFile.worded`).
        engine: What answers; without one, the assistant itself.

    Raises:
        DataError: A question cannot be rendered. ConfigError: The template cannot ask a question.
    """
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    room = assistant.context_tokens - max_new_tokens
    asked: dict[Question, list[int]] = {}
    for index, record in enumerate(records):
        asked.setdefault(question_of(record, prompter, worded), []).append(index)
    predictions = {
        index: Prediction(records[index].id, "", 0, complete=False, asked=False)
        for question in asked
        if question.num_tokens > room
        for index in asked[question]
    }
    assistant.model.eval()
    engine = engine or SharedPrefix(assistant, prompter.end_token_id, prompter.pad_token_id, max_new_tokens)
    seen: dict[str, torch.Tensor] = {}
    for batch in batches((question for question in asked if question.num_tokens <= room), batch_size):
        seen = _see(assistant, batch, features, seen)
        for question, ids in zip(batch, engine.answer(batch, seen), strict=True):
            predictions |= {index: _prediction(records[index].id, ids, prompter) for index in asked[question]}
        if progress is not None:
            progress(len(predictions), len(records), "questions")
    return [predictions[index] for index in range(len(records))]


def blinded(records: Iterable[Record]) -> list[Record]:
    """The same questions, every image named BLIND."""
    return [record.model_copy(update={"images": (BLIND,) * len(record.images)}) for record in records]


def mean_image(images: Sequence[str], pixels: Callable[[Sequence[str]], torch.Tensor], block: int = 64) -> torch.Tensor:
    """Mean (C, H, W) of preprocessed images, summed in float64: what the blind control shows instead of an image."""
    if not images:
        raise DataError(
            "there is no training image to average for the blind control", "the train split needs records with images"
        )
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(images), block):
        total = total + pixels(images[start : start + block]).to(torch.float64).sum(dim=0)
    return (total / len(images)).to(torch.float32)


@torch.inference_mode()
def _see(
    assistant: Assistant, batch: Sequence[Question], features: Features, known: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Connector output (P, width of the language model) of every image of the batch; those of the batch before are not computed
    again, others are let go."""
    names = list(dict.fromkeys(name for question in batch for name in question.images))
    new = [name for name in names if name not in known]
    found = {name: known[name] for name in names if name in known}
    if new:
        connector = assistant.connector
        projected = connector(features(new).to(assistant.device, connector.linear_1.weight.dtype))
        found |= dict(zip(new, projected, strict=True))
    return found


def _prediction(record_id: str, ids: Sequence[int], prompter: Prompter) -> Prediction:
    complete = bool(ids) and ids[-1] == prompter.end_token_id
    said = list(ids[:-1]) if complete else list(ids)
    text = prompter.tokenizer.decode(said, skip_special_tokens=True).strip()
    return Prediction(record_id, text, len(ids), complete)
