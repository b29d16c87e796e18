"""The words of a phantom image: caption, questions, summary and boxes, all made from the same facts as the picture.

No question gives its answer away: for every wording, each answer of a closed question is equally likely, because what is asked is
drawn independently of what is true, or against it with the same chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.data.records import AnswerType
from model.data.sources.phantom_draw import CENTRES, FIRST_LESION, RADII, SIDE
from model.data.sources.phantom_facts import MODALITIES, ORGANS, PLACES, TONES, Dice, Facts

MODALITY_NAMES = {"ct": "CT", "mr": "MRI", "xray": "X-ray", "ultrasound": "ultrasound", "histology": "histology"}
# What a reader of each modality calls a (brighter, darker) lesion.
TERMS = {
    "ct": ("hyperdense", "hypodense"),
    "mr": ("hyperintense", "hypointense"),
    "xray": ("opaque", "lucent"),
    "ultrasound": ("hyperechoic", "hypoechoic"),
    "histology": ("pale", "dark-stained"),
}
OPENINGS = {
    "histology": (
        "Histology of the {organ}.",
        "Histology section of {organ} tissue.",
        "This is a stained histology image of the {organ}.",
    ),
    "": ("{Modality} of the {organ}.", "{Modality} image of the {organ}.", "This {modality} shows the {organ}."),
}
HEALTHY = ("There is no lesion.", "No lesion is seen.", "The {organ} is free of lesions.")
COUNTED = (
    ("There is {number} lesion.", "One sees {number} lesion.", "It holds {number} lesion."),
    ("There are {number} lesions.", "One sees {number} lesions.", "It holds {number} lesions."),
)
SIZED = (
    ("It is {size}.", "Its size is {size}.", "It looks {size}."),
    ("They are {size}.", "Their size is {size}.", "They look {size}."),
)
PLACED = (
    ("It lies in the {places}.", "It is found in the {places}.", "Its place is the {places}."),
    ("They lie in the {places}.", "They are found in the {places}.", "Their places are the {places}."),
)
TONED = (
    ("It is {tone} than the tissue around it, {term}.", "It appears {term}, {tone} than its surroundings."),
    ("They are {tone} than the tissue around them, {term}.", "They appear {term}, {tone} than their surroundings."),
)
CELLS = ("The cell density is {density}.", "The tissue has {density} cell density.")

ASK_CAPTION = (
    "Describe this image.",
    "Write a caption for this image.",
    "What does this image show?",
    "Describe the picture in detail.",
)
ASK_SUMMARY = ("Summarise the findings.", "Please give a short summary.", "Sum up what you see.")
ASK_BOX = ("Where is the lesion? Answer with boxes.", "Give the box of each lesion.", "Mark every lesion with a box.")
ASK_INSIDE = ("What is in {box}?", "Describe the region {box}.", "What do you see at {box}?")
NOTHING = "No lesion there."

ASK = {
    "modality": ("Which modality is this?", "How was this image acquired?", "What kind of medical image is this?"),
    "modality_check": ("Is this {modality}?", "Does the image come from {modality}?", "Was this acquired with {modality}?"),
    "organ": ("Which organ is shown?", "What part of the body is this?", "Name the organ in the image."),
    "organ_check": ("Is this the {organ}?", "Does the image show the {organ}?", "Is the {organ} what we see here?"),
    "presence": ("Is there a lesion?", "Does the image show any lesion?", "Can a lesion be seen?"),
    "count": ("How many lesions are there?", "How many lesions do you see?", "What is the number of lesions?"),
    "several": ("Is there more than one lesion?", "Are there several lesions?", "Does it hold more than one lesion?"),
    "size": ("What is the size of the lesion?", "How big is the lesion?", "Is the lesion small or large?"),
    "tone": (
        "How bright is the lesion against the tissue around it?",
        "How does the lesion compare with its surroundings?",
        "Is the lesion brighter or darker than the tissue around it?",
    ),
    "side": (
        "On which side of the image is the lesion?",
        "Which side of the image is affected?",
        "Is the lesion on the left or right side of the image?",
    ),
    "place": ("Where is the lesion?", "In which part of the image is the lesion?", "Name the place of the lesion."),
    "place_check": ("Is there a lesion in the {place}?", "Does a lesion lie in the {place}?", "Is the {place} affected?"),
    "density": ("What is the cell density?", "How dense are the cells?", "Is the cell density low or high?"),
}

# One in so many images gets a question that names a modality, organ or place and asks whether it is that one. To compare what is
# asked with what is seen is the hardest thing here for a tiny model; its slice of the report shows how far it came.
CHECK_EVERY = 4


class Question(NamedTuple):
    """One question with its one right answer."""

    type: str
    answer_type: AnswerType
    text: str
    answer: str


def _words(facts: Facts) -> dict[str, str]:
    """The facts as the templates name them."""
    modality = MODALITY_NAMES[facts.modality]
    return {
        "modality": modality,
        "Modality": modality[0].upper() + modality[1:],
        "organ": facts.organ,
        "number": facts.number,
        "size": facts.size,
        "tone": facts.tone,
        "term": TERMS[facts.modality][TONES.index(facts.tone)],
        "places": _listed(facts.places),
        "density": facts.density,
    }


def _listed(items: Sequence[str]) -> str:
    """a | a and b | a, b and c"""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def caption(facts: Facts, dice: Dice) -> str:
    """The full description: every fact, a sentence each. The vision tower learns from sentences: what stands in one of its own is
    learned soonest."""
    templates: list[tuple[str, ...]] = [OPENINGS.get(facts.modality, OPENINGS[""])]
    if facts.density:
        templates.append(CELLS)
    if facts.places:
        many = len(facts.places) > 1
        templates += [COUNTED[many], SIZED[many], PLACED[many], TONED[many]]
    else:
        templates.append(HEALTHY)
    words = _words(facts)
    return " ".join(dice.choose(choice).format(**words) for choice in templates)


def summary(facts: Facts) -> str:
    """The last word of a dialogue: modality, organ and findings in one line."""
    words = _words(facts)
    head = "{Modality}, {organ}".format(**words)
    cells = f", {facts.density} cell density" if facts.density else ""
    if not facts.places:
        return f"{head}{cells}: no lesion."
    plural = "s" if len(facts.places) > 1 else ""
    return f"{head}{cells}: " + "{number} {size} {term} lesion".format(**words) + f"{plural}, {words['places']}."


def questions(facts: Facts, dice: Dice) -> list[Question]:
    """The questions of one image, in drawn order.

    A third of the images has no lesion, so presence is asked of all of those and of half of the others. What supposes a lesion
    is asked only where there is one, and where its answer is unique.
    """
    found = [_modality(facts, dice), _organ(facts, dice), _open("count", facts.number, dice)]
    if not facts.places or dice.flip():
        found.append(_closed("presence", "yes" if facts.places else "no", dice))
    if facts.density:
        found.append(_closed("density", facts.density, dice))
    if facts.places:
        found.append(_closed("several", "yes" if len(facts.places) > 1 else "no", dice))
        found.append(_closed("size", facts.size, dice))
        found.append(_closed("tone", facts.tone, dice))
        if not dice.below(CHECK_EVERY):
            found.append(_place_check(facts, dice))
    if facts.side:
        found.append(_closed("side", facts.side, dice))
    if len(facts.places) == 1:
        found.append(_open("place", facts.places[0], dice))
    return [found.pop(dice.below(len(found))) for _ in range(len(found))]


def _open(kind: str, answer: str, dice: Dice) -> Question:
    return Question(kind, AnswerType.OPEN, dice.choose(ASK[kind]), answer)


def _closed(kind: str, answer: str, dice: Dice, **named: str) -> Question:
    return Question(kind, AnswerType.CLOSED, dice.choose(ASK[kind]).format(**named), answer)


def _modality(facts: Facts, dice: Dice) -> Question:
    if dice.below(CHECK_EVERY):
        return _open("modality", MODALITY_NAMES[facts.modality], dice)
    true = dice.flip()
    asked = facts.modality if true else dice.choose([name for name in MODALITIES if name != facts.modality])
    return _closed("modality_check", "yes" if true else "no", dice, modality=MODALITY_NAMES[asked])


def _organ(facts: Facts, dice: Dice) -> Question:
    """The wrong organ is drawn among those that are shown as often as the right one, so that its name alone tells nothing."""
    if dice.below(CHECK_EVERY):
        return _open("organ", facts.organ, dice)
    true = dice.flip()
    asked = facts.organ if true else dice.choose([name for name in _PEERS[facts.organ] if name != facts.organ])
    return _closed("organ_check", "yes" if true else "no", dice, organ=asked)


# Organs of two scenes, and organs of one (see SCENES): within a group all are drawn equally often.
_TWICE = ("knee", "liver", "lung")
_PEERS = {organ: _TWICE if organ in _TWICE else tuple(name for name in ORGANS if name not in _TWICE) for organ in ORGANS}


def _place_check(facts: Facts, dice: Dice) -> Question:
    true = dice.flip()
    asked = dice.choose([place for place in PLACES if (place in facts.places) == true])
    return _closed("place_check", "yes" if true else "no", dice, place=asked)


def box_text(x1: int, y1: int, x2: int, y2: int) -> str:
    """A box whose pixels run from column x1 and row y1 up to, not including, x2 and y2; written in thousandths of the side."""
    left, top, right, bottom = (value * 1000 // SIDE for value in (x1, y1, x2, y2))
    return f"<box>({left},{top}),({right},{bottom})</box>"


def lesion_boxes(mask: np.ndarray, count: int) -> list[str]:
    """The tightest box of each of `count` lesions in a mask (SIDE, SIDE), in reading order of their places."""
    boxes = []
    for label in range(FIRST_LESION, FIRST_LESION + count):
        rows, columns = np.nonzero(mask == label)
        boxes.append(box_text(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return boxes


def groundings(facts: Facts, boxes: Sequence[str], dice: Dice) -> list[tuple[str, str]]:
    """Two (question, answer) pairs where there are lesions: all boxes, and what stands in one box, which may be empty."""
    if not boxes:
        return []
    what = f"A {facts.size} {TERMS[facts.modality][TONES.index(facts.tone)]} lesion."
    box, answer = dice.choose(boxes), what
    if dice.flip():
        x, y = CENTRES[dice.choose([place for place in PLACES if place not in facts.places])]
        radius = RADII[facts.size][1]
        box, answer = box_text(x - radius, y - radius, x + radius, y + radius), NOTHING
    return [(dice.choose(ASK_BOX), " ".join(boxes)), (dice.choose(ASK_INSIDE).format(box=box), answer)]
