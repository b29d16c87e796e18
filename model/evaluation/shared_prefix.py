"""One image, all its questions: the prefix is computed once, and its questions are answered side by side from one cache.

The journey of a batch:
1. Each distinct prefix (what stands before the questions, up to the last image) passes the language model once, the last block as far
   as its keys and values. These stay for as long as the batch, or the next one, asks about it.
2. Up to `BRANCHES` questions of a prefix share a *row*. A row's keys and values are those of the prefix, written once, and behind them
   the tokens of its questions and of their answers as they come. Nothing is copied again: a cache that grows by concatenation would
   copy all of it for every token, which took half of the time.
3. Every slot of a row carries its branch and its position. A token attends the prefix and the earlier tokens of its own branch: it
   sees exactly what it would see alone, at the same positions.
4. The head runs on the last token of each question alone. Greedy steps follow; branches that have ended leave, and once half of the
   rows are empty, the others move together.

R rows, C columns (tokens of a row in one pass), K slots (keys of a row), H heads, D width of a head, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache

from model.architecture import fused, heap, last_block
from model.architecture.assembly import Assistant
from model.errors import DivergedError
from model.evaluation.question import Question
from model.evaluation.rows import NOBODY, Rows

BRANCHES = 8
"""Most questions in a row: more share the reading of the prefix, and each looks over the others' slots in vain."""
ROW_TOKENS = 64
"""What one more row costs, in tokens to compute: its copy of the prefix is written once and read for every new token (measured)."""
PREFIX_TOKENS, CPU_PREFIX_TOKENS = 8192, 1400
"""Tokens of prefixes in one pass. On a CPU two or three images at a time stay in its caches: an eighth less time than twelve."""


