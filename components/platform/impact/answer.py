"""What the index answers: the versions that learned from what was asked for, those only asked it, and what is not known.

1. `find` looks each thing up (`_Search`): records by the hash of their id, patient or image; data sets, base models and licences by
   name. What is found nowhere is listed by its place in the question.
2. The things spread to artifacts and versions (`spread`).
3. An image that stands in no set by its bytes is looked for by its pixels; then pictures that look alike are told, apart.

What counts as learned is what the stage was given: the kinds and splits of its recipe, without what its audit left out. A record that
was too long for the context, or lay in a step that was not taken, is told as learned too: no file says which those were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from components.platform.impact import spread
from components.platform.impact.index import Index
from components.platform.impact.question import Item, Subject
from components.platform.impact.spread import Bits, Row, Split, Use

LEAST_HEX = 8
BY_RECORD = (Subject.IMAGE, Subject.RECORD, Subject.PATIENT)
COLUMNS = {
    Subject.RECORD: "SELECT record, series, first, last, kind FROM seen WHERE record = ?",
    Subject.PATIENT: "SELECT record, series, first, last, kind FROM seen WHERE patient = ?",
    Subject.IMAGE: "SELECT record, series, first, last, kind FROM seen WHERE image = ?",
}
USES = "SELECT artifact, set_id, split, kinds, exclusion FROM uses WHERE learned = ? AND set_id = ?"


@dataclass(frozen=True)
class Touched:
    """A version that learned from, or was asked, something of what was asked for."""

    model: str
    number: str
    records: int
    """Of those asked for; 0 where a data set, base model or licence was asked for."""
    through: tuple[str, ...] = ()
    """What read them: stages of its training, and base models below it."""
    gone: bool = False
    """Deleted in the registry; somebody may still have it."""


@dataclass(frozen=True)
class TouchedSet:
    """A version of a data set that holds something of what was asked for."""

    name: str
    digest: str
    revision: str
    records: int


@dataclass(frozen=True)
class Answer:
    """The answer to a question."""

    learned: tuple[Touched, ...] = ()
    evaluated: tuple[Touched, ...] = ()
    """Only evaluated on it, never trained."""
    sets: tuple[TouchedSet, ...] = ()
    artifacts: tuple[str, ...] = ()
    """Digests of all checkpoints, exports and base models that learned from it, also of those behind no version."""
    records: int = 0
    nowhere: tuple[Item, ...] = ()
    """Things that stand in no data set, model or licence that is known here."""
    unknown: tuple[tuple[str, str, str], ...] = ()
    """(model, number, why): versions of which it is not known what they learned from."""


@dataclass
class _Search:
    """Things found so far: each a bit."""

    index: Index
    rows: defaultdict[Row, Bits] = field(default_factory=lambda: defaultdict(int))
    records: dict[tuple[int, str], int] = field(default_factory=dict)
    """(Hash of the id, name of the set) -> bit."""
    sets: dict[int, Bits] = field(default_factory=dict)
    """Data set asked for as a whole -> bit."""
    bases: dict[int, Bits] = field(default_factory=dict)
    """Base model asked for -> bit."""
    wholes: int = 0
    """Things that are no records."""


def find(index: Index, items: Sequence[Item], images: Sequence[int] = ()) -> Answer:
    """The answer to a question about `items`, and about images by their hash in the index."""
    search = _Search(index)
    names = {int(number): str(name) for number, name in index.database.execute("SELECT id, name FROM series")}
    nowhere = tuple(item for item in items if not _look_up(search, item, names))
    for image in images:
        _rows(search, Subject.IMAGE, image, names)
    return _spread(search, nowhere, any(item.subject in BY_RECORD for item in items) or bool(images))


def _look_up(search: _Search, item: Item, names: dict[int, str]) -> bool:
    """Whether the thing stands anywhere; what was found of it is in `search`."""
    if item.subject is Subject.RECORD:
        name, slash, own = item.value.partition("/")
        return _rows(search, item.subject, search.index.hashed(item.value), names) or (
            bool(slash) and _rows(search, item.subject, search.index.hashed(own), names, only=name)
        )
    if item.subject in BY_RECORD:
        return _rows(search, item.subject, search.index.hashed(item.value), names)
    sets, bases = _named(search.index, item)
    thing = 1 << search.wholes if sets or bases else 0
    search.wholes += bool(thing)
    for number in sets:
        search.sets[number] = search.sets.get(number, 0) | thing
    for number in bases:
        search.bases[number] = search.bases.get(number, 0) | thing
    return bool(thing)


def _rows(search: _Search, subject: Subject, value: int, names: dict[int, str], only: str = "") -> bool:
    found = False
    for record, series, first, last, kind in search.index.database.execute(COLUMNS[subject], (value,)):
        if not only or names[series] == only:
            bit = search.records.setdefault((record, names[series]), len(search.records))
            search.rows[Row(series, first, last, kind)] |= 1 << bit
            found = True
    return found


def _named(index: Index, item: Item) -> tuple[list[int], list[int]]:
    """Numbers of the data sets and of the base models that an item names."""
    execute, value = index.database.execute, item.value
    prefix = f"{value}*" if len(value) >= LEAST_HEX and set(value) <= set("0123456789abcdef") else ""
    if item.subject is Subject.LICENCE:
        sets = execute("SELECT id FROM sets WHERE licence = ? COLLATE NOCASE", (value,))
        bases = execute("SELECT id FROM artifacts WHERE kind = 'base' AND licence = ? COLLATE NOCASE", (value,))
        return [row[0] for row in sets], [row[0] for row in bases]
    if item.subject is Subject.BASE:
        bases = execute("SELECT id FROM artifacts WHERE kind = 'base' AND (name = ? OR digest GLOB ?)", (value, prefix))
        return [], [row[0] for row in bases]
    name, _, revision = value.partition("@")
    begins = f"{revision}*" if set(revision) <= set("0123456789abcdef") else ""
    asked = (name, revision, begins, begins, prefix)
    sets = execute(
        "SELECT id FROM sets WHERE (name = ? AND (? = '' OR revision GLOB ? OR digest GLOB ?)) OR digest GLOB ?", asked
    )
    return [row[0] for row in sets], []


def _spread(search: _Search, nowhere: tuple[Item, ...], by_record: bool) -> Answer:
    execute = search.index.database.execute
    splits = [Split(*row) for row in execute("SELECT set_id, split, series, number FROM splits")]
    parts = spread.in_parts(search.rows, splits)
    excluded = _excluded(search)
    edges = execute("SELECT parent, child FROM edges").fetchall()
    learned = _Histories.of(search, parts, excluded, edges, True)
    asked = _Histories.of(search, parts, excluded, [], False)
    unknown = _unknown(search.index, edges, by_record)
    touched, evaluated, lacking = [], [], []
    for model, number, artifact, flaw, gone in execute("SELECT model, number, artifact, flaw, gone FROM versions"):
        if artifact in learned.at:
            touched.append(Touched(model, number, *learned.told(artifact), bool(gone)))
        elif artifact in asked.at:
            evaluated.append(Touched(model, number, *asked.told(artifact), bool(gone)))
        why = flaw or unknown.get(artifact, "")
        if why:
            lacking.append((model, number, why))
    return Answer(
        learned=tuple(sorted(touched, key=_order)),
        evaluated=tuple(sorted(evaluated, key=_order)),
        sets=_sets(search, parts),
        artifacts=_digests(search.index, learned.at),
        records=len(search.records),
        nowhere=nowhere,
        unknown=tuple(sorted(lacking)),
    )


@dataclass(frozen=True)
class _Histories:
    """What each artifact has read, as bits: of uses, then of the artifacts that read for themselves."""

    at: dict[int, Bits]
    things: list[Bits]
    """Of each use."""
    readers: list[str]
    counted: dict[Bits, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        search: _Search,
        parts: dict[spread.Part, Bits],
        excluded: dict[int, Bits],
        edges: list[tuple[int, int]],
        learned: bool,
    ) -> _Histories:
        touched = sorted({part.set_id for part in parts} | search.sets.keys())
        read = [row for set_id in touched for row in search.index.database.execute(USES, (int(learned), set_id))]
        own, things = spread.groups(((row[0], Use(*row[1:])) for row in read), parts, excluded)
        whole = {row[0] for row in read if row[1] in search.sets} | (search.bases.keys() if learned else set())
        names = _names(search.index, own.keys() | whole)
        readers = sorted(set(names.values()))
        place = {name: len(things) + number for number, name in enumerate(readers)}
        start = {artifact: own.get(artifact, 0) | 1 << place[name] for artifact, name in names.items()}
        return cls(spread.downstream(start, edges), things, readers)

    def told(self, artifact: int) -> tuple[int, tuple[str, ...]]:
        """Number of records, and what read them."""
        bits = self.at[artifact]
        uses = bits & ((1 << len(self.things)) - 1)
        if uses not in self.counted:
            joined = 0
            for place in spread.places(uses):
                joined |= self.things[place]
            self.counted[uses] = joined.bit_count()
        return self.counted[uses], tuple(self.readers[place] for place in spread.places(bits >> len(self.things)))


def _excluded(search: _Search) -> dict[int, Bits]:
    """Exclusion list -> the records asked for that it leaves out."""
    found: defaultdict[int, Bits] = defaultdict(int)
    for (record, _), bit in search.records.items():
        for row in search.index.database.execute("SELECT exclusion FROM excluded WHERE record = ?", (record,)):
            found[row[0]] |= 1 << bit
    return dict(found)


def _unknown(index: Index, edges: list[tuple[int, int]], by_record: bool) -> dict[int, str]:
    """Artifact -> why it is not known what it learned from; for records also where a set's records could not be read."""
    execute = index.database.execute
    reasons: dict[str, int] = {}
    own: defaultdict[int, Bits] = defaultdict(int)
    flawed = execute("SELECT id, flaw FROM artifacts WHERE flaw != ''").fetchall()
    if by_record:
        flawed += execute(
            "SELECT DISTINCT u.artifact, s.name || ': ' || s.flaw FROM sets s JOIN uses u ON u.set_id = s.id WHERE s.flaw != ''"
        ).fetchall()
    for artifact, why in flawed:
        own[artifact] |= 1 << reasons.setdefault(why, len(reasons))
    names = list(reasons)
    return {
        artifact: "; ".join(names[place] for place in spread.places(bits))
        for artifact, bits in (spread.downstream(own, edges) if own else {}).items()
    }


