"""What a policy decided before: one small JSON document for each look, and one for the end of each training.

1. `Journal(settings, policy)` is a folder of the home, or with BIOVLM_STORE a prefix of the bucket, so that pods share it.
2. `append` writes the next number by an exclusive create: of two looks at once one gets it, the other is refused and looks again.
3. `ended` adds how a training ended, once; `entries` reads all of it, with the ends put in.

Kept for the cool-down, the budget and for whoever asks why there was, or was not, a new model. Digests, counts and reasons: no record.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence

from pydantic import ValidationError

from components.platform.places import Folder, Place, Prefix
from components.platform.retraining.decision import Decision, Entry, Facts, Verdict
from components.platform.settings import Settings
from model.config.choices import Strict
from model.errors import DataError, RefusedError

FOLDER = "retraining"
LOOK = re.compile(r"^(\d{6})\.json$")


class End(Strict):
    """How a training ended."""

    exit_code: int
    run_id: str


def entry_of(
    decision: Decision, facts: Facts, history: Sequence[Entry], moment: datetime.datetime, run_id: str, takes: bool = False
) -> Entry:
    """A look as the history keeps it.

    Args:
        decision: What was decided.
        facts: On which.
        history: The looks before.
        moment: The clock.
        run_id: Of the run that looked.
        takes: Whether a training takes the new corrections; those that it does not take are counted again by the next look.
    """
    runs = decision.verdict is Verdict.RUN
    return Entry(
        number=len(history) + 1,
        time=moment,
        verdict=decision.verdict,
        made=facts.now.digest,
        gpu_hours=(facts.gpu_hours or 0.0) if runs and not decision.goes_on else 0.0,
        feedback=facts.feedback if runs and takes else facts.counted,
        run_id=run_id,
        reasons=decision.reasons,
    )


class Journal:
    """The looks of one policy."""

    def __init__(self, settings: Settings, policy: str) -> None:
        shared = settings.shared_store
        self._place: Place = Prefix(shared, "BIOVLM_STORE") if shared else Folder(settings.home)
        self._folder = f"{FOLDER}/{policy}/"
        self._label = f"{self._place.label}/{FOLDER}/{policy}"

    def entries(self) -> list[Entry]:
        """Every look, oldest first. DataError: a document was changed, or one is missing."""
        names = (name.removeprefix(self._folder) for name in self._place.names(self._folder))
        numbers = sorted(int(match[1]) for name in names if (match := LOOK.match(name)))
        if numbers != list(range(1, len(numbers) + 1)):
            raise DataError(f"{self._label}: a look is missing among {len(numbers)}", "bring the history of the policy back")
        return [self._entry(number) for number in numbers]

    def append(self, entry: Entry) -> None:
        """Write the next look. RefusedError: another process wrote one of this number at the same time."""
        if not self._place.create(self._folder + _name(entry.number), entry.model_dump_json(indent=1).encode()):
            raise RefusedError(
                f"another process looked at the same time: {self._label} has number {entry.number} already",
                "nothing was begun here; the other one did what was to be done",
            )

    def ended(self, number: int, exit_code: int, run_id: str) -> None:
        """Say how the training of a look ended; what was said first stays."""
        self._place.create(self._folder + _end(number), End(exit_code=exit_code, run_id=run_id).model_dump_json().encode())

    def _entry(self, number: int) -> Entry:
        try:
            found = Entry.model_validate_json(self._place.read(self._folder + _name(number)) or b"")
            end = self._place.read(self._folder + _end(number))
            return found if end is None else found.model_copy(update=End.model_validate_json(end).model_dump())
        except ValidationError:
            raise DataError(
                f"{self._label}/{_name(number)} is no look of a policy", "it was changed: bring it back from a copy"
            ) from None


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _end(number: int) -> str:
    return f"{number:06d}.end.json"
