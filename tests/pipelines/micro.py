"""The smallest real run: two dozen images, base models of a few thousand weights, a handful of optimizer steps a stage."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from components.data.registry import Registry
from model.config import Recipe
from model.manifest import commit
from tests.model.tiny_bases import make_language, make_tower

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}
STAGE = {"batch_tokens": 256, "checkpoint_every": 2, "epochs": 1}
LORA = {"rank": 2, "alpha": 4}


def recipe(**changes) -> Recipe:
    """A complete recipe; `changes` are merged into it, field by field."""
    values = {
        "name": "micro",
        "registered_model": "micro",
        "data": {"sets": {"mini": {}}},
        "model": {
            "tower": {"source": "registry:mini-tower", "licence": "CC0-1.0"},
            "language": {"source": "registry:mini-language", "licence": "CC0-1.0"},
            "context_tokens": 256,
        },
        "stages": {
            "align": {
                **STAGE,
                "data": [{"set": "mini", "kinds": ["caption"]}],
                "trainable": ["connector"],
                "template": "plain",
                "learning_rates": {"connector": 1e-3},
            },
            "instruct": {
                **STAGE,
                "data": [{"set": "mini", "kinds": ["question"]}],
                "trainable": ["connector", "language_lora"],
                "learning_rates": {"connector": 1e-3, "language_lora": 1e-3},
                "lora": LORA,
            },
            "task": {
                **STAGE,
                "data": [{"set": "mini", "kinds": ["question"]}],
                "trainable": ["language_lora"],
                "learning_rates": {"language_lora": 1e-3},
                "lora": LORA,
            },
        },
        "evaluation": {
            "benchmarks": [{"benchmark": "vqa", "set": "mini", "split": "test"}],
            "max_new_tokens": 4,
            "bootstrap_samples": 100,
        },
        "promotion": {"min_items": 2, "min_image_gain": -1, "max_loss_to_champion": 1},
    }
    return Recipe.model_validate(_merged(values, changes))


def _merged(base, change):
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return {**base, **{key: _merged(base.get(key), value) for key, value in change.items()}}


def write_set(folder: Path, sizes=(("train", 16), ("test", 6))) -> Path:
    """Coloured squares, each with a caption and a closed and an open question."""
    with commit(folder, "data", facts={"name": "mini", "licence": "CC0-1.0", "synthetic": True}) as aside:
        (aside / "records").mkdir()
        (aside / "images").mkdir()
        for split, count in sizes:
            lines = [line for index in range(count) for line in _records(aside, split, index)]
            (aside / "records" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _records(folder: Path, split: str, index: int):
    colour = list(COLOURS)[index % len(COLOURS)]
    image = f"images/{split}-{index}.png"
    shade = tuple(min(255, part + (index + 1) * (2 if split == "train" else 1)) for part in COLOURS[colour])
    picture = Image.new("RGB", (16, 16), shade)
    picture.putpixel((index % 16, 0 if split == "train" else 8), (255, 255, 255))
    picture.save(folder / image)
    base = {"group": f"{split}-{index}", "images": [image], "modality": "square"}

    def turns(question, answer):
        return [{"role": "user", "text": question}, {"role": "assistant", "text": answer}]

    yield {**base, "id": f"{split}-{index}-c", "kind": "caption", "turns": turns("Describe.", f"A {colour} square.")}
    closed = {"answer_type": "closed", "question_type": "presence"}
    answer = "yes" if colour == "red" else "no"
    yield {**base, **closed, "id": f"{split}-{index}-q", "kind": "question", "turns": turns("Is it red?", answer)}
    opened = {"answer_type": "open", "question_type": "colour"}
    yield {**base, **opened, "id": f"{split}-{index}-o", "kind": "question", "turns": turns("Which colour?", colour)}


def fill(home: Path) -> None:
    """Put the data set and both base models into the data registry of `home`."""
    registry = Registry(home)
    for name, make in (("mini", write_set), ("mini-tower", make_tower), ("mini-language", make_language)):
        registry.add(name, make, f"{name} for tests")
