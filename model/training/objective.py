"""What a stage learns: the next token of every assistant's answer, given image and question.

1. Examples are counted once: tokens, targets, and targets that are text of the assistant.
2. `loss_sum` makes the batch of a forward pass, checks placeholders against images in every sequence, and adds up the cross-entropy
   of the targets. The head sees target positions alone.
3. `measures` gives the numbers of a step from the counts, without touching the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from model.architecture.assembly import Assistant
from model.architecture.joint import check_joint, supervised_logits
from model.batch import IGNORE
from model.config import Precision
from model.data.loading import Example, collate
from model.errors import DataError
from model.training.loop import Micro, StepPlan


class AnswerObjective:
    """Cross-entropy of the assistant's answers.

    Args:
        assistant: Prepared for training.
        examples: What the plan's indices mean.
        features: N image paths to tower features (N, P, D).
        precision: Of the forward pass; weights that learn stay float32.
        everywhere: See `supervised_logits`.

    Raises:
        DataError: An example has no target, or has image placeholders among its targets.
    """

    def __init__(
        self,
        assistant: Assistant,
        examples: Sequence[Example],
        features: Callable[[Sequence[Path]], torch.Tensor],
        precision: Precision,
        everywhere: bool = False,
    ) -> None:
        self._assistant = assistant
        self._examples = examples
        self._features = features
        self._autocast = precision is Precision.BFLOAT16
        self._everywhere = everywhere
        self._tokens = [example.num_tokens for example in examples]
        self._targets = [int((example.labels[1:] != IGNORE).sum()) for example in examples]
        self._check_targets()

    def num_targets(self, micro: Micro) -> int:
        """Targets of the examples."""
        return sum(self._targets[index] for index in micro)

    def names(self, micro: Micro) -> list[str]:
        """Record ids of the examples."""
        return [self._examples[index].record_id for index in micro]

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        """Sum of the cross-entropy over the targets, float32. DataError if placeholders and images do not agree."""
        assistant = self._assistant
        batch = collate([self._examples[index] for index in micro], self._features)
        check_joint(batch, assistant.image_token_id, assistant.image_tokens)
        batch = batch.to(assistant.device)
        with torch.autocast(assistant.device.type, torch.bfloat16, enabled=self._autocast):
            logits, targets = supervised_logits(assistant.model, batch, batch.pixel_values, self._everywhere)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        """`tokens`, `padding_share` of all positions computed, `target_share` of the tokens that count in the loss."""
        micros = [micro for passes in step for micro in passes]
        tokens = sum(self._tokens[index] for micro in micros for index in micro)
        computed = sum(len(micro) * max(self._tokens[index] for index in micro) for micro in micros)
        return {
            "tokens": tokens,
            "padding_share": 1 - tokens / computed,
            "target_share": sum(map(self.num_targets, micros)) / tokens,
        }

    def _check_targets(self) -> None:
        """All of the loss lies on text: a placeholder among the targets would drown it."""
        for example, targets in zip(self._examples, self._targets, strict=True):
            placeholders = int((example.labels == self._assistant.image_token_id).sum())
            if placeholders or not targets:
                what = f"{placeholders} image placeholders among its targets" if placeholders else "no target"
                raise DataError(f"record {example.record_id!r} has {what}", "import the data set again")
