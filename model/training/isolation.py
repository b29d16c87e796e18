"""Proof on a run's first batch that a packed row is as many rows: what one document learns cannot depend on another's inputs.

1. `check` takes the last state of the row that a target is predicted from, and differentiates it with respect to all inputs of the
   row. Of the document and branch that it stands in some gradient must come back, and of every other position exactly none. In a
   causal model leaks run forwards, so the last one would show them all.
2. `text_share` counts the targets that are the assistant's text or the token that ends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from model.architecture.packed import allowed
from model.batch import Batch
from model.errors import InternalError


@dataclass(frozen=True)
class Finding:
    """What the first batch shows."""

    blind_positions: int
    """Positions of the row whose inputs provably do not touch the probed branch."""
    text_share: float
    """Share of the targets on the assistant's text, 0..1."""


def check(batch: Batch, inputs: torch.Tensor, states: torch.Tensor) -> int:
    """Probe a packed batch.

    Args:
        batch: Packed.
        inputs: (1, T, W), requiring a gradient.
        states: (S, W) at the batch's sources, computed from them.

    Returns:
        Number of positions that must not be seen, and are not.

    Raises:
        InternalError: One of them is seen; or none that must be seen is, and the probe proves nothing.
    """
    last = int(batch.sources.argmax())
    document, branch = allowed(batch.documents, inputs.shape[1])
    place = int(batch.sources[last])
    own = (document == document[place]) & ((branch == 0) | (branch == branch[place]))
    own = own.to(inputs.device)
    (gradient,) = torch.autograd.grad(states[last].float().square().sum(), inputs)
    strength = gradient[0].abs().amax(dim=-1)
    leaked, missed = int((strength[~own] != 0).sum()), int((strength[own] == 0).sum())
    if leaked:
        raise InternalError(
            f"packing is not isolated: {leaked} of {int((~own).sum())} positions outside a document change its result, "
            f"by up to {float(strength[~own].max()):.2g}",
            "set packing: none, and report the versions of torch and transformers (`biovlm doctor`)",
        )
    if missed == int(own.sum()):
        raise InternalError("the probe of packing finds no gradient at all, so it proves nothing", "set packing: none")
    return int((~own).sum())


def text_share(targets: torch.Tensor, tokenizer: PreTrainedTokenizerBase, end_token_id: int) -> float:
    """Share of target ids that are no control token, or the one that ends an answer. 1 is right; placeholders would lower it."""
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} - {end_token_id}
    wrong = torch.isin(targets.cpu(), torch.tensor(sorted(control), dtype=targets.dtype))
    return 1.0 - float(wrong.float().mean()) if len(targets) else 1.0
