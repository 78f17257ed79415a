from __future__ import annotations

import os
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wflo_nb.errors import ConfigurationError
from wflo_nb.model import MAX_NANO, BudgetState, nano_from_usd, new_id, usd


@given(st.integers(0, MAX_NANO))
def test_nano_and_decimal_dollars_are_the_same_amount(nano: int) -> None:
    assert nano_from_usd(usd(nano)) == nano


@pytest.mark.parametrize(
    ("typed", "nano"),
    [(2, 2_000_000_000), ("$2.50", 2_500_000_000), (0.1, 100_000_000), ("1_000", 10**12), (Decimal("0.0000000019"), 1), (0, 0), ("-0", 0)],
)
def test_amounts_as_people_type_them(typed: object, nano: int) -> None:
    assert nano_from_usd(typed) == nano


@pytest.mark.parametrize("typed", ["abc", "", "2 usd", "nan", float("inf"), -1, "-0.01", True, None, 1e30, "1e999999", 1e-12, "1e-999999"])
def test_what_is_no_amount_is_refused_with_the_name_of_the_setting(typed: object) -> None:
    with pytest.raises(ConfigurationError, match="cap="):
        nano_from_usd(typed, "cap")


def test_ids_say_what_they_are_and_do_not_repeat() -> None:
    ids = {new_id("exec") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(i.startswith("exec-") for i in ids)


def test_ids_are_in_the_order_of_time() -> None:
    first = new_id("call")
    time.sleep(0.002)
    assert first < new_id("call")


def test_budget_without_a_cap_has_no_number_left() -> None:
    assert BudgetState("b", "notebook", None, spent_nano=5).left_nano is None
    assert BudgetState("b", "cell", 10, spent_nano=5, held_nano=7).left_nano == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_draws_ids_of_its_own() -> None:
    new_id("call")  # bits for later ids are drawn with it
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, new_id("call").encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as told:
        its = told.read()
    assert its.startswith("call-")
    assert its[-16:] not in {new_id("call")[-16:] for _ in range(200)}
