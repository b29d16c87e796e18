"""Greedy answers, many questions at once, each image seen once.

The journey of a batch:
1. Every question becomes token ids by the template of the model; questions are sorted so that those of one image are neighbours.
2. The ids are cut behind the last image placeholder: what stands before is the *prefix*, which all questions of an image share.
3. Each image passes the tower once, each distinct prefix passes the language model once (padded on the left); its keys and values
   are then copied to the rows of its questions.
4. The rest of the questions follows, padded on the left, and gives the first token of every answer.
5. Greedy steps go on until every answer has ended with the template's end token or reached `max_new_tokens`; rows that have ended
   leave the batch.

Questions with the same ids about the same images are asked once; for the blind control, where all images are one, most are.
Positions are counted without padding, and padding is masked, so a question gets the same answer in any company (up to the rounding
of sums in another order: about 1e-6 of a logit). Nothing is drawn at random.

N distinct prefixes, B questions, S and T tokens, P image tokens an image, D embedding width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from model.architecture.assembly import Assistant
from model.architecture.joint import encode
from model.data.records import Record, Role, Turn
from model.data.templates import Prompter
from model.errors import ConfigError, DataError, DivergedError

Pixels = Callable[[Sequence[str]], torch.Tensor]
"""Names of images, as records have them -> (N, C, H, W) float32."""
Progress = Callable[[int, int, str], None]
"""done, total, unit."""
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


@dataclass(frozen=True)
class Question:
    """What is asked: token ids cut into the shared prefix and the rest. Equal questions are asked once."""

    images: tuple[str, ...]
    prefix: tuple[int, ...]
    """Up to and with the last image placeholder."""
    rest: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the whole prompt, image tokens included."""
        return len(self.prefix) + len(self.rest)


def answer_all(
    assistant: Assistant,
    records: Sequence[Record],
    pixels: Pixels,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress | None = None,
    worded: Callable[[str], str] = str,
) -> list[Prediction]:
    """Ask the first question of every record, each on its own, and return the answers in the order of the records.

    Args:
        assistant: The model.
        records: Their first user turn is the question.
        pixels: Gives the images by the names in the records; a name is asked for once while its questions are at hand.
        batch_size: Questions at once; does not change the answers.
        max_new_tokens: Longest answer in tokens.
        progress: Called with (questions done, all, "questions") after each batch.
        worded: Wording around the question (`BenchmarkFile.worded`).

    Raises:
        DataError: A question cannot be rendered. ConfigError: The template cannot ask a question.
    """
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    room = assistant.context_tokens - max_new_tokens
    asked: dict[Question, list[int]] = {}
    for index, record in enumerate(records):
        asked.setdefault(_question(record, prompter, worded), []).append(index)
    predictions = {
        index: Prediction(records[index].id, "", 0, complete=False, asked=False)
        for question in asked
        if question.num_tokens > room
        for index in asked[question]
    }
    waiting = sorted((q for q in asked if q.num_tokens <= room), key=lambda q: (q.images, q.prefix, len(q.rest), q.rest))
    assistant.model.eval()
    features: dict[str, torch.Tensor] = {}
    for start in range(0, len(waiting), batch_size):
        batch = waiting[start : start + batch_size]
        features = _features(assistant, batch, pixels, features)
        for question, ids in zip(batch, _answer(assistant, batch, features, prompter, max_new_tokens), strict=True):
            predictions |= {index: _prediction(records[index].id, ids, prompter) for index in asked[question]}
        if progress is not None:
            progress(len(predictions), len(records), "questions")
    return [predictions[index] for index in range(len(records))]


def blinded(records: Iterable[Record]) -> list[Record]:
    """The same questions, every image named BLIND."""
    return [record.model_copy(update={"images": (BLIND,) * len(record.images)}) for record in records]


def mean_image(images: Sequence[str], pixels: Pixels, block: int = 64) -> torch.Tensor:
    """Mean (C, H, W) of preprocessed images, summed in float64: what the blind control shows instead of an image."""
    if not images:
        raise DataError(
            "there is no training image to average for the blind control", "the train split needs records with images"
        )
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(images), block):
        total = total + pixels(images[start : start + block]).to(torch.float64).sum(dim=0)
    return (total / len(images)).to(torch.float32)


