from __future__ import annotations

import inspect
import pickle
from decimal import Decimal

import pytest

from wflo_nb import errors
from wflo_nb.capture.refusal import passing
from wflo_nb.errors import BudgetExceededError, WfloError, format_usd

FULL = BudgetExceededError(
    spent_usd=Decimal("1.9"),
    budget_usd=Decimal(2),
    held_usd=Decimal("0.05"),
    requested_usd=Decimal("0.31"),
    scope="cell",
    execution_id="exec-1",
    model="gpt-4o",
    cell="In [3]",
)


def test_refusal_names_call_cell_and_every_number() -> None:
    for fact in ("gpt-4o", "In [3]", "$0.31", "cell budget of $2.00", "$0.05 left", "spent $1.90", "held $0.05", "Raise the budget"):
        assert fact in str(FULL)


@pytest.mark.parametrize(
    ("amount", "text"),
    [("2", "$2.00"), ("0.5", "$0.50"), ("0.000000001", "$0.000000001"), ("1234.5678", "$1234.5678"), ("0", "$0.00")],
)
def test_dollars_are_shown_with_every_digit_that_is_there(amount: str, text: str) -> None:
    assert format_usd(Decimal(amount)) == text


def examples() -> list[WfloError]:
    made: list[WfloError] = [
        FULL,
        errors.MissingDependencyError("psycopg", "postgres"),
        errors.UnknownModelError("gpt-x", "openai", ("gpt-4",)),
        errors.SerializationError("x", "it is a socket"),
        errors.RestoreError("no", plan={"x": 1}),
    ]
    seen = {type(e) for e in made}
    simple = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, WfloError) and c not in seen]
    return made + [c("what happened") for c in simple]


@pytest.mark.parametrize("error", examples(), ids=lambda e: type(e).__name__)
def test_every_error_survives_pickling_with_its_attributes(error: WfloError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_class_joined_with_an_sdk_passes_the_sdk_and_pickles_as_ours() -> None:
    import openai

    joined = passing(FULL)
    assert isinstance(joined, BudgetExceededError)
    assert isinstance(joined, openai.OpenAIError)
    assert (str(joined), joined.requested_usd, type(joined).__name__) == (str(FULL), Decimal("0.31"), "BudgetExceededError")
    assert type(pickle.loads(pickle.dumps(joined))) is BudgetExceededError
    assert passing(joined) is joined


def test_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = errors.__doc__ or ""
    for name, cls in inspect.getmembers(errors, inspect.isclass):
        if cls.__module__ == errors.__name__:
            assert name in drawn, f"{name} is not in the drawing"
