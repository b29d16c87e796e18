"""What a stage learns: the next token of every assistant's answer, given image and question.

1. `loss_sum` makes the batch of a forward pass, padded or packed as the recipe says, checks placeholders against images in every
   sequence, and adds up the cross-entropy of the targets. The head sees target positions alone.
2. `measures` gives the numbers of a step from the examples' metadata, without touching the network.
3. `audit` proves on a batch, before a run begins, that no document of a packed row can see another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from model.architecture import head
from model.architecture.assembly import Assistant
from model.architecture.joint import check_joint, embed, read
from model.batch import Batch
from model.config import Packing, Precision
from model.data.loading import Examples, collate, divided, packed, packed_tokens
from model.training import isolation
from model.training.ahead import Ahead
from model.training.loop import Micro, StepPlan


class AnswerObjective:
    """Cross-entropy of the assistant's answers.

    Args:
        assistant: Prepared for training; with packing, its language model attends by layout (`packed.install`).
        examples: What the plan's indices mean.
        features: N image paths to tower features (N, P, D).
        precision: Of the forward pass; weights that learn stay float32.
        packing: How the examples of a pass share it.
        row_tokens: On a GPU, the length that packed rows are padded to, so that one compilation serves all; 0 for no padding.
        everywhere: See `joint.embed`.
    """

    def __init__(
        self,
        assistant: Assistant,
        examples: Examples,
        features: Callable[[Sequence[Path]], torch.Tensor],
        precision: Precision,
        packing: Packing = Packing.NONE,
        row_tokens: int = 0,
        everywhere: bool = False,
    ) -> None:
        self._assistant = assistant
        self._examples = examples
        self._features = features
        self._autocast = precision is Precision.BFLOAT16
        self._packing, self._row_tokens = packing, row_tokens
        self._everywhere = everywhere
        on_gpu = assistant.device.type == "cuda"
        self._ahead = Ahead(self._batch, pin=True) if on_gpu else None

    def expect(self, passes: Sequence[Micro]) -> None:
        """Passes that come next, in order."""
        if self._ahead is not None:
            self._ahead.expect(passes)

    def num_targets(self, micro: Micro) -> int:
        """Targets of the examples."""
        return int(self._examples.num_targets[list(micro)].sum())

    def names(self, micro: Micro) -> list[str]:
        """Record ids of the examples."""
        return [self._examples.names[index] for index in micro]

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        """Sum of the cross-entropy over the targets, float32. DataError if placeholders and images do not agree."""
        network, batch = self._assistant.model, self._given(micro)
        with self._computing():
            states = read(network, batch, embed(network, batch, batch.pixel_values, self._everywhere))
            return head.loss_sum(network.lm_head, states, batch.targets)

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        """Numbers of a step.

        `tokens` computed, an image that several share counted once, padding not at all; `examples`; `padding_share` of all positions
        computed; `target_share` of the examples' tokens that count in the loss; `sharing`: the examples' tokens over `tokens`.
        """
        metadata = self._examples.metadata
        passes = [np.asarray(micro) for micros in step for micro in micros]
        alone = [int(metadata.tokens[indices].sum()) for indices in passes]
        if self._packing is Packing.NONE:
            tokens = alone
            computed = [len(indices) * int(metadata.tokens[indices].max()) for indices in passes]
        else:
            tokens = computed = [packed_tokens(indices, metadata, self._packing) for indices in passes]
        return {
            "tokens": sum(tokens),
            "examples": sum(map(len, passes)),
            "padding_share": 1 - sum(tokens) / sum(computed),
            "target_share": sum(self.num_targets(indices.tolist()) for indices in passes) / sum(alone),
            "sharing": sum(alone) / sum(tokens),
        }

    def audit(self, micro: Micro, end_token_id: int) -> isolation.Finding:
        """What `isolation` finds in the batch of a pass. InternalError if a document sees another."""
        network, batch = self._assistant.model, self._given(micro)
        blind = 0
        if batch.documents:
            with self._computing():
                inputs = embed(network, batch, batch.pixel_values, self._everywhere).detach().requires_grad_()
                blind = isolation.check(batch, inputs, read(network, batch, inputs))
        return isolation.Finding(blind, isolation.text_share(batch.targets, self._assistant.tokenizer, end_token_id))

    def _given(self, micro: Micro) -> Batch:
        """The batch of a pass, on the device."""
        return (self._ahead or self._batch)(micro).to(self._assistant.device)

    def _batch(self, micro: Micro) -> Batch:
        assistant, examples = self._assistant, self._examples
        if self._packing is Packing.NONE:
            batch = collate([examples[index] for index in micro], self._features)
        else:
            documents = divided(tuple(micro), examples.metadata, self._packing)
            batch = packed([[examples[index] for index in document] for document in documents], self._features, self._row_tokens)
        check_joint(batch, assistant.image_token_id, assistant.image_tokens)
        return batch

    def _computing(self) -> torch.autocast:
        return torch.autocast(self._assistant.device.type, torch.bfloat16, enabled=self._autocast)
