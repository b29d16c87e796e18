"""When a schedule runs: a cron expression, checked here and written as the server reads it.

KFP reads six fields, the seconds first (robfig/cron v1); people write five. `six_fields` takes both, and the words for usual times. What
can never come, such as the 31st of February, is refused: the server would take it and never run.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import ConfigError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: tuple[tuple[str, int, int, Sequence[str]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 6, DAYS),
)
WORDS = {
    "@yearly": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
HINT = 'five fields: minute, hour, day of month, month, day of week; "0 3 1 * *" is three o\'clock on the first of each month'


def six_fields(text: str) -> str:
    """The expression with its seconds. ConfigError if it is none, or names no moment at all."""
    if text.startswith("@"):
        if text not in WORDS:
            raise ConfigError(f"cron: unknown word {text!r}", f"known are {', '.join(WORDS)}")
        return WORDS[text]
    fields = text.lower().split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise ConfigError(f"cron: {text!r} has {len(fields)} fields", HINT)
    meant = [_values(field, *kind) for field, kind in zip(fields, FIELDS, strict=True)]
    by_date, any_weekday = meant[3], fields[5] in ("*", "?")
    if any_weekday and not any(day <= LONGEST_MONTH[month - 1] for month in meant[4] for day in by_date):
        raise ConfigError(f"cron: {text!r} names a day that no such month has", "choose another day of month, or month")
    return " ".join(fields)


def _values(field: str, name: str, low: int, high: int, words: Sequence[str]) -> set[int]:
    """All numbers that a field means."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step_text = part.partition("/")
        step = _number(step_text, name, 1, high, ()) if "/" in part else 1
        if span in ("*", "?"):
            first, last = low, high
        else:
            first_text, dash, last_text = span.partition("-")
            first = _number(first_text, name, low, high, words)
            last = _number(last_text, name, low, high, words) if dash else (high if "/" in part else first)
        if first > last:
            raise ConfigError(f"cron: {part!r} in the {name} runs backwards", HINT)
        found.update(range(first, last + 1, step))
    return found


def _number(text: str, name: str, low: int, high: int, words: Sequence[str]) -> int:
    number = words.index(text) + low if text in words else int(text) if text.isascii() and text.isdigit() else None
    if number is None or not low <= number <= high:
        raise ConfigError(f"cron: {text!r} is no {name}: {low} to {high}", HINT)
    return number