def _names(index: Index, artifacts: Iterable[int]) -> dict[int, str]:
    """Artifact -> `stage task`, `base phantom-tower`."""
    wanted = set(artifacts)
    if not wanted:
        return {}
    found = index.database.execute("SELECT id, kind, name FROM artifacts")
    return {number: f"{'stage' if kind == 'checkpoint' else kind} {name}" for number, kind, name in found if number in wanted}


def _sets(search: _Search, parts: dict[spread.Part, Bits]) -> tuple[TouchedSet, ...]:
    things: defaultdict[int, Bits] = defaultdict(int)
    for part, those in parts.items():
        things[part.set_id] |= those
    rows = search.index.database.execute("SELECT id, name, digest, revision FROM sets ORDER BY id")
    return tuple(
        TouchedSet(name, digest, revision, things[number].bit_count())
        for number, name, digest, revision in rows
        if number in things or number in search.sets
    )


def _digests(index: Index, artifacts: dict[int, Bits]) -> tuple[str, ...]:
    if not artifacts:
        return ()
    return tuple(digest for number, digest in index.database.execute("SELECT id, digest FROM artifacts") if number in artifacts)


def _order(touched: Touched) -> tuple[str, int]:
    return touched.model, int(touched.number)


def same_pixels(index: Index, pixels: str) -> list[int]:
    """Images that are the same picture in other files."""
    rows = index.database.execute("SELECT image FROM pictures WHERE pixels = ?", (index.hashed(pixels),))
    return [int(row[0]) for row in rows]


def alike(index: Index, looks: int, max_distance: int) -> list[int]:
    """Images whose perceptual hash is within `max_distance` bits of 64 of `looks`."""
    import numpy as np

    rows = index.database.execute("SELECT image, look FROM pictures WHERE look IS NOT NULL").fetchall()
    if not rows:
        return []
    known = np.array(rows, np.int64)
    near = np.bitwise_count(known[:, 1].view(np.uint64) ^ np.uint64(looks)) <= max_distance
    return sorted({int(image) for image in known[near, 0]})
