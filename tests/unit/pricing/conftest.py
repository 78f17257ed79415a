"""The pricing room's own fixtures."""

from __future__ import annotations

import pytest

from wflo_nb.pricing.book import PriceBook


@pytest.fixture
def book() -> PriceBook:
    return PriceBook()


@pytest.fixture(scope="session")
def shared_book() -> PriceBook:
    """For tests that declare nothing."""
    return PriceBook()
