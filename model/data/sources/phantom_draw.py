"""Draws phantom images and their masks: 64x64 pictures that a lay eye takes for CT, MR, X-ray, ultrasound or histology.

All arithmetic is on integers, so that every machine draws the same bytes. A shape is a "level": 256 at its centre, 0 on its
border, negative outside. Colours are 0..255; a canvas holds one channel, or three for histology.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from model.data.sources.phantom_facts import Dice, Facts

SIDE = 64  # width and height of every image, in pixels
OUTSIDE, ORGAN, FIRST_LESION = 0, 1, 2  # labels of a mask; lesion number i (from 0, in reading order) is FIRST_LESION + i
CENTRES = {"upper left": (21, 21), "upper right": (43, 21), "lower left": (21, 43), "lower right": (43, 43)}
WANDER = 2  # a lesion lies at most so far from its centre, in pixels and in either direction
RADII = {"small": (4, 4), "large": (7, 8)}  # lowest and highest radius of a lesion, in pixels
# Grey level of a (brighter, darker) lesion. Each is far from the tissue in which lesions lie.
GREYS = {"ct": (225, 15), "mr": (245, 10), "xray": (245, 10), "ultrasound": (235, 8)}
STAINS = ((255, 253, 248), (70, 28, 118))  # pale necrosis, dense dark nuclei

Colour = int | tuple[int, int, int]


@functools.cache
def _axes() -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows: x as (1, SIDE), y as (SIDE, 1)."""
    line = np.arange(SIDE, dtype=np.int64)
    return line[None, :], line[:, None]


def ellipse(cx: int, cy: int, rx: int, ry: int) -> np.ndarray:
    """Level of the ellipse around (cx, cy) with half axes rx, ry in pixels: (SIDE, SIDE)."""
    x, y = _axes()
    across, down = (x - cx) * ry, (y - cy) * rx
    return 256 - 256 * (across * across + down * down) // (rx * ry) ** 2


