"""What a card says, without a kernel: exact money, the right state, and clicks that are heard once."""

from __future__ import annotations

from typing import Any

import pytest

from wflo_nb.errors import ConfigurationError, WorkflowError
from wflo_nb.events import Figures
from wflo_nb.notebook import static
from wflo_nb.notebook.live import LiveCard
from wflo_nb.notebook.options import CellOptions, cell_options
from wflo_nb.notebook.tables import Table, size
from wflo_nb.notebook.transformer import transform
from wflo_nb.notebook.view import HISTORY, History, duration, pace, view


def shown(state: str = "done", **figures: Any) -> dict[str, Any]:
    return view(name="a", cell="In [1]", state=state, figures=Figures(**figures), elapsed=90.0, history=History())


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (123_000, "$0.000123"),
        (1_500_000_000, "$1.50"),
        (2_000_000_001, "$2.000000001"),
        (12_345 * 10**9, "$12345.00"),
    ],
)
def test_money_keeps_every_digit(nano: int, text: str) -> None:
    assert shown(spent_nano=nano)["spent"] == text


def test_held_spent_and_left_add_up_to_the_cap() -> None:
    seen = shown("running", cap_nano=1_000, spent_nano=300, held_nano=500)
    assert (seen["spent"], seen["held"], seen["left"]) == ("$0.0000003", "$0.0000005", "$0.0000002")


@pytest.mark.parametrize(
    ("state", "stopped", "pill"),
    [
        ("running", None, "Running"),
        ("running", "user", "Stopping…"),
        ("running", "budget", "Budget reached"),
        ("done", None, "Done"),
        ("failed", None, "Failed"),
        ("stopped", "budget", "Stopped by budget"),
        ("stopped", "user", "Stopped"),
        ("stopped", None, "Stopped by budget"),
    ],
)
def test_the_pill_says_how_things_stand(state: str, stopped: str | None, pill: str) -> None:
    assert shown(state, stopped=stopped)["pill"] == pill


def test_the_text_tells_everything_that_is_not_ordinary() -> None:
    text = static.text(shown(cap_nano=10**9, spent_nano=5, unconfirmed_nano=5, held_nano=7, calls=1, in_flight=1, refused=2, unpriced=1))
    for part in (
        "$0.000000005 of $1.00 spent",
        "1 call (1 in flight, 2 refused, 1 unpriced)",
        "$0.000000007 held",
        "$0.000000005 of it unconfirmed",
    ):
        assert part in text


def test_names_are_escaped_in_html() -> None:
    seen = view(name="<b>&$x$", cell="In [1]", state="done", figures=Figures(), elapsed=0, history=History())
    assert "&lt;b&gt;&amp;" in static.as_html(seen) and "<b><b>" not in static.as_html(seen)


def test_history_stays_small_and_keeps_the_last_point() -> None:
    history = History()
    for i in range(5_000):
        history.add(i / 10, i)
    assert len(history.points) <= HISTORY and history.points[-1] == (499.9, 4999) and history.points[0] == (0.0, 0)
    times = [t for t, _ in history.points]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("nano", "seconds", "text"), [(0, 10, "–"), (10**9, 60, "$1.00/min"), (1_234, 60, "$0.0000012/min"), (5, 0.5, "–")]
)
def test_the_rate_has_two_digits(nano: int, seconds: float, text: str) -> None:
    assert pace(nano, seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (3.26, "3.3 s"), (10.2, "10 s"), (59.9, "59 s"), (61, "1 min 01 s"), (3_725, "1 h 02 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_options_are_read_like_a_shell_does() -> None:
    assert cell_options('budget=$2.50 name="two words" checkpoint=off unknown_models=allow wait=2.5') == CellOptions(
        2_500_000_000, "two words", False, "allow", 2.5
    )
    assert cell_options("") == CellOptions()
    with pytest.raises(ConfigurationError, match="twice"):
        cell_options("budget=1 --budget=2")


def test_the_transformer_leaves_other_cells_alone_and_keeps_the_number_of_lines() -> None:
    for cell in (["x = 1\n"], [], ["\n"], ["# %%wflo\n"], ["%%wflox\n", "1\n"], ["x = '''\n", "%%wflo\n", "'''\n"]):
        assert transform(list(cell)) == cell
    assert transform(["%%wflo budget=2\n", "a\n", "b\n"]) == ["__wflo__('budget=2')\n", "a\n", "b\n"]
    assert transform(["%%wflo"]) == ["__wflo__('')\n"]
    assert transform(['%%wflo name="it\'s"\r\n']) == ["__wflo__('name=\"it\\'s\"')\n"]


def test_tables_show_themselves_and_are_lists_of_what_they_show() -> None:
    table = Table(("a", "b"), [("x", 1), ("<y>", 22)], items=["first", "second"])
    assert repr(table) == "a     b\nx     1\n<y>  22"
    assert list(table) == ["first", "second"] and len(table) == 2 and table[1] == "second"
    assert "&lt;y&gt;" in table._repr_html_() and "mathjax_ignore" in table._repr_html_()
    assert repr(Table(("a",), [], note="empty")) == "empty"
    assert size(999) == "999 B" and size(1_500) == "1.5 kB"


class Steered:
    """A run to be steered; records what it is told."""

    id, state = "exec-1", "running"

    def __init__(self) -> None:
        self.told: list[object] = []

    def figures(self) -> Figures:
        return Figures(cap_nano=10)

    def stop(self) -> None:
        self.told.append("stop")

    def set_budget(self, nano: int) -> None:
        self.told.append(nano)

    def rollback_from(self, card: LiveCard, checkpoint_id: str) -> str:
        raise WorkflowError(f"no {checkpoint_id}")

    def undo_from(self, card: LiveCard) -> str:
        raise OSError("disk")


class Widget:
    """The widget's side of a card."""

    def __init__(self) -> None:
        self._note, self._figures = "", {}
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@pytest.fixture
def card() -> LiveCard:
    run: Any = Steered()
    made = LiveCard(run, name="a", cell="In [1]", style="live", variables=run)
    made._widget = Widget()  # type: ignore[assignment]
    return made


def test_a_click_that_comes_by_both_roads_counts_once(card: LiveCard) -> None:
    for _ in range(2):
        card.clicked({"kind": "stop", "id": "1"})
    card.clicked({"kind": "raise", "id": "2", "amount": "0.00000005"})
    assert card.run.told == ["stop", 50]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"kind": "raise", "amount": "much"}, "not an amount in USD"),
        ({"kind": "raise"}, "not an amount"),
        ({"kind": "rollback", "to": "snap-1"}, "no snap-1"),
        ({"kind": "undo"}, "OSError: disk"),
        ({"kind": "dance"}, "does not know 'dance'"),
    ],
)
def test_every_click_is_answered_also_the_failing_one(card: LiveCard, message: dict[str, Any], says: str) -> None:
    card.clicked({**message, "id": "7"})
    widget: Any = card._widget
    assert widget.sent[-1]["kind"] == "ack" and widget.sent[-1]["id"] == "7" and says in widget.sent[-1]["note"]
