"""The form of what is sent to vLLM, checked by a stand-in that takes nothing which vLLM's documentation does not name.

The stand-in answers with the assistant itself, from the request alone: a wrong prompt, image or setting changes an answer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from model.architecture.assembly import Assistant
from model.architecture.joint import encode
from model.config import Resources
from model.data.dataset import DataSet
from model.data.pixels import PixelSource
from model.data.records import Record
from model.data.templates import Prompter
from model.evaluation import vllm_engine
from model.evaluation.generate import Features, answer_all
from model.evaluation.vllm_engine import VllmEngine

LONGEST = 6


@dataclass
class SamplingParams:
    """As documented; nothing else is taken."""

    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool


def stand_in(assistant: Assistant, made: list[dict[str, Any]]) -> ModuleType:
    class LLM:
        def __init__(
            self,
            model: str,
            *,
            trust_remote_code: bool,
            enable_prefix_caching: bool,
            enable_mm_embeds: bool,
            limit_mm_per_prompt: dict[str, int],
            max_model_len: int,
            gpu_memory_utilization: float,
            seed: int,
        ) -> None:
            assert not trust_remote_code
            assert enable_prefix_caching
            assert enable_mm_embeds
            self.most = limit_mm_per_prompt["image"]
            made.append({"model": model, "length": max_model_len})

        def generate(self, prompts: list[dict[str, Any]], sampling_params: SamplingParams, *, use_tqdm: bool) -> list[Any]:
            assert sampling_params.temperature == 0.0
            return [self.one(prompt, sampling_params) for prompt in prompts]

        def one(self, prompt: dict[str, Any], sampling: SamplingParams) -> Any:
            images = prompt.get("multi_modal_data", {"image": torch.zeros(0)})["image"]
            ids = prompt["prompt_token_ids"]
            assert set(prompt) <= {"prompt_token_ids", "multi_modal_data"}
            assert ids.count(assistant.image_token_id) == len(images) <= self.most
            long = torch.tensor([t for i in ids for t in [i] * (assistant.image_tokens if i == assistant.image_token_id else 1)])
            embedded = assistant.model.get_input_embeddings()(long)
            if len(images):
                embedded[long == assistant.image_token_id] = images.flatten(0, 1)
            found = assistant.model.generate(
                inputs_embeds=embedded[None],
                attention_mask=torch.ones(1, len(long), dtype=torch.int64),
                do_sample=False,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=sampling.stop_token_ids,
                pad_token_id=0,
                use_cache=True,
            )[0].tolist()
            stopped = found[-1] in sampling.stop_token_ids
            # Without the token that stopped it: the harder case of both.
            given = SimpleNamespace(
                token_ids=tuple(found[:-1] if stopped else found), finish_reason="stop" if stopped else "length"
            )
            return SimpleNamespace(outputs=[given])

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    return module


@torch.inference_mode()
def test_requests_carry_our_tokens_and_our_images(
    assistant: Assistant, phantom: DataSet, questions: list[Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = PixelSource(assistant.image_processor)
    see: Features = lambda names: encode(assistant.model, source([phantom.path(name) for name in names]))  # noqa: E731
    first, last = questions[0].images[0], questions[-1].images[0]
    asked = [
        *questions[::5],
        questions[0].model_copy(update={"images": (), "id": "text"}),
        questions[1].model_copy(update={"images": (last, first), "id": "two"}),
    ]
    own = answer_all(assistant, asked, see, 8, LONGEST)
    made: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "vllm", stand_in(assistant, made))
    prompter = Prompter(assistant.tokenizer, assistant.template, assistant.system, assistant.image_tokens)
    engine = VllmEngine(tmp_path, assistant, prompter.end_token_id, LONGEST, max_images=2)
    assert answer_all(assistant, asked, see, 8, LONGEST, engine=engine) == own
    assert len({answer.text for answer in own}) > 1
    assert made == [{"model": str(tmp_path), "length": assistant.context_tokens}]


def test_vllm_is_used_only_where_it_is_installed_and_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: object() if name == "vllm" else None)
    assert vllm_engine.usable(Resources(gpus_per_worker=1))
    assert not vllm_engine.usable(Resources())
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    assert not vllm_engine.usable(Resources(gpus_per_worker=1))
