"""Days, weeks, months and years as people in a time zone mean them. Pure arithmetic; nothing here reads a clock.

A period begins at local midnight and ends where the next one begins, so that periods follow each other without gap or overlap
whatever the clocks of the zone do: a day may have 23 or 25 hours, and where midnight is skipped it begins when the clocks go on.
"""

from __future__ import annotations

import difflib
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from wflo_nb.errors import ConfigurationError

PERIODS = ("day", "week", "month", "year")
DEFAULT_ZONE = "UTC"

_MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]


@dataclass(frozen=True, slots=True)
class Period:
    """One day, week, month or year of a time zone.

    Attributes:
        key: its name in ids: ``2026-11-23``, ``2026-W48`` (ISO weeks begin on Monday), ``2026-11``, ``2026``.
        label: its name for people: ``November 2026``.
        starts_at, ends_at: its first moment, and the first one that is no more in it; UTC.
    """

    key: str
    label: str
    starts_at: datetime
    ends_at: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.starts_at <= moment < self.ends_at


def zone(name: str) -> str:
    """The name of a time zone as IANA writes it.

    Raises:
        ConfigurationError: there is none of that name, or this machine has no time zone data.
    """
    wanted = name.strip()
    if wanted.upper() == "UTC":
        return "UTC"
    try:
        return zoneinfo.ZoneInfo(wanted).key
    except (LookupError, ValueError, OSError):  # not found; no relative path; a folder such as "Europe"
        known = {one.lower(): one for one in zoneinfo.available_timezones()}
    if wanted.lower() in known:
        return known[wanted.lower()]
    if not known:
        raise ConfigurationError(f"tz={name} cannot be looked up: there is no time zone data here. Install it with: pip install tzdata")
    last = {one.rpartition("/")[2]: one for one in known}  # "Berlin" means Europe/Berlin
    near = difflib.get_close_matches(wanted.lower(), [*known, *last], n=1, cutoff=0.6)
    hint = f" Did you mean {known[last.get(near[0], near[0])]}?" if near else ""
    raise ConfigurationError(f"tz={name} is no time zone.{hint} Write its IANA name, for example tz=Europe/Berlin, or tz=UTC.")


def period(word: str) -> str:
    """``day``, ``week``, ``month`` or ``year``.

    Raises:
        ConfigurationError: another word.
    """
    found = word.strip().lower()
    if found not in PERIODS:
        near = difflib.get_close_matches(found, PERIODS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigurationError(f"per={word} is not understood.{hint} Use per=day, per=week, per=month or per=year.")
    return found


def period_at(moment: datetime, per: str, zone: str) -> Period:
    """The period that a moment lies in."""
    there = _tz(zone)
    first = _first(moment.astimezone(there).date(), per)
    after = _next(first, per)
    # Clocks that go back across midnight show the old date once more: the new period has begun all the same.
    while moment >= _midnight(after, there):
        first, after = after, _next(after, per)
    return Period(_key(first, per), _label(first, per), _midnight(first, there), _midnight(after, there))


def local(moment: datetime, zone: str) -> str:
    """A moment as a clock in the zone shows it: ``2026-12-01 00:00 Europe/Berlin``."""
    return f"{moment.astimezone(_tz(zone)):%Y-%m-%d %H:%M} {zone}"


def _tz(zone: str) -> tzinfo:
    return UTC if zone == "UTC" else zoneinfo.ZoneInfo(zone)  # UTC needs no data


def _midnight(day: date, there: tzinfo) -> datetime:
    return datetime.combine(day, time(), there).astimezone(UTC)


def _first(day: date, per: str) -> date:
    match per:
        case "week":
            return day - timedelta(day.weekday())
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)
    return day


def _next(first: date, per: str) -> date:
    match per:
        case "week":
            return first + timedelta(7)
        case "month":
            return (first + timedelta(31)).replace(day=1)
        case "year":
            return first.replace(year=first.year + 1)
    return first + timedelta(1)


def _key(first: date, per: str) -> str:
    match per:
        case "week":
            return "{0.year}-W{0.week:02}".format(first.isocalendar())
        case "month":
            return f"{first:%Y-%m}"
        case "year":
            return f"{first:%Y}"
    return first.isoformat()


def _label(first: date, per: str) -> str:
    match per:
        case "week":
            return "week {0.week} of {0.year}".format(first.isocalendar())
        case "month":
            return f"{_MONTHS[first.month - 1]} {first.year}"
        case "year":
            return str(first.year)
    return f"{first.day} {_MONTHS[first.month - 1]} {first.year}"
