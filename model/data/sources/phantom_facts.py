"""What a phantom image shows: seeded draws, the vocabulary, and the facts from which picture and words are made.

Every draw goes through `Dice`, which takes raw 64-bit words of numpy's PCG64. Of numpy's randomness only these words are promised
to stay the same in every version; the methods of `Generator` are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

# Each modality with the organs it is drawn for. Liver, lung, brain... stand under several, so that one does not give the other away.
SCENES: tuple[tuple[str, str], ...] = (
    ("ct", "liver"),
    ("mr", "brain"),
    ("xray", "lung"),
    ("ultrasound", "liver"),
    ("histology", "colon"),
    ("ct", "lung"),
    ("mr", "knee"),
    ("xray", "knee"),
    ("ultrasound", "kidney"),
    ("histology", "skin"),
)
MODALITIES: tuple[str, ...] = ("ct", "mr", "xray", "ultrasound", "histology")
ORGANS: tuple[str, ...] = ("brain", "colon", "kidney", "knee", "liver", "lung", "skin")
PLACES: tuple[str, ...] = ("upper left", "upper right", "lower left", "lower right")  # in reading order
SIZES: tuple[str, ...] = ("small", "large")
TONES: tuple[str, ...] = ("brighter", "darker")
NUMBERS: tuple[str, ...] = ("none", "one", "two", "three")
DENSITIES: tuple[str, ...] = ("low", "high")


class Split(IntEnum):
    """The splits; the value is part of every image's seed, so no two splits share one."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2

    @property
    def label(self) -> str:
        """Name of the split in files and ids."""
        return self.name.lower()


class Dice:
    """Draws that are the same on every machine and with every version of numpy."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(list(seed))

    def words(self, count: int) -> np.ndarray:
        """`count` integers, uniform in 0..2**32-1, as int64 (count,)."""
        return (self._bits.random_raw(count) >> np.uint64(32)).astype(np.int64)

    def below(self, bound: int) -> int:
        """One integer, uniform in 0..bound-1."""
        return int(self.words(1)[0]) * bound >> 32

    def between(self, low: int, high: int) -> int:
        """One integer, uniform in low..high, both included."""
        return low + self.below(high - low + 1)

    def grid(self, shape: tuple[int, int], spread: int) -> np.ndarray:
        """Integers, uniform in -spread..spread, as int64 of `shape`."""
        drawn = self.words(shape[0] * shape[1]).reshape(shape)
        return (drawn * (2 * spread + 1) >> 32) - spread

    def choose(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def flip(self) -> bool:
        """True or false, equally often."""
        return self.below(2) == 1

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different ones of `items`, in the order of `items`."""
        left = list(range(len(items)))
        taken = [left.pop(self.below(len(left))) for _ in range(count)]
        return [items[index] for index in sorted(taken)]


@dataclass(frozen=True)
class Facts:
    """What is true of one image. Words and picture are both made from it."""

    modality: str
    organ: str
    places: tuple[str, ...]  # one for each lesion, all different, in reading order; empty if there is none
    size: str  # of all lesions
    tone: str  # of all lesions, against the tissue around them
    density: str  # of the cells; empty unless the modality is histology

    @property
    def number(self) -> str:
        """How many lesions there are, as a word."""
        return NUMBERS[len(self.places)]

    @property
    def side(self) -> str:
        """left or right, if all lesions lie there; empty if there is none or they lie on both sides."""
        sides = {place.split()[1] for place in self.places}
        return sides.pop() if len(sides) == 1 else ""


def draw_facts(index: int, dice: Dice) -> Facts:
    """The facts of the image number `index` of a split.

    Scenes take turns. A third of the images has no lesion, a third has one, and a third two or three: so "more than one" is as
    often true as false where there is a lesion, and the count is hard to guess. Size, tone and places do not depend on anything.
    """
    modality, organ = SCENES[index % len(SCENES)]
    kind = dice.below(3)
    count = dice.between(2, 3) if kind == 2 else kind
    return Facts(
        modality=modality,
        organ=organ,
        places=tuple(dice.sample(PLACES, count)),
        size=dice.choose(SIZES),
        tone=dice.choose(TONES),
        density=dice.choose(DENSITIES) if modality == "histology" else "",
    )
