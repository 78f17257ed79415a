"""Plain columns as typed DataFrames. Imported at first use: pandas and pyarrow take more than a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pandas as pd
import pyarrow as pa

from wflo_nb.model import usd

#: Room for every amount of nano-USD that 64 bits can hold.
USD = pa.decimal128(20, 9)


class UsdArray(pd.arrays.ArrowExtensionArray):
    """Exact USD that print as amounts: Python writes the Decimal of no nano-dollars as ``0E-9``, and of a hundred as ``1.00E-7``."""

    def _formatter(self, boxed: bool = False) -> Callable[[Any], str]:  # noqa: ARG002 - pandas asks for both ways of printing
        return lambda value: f"{value:f}" if isinstance(value, Decimal) else str(value)


def frame(columns: Mapping[str, tuple[str, list[Any]]]) -> pd.DataFrame:
    """A frame from name → (kind, values); None is unknown. The types do not depend on the values, so an empty frame has them too."""
    return pd.DataFrame({name: _KINDS[kind](values) for name, (kind, values) in columns.items()})


def _money(nano: list[int | None]) -> Any:
    return UsdArray(pa.array([None if n is None else usd(n) for n in nano], type=USD))


def _time(moments: list[Any]) -> Any:
    return pd.array(moments, dtype=pd.DatetimeTZDtype("us", "UTC"))


def _fault(errors: list[dict[str, Any] | None]) -> Any:
    return _text([None if e is None else f"{e.get('type', 'Error')}: {e.get('message', '')}".removesuffix(": ") for e in errors])


def _text(values: list[str | None]) -> Any:
    return pd.array(values, dtype="string")


_KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "money": _money,
    "time": _time,
    "fault": _fault,
    "text": _text,
    "count": lambda values: pd.array(values, dtype="Int64"),
    "real": lambda values: pd.array(values, dtype="Float64"),
    "flag": lambda values: pd.array([None if v is None else bool(v) for v in values], dtype="boolean"),
}
