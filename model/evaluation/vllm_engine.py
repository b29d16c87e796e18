"""The same questions answered by vLLM, from an export: for GPUs where it is installed. Not run on the machines it was written on.

1. `usable` says whether vLLM can be imported and the workers have a GPU; nothing is imported to find out.
2. `VllmEngine(export, ...)` lets vLLM load the export, with prefix caching: the questions of an image come one after the other, and its
   prefix is computed once.
3. `answer` sends our own token ids, so that no template of vLLM's stands between, and what the connector made of the images, so that
   the feature cache serves it and the blind control shows it exactly the mean image. vLLM expects one placeholder an image and makes
   P of it. Greedy: temperature 0, ended by the template's token.

Requests follow vLLM's documentation (LLM, SamplingParams, TokensPrompt, "Multimodal inputs: embedding inputs", which names
`enable_mm_embeds`; from 0.11.1). A strict stand-in checks their form in the tests; the answers themselves are to be compared with
`shared_prefix` on the first machine that has a GPU and vLLM.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.architecture.assembly import Assistant
from model.config import Resources
from model.errors import DataError
from model.evaluation.question import Question

MEMORY_SHARE = 0.7
"""Of the GPU; the assistant itself stays there beside it, for its tower."""


def usable(resources: Resources) -> bool:
    """Whether vLLM is installed and a GPU is asked for."""
    return resources.gpus_per_worker > 0 and importlib.util.find_spec("vllm") is not None


class VllmEngine:
    """Greedy answers of an exported assistant (`generate.Engine`).

    Args:
        export: What `model.architecture.export` wrote of this assistant's checkpoint.
        assistant: Says how long contexts are and which tokens are placeholders.
        end_id: Token that ends an answer.
        max_new_tokens: Longest answer.
        max_images: Most images of a question.
    """

    def __init__(self, export: Path, assistant: Assistant, end_id: int, max_new_tokens: int, max_images: int) -> None:
        vllm = importlib.import_module("vllm")
        self._image_id, self._image_tokens, self._end = assistant.image_token_id, assistant.image_tokens, end_id
        self._engine = vllm.LLM(
            model=str(export),
            trust_remote_code=False,
            enable_prefix_caching=True,
            enable_mm_embeds=True,
            limit_mm_per_prompt={"image": max_images},
            max_model_len=assistant.context_tokens,
            gpu_memory_utilization=MEMORY_SHARE,
            seed=0,
        )
        self._sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=[end_id], ignore_eos=True, detokenize=False
        )

    def answer(self, questions: Sequence[Question], features: Mapping[str, torch.Tensor]) -> list[list[int]]:
        """As `SharedPrefix.answer`. DataError if vLLM returns another number of answers than questions."""
        requests = [self._request(question, features) for question in questions]
        outputs = self._engine.generate(requests, self._sampling, use_tqdm=False)
        if len(outputs) != len(questions):
            raise DataError(f"vLLM gave {len(outputs)} answers to {len(questions)} questions", "evaluate without vLLM")
        return [self._ended(output.outputs[0]) for output in outputs]

    def _request(self, question: Question, features: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        request: dict[str, Any] = {"prompt_token_ids": self._one_placeholder_an_image([*question.prefix, *question.rest])}
        if question.images:
            request["multi_modal_data"] = {"image": torch.stack([features[name] for name in question.images]).cpu()}
        return request

    def _one_placeholder_an_image(self, ids: Sequence[int]) -> list[int]:
        """Ours are P in a row for an image, and images may touch each other."""
        short: list[int] = []
        seen = 0
        for token in ids:
            if token != self._image_id or seen % self._image_tokens == 0:
                short.append(token)
            seen += token == self._image_id
        return short

    def _ended(self, output: Any) -> list[int]:
        """With the end token, which vLLM may or may not count among the answer's."""
        ids = list(output.token_ids)
        return [*ids, self._end] if output.finish_reason == "stop" and ids[-1:] != [self._end] else ids
