"""Who is told of the ledger's entries: a file of CloudEvents, and a webhook. The ledger itself is the outbox.

1. After each act, and at each `reconcile`, `deliver` looks which entries are not told yet. A killed process leaves nothing behind but
   entries that the next one tells.
2. The file (BIOVLM_NOTIFY_FILE) is written under a lock, by whoever holds it, with every event that is not in it: each stands there
   once, whatever is killed when.
3. For the webhook (BIOVLM_NOTIFY_WEBHOOK), a process first takes a try: a name that only one can make. It posts the event and leaves
   the note `done`, or `over` if nobody took it. While a try is young, nobody else posts; one that is older than its time belonged to
   a process that died.

So an event is posted once, unless a process dies between the receiver's answer and the note: then it is posted again, the same to the
byte. Its `id` is the digest of the entry, which no other event has; the headers `ce-id` and `Idempotency-Key` repeat it, so that a receiver
or a gateway before it that keeps the ids it has seen acts once. No sender over a network can promise more.

A receiver that does not answer never stops an act: it is told of later, and `reconcile` says how many wait. The webhook's address may
hold a secret and is never shown. Events hold names, numbers, reasons and digests.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.platform.ledger.entry import Entry, iso, seconds_of
from components.platform.ledger.ledger import Ledger
from components.platform.settings import Settings
from model.errors import ConfigError
from model.manifest import cannot_write, canonical_json

TRY_SECONDS = 60.0
"""How long a try may last; a post ends after a quarter of it."""
TYPE = "biovlm.registry.{kind}.v1"


@dataclass(frozen=True)
class Delivery:
    """What `deliver` did."""

    told: int = 0
    """Events that this call put into the file or posted."""
    waiting: int = 0
    """Events that the webhook has not taken yet."""


def event(entry: Entry) -> dict[str, Any]:
    """The entry as CloudEvents 1.0 has it."""
    return {
        "specversion": "1.0",
        "id": entry.digest,
        "source": f"biovlm/registry/{entry.model}",
        "type": TYPE.format(kind=entry.kind.value),
        "subject": f"models:/{entry.model}/{entry.version}",
        "time": entry.time,
        "datacontenttype": "application/json",
        "data": entry.model_dump(mode="json"),
    }


def deliver(settings: Settings, ledger: Ledger) -> Delivery:
    """Tell of every entry that was not told.

    Raises:
        CannotWriteError: The file cannot be written. ConfigError: The webhook is no http address.
    """
    entries = ledger.entries()
    told = _into_file(settings.notify_file, entries) if settings.notify_file else 0
    if not settings.notify_webhook:
        return Delivery(told)
    if not settings.notify_webhook.startswith(("http://", "https://")):
        raise ConfigError("BIOVLM_NOTIFY_WEBHOOK is no http address", "write it as https://HOST/PATH")
    notes = set(ledger.place.names("sent/"))
    waiting = 0
    untold = [entry for entry in entries if _done(entry) not in notes]
    for at, entry in enumerate(untold):
        number = _take(ledger, entry, notes)
        if number and not _post(settings.notify_webhook, entry):
            ledger.place.create(f"{_folder(entry)}over-{number:06d}", b"\n")
            return Delivery(told, len(untold) - at)  # who does not take this one takes none behind it
        if number:
            ledger.place.create(_done(entry), b"\n")
            told += 1
        elif ledger.place.read(_done(entry)) is None:
            waiting += 1
    return Delivery(told, waiting)


def _into_file(path: Path, entries: Sequence[Entry]) -> int:
    """Append the events that the file lacks; what a killed writer left of a line goes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            content = stream.read()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                stream.truncate(len(whole))
            new = [entry for entry in entries if f'"id":"{entry.digest}"'.encode() not in whole]
            stream.write("".join(f"{canonical_json(event(entry))}\n" for entry in new).encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
    return len(new)


def _take(ledger: Ledger, entry: Entry, notes: set[str]) -> int:
    """Number of the try in which this process posts; 0 if another is at it."""
    tries = sorted(name for name in notes if name.startswith(f"{_folder(entry)}try-"))
    if tries and tries[-1].replace("/try-", "/over-") not in notes:
        began = ledger.place.read(tries[-1]) or b""
        if ledger.clock() - seconds_of(began.decode().strip()) < TRY_SECONDS:
            return 0
    number = len(tries) + 1
    name, content = f"{_folder(entry)}try-{number:06d}", f"{iso(ledger.clock())}\n".encode()
    return number if ledger.place.create(name, content) else 0


def _post(url: str, entry: Entry) -> bool:
    """Whether the receiver took the event (structured mode of the HTTP binding)."""
    import requests

    headers = {"Content-Type": "application/cloudevents+json; charset=utf-8", "ce-id": entry.digest}
    headers["Idempotency-Key"] = entry.digest
    body = canonical_json(event(entry)).encode()
    try:
        answer = requests.post(url, data=body, headers=headers, timeout=TRY_SECONDS / 8, allow_redirects=False)
    except requests.RequestException:
        return False
    return answer.ok and not answer.is_redirect


def _folder(entry: Entry) -> str:
    return f"sent/{entry.number:08d}/"


def _done(entry: Entry) -> str:
    return f"{_folder(entry)}done"