class SharedPrefix:
    """Greedy answers of an assistant.

    Args:
        assistant: In evaluation mode.
        end_id: Token that ends an answer.
        pad_id: Any token for places that nobody sees.
        max_new_tokens: Longest answer.
    """

    def __init__(self, assistant: Assistant, end_id: int, pad_id: int, max_new_tokens: int) -> None:
        self._assistant, self._end, self._pad, self._longest = assistant, end_id, pad_id, max_new_tokens
        self._language = assistant.model.model.language_model
        last_block.install(self._language)
        if assistant.device.type == "cpu":
            heap.keep()
            fused.install(self._language)
        self._prefixes: dict[Any, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], features: Mapping[str, torch.Tensor]) -> list[list[int]]:
        """New token ids of each question, up to and with the end token.

        Args:
            questions: Those of a prefix next to each other.
            features: Name of an image -> its embeddings (P, width of the language model).

        Raises:
            DivergedError: The likeliest logit is not a finite number.
        """
        self._read_prefixes(questions, features)
        rows, places = rows_of(questions)
        state = self._state([questions[row[0]] for row in rows])
        logits = self._ask(state, [[questions[index].rest for index in row] for row in rows])
        branches = _Branches.of(questions, rows, places, state.device)
        return self._follow(state, branches, logits, len(questions))

    def _read_prefixes(self, questions: Sequence[Question], features: Mapping[str, torch.Tensor]) -> None:
        """Keys and values of every prefix of the batch; those of the batch before stay if they are asked for."""
        wanted = list(dict.fromkeys((question.images, question.prefix) for question in questions))
        self._prefixes = {key: self._prefixes[key] for key in wanted if key in self._prefixes}
        most = CPU_PREFIX_TOKENS if self._assistant.device.type == "cpu" else PREFIX_TOKENS
        part: list[Any] = []
        for key in sorted((key for key in wanted if key not in self._prefixes), key=lambda key: len(key[1])):
            if part and (len(part) + 1) * len(key[1]) > most:
                self._read_together(part, features)
                part = []
            part.append(key)
        if part:
            self._read_together(part, features)

    def _read_together(self, keys: Sequence[Any], features: Mapping[str, torch.Tensor]) -> None:
        """Prefixes of like lengths in one pass."""
        longest = max(len(prefix) for _, prefix in keys)
        ids = torch.tensor(
            [[*prefix, *[self._pad] * (longest - len(prefix))] for _, prefix in keys], device=self._assistant.device
        )
        embeddings = self._assistant.model.get_input_embeddings()(ids)
        seen = [features[name] for images, _ in keys for name in images]
        if seen:
            real = torch.tensor([[at < len(prefix) for at in range(longest)] for _, prefix in keys], device=ids.device)
            embeddings[(ids == self._assistant.image_token_id) & real] = torch.cat(seen).to(embeddings.dtype)
        # Padding stands on the right, where causal attention never looks: no mask, and the fast kernel.
        cache = DynamicCache()
        self._language(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, keys_alone=True)
        for row, key in enumerate(keys):
            length = len(key[1])
            self._prefixes[key] = [(layer.keys[row, :, :length], layer.values[row, :, :length]) for layer in cache.layers]

    def _state(self, firsts: Sequence[Question]) -> Rows:
        """Rows that hold their prefixes."""
        held = [self._prefixes[question.images, question.prefix] for question in firsts]
        lengths = [len(question.prefix) for question in firsts]
        return Rows(held, lengths, self._assistant)

    def _ask(self, state: Rows, rests: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
        """Logits (B, V) behind every question, row by row."""
        width = max(sum(map(len, row)) for row in rests)
        ids, branch, position = ([[fill] * width for _ in rests] for fill in (self._pad, NOBODY, 0))
        ends = []
        for row, branches in enumerate(rests):
            at = 0
            for number, rest in enumerate(branches):
                span = slice(at, at + len(rest))
                ids[row][span], branch[row][span] = rest, [number] * len(rest)
                position[row][span] = range(state.lengths[row], state.lengths[row] + len(rest))
                at = span.stop
                ends.append((row, at - 1))
        hidden = state.advance(*(torch.tensor(values, device=state.device) for values in (ids, branch, position)))
        rows, columns = zip(*ends, strict=True)
        return self._logits(hidden[list(rows), list(columns)])

    def _follow(self, state: Rows, branches: _Branches, logits: torch.Tensor, count: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(count)]
        for step in range(self._longest):
            tokens = _likeliest(logits)
            chosen = tokens.tolist()
            for question, token in zip(branches.question, chosen, strict=True):
                answers[question].append(token)
            going = [place for place, token in enumerate(chosen) if token != self._end]
            if not going or step == self._longest - 1:
                break
            if len(going) < len(chosen):
                branches, tokens = branches.only(going), tokens[going]
                branches = replace(branches, row=state.close_ranks(branches.row))
            column, width = branches.columns()
            shape = (state.rows, width)
            ids, branch, position = (torch.full(shape, fill, device=state.device) for fill in (self._pad, NOBODY, 0))
            ids[branches.row, column], branch[branches.row, column] = tokens, branches.branch
            position[branches.row, column] = branches.length + step
            logits = self._logits(state.advance(ids, branch, position)[branches.row, column])
        return answers

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._assistant.model.lm_head(hidden).float()
        return logits


@dataclass(frozen=True)
class _Branches:
    """Questions that are still being answered, B of them; each tensor (B,)."""

    question: list[int]
    """Index in the batch."""
    row: torch.Tensor
    branch: torch.Tensor
    length: torch.Tensor
    """Tokens of the whole question."""

    @classmethod
    def of(
        cls, questions: Sequence[Question], rows: Sequence[Sequence[int]], places: Sequence[tuple[int, int]], device: torch.device
    ) -> _Branches:
        order = [index for row in rows for index in row]
        row, branch, length = (
            torch.tensor(values, device=device)
            for values in (
                [places[index][0] for index in order],
                [places[index][1] for index in order],
                [questions[index].num_tokens for index in order],
            )
        )
        return cls(order, row, branch, length)

    def only(self, kept: Sequence[int]) -> _Branches:
        """Those at the places `kept`."""
        chosen = list(kept)
        return _Branches([self.question[at] for at in chosen], self.row[chosen], self.branch[chosen], self.length[chosen])

    def columns(self) -> tuple[torch.Tensor, int]:
        """Place of each in its row's next pass, and the number of columns; rows ascend."""
        counts = torch.bincount(self.row)
        starts = counts.cumsum(0) - counts
        return torch.arange(len(self.row), device=self.row.device) - starts[self.row], int(counts.max())


def rows_of(questions: Sequence[Question]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Questions by row, and row and branch of each question: rows of one prefix each, evenly filled.

    All rows of a pass are as wide as the widest: one image with many questions beside others with one would have every other row
    filled with nothing. So of all limits for the questions of a row the one is taken with which the pass is cheapest.
    """
    of_prefix: dict[Any, list[int]] = {}
    for index, question in enumerate(questions):
        of_prefix.setdefault((question.images, question.prefix), []).append(index)

    def divided(most: int) -> list[list[int]]:
        counts = [(indices, -(-len(indices) // most)) for indices in of_prefix.values()]
        return [indices[number::count] for indices, count in counts for number in range(count)]

    def cost(rows: Sequence[Sequence[int]]) -> int:
        widest = max(sum(len(questions[index].rest) for index in row) for row in rows)
        return len(rows) * (widest + ROW_TOKENS)

    rows = min((divided(most) for most in range(BRANCHES, 0, -1)), key=cost)
    places = [(0, 0)] * len(questions)
    for row, indices in enumerate(rows):
        for branch, index in enumerate(indices):
            places[index] = (row, branch)
    return rows, places


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    tokens = logits.argmax(dim=-1)
    # NaN and infinity win every comparison, so the winner alone tells.
    if not bool(torch.isfinite(logits.gather(1, tokens[:, None])).all()):
        raise DivergedError(
            "the model's logits are not finite numbers", "the checkpoint is damaged by divergence; train it again"
        )
    return tokens
