"""Peak memory of training steps against the estimate that `memory: auto` decides by; each shape in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "h512x8_T4096": {"width": 512, "layers": 8, "heads": 8, "tokens": 4096},
    "h1024x6_T2048": {"width": 1024, "layers": 6, "heads": 16, "tokens": 2048},
}
TOWER = {"model_type": "clip_vision_model", "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2}
TOWER |= {"num_attention_heads": 3, "image_size": 336, "patch_size": 14}
VOCABULARY = 32_064
STEPS = 2


def measure() -> dict[str, float]:
    """Estimated and measured peak in MiB, and seconds of a step, with no block, half of them, and all computed again."""
    results: dict[str, float] = {}
    for name, shape in SHAPES.items():
        for count in (0, shape["layers"] // 2, shape["layers"]):
            command = (sys.executable, "-m", "benchmarks.memory", json.dumps({**shape, "recomputed": count}))
            found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])
            results |= {f"{name}_recomputed_{count}_{key}": value for key, value in found.items()}
    return results


def _child(shape: dict[str, Any]) -> dict[str, float]:
    import torch

    from model.architecture import packed
    from model.architecture.head import loss_sum
    from model.architecture.joint import embed, read
    from model.config import Resources
    from model.training import memory
    from model.training.optimizer import Optimizer
    from model.training.placing import recompute
    from model.training.trainable import prepare

    torch.set_num_threads(1)
    model, stage = _recipe(shape)
    with tempfile.TemporaryDirectory() as folder:
        assistant, groups = prepare(_assistant(model, Path(folder)), stage, seed=0)
    packed.install(assistant.model.model.language_model, shape["tokens"])
    recompute(assistant, shape["recomputed"])
    optimizer, batch = Optimizer(groups), _batch(shape["tokens"], assistant.image_token_id)
    features = torch.randn(len(batch.pixel_values), 576, 192)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    for _ in range(STEPS):
        states = read(assistant.model, batch, embed(assistant.model, batch, features))
        loss_sum(assistant.model.lm_head, states[batch.sources], batch.targets).backward()
        optimizer.apply(1.0)
    shapes = memory.shapes_of(assistant.model.config.text_config.to_dict(), assistant.model.config.vision_config.to_dict())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    guess = memory.estimate(shapes, model, stage, Resources()).total(shape["recomputed"]) / memory.MIB
    return {
        "estimated_mib": guess,
        "peak_mib": peak,
        "estimated_over_peak": guess / peak,
        "before_the_first_step_mib": before,
        "cpu_seconds_a_step": (time.process_time() - began) / STEPS,
    }


def _recipe(shape: dict[str, Any]) -> Any:
    from model.config import Model, Stage

    language = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": shape["width"],
        "intermediate_size": 4 * shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    stage = {
        "data": [{"set": "a"}],
        "trainable": ["connector", "language_lora"],
        "learning_rates": {"connector": 1e-3, "language_lora": 1e-3},
        "lora": {"rank": 16},
        "packing": "rows",
        "batch_tokens": shape["tokens"],
    }
    parts = {"tower": {"config": TOWER}, "language": {"config": language}, "context_tokens": 1024}
    return Model.model_validate(parts), Stage.model_validate(stage)


def _assistant(model: Any, folder: Path) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from model.architecture.assembly import build

    words = {"<image>": 0, "<pad>": 1, "<end>": 2}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<pad>")), pad_token="<pad>")
    tokenizer.save_pretrained(str(folder))
    language = {**model.language.config, "tokenizer": str(folder)}
    named = model.model_copy(update={"language": model.language.model_copy(update={"config": language})})
    return build(named, {}, seed=0)


def _batch(tokens: int, image_token_id: int) -> Any:
    """Documents of an image and a tenth of the rest as targets."""
    import torch

    from model.batch import Batch, Document

    length = 1024
    ids = torch.randint(3, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    starts = range(0, tokens, length)
    for start in starts:
        ids[0, start : start + 576] = image_token_id
    sources = torch.cat([torch.arange(start + 900, start + length - 1) for start in starts])
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        sources=sources,
        targets=ids[0, sources + 1],
        pixel_values=torch.zeros(len(starts), 1),
        image_counts=(1,) * len(starts),
        documents=tuple(Document(start, length) for start in starts),
        positions=(torch.arange(tokens) % length)[None],
    )


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))
