"""Rows of a batch of questions: what their slots hold, whom each slot is for, and the pass that adds tokens to them.

1. A row begins with the keys and values of its prefix; behind them comes what its branches add, each token once.
2. Every slot knows its branch and its position: a token attends the slots of the prefix and the earlier ones of its own branch.

R rows, C columns (tokens of a row in one pass), K slots (keys of a row), H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from model.architecture.assembly import Assistant

PREFIX, NOBODY = -1, -2
"""Branch of a slot that all branches see; of one that none sees."""
FIRST_SLOTS = 256
"""New tokens for which a row has room from the start; it grows by half when they are used up."""


class Rows:
    """Rows of a batch: what their slots hold, and whom each slot is for."""

    def __init__(
        self, held: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]], lengths: Sequence[int], assistant: Assistant
    ) -> None:
        self.lengths = list(lengths)
        """Tokens of each row's prefix."""
        self.device = assistant.device
        self._embed, self._language = assistant.model.get_input_embeddings(), assistant.model.model.language_model
        longest = max(lengths)
        layers = range(len(held[0]))
        self._cache = Cache([_Slots([row[layer] for row in held], longest) for layer in layers])
        at = torch.arange(longest, device=self.device).expand(len(held), longest)
        self._branch = torch.where(at < torch.tensor(self.lengths, device=self.device)[:, None], PREFIX, NOBODY)
        self._position = at

    @property
    def rows(self) -> int:
        """R."""
        return len(self._branch)

    def advance(self, ids: torch.Tensor, branch: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Write tokens (R, C) behind the slots; the hidden states (R, C, width) that follow from them."""
        self._branch = torch.cat([self._branch, branch], dim=1)
        self._position = torch.cat([self._position, position], dim=1)
        mine = (self._branch[:, None] == PREFIX) | (self._branch[:, None] == branch[:, :, None])
        # A column without a token must see something, and is seen by nobody: the first slot of the prefix.
        mine &= (self._branch[:, None] != NOBODY) & (self._position[:, None] <= position[:, :, None])
        distance = position[:, :, None] - self._position[:, None]
        output = self._language(
            inputs_embeds=self._embed(ids),
            attention_mask=_for_layers(self._language.config, mine[:, None], distance[:, None]),
            position_ids=position,
            past_key_values=self._cache,
            use_cache=True,  # training leaves it off in the config
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def close_ranks(self, row_of_branch: torch.Tensor) -> torch.Tensor:
        """Drop rows without a branch once they are half of all; the rows of the branches (B,) after that."""
        left, new_row = torch.unique(row_of_branch, return_inverse=True)
        if 2 * len(left) > self.rows:
            return row_of_branch
        self._branch, self._position = self._branch[left], self._position[left]
        for layer in self._cache.layers:
            layer.keep(left)
        return new_row


class _Slots(DynamicLayer):
    """Keys and values (R, H, K, D) of one layer with room behind them, so that writing a token copies that token alone."""

    def __init__(self, prefixes: Sequence[tuple[torch.Tensor, torch.Tensor]], longest: int) -> None:
        super().__init__()
        self.lazy_initialization(*prefixes[0])
        self._room = tuple(_filled([prefix[part] for prefix in prefixes], longest) for part in (0, 1))
        self._show(longest)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (R, H, C, D) behind the rest; all keys and values."""
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        if end > self._room[0].shape[2]:
            more = max(end - start, start // 2)
            self._room = tuple(
                torch.cat([room, torch.zeros_like(room[:, :, :1]).expand(-1, -1, more, -1)], 2) for room in self._room
            )
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows."""
        self._room = tuple(room[rows] for room in self._room)
        self._show(self.get_seq_length())

    def _show(self, length: int) -> None:
        self.keys, self.values = (room[:, :, :length] for room in self._room)


def _filled(prefixes: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
    """Room (R, H, K, D) that begins with the prefixes (H, S, D), zero up to the longest: what nobody sees must still be a number."""
    heads, _, width = prefixes[0].shape
    room = prefixes[0].new_empty(len(prefixes), heads, longest + FIRST_SLOTS, width)
    for row, prefix in enumerate(prefixes):
        room[row, :, : prefix.shape[1]] = prefix
        room[row, :, prefix.shape[1] : longest] = 0.0
    return room


def _for_layers(config: Any, mask: torch.Tensor, distance: torch.Tensor) -> Any:
    """The mask (R, 1, C, K) as this language model takes it: some see no further back than a window."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is None:
        return mask
    near = mask & (distance < window)
    return {"full_attention": mask, "sliding_attention": near} if getattr(config, "layer_types", None) else near
