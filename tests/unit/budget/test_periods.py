"""Where one period ends and the next begins, also where clocks jump."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wflo_nb.budget import periods
from wflo_nb.errors import ConfigurationError

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe"]
ZONES += ["Africa/Cairo", "America/Havana", "Pacific/Apia", "Pacific/Kiritimati", "Asia/Beirut"]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "per", "zone", "key", "label"),
    [
        ("2026-11-23T12:00", "day", "UTC", "2026-11-23", "23 November 2026"),
        ("2026-11-23T12:00", "week", "UTC", "2026-W48", "week 48 of 2026"),
        ("2026-11-23T12:00", "month", "UTC", "2026-11", "November 2026"),
        ("2026-11-23T12:00", "year", "UTC", "2026", "2026"),
        ("2026-11-30T22:59", "month", "Europe/Berlin", "2026-11", "November 2026"),
        ("2026-11-30T23:00", "month", "Europe/Berlin", "2026-12", "December 2026"),
        ("2026-12-31T23:30", "year", "Europe/Berlin", "2027", "2027"),
        ("2027-01-01T04:30", "year", "America/New_York", "2026", "2026"),
        ("2027-01-01T12:00", "week", "UTC", "2026-W53", "week 53 of 2026"),  # a year with 53 weeks, whose last one ends in January
        ("2027-01-04T00:00", "week", "UTC", "2027-W01", "week 1 of 2027"),
        ("2025-12-29T00:00", "week", "UTC", "2026-W01", "week 1 of 2026"),  # and one that begins in December
        ("2026-11-22T23:59:59.999999", "week", "UTC", "2026-W47", "week 47 of 2026"),
    ],
)
def test_a_moment_lies_in_the_period_that_a_calendar_in_the_zone_shows(moment: str, per: str, zone: str, key: str, label: str) -> None:
    found = periods.period_at(utc(moment), per, zone)
    assert (found.key, found.label) == (key, label)


@pytest.mark.parametrize(
    ("moment", "zone", "hours"),
    [
        ("2026-03-29T12:00", "Europe/Berlin", 23),
        ("2026-10-25T12:00", "Europe/Berlin", 25),
        ("2026-11-23T12:00", "Europe/Berlin", 24),
        ("2018-11-04T12:00", "America/Sao_Paulo", 23),  # midnight itself was skipped
        ("2018-02-17T12:00", "America/Sao_Paulo", 25),  # midnight was put off by an hour
        ("2026-11-01T12:00", "America/Havana", 25),  # there were two midnights
    ],
)
def test_a_day_is_as_long_as_the_clocks_make_it(moment: str, zone: str, hours: int) -> None:
    found = periods.period_at(utc(moment), "day", zone)
    assert found.ends_at - found.starts_at == timedelta(hours=hours)


def test_clocks_that_go_back_across_midnight_do_not_bring_yesterday_back() -> None:
    # In St John's, at one minute past midnight on 7 November 2010, it was 23:01 on the 6th again.
    seventh = periods.period_at(utc("2010-11-07T02:30:30"), "day", "America/St_Johns")
    again = periods.period_at(utc("2010-11-07T02:45:00"), "day", "America/St_Johns")
    assert seventh.key == again.key == "2010-11-07"


@given(
    st.datetimes(datetime(2007, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(periods.PERIODS),
    st.sampled_from(ZONES),
)
def test_periods_follow_each_other_without_gap_or_overlap(moment: datetime, per: str, zone: str) -> None:
    this = periods.period_at(moment, per, zone)
    assert this.starts_at <= moment < this.ends_at
    after = periods.period_at(this.ends_at, per, zone)
    assert after.starts_at == this.ends_at
    assert after.key != this.key
    assert periods.period_at(this.ends_at - timedelta(microseconds=1), per, zone) == this


def test_the_end_of_a_period_is_shown_as_a_clock_there_shows_it() -> None:
    november = periods.period_at(utc("2026-11-23T12:00"), "month", "Europe/Berlin")
    assert periods.local(november.ends_at, "Europe/Berlin") == "2026-12-01 00:00 Europe/Berlin"


@pytest.mark.parametrize(("written", "meant"), [("utc", "UTC"), (" Europe/Berlin ", "Europe/Berlin"), ("europe/berlin", "Europe/Berlin")])
def test_a_time_zone_is_found_however_it_is_cased(written: str, meant: str) -> None:
    assert periods.zone(written) == meant


@pytest.mark.parametrize(
    ("written", "says"), [("Berlin", "Did you mean Europe/Berlin"), ("Europe", "IANA name"), ("../etc/passwd", "IANA name"), ("", "IANA")]
)
def test_what_is_no_time_zone_is_refused_with_one_that_may_be_meant(written: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        periods.zone(written)


def test_without_time_zone_data_the_way_to_it_is_told_and_utc_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(key: str) -> None:
        raise LookupError(key)

    monkeypatch.setattr(periods.zoneinfo, "ZoneInfo", missing)
    monkeypatch.setattr(periods.zoneinfo, "available_timezones", set)
    with pytest.raises(ConfigurationError, match="pip install tzdata"):
        periods.zone("Europe/Berlin")
    assert periods.zone("UTC") == "UTC"
    assert periods.period_at(utc("2026-11-23T12:00"), "day", "UTC").key == "2026-11-23"


def test_a_period_of_another_name_is_refused_with_the_near_one() -> None:
    assert periods.period("Month") == "month"
    with pytest.raises(ConfigurationError, match="Did you mean month"):
        periods.period("monthly")
