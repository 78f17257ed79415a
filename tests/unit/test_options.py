"""What may stand behind ``%%wflo`` and ``%wflo budget`` about shared budgets, and what completion offers there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wflo_nb.budget.shared import Sharing
from wflo_nb.errors import ConfigurationError
from wflo_nb.notebook.completion import matcher
from wflo_nb.notebook.magics import SUBCOMMANDS
from wflo_nb.notebook.options import cell_options, shared_options


def test_a_cell_names_the_budgets_it_shares() -> None:
    found = cell_options("budget=2 team=research user=ann per=month tz=europe/berlin")
    assert found.sharing == Sharing("research", "ann", "month", "Europe/Berlin")
    assert cell_options("budget=2").sharing is None


def test_user_alone_is_the_login_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_USER", "ann")
    assert cell_options("budget=2 user").sharing == Sharing(user="ann")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("per=month", "add team=NAME or user=NAME"),
        ("team=a tz=UTC", "add per=day, week, month or year"),
        ("team=a per=fortnight", "per=day, per=week, per=month or per=year"),
        ('team="a\x01b"', "is no name"),
        (f"team={'x' * 101}", "at most 100 characters"),
        ("team", "team needs a value"),
    ],
)
def test_what_makes_no_sense_is_refused(line: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        cell_options(line)


def test_the_line_that_sets_a_shared_budget() -> None:
    assert shared_options(["500", "team=research", "per=month"]) == (500 * 10**9, Sharing("research", None, "month", None))
    assert shared_options(["team=research", "0.5"]) == (500_000_000, Sharing("research"))
    assert shared_options(["team=research"]) == (None, Sharing("research"))
    assert shared_options(["notebook=5"]) is None and shared_options([]) is None
    for words, says in (
        (["5", "6", "team=a"], "two amounts"),
        (["5", "team=a", "user=b"], "one budget"),
        (["5", "team=a", "x=1"], "unknown"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            shared_options(words)


def offered(typed: str) -> list[str]:
    complete: Any = matcher({name: sub.options for name, sub in SUBCOMMANDS.items()}, list, list)
    context = SimpleNamespace(text_until_cursor=typed, full_text=typed, cursor_line=0)
    return [c.text for c in complete(context)["completions"]]


def test_completion_knows_the_options_the_periods_and_the_zones() -> None:
    assert {"team=", "user=", "per=", "tz="} <= set(offered("%%wflo budget=2 "))
    assert offered("%%wflo per=m") == ["month"]
    assert "Europe/Berlin" in offered("%%wflo tz=Europe/B") and "UTC" in offered("%wflo budget 5 team=a tz=U")
