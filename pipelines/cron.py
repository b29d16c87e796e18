"""When a schedule runs: a cron expression, checked here, written as the server reads it, and read as a clock.

KFP reads six fields, the seconds first (robfig/cron v1); people write five. `six_fields` takes both, and the words for usual times. What
can never come, such as the 31st of February, is refused: the server would take it and never run. `latest` and `following` say which moments
it names, as the server would: where day of month and day of week are both given, either will do.
"""

from __future__ import annotations

import datetime
import itertools
import zoneinfo
from collections.abc import Iterator, Sequence

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
YEARS = 9
"""How far moments are looked for: between two 29ths of February lie eight years at most."""
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


def latest(text: str, zone: str, moment: datetime.datetime) -> datetime.datetime | None:
    """The last moment up to `moment` that the expression names in a time zone; None within the last `YEARS`. Errors as `six_fields`."""
    found = (one for day in _days(moment, zone, -1) for one in reversed(_moments(text, zone, day)) if one <= moment)
    return next(found, None)


def following(text: str, zone: str, moment: datetime.datetime) -> datetime.datetime | None:
    """The first moment after `moment`, as `latest`."""
    return next((one for day in _days(moment, zone, 1) for one in _moments(text, zone, day) if one > moment), None)


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """A time zone. ConfigError if there is none of this name."""
    if name not in zoneinfo.available_timezones():
        raise ConfigError(f"time_zone: unknown zone {name!r}", "name it as Europe/Berlin or UTC")
    return zoneinfo.ZoneInfo(name)


def _days(moment: datetime.datetime, zone: str, direction: int) -> Iterator[datetime.date]:
    today = moment.astimezone(zone_of(zone)).date()
    return (today + datetime.timedelta(days=direction * count) for count in range(366 * YEARS))


def _moments(text: str, zone: str, day: datetime.date) -> list[datetime.datetime]:
    """The moments of a day, in order, in UTC."""
    fields = six_fields(text).split()
    seconds, minutes, hours, dates, months, weekdays = (_values(field, *kind) for field, kind in zip(fields, FIELDS, strict=True))
    by_date, by_weekday = day.day in dates, day.isoweekday() % 7 in weekdays
    free = fields[3][0] in "*?" or fields[5][0] in "*?"
    if day.month not in months or not ((by_date and by_weekday) if free else (by_date or by_weekday)):
        return []
    place, found = zone_of(zone), set[datetime.datetime]()
    for hour, minute, second in itertools.product(hours, minutes, seconds):
        local = datetime.datetime.combine(day, datetime.time(hour, minute, second), place)
        moment = local.astimezone(datetime.UTC)
        if moment.astimezone(place).replace(tzinfo=None) == local.replace(
            tzinfo=None
        ):  # an hour that summer time leaves out never comes
            found.add(moment)
    return sorted(found)


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
