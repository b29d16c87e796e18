"""The index behind `biovlm lineage impact`: one SQLite file that can always be made again from store and registry.

1. `Index.reading(folder)` and `Index.writing(folder)` open it under a lock of the folder: many readers, or one writer. A writer waits
   for readers and other writers; a process that dies leaves the lock, and SQLite's journal takes back what it had not committed.
2. A writer ends each piece of work with `seal`: commit, then the SHA-256 of the whole file beside it. A reader compares it first. So a
   byte that changed anywhere is seen, and not only one that breaks a page; the file is then set aside and made anew.
3. Ids of records and patients, and file digests, are kept as eight bytes of a hash with a key that lies in a file of its own: who gets
   hold of the index alone can neither read a name nor try names. Two things with one hash are told as one: a version too many might
   be named (once in 10^13 questions over a million records), never one too few.
4. A split of a data set is kept as what changed since the version of it that was indexed before (`first`, `last`): a hundred versions
   of a set of a million records take little more room than one.

`seen` holds a line for each image of a record: the record, its group (patient, study or image), the image's file, the kind, and in
which numbers of its series (set and split) it stands.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from components.platform.locks import held
from model import manifest
from model.errors import BiovlmError

ANEW = "it is made anew by the next question"
FILE, KEY, SEAL, LOCK = "index.sqlite", "key", "seal.json", "lock"
SCHEMA_VERSION = 1
OPEN = 2**31
"""`last` of what stands in the newest number of its series."""
NO_HASH = 0
"""In place of an image where a record has none."""
SCHEMA = """
CREATE TABLE sets (id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, name TEXT NOT NULL, revision TEXT NOT NULL,
  licence TEXT NOT NULL, uri TEXT NOT NULL, flaw TEXT NOT NULL);
