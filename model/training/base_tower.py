"""The tiny vision tower: a CLIP image encoder that learns by contrast with the sentences of captions.

1. A caption is cut into its sentences. One vector for a whole caption would have to hold all facts at once, and a small batch then
   teaches little about size, number or place; a sentence holds one of them.
2. In a batch, every sentence must find the images it was written for, and every image its sentences (`contrast`).
3. The text side, a mean over words and pairs of neighbouring words, is thrown away. The image side is the mean over all patches, so
   that each patch, which is what an assistant will see, carries facts.

The learned layer is the last: recipes read it with `feature_layer: -1`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from model.config import Kind
from model.data.loading import DataSet, PixelSource
from model.data.records import Record
from model.training.base_lesson import Lesson, order
from model.training.loop import Micro, StepPlan

IMAGE_SIZE, PATCH_SIZE = 64, 16  # pixels; 16 image tokens
WIDTH, LAYERS, HEADS = 128, 2, 4
SHARED_WIDTH = 128  # of the space in which images and sentences meet
FIRST_SCALE = 10.0  # of the cosines, before the softmax
STEPS, BATCH_IMAGES, RATE = 1000, 48, 3e-3
# transformers starts positions fifty times smaller than patches; a small tower then takes most of its time to find out what is where.
POSITION_STD = 1.0


class TextBag(nn.Module):
    """Sentences to vectors: the mean over their words and pairs of neighbouring words."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__()
        names = sorted({gram for sentence in sentences for gram in grams(sentence)})
        index = {name: number for number, name in enumerate(names)}
        self._bags = {sentence: [index[gram] for gram in grams(sentence)] for sentence in sentences}
        self.vectors = nn.EmbeddingBag(len(names), SHARED_WIDTH, mode="mean")
        nn.init.normal_(self.vectors.weight, std=0.3)

    def forward(self, sentences: Sequence[str]) -> torch.Tensor:
        """S known sentences to (S, SHARED_WIDTH)."""
        bags = [self._bags[sentence] for sentence in sentences]
        starts = np.cumsum([0, *(len(bag) for bag in bags[:-1])])
        flat = torch.tensor([gram for bag in bags for gram in bag])
        vectors: torch.Tensor = self.vectors(flat, torch.from_numpy(starts))
        return vectors


class ContrastObjective:
    """Contrast of images with the sentences of their captions.

    Args:
        tower: Learns.
        pixels: (N, 3, H, W) float32.
        sentences: The caption of each of the N images, cut into sentences.
        record_ids: Of the N captions.
    """

    def __init__(
        self, tower: CLIPVisionModel, pixels: torch.Tensor, sentences: Sequence[Sequence[str]], record_ids: Sequence[str]
    ) -> None:
        self.tower = tower
        self.text = TextBag(sorted({sentence for caption in sentences for sentence in caption}))
        self.to_shared = nn.Linear(tower.config.hidden_size, SHARED_WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())
        self._pixels = pixels
        self._sentences = sentences
        self._record_ids = record_ids

    def weights(self) -> dict[str, nn.Parameter]:
        """Everything that learns."""
        parts = {"tower": self.tower, "text": self.text, "to_shared": self.to_shared}
        found = {f"{part}.{name}": weight for part, module in parts.items() for name, weight in module.named_parameters()}
        return found | {"log_scale": self.log_scale}

    def num_targets(self, micro: Micro) -> int:
        """Pairs of an image and a sentence of its caption."""
        return sum(len(self._sentences[index]) for index in micro)

    def loss_sum(self, micro: Micro) -> torch.Tensor:
        """Sum of the contrast over the pairs of these images."""
        row: dict[str, int] = {}
        pairs = [(row.setdefault(text, len(row)), image) for image, index in enumerate(micro) for text in self._sentences[index]]
        belongs = torch.zeros(len(row), len(micro))
        belongs[tuple(torch.tensor(pairs).T)] = 1.0
        texts = functional.normalize(self.text(list(row)), dim=-1)
        images = functional.normalize(self.to_shared(self._pooled(self._pixels[list(micro)])), dim=-1)
        return contrast(texts @ images.T * self.log_scale.exp(), belongs)

    def names(self, micro: Micro) -> list[str]:
        """Ids of the captions."""
        return [self._record_ids[index] for index in micro]

    def measures(self, step: StepPlan) -> Mapping[str, float]:
        """How far cosines are stretched."""
        return {"scale": float(self.log_scale.detach().exp())}

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, WIDTH): the mean over class token and patches."""
        hidden = self.tower(pixel_values=pixels).last_hidden_state
        pooled: torch.Tensor = functional.layer_norm(hidden, hidden.shape[-1:]).mean(1)
        return pooled


def grams(sentence: str) -> list[str]:
    """Words and pairs of neighbours, in lower case: the order of "upper left and lower right" must not be lost."""
    words = sentence.lower().rstrip(".").replace(",", " ,").split()
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


def contrast(logits: torch.Tensor, belongs: torch.Tensor) -> torch.Tensor:
    """Scalar: sum over all pairs of the mean of both directions' cross-entropy.

    A sentence that stands in several captions belongs to several images. Towards the sentences it is therefore offered once for
    each of them, or frequent sentences would be held rare.

    Args:
        logits: (S, B) of S different sentences and B images.
        belongs: (S, B), 1 where the sentence stands in the image's caption, else 0.
    """
    to_images = logits.log_softmax(1)
    to_sentences = (logits + belongs.sum(1, keepdim=True).log()).log_softmax(0)
    return -((to_images + to_sentences) * belongs).sum() / 2


def build_tower(dataset: DataSet, seed: int, steps: int | None) -> Lesson:
    """Everything to train the tower; weights are drawn from torch's present random state."""
    captions = dataset.records("train", (Kind.CAPTION,))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    pixels = PixelSource(processor)([dataset.path(record.images[0]) for record in captions])
    tower = CLIPVisionModel(_config())
    nn.init.normal_(tower.get_parameter(_position_name(tower)), std=POSITION_STD)
    objective = ContrastObjective(tower, pixels, [_cut(record) for record in captions], [record.id for record in captions])

    def write(folder: Path) -> None:
        tower.save_pretrained(str(folder))
        processor.save_pretrained(str(folder))

    return Lesson(objective, order(len(captions), BATCH_IMAGES, steps or STEPS, seed), objective.weights(), RATE, write)


def _config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
    )


def _position_name(tower: CLIPVisionModel) -> str:
    return next(name for name, _ in tower.named_parameters() if name.endswith("position_embedding.weight"))


def _cut(record: Record) -> list[str]:
    """The sentences of a caption, without their full stops."""
    return record.answer.rstrip(".").split(". ")