def _question(record: Record, prompter: Prompter, worded: Callable[[str], str]) -> Question:
    turn = Turn(role=Role.USER, text=worded(record.question))
    ids = prompter.prompt([turn], len(record.images), record.id)
    places = [place for place, token in enumerate(ids) if token == prompter.image_token_id]
    expected = len(record.images) * prompter.image_tokens
    if len(places) != expected:
        raise DataError(
            f"record {record.id!r}: {len(places)} image placeholders, its images need {expected}", "check the template"
        )
    cut = places[-1] + 1 if places else 1
    if cut >= len(ids):
        raise ConfigError(
            f"the template `{prompter.template}` puts nothing behind the image: it cannot ask a question",
            "set model.template to the template of a conversation",
        )
    return Question(record.images, tuple(ids[:cut]), tuple(ids[cut:]))


@torch.inference_mode()
def _features(
    assistant: Assistant, batch: Sequence[Question], pixels: Pixels, known: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Connector output (P, D) of every image of the batch; those already known are not computed again, others are let go."""
    names = list(dict.fromkeys(name for question in batch for name in question.images))
    new = [name for name in names if name not in known]
    found = {name: known[name] for name in names if name in known}
    if new:
        connector = assistant.connector
        seen = encode(assistant.model, pixels(new).to(assistant.device))
        projected = connector(seen.to(connector.linear_1.weight.dtype))
        found |= dict(zip(new, projected, strict=True))
    return found


@torch.inference_mode()
def _answer(
    assistant: Assistant, batch: Sequence[Question], features: Mapping[str, torch.Tensor], prompter: Prompter, max_new_tokens: int
) -> list[list[int]]:
    """New token ids of each question, up to and with the end token."""
    device, pad = assistant.device, prompter.pad_token_id
    shared = list(dict.fromkeys((question.images, question.prefix) for question in batch))
    of_row = torch.tensor([shared.index((question.images, question.prefix)) for question in batch], device=device)
    ids, mask = _pad_left([prefix for _, prefix in shared], pad, device)
    cache = DynamicCache()
    seen = [features[name] for images, _ in shared for name in images]
    _forward(assistant, _embed(assistant, ids, seen), mask, cache)
    cache.batch_select_indices(of_row)
    ids, rest_mask = _pad_left([question.rest for question in batch], pad, device)
    mask = torch.cat([mask[of_row], rest_mask], dim=1)
    logits = _forward(assistant, _embed(assistant, ids, []), mask, cache)
    return _greedy(assistant, logits, mask, cache, prompter.end_token_id, max_new_tokens)


def _greedy(
    assistant: Assistant, logits: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, end: int, max_new_tokens: int
) -> list[list[int]]:
    """Follow the likeliest token. logits: (B, V) of the first new token; mask: (B, T) of what is in the cache."""
    answers: list[list[int]] = [[] for _ in range(len(logits))]
    rows = list(range(len(logits)))
    for step in range(max_new_tokens):
        if not bool(torch.isfinite(logits).all()):
            raise DivergedError(
                "the model's logits are not finite numbers", "the checkpoint is damaged by divergence; train it again"
            )
        tokens = logits.argmax(dim=-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            answers[row].append(token)
        going = [place for place, row in enumerate(rows) if answers[row][-1] != end]
        if not going or step == max_new_tokens - 1:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(kept)
            tokens, mask, rows = tokens[kept], mask[kept], [rows[place] for place in going]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = _forward(assistant, _embed(assistant, tokens[:, None], []), mask, cache)
    return answers


def _forward(assistant: Assistant, embeddings: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Logits (B, V) of the last position. embeddings: (B, S, D) of the new tokens; mask: (B, T + S) of cached and new ones."""
    # Padding has no position: counting real tokens gives every row the positions that it would have alone.
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
    output = assistant.model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,  # training leaves it off in the config
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def _embed(assistant: Assistant, ids: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Embeddings (B, S, D) of ids (B, S), with image features in the places of the placeholders, in order."""
    embeddings: torch.Tensor = assistant.model.get_input_embeddings()(ids)
    if features:
        placeholders = ids == assistant.image_token_id
        embeddings = embeddings.clone()
        embeddings[placeholders] = torch.cat(list(features)).to(embeddings.dtype)
    return embeddings


def _pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, S), int64; the mask is 0 for padding."""
    longest = max(len(row) for row in rows)
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _prediction(record_id: str, ids: Sequence[int], prompter: Prompter) -> Prediction:
    complete = bool(ids) and ids[-1] == prompter.end_token_id
    said = list(ids[:-1]) if complete else list(ids)
    text = prompter.tokenizer.decode(said, skip_special_tokens=True).strip()
    return Prediction(record_id, text, len(ids), complete)