CREATE INDEX sets_by_name ON sets (name);
CREATE TABLE kinds (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
CREATE TABLE series (id INTEGER PRIMARY KEY, name TEXT NOT NULL, split TEXT NOT NULL, UNIQUE (name, split));
CREATE TABLE splits (set_id INTEGER NOT NULL, split TEXT NOT NULL, series INTEGER NOT NULL, number INTEGER NOT NULL,
  content TEXT NOT NULL, PRIMARY KEY (set_id, split)) WITHOUT ROWID;
CREATE TABLE seen (record INTEGER NOT NULL, patient INTEGER NOT NULL, image INTEGER NOT NULL, kind INTEGER NOT NULL,
  series INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE INDEX seen_by_record ON seen (record);
CREATE INDEX seen_by_patient ON seen (patient);
CREATE INDEX seen_by_image ON seen (image);
CREATE INDEX seen_by_series ON seen (series, last);
CREATE TABLE pictures (image INTEGER PRIMARY KEY, pixels INTEGER, look INTEGER);
CREATE INDEX pictures_by_pixels ON pictures (pixels);
CREATE TABLE artifacts (id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
  licence TEXT NOT NULL, flaw TEXT NOT NULL);
CREATE TABLE edges (child INTEGER NOT NULL, parent INTEGER NOT NULL, PRIMARY KEY (parent, child)) WITHOUT ROWID;
CREATE TABLE uses (artifact INTEGER NOT NULL, set_id INTEGER NOT NULL, split TEXT NOT NULL, kinds INTEGER NOT NULL,
  learned INTEGER NOT NULL, exclusion INTEGER NOT NULL,
  PRIMARY KEY (set_id, split, artifact, kinds, learned, exclusion)) WITHOUT ROWID;
CREATE TABLE exclusions (id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL);
CREATE TABLE excluded (exclusion INTEGER NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (exclusion, record)) WITHOUT ROWID;
CREATE INDEX excluded_by_record ON excluded (record);
CREATE TABLE versions (model TEXT NOT NULL, number TEXT NOT NULL, receipt TEXT NOT NULL, artifact INTEGER, flaw TEXT NOT NULL,
  gone INTEGER NOT NULL, PRIMARY KEY (model, number)) WITHOUT ROWID;
CREATE INDEX versions_by_artifact ON versions (artifact);
"""
INCOMING = """CREATE TEMP TABLE IF NOT EXISTS incoming (record INTEGER, patient INTEGER, image INTEGER, kind INTEGER,
  PRIMARY KEY (record, image, patient, kind)) WITHOUT ROWID"""
SAME = "record = s.record AND image = s.image AND patient = s.patient AND kind = s.kind"


class DamagedIndexError(BiovlmError):
    """The file is not what it was when it was sealed; it is only an index, and is made anew."""


class Index:
    """An open index."""

    def __init__(self, database: sqlite3.Connection, folder: Path, key: bytes) -> None:
        self.database, self.folder, self._key = database, folder, key

    @classmethod
    @contextlib.contextmanager
    def reading(cls, folder: Path) -> Iterator[Index]:
        """Inside, nobody writes. DamagedIndexError: there is no whole index of this version."""
        with _locked(folder, shared=True):
            _refuse_damaged(folder)
            with _connected(folder) as database:
                yield cls(database, folder, _key(folder))

    @classmethod
    @contextlib.contextmanager
    def writing(cls, folder: Path) -> Iterator[Index]:
        """Inside, this process alone reads and writes; a damaged or old file is set aside first, and an empty one begun."""
        with _locked(folder, shared=False):
            try:
                _refuse_damaged(folder)
            except DamagedIndexError:
                _set_aside(folder)
                _make(folder)
            with _connected(folder) as database:
                yield cls(database, folder, _key(folder))

    def seal(self) -> None:
        """Commit, and write down what the file is now."""
        self.database.commit()
        _write_seal(self.folder)

    # -------------------------------------------------------------------------------------------------------------- names

    def hashed(self, text: str) -> int:
        """Eight bytes that stand for an id or a digest; never NO_HASH."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, signed=True) or 1

    def kind(self, name: str) -> int:
        """Number of a kind of record, 0..62."""
        self.database.execute("INSERT OR IGNORE INTO kinds (id, name) SELECT count(*), ? FROM kinds", (name,))
        return int(self.database.execute("SELECT id FROM kinds WHERE name = ?", (name,)).fetchone()[0])

    def mask(self, kinds: Iterable[str]) -> int:
        """Kinds as bits; -1, every bit, for none named: then all are meant, those that come later too."""
        bits = 0
        for name in kinds:
            bits |= 1 << self.kind(name)
        return bits or -1

    # ---------------------------------------------------------------------------------------------------------- data sets

    def add_set(self, digest: str, name: str, revision: str = "", licence: str = "", uri: str = "", flaw: str = "") -> int:
        """The number of a version of a data set; what is newly known of it is added. `flaw` says why its records are not known."""
        self.database.execute(
            "INSERT INTO sets (digest, name, revision, licence, uri, flaw) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET flaw = excluded.flaw, uri = excluded.uri, "
            "revision = iif(excluded.revision = '', revision, excluded.revision), "
            "licence = iif(excluded.licence = '', licence, excluded.licence)",
            (digest, name, revision, licence, uri, flaw),
        )
        return int(self.database.execute("SELECT id FROM sets WHERE digest = ?", (digest,)).fetchone()[0])

    def add_split(self, set_id: int, name: str, split: str, content: str, rows: Iterable[tuple[int, int, int, int]]) -> None:
        """Take in one split of a set as the next number of its series.

        Args:
            set_id: The set.
            name: Of the set.
            split: Of it.
            content: Digest of all that decides `rows`: a number of the series with the same one is taken instead.
            rows: (record, patient, image, kind) for each image of each record.
        """
        execute = self.database.execute
        execute("INSERT OR IGNORE INTO series (name, split) VALUES (?, ?)", (name, split))
        series = int(execute("SELECT id FROM series WHERE name = ? AND split = ?", (name, split)).fetchone()[0])
        known = execute("SELECT number FROM splits WHERE series = ? AND content = ?", (series, content)).fetchone()
        newest = int(execute("SELECT coalesce(max(number), -1) FROM splits WHERE series = ?", (series,)).fetchone()[0])
        number = int(known[0]) if known else newest + 1
        if not known:
            self._take(series, number, rows)
        execute("INSERT OR REPLACE INTO splits VALUES (?, ?, ?, ?, ?)", (set_id, split, series, number, content))

    def _take(self, series: int, number: int, rows: Iterable[tuple[int, int, int, int]]) -> None:
        """End what no longer stands there, and begin what is new."""
        execute, limits = self.database.execute, {"series": series, "number": number, "open": OPEN}
        execute(INCOMING)
        execute("DELETE FROM incoming")
        self.database.executemany("INSERT OR IGNORE INTO incoming VALUES (?, ?, ?, ?)", rows)
        execute(
            f"UPDATE seen AS s SET last = :number - 1 WHERE series = :series AND last = :open "  # noqa: S608 (constants)
            f"AND NOT EXISTS (SELECT 1 FROM incoming WHERE {SAME})",
            limits,
        )
        execute(
            "CREATE TEMP TABLE stays AS SELECT record, image, patient, kind FROM seen WHERE series = :series AND last = :open",
            limits,
        )
        execute("CREATE INDEX temp.stays_by_all ON stays (record, image, patient, kind)")
        execute(
            f"INSERT INTO seen SELECT record, patient, image, kind, :series, :number, :open FROM incoming AS s "  # noqa: S608
            f"WHERE NOT EXISTS (SELECT 1 FROM stays WHERE {SAME})",
            limits,
        )
        execute("DROP TABLE stays")
        execute("DELETE FROM incoming")

    # ---------------------------------------------------------------------------------------------------- what was made of it

    def artifact(self, digest: str) -> int | None:
        """Number of an artifact whose own making is known."""
        row = self.database.execute("SELECT id FROM artifacts WHERE digest = ? AND flaw = ''", (digest,)).fetchone()
        return int(row[0]) if row else None

    def add_artifact(self, digest: str, kind: str, name: str, licence: str = "", flaw: str = "") -> int:
        """Number of an artifact. `flaw` says why it is not known what it was made of."""
        self.database.execute(
            "INSERT INTO artifacts (digest, kind, name, licence, flaw) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (digest) DO UPDATE SET flaw = min(flaw, excluded.flaw), "
            "kind = iif(excluded.kind = 'unknown', kind, excluded.kind), name = iif(excluded.name = '', name, excluded.name), "
            "licence = iif(excluded.licence = '', licence, excluded.licence)",
            (digest, kind, name, licence, flaw),
        )
        return int(self.database.execute("SELECT id FROM artifacts WHERE digest = ?", (digest,)).fetchone()[0])

    def add_edge(self, child: int, parent: int) -> None:
        """`child` was made from `parent`."""
        self.database.execute("INSERT OR IGNORE INTO edges (child, parent) VALUES (?, ?)", (child, parent))

    def add_use(
        self, artifact: int, set_id: int, split: str, kinds: Iterable[str], learned: bool, exclude: Iterable[str]
    ) -> None:
        """`artifact` learned from the records of those `kinds` in the split, or was only asked them; without those of `exclude`."""
        row = (artifact, set_id, split, self.mask(kinds), int(learned), self._exclusion(sorted(exclude)))
        self.database.execute("INSERT OR IGNORE INTO uses VALUES (?, ?, ?, ?, ?, ?)", row)

    def _exclusion(self, ids: list[str]) -> int:
        """Number of a list of ids; 0 for the empty one."""
        if not ids:
            return 0
        digest = str(self.hashed(manifest.digest_of(ids)))
        self.database.execute("INSERT OR IGNORE INTO exclusions (digest) VALUES (?)", (digest,))
        number = int(self.database.execute("SELECT id FROM exclusions WHERE digest = ?", (digest,)).fetchone()[0])
        rows = ((number, self.hashed(name)) for name in ids)
        self.database.executemany("INSERT OR IGNORE INTO excluded VALUES (?, ?)", rows)
        return number

    def add_version(self, model: str, number: str, receipt: str, artifact: int | None, flaw: str = "") -> None:
        """A version of a registered model, and the artifact it is; `flaw` says why that is not known."""
        row = (model, number, receipt, artifact, flaw)
        self.database.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, 0)", row)


@contextlib.contextmanager
def _locked(folder: Path, shared: bool) -> Iterator[None]:
    with contextlib.suppress(OSError):  # the lock's own letter says it
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with held(folder / LOCK, shared=shared):
        yield


def _refuse_damaged(folder: Path) -> None:
    """DamagedIndexError unless file, seal and key belong together; what a dead writer left is taken back first."""
    path = folder / FILE
    if not (path.is_file() and (folder / SEAL).is_file()):
        raise DamagedIndexError(f"no index at {path}", ANEW)
    try:
        with _connected(folder) as database:
            database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        whole = json.loads((folder / SEAL).read_bytes()) == _seal_of(folder)
    except (sqlite3.DatabaseError, ValueError):
        whole = False
    if not whole:
        raise DamagedIndexError(f"{path} is not what it was when it was sealed", ANEW)


@contextlib.contextmanager
def _connected(folder: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(folder / FILE)
    try:
        database.execute("PRAGMA cache_size = -65536")
        yield database
    finally:
        database.close()


def _make(folder: Path) -> None:
    """An empty index, sealed; only this user may read it."""
    os.close(os.open(folder / FILE, os.O_CREAT | os.O_RDWR, 0o600))
    with _connected(folder) as database:
        database.executescript(SCHEMA)
    _write_seal(folder)


def _seal_of(folder: Path) -> dict[str, str | int]:
    sha256 = manifest.sha256_file(folder / FILE)
    return {"schema_version": SCHEMA_VERSION, "sha256": sha256, "key": _check(_key(folder))}


def _write_seal(folder: Path) -> None:
    aside = folder / f".{SEAL}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        aside.write_text(json.dumps(_seal_of(folder)), encoding="utf-8")
        aside.replace(folder / SEAL)
    except OSError as error:
        raise manifest.cannot_write(folder / SEAL, error) from error


def _set_aside(folder: Path) -> None:
    """Rename a file that cannot be believed; one is kept for whoever wants to know."""
    for old in folder.glob("bad-*.sqlite"):
        old.unlink(missing_ok=True)
    if (folder / FILE).exists():
        (folder / FILE).rename(folder / f"bad-{time.strftime('%Y%m%dT%H%M%S')}.sqlite")
    for name in (SEAL, f"{FILE}-journal"):
        (folder / name).unlink(missing_ok=True)


def _key(folder: Path) -> bytes:
    """The key of the hashes, made on first need; of two that make it the first stands."""
    path = folder / KEY
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(32))
    return path.read_bytes()


def _check(key: bytes) -> str:
    """What shows that a key is the one the file was written with, and does not give it away."""
    return hashlib.sha256(b"impact index" + key).hexdigest()
