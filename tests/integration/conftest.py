"""Real SDKs over real sockets; only the far end of the wire is ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

import wflo_nb
from wflo_nb.model import Call, CallState, Usage
from wflo_nb.store import Store, current
from wflo_nb.testing import FakeProvider

PROMPT = [{"role": "user", "content": "Say a few words about rivers, please."}]


@pytest.fixture
def openai_client(provider: FakeProvider) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=provider.openai_url, api_key="test")


@pytest.fixture
def async_openai(provider: FakeProvider) -> Callable[[], Any]:
    from openai import AsyncOpenAI

    return lambda: AsyncOpenAI(base_url=provider.openai_url, api_key="test")


@pytest.fixture
def anthropic_client(provider: FakeProvider) -> Any:
    from anthropic import Anthropic

    return Anthropic(base_url=provider.url, api_key="test")


def ledger_calls(store: Store | None = None) -> list[dict[str, Any]]:
    """Rows of llm_calls, oldest first, read from the file itself: the judge shares no code with the accused."""
    store = store or current()
    store.write_out()
    database = sqlite3.connect(store.location)
    try:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM llm_calls ORDER BY created_at")]
    finally:
        database.close()


def ledger_total(store: Store | None = None) -> int:
    """Everything the ledger says was spent, in nano-USD."""
    return sum(row["cost_nano"] or 0 for row in ledger_calls(store))


__all__ = ["PROMPT", "Call", "CallState", "Usage", "ledger_calls", "ledger_total", "wflo_nb"]