def soft(level: np.ndarray, edge: int) -> np.ndarray:
    """Opacity 0..256 of a level: full from `edge` inwards, none outside."""
    return np.clip(level * 256 // edge, 0, 256)


def ring(level: np.ndarray, at: int, width: int) -> np.ndarray:
    """Opacity 0..256 of the contour where the level is `at`, fading over `width`."""
    return np.clip(256 - 256 * np.abs(level - at) // width, 0, 256)


def cloud(dice: Dice, cell: int, spread: int) -> np.ndarray:
    """Smooth texture in -spread..spread with bumps of about `cell` pixels, a divisor of SIDE: (SIDE, SIDE)."""
    knots = dice.grid((SIDE // cell + 1, SIDE // cell + 1), spread)
    x, y = _axes()
    column, row, right, down = x // cell, y // cell, x % cell, y % cell
    top = knots[row, column] * (cell - right) + knots[row, column + 1] * right
    bottom = knots[row + 1, column] * (cell - right) + knots[row + 1, column + 1] * right
    return (top * (cell - down) + bottom * down) // (cell * cell)


class Canvas:
    """A picture under work: integers (SIDE, SIDE, channels), kept in 0..255 when it is read out."""

    def __init__(self, channels: int, colour: Colour) -> None:
        self.pixels = np.zeros((SIDE, SIDE, channels), dtype=np.int64) + np.asarray(colour)

    def paint(self, opacity: np.ndarray, colour: Colour) -> None:
        """Lay `colour` over the picture; opacity is (SIDE, SIDE) in 0..256, 256 hides what was there."""
        self.pixels += (np.asarray(colour) - self.pixels) * opacity[:, :, None] >> 8

    def add(self, amount: np.ndarray) -> None:
        """Add `amount` (SIDE, SIDE) to every channel."""
        self.pixels += amount[:, :, None]

    def scale(self, percent: np.ndarray) -> None:
        """Multiply every channel by `percent` (SIDE, SIDE) hundredths."""
        self.pixels = self.pixels * percent[:, :, None] // 100

    def read(self) -> np.ndarray:
        """The finished picture: uint8 (SIDE, SIDE) or (SIDE, SIDE, 3)."""
        done = np.clip(self.pixels, 0, 255).astype(np.uint8)
        return done[:, :, 0] if done.shape[2] == 1 else done


def draw(facts: Facts, dice: Dice) -> tuple[np.ndarray, np.ndarray]:
    """Picture and mask of `facts`.

    Returns:
        The picture, uint8 (SIDE, SIDE) or (SIDE, SIDE, 3) for histology; and the mask, uint8 (SIDE, SIDE) of labels
        OUTSIDE, ORGAN, and one label for each lesion in the order of `facts.places`.
    """
    histology = facts.modality == "histology"
    canvas = Canvas(3, (238, 196, 216)) if histology else Canvas(1, 6)
    organ = SCENES_DRAWN[facts.modality, facts.organ](canvas, dice)
    if histology:
        canvas.paint(_nuclei(dice, 190 if facts.density == "high" else 22) * organ, (74, 36, 128))
    mask = np.where(organ, ORGAN, OUTSIDE)
    for index, place in enumerate(facts.places):
        level = _lesion(facts, place, dice)
        _paint_lesion(canvas, facts, level)
        mask[level > 0] = FIRST_LESION + index
    _finish(canvas, facts.modality, dice)
    return canvas.read(), mask.astype(np.uint8)


def _lesion(facts: Facts, place: str, dice: Dice) -> np.ndarray:
    low, high = RADII[facts.size]
    cx, cy = CENTRES[place]
    cx, cy = cx + dice.between(-WANDER, WANDER), cy + dice.between(-WANDER, WANDER)
    level = ellipse(cx, cy, dice.between(low, high), dice.between(low, high))
    # An uneven border only near the border: lesions of two places never touch.
    return np.where(level > -60, level + cloud(dice, 8, 45), -1)


def _paint_lesion(canvas: Canvas, facts: Facts, level: np.ndarray) -> None:
    darker = facts.tone == "darker"
    colour: Colour = STAINS[darker] if facts.modality == "histology" else GREYS[facts.modality][darker]
    canvas.paint(soft(level, 70), colour)


def _finish(canvas: Canvas, modality: str, dice: Dice) -> None:
    """The noise of the machine."""
    grain = dice.grid((SIDE, SIDE), 42) + dice.grid((SIDE, SIDE), 42)
    if modality == "ultrasound":
        canvas.scale(100 + (grain + np.roll(grain, 1, axis=1)) // 2)  # speckle: grows with the echo, wider than high
    elif modality == "histology":
        canvas.add(grain // 10)
    else:
        canvas.add(grain // (6 if modality == "ct" else 9))


def _shift(dice: Dice) -> tuple[int, int]:
    """Where the patient lies: the centre of the picture, moved a little."""
    return 32 + dice.between(-2, 2), 32 + dice.between(-2, 2)


def _ct_body(canvas: Canvas, dice: Dice) -> tuple[int, int, np.ndarray]:
    """Slice through the trunk, on its table, with a bright vertebra: its centre and level."""
    cx, cy = _shift(dice)
    body = ellipse(cx, cy - 1, dice.between(29, 30), dice.between(25, 27))
    canvas.paint(ring(ellipse(cx, cy - 12, 40, 42), 0, 12), 60)
    canvas.paint(soft(body, 12), 62)
    canvas.paint(soft(body - 24, 14), 112)
    canvas.paint(soft(ellipse(cx, cy + 16, 5, 5), 60), 250)
    canvas.paint(soft(ellipse(cx, cy + 16, 2, 2), 60), 120)
    return cx, cy, body


def _ct_liver(canvas: Canvas, dice: Dice) -> np.ndarray:
    cx, cy, body = _ct_body(canvas, dice)
    liver = np.minimum(ellipse(cx - 3, cy - 3, 25, 20), body - 30)
    canvas.paint(soft(liver, 30), 138)
    canvas.paint(soft(ellipse(cx + 1, cy + 8, 3, 3), 60), 190)
    for _ in range(3):
        canvas.paint(soft(ellipse(cx + dice.between(-4, 4), cy + dice.between(-14, 2), 6, 1), 60) // 2, 175)
    canvas.add(cloud(dice, 8, 7))
    return liver > 0


def _ct_lung(canvas: Canvas, dice: Dice) -> np.ndarray:
    cx, cy, _ = _ct_body(canvas, dice)
    lungs = np.maximum(ellipse(cx - 13, cy - 1, 12, 20), ellipse(cx + 13, cy - 1, 12, 20))
    canvas.paint(soft(lungs, 30), 78)
    canvas.paint(soft(ellipse(cx + 2, cy - 6, 8, 9), 50), 150)
    for _ in range(14):
        canvas.paint(soft(ellipse(cx + dice.between(-22, 22), cy + dice.between(-17, 14), 1, 1), 60) * (lungs > 20) // 2, 130)
    return lungs > 0


def _mr_brain(canvas: Canvas, dice: Dice) -> np.ndarray:
    cx, cy = _shift(dice)
    head = ellipse(cx, cy, dice.between(27, 28), 30)
    canvas.paint(ring(head, 12, 22), 215)
    brain = head - 56
    canvas.paint(soft(brain, 18), 128)
    folds = cloud(dice, 4, 40)
    canvas.add(np.where(brain > 0, folds * np.clip(140 - brain, 20, 140) // 140, 0))
    for side in (-1, 1):
        canvas.paint(soft(ellipse(cx + 3 * side, cy - 1, 2, 8), 60), 35)
    canvas.paint(ring(np.abs(ellipse(cx, cy, 1, 60) - 256), 0, 90) * (brain > 0) // 2, 60)
    return brain > 0


def _knee(canvas: Canvas, dice: Dice, bone: int, rim: int, gap: int, flesh: int) -> np.ndarray:
    """Thigh bone above, shin bone below, the joint between them; greys of the bone, its rim, the gap and the flesh."""
    cx, cy = _shift(dice)
    x, y = _axes()
    canvas.paint(soft(256 - 256 * (x - cx) ** 2 // 900 + 0 * y, 14), flesh)
    upper = np.maximum(ellipse(cx, cy - 13, 25, 13), ellipse(cx, cy - 34, 13, 22))
    lower = np.maximum(ellipse(cx, cy + 15, 25, 13), ellipse(cx, cy + 36, 12, 22))
    bones = np.maximum(upper, lower)
    canvas.paint(soft(bones, 20), rim)
    canvas.paint(soft(bones - 34, 30), bone)
    canvas.paint(soft(ellipse(cx, cy + 1, 24, 2), 90), gap)
    canvas.add(cloud(dice, 4, 9) * (bones > 0))
    return bones > 0


def _mr_knee(canvas: Canvas, dice: Dice) -> np.ndarray:
    return _knee(canvas, dice, bone=150, rim=45, gap=225, flesh=80)


def _xray_knee(canvas: Canvas, dice: Dice) -> np.ndarray:
    return _knee(canvas, dice, bone=140, rim=215, gap=55, flesh=62)


def _xray_lung(canvas: Canvas, dice: Dice) -> np.ndarray:
    cx, cy = _shift(dice)
    x, y = _axes()
    canvas.paint(soft(ellipse(cx, cy + 6, 33, 42), 40), 150)
    lungs = np.maximum(ellipse(cx - 14, cy, 12, 25), ellipse(cx + 14, cy, 12, 25))
    canvas.paint(soft(lungs, 50), 72)
    for number in range(6):
        height = cy - 25 + 9 * number
        bow = (x - cx) * (x - cx) // 60
        canvas.paint(np.clip(120 - 60 * np.abs(y - height - bow), 0, 75) * (lungs > -30), 165)
    canvas.paint(soft(ellipse(cx, cy - 4, 4, 40), 120), 190)
    canvas.paint(soft(ellipse(cx + 4, cy + 13, 9, 9), 80), 205)
    canvas.paint(soft(ellipse(cx, cy + 38, 34, 16), 60), 190)
    canvas.paint(soft(ellipse(cx, cy - 28, 26, 3), 120) // 2, 210)
    return lungs > 0


def _sector(canvas: Canvas, dice: Dice) -> tuple[int, int, np.ndarray]:
    """The fan of an ultrasound probe: centre of the picture, and where there is an echo."""
    cx, cy = _shift(dice)
    x, y = _axes()
    apex = cy - 86
    far = (x - cx) ** 2 + (y - apex) ** 2
    inside = (far > 57 * 57) & (far < 116 * 116) & (np.abs(x - cx) * 82 < 34 * (y - apex))
    canvas.paint(np.where(inside, 256, 0), 105)
    canvas.paint(np.where(inside & (far < 60 * 60), 200, 0), 220)
    canvas.add(np.where(inside, cloud(dice, 4, 22), 0))
    return cx, cy, inside


def _ultrasound_liver(canvas: Canvas, dice: Dice) -> np.ndarray:
    cx, cy, inside = _sector(canvas, dice)
    canvas.paint(ring(ellipse(cx, cy - 14, 46, 42), 0, 22) * inside, 240)
    for _ in range(3):
        canvas.paint(soft(ellipse(cx + dice.between(-3, 3), cy + dice.between(-12, 12), 7, 1), 60) * inside, 25)
    return inside


def _ultrasound_kidney(canvas: Canvas, dice: Dice) -> np.ndarray:
    cx, cy, inside = _sector(canvas, dice)
    kidney = ellipse(cx, cy + 2, 28, 22)
    canvas.paint(ring(kidney, 0, 24) * inside, 215)
    canvas.paint(soft(kidney - 12, 30) * inside, 78)
    canvas.paint(soft(ellipse(cx, cy + 2, 13, 5), 90) * inside, 215)
    canvas.add(np.where(inside, cloud(dice, 4, 14), 0))
    return inside & (kidney > 0)


def _colon(canvas: Canvas, dice: Dice) -> np.ndarray:
    """Glands in rows: rings of dark nuclei around a pale middle."""
    canvas.add(cloud(dice, 8, 12))
    across, down = dice.between(-4, 4), dice.between(-4, 4)
    glands = np.full((SIDE, SIDE), -256, dtype=np.int64)
    for row in range(-1, 5):
        for column in range(-1, 5):
            cx = 16 * column + 8 * (row % 2) + across + dice.between(-1, 1)
            np.maximum(glands, ellipse(cx, 15 * row + down + dice.between(-1, 1), 7, 6), out=glands)
    canvas.paint(soft(glands, 60), (226, 160, 200))
    canvas.paint(ring(glands, 60, 70), (150, 92, 168))
    canvas.paint(soft(glands - 165, 60), (232, 190, 214))
    return np.ones((SIDE, SIDE), dtype=bool)


def _skin(canvas: Canvas, dice: Dice) -> np.ndarray:
    """White above, the purple outer skin as a wavy band, pink fibres below."""
    x, y = _axes()
    top = 4 + dice.between(0, 3) + cloud(dice, 16, 3)[0][None, :]
    canvas.paint(np.where(y < top, 256, 0), (250, 246, 250))
    canvas.paint(np.where((y >= top) & (y < top + 2), 256, 0), (206, 110, 150))
    band = top + 9 + cloud(dice, 8, 4)[7][None, :]
    canvas.paint(np.where((y >= top + 2) & (y < band), 256, 0), (166, 106, 178))
    fibres = cloud(dice, 4, 30) + np.where((y + x // 3 + cloud(dice, 16, 8)) % 7 < 2, 18, 0)
    canvas.add(np.where(y >= band, fibres * 2 // 3, 0))
    return np.broadcast_to(y >= top, (SIDE, SIDE)).copy()


def _nuclei(dice: Dice, count: int) -> np.ndarray:
    """Opacity of `count` strewn cell nuclei, each two pixels high and one or two wide."""
    opacity = np.zeros((SIDE, SIDE), dtype=np.int64)
    for word in dice.words(count):
        x, y = int(word) % (SIDE - 1), int(word) // SIDE % (SIDE - 1)
        opacity[y : y + 2, x : x + 1 + int(word) // 8192 % 2] = 225
    return opacity


SCENES_DRAWN: dict[tuple[str, str], Callable[[Canvas, Dice], np.ndarray]] = {
    ("ct", "liver"): _ct_liver,
    ("ct", "lung"): _ct_lung,
    ("mr", "brain"): _mr_brain,
    ("mr", "knee"): _mr_knee,
    ("xray", "lung"): _xray_lung,
    ("xray", "knee"): _xray_knee,
    ("ultrasound", "liver"): _ultrasound_liver,
    ("ultrasound", "kidney"): _ultrasound_kidney,
    ("histology", "colon"): _colon,
    ("histology", "skin"): _skin,
}
