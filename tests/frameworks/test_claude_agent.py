"""claude-agent-sdk, unchanged: the program that it starts is led through a door of ours, so that its calls are read like any other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage, query

import wflo_nb
from tests.frameworks.conftest import ledger_calls, sums_up
from wflo_nb import BudgetExceededError
from wflo_nb.errors import UnsupportedFormatError
from wflo_nb.testing import FakeProvider

_QUIET = {"DISABLE_TELEMETRY": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1"}


@pytest.fixture
def options(provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClaudeAgentOptions:
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE"))]:
        monkeypatch.delenv(name)
    home = {"HOME": str(tmp_path), "CLAUDE_CONFIG_DIR": str(tmp_path)}
    env = {**_QUIET, **home, "ANTHROPIC_BASE_URL": provider.url, "ANTHROPIC_API_KEY": "test"}
    return ClaudeAgentOptions(env=env, max_turns=1, model="claude-sonnet-4-5", allowed_tools=[], cwd=str(tmp_path))


def run(options: ClaudeAgentOptions) -> ResultMessage:
    async def last() -> Any:
        return [message async for message in query(prompt="Say hello.", options=options)][-1]

    result = asyncio.run(asyncio.wait_for(last(), 60))
    assert isinstance(result, ResultMessage)
    return result


def test_agents_calls_are_the_providers_bill(provider: FakeProvider, options: ClaudeAgentOptions) -> None:
    bare, env = run(options), dict(options.env)
    with wflo_nb.execution("agent", budget_usd=5), wflo_nb.step("claude"):
        result = run(options)
    assert (result.is_error, result.result) == (False, bare.result)
    (row,) = ledger_calls()
    assert (row["state"], row["step"], row["model"], row["stream"]) == ("SETTLED", "claude", "claude-sonnet-4-5", 1)
    assert row["cost_nano"] == provider.bill[-1].nano_usd == round((result.total_cost_usd or 0) * 10**9)
    assert options.env == env and options.settings is None  # what is the user's stays as it was
    assert not [thread for thread in threading.enumerate() if thread.name == "wflo-gateway"]


def test_settings_of_files_do_not_lead_the_program_past_the_door(
    provider: FakeProvider, options: ClaudeAgentOptions, tmp_path: Path
) -> None:
    elsewhere = {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "CLAUDE_CODE_USE_BEDROCK": "1"}}
    (tmp_path / "settings.json").write_text(json.dumps(elsewhere))
    with wflo_nb.execution("agent", budget_usd=5):
        assert not run(options).is_error
    assert sums_up(provider)


def test_refusal_comes_out_at_the_edge_and_nothing_is_sent(provider: FakeProvider, options: ClaudeAgentOptions) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd="0.01"):
        for _ in range(2):
            with contextlib.suppress(Exception):  # whatever the program makes of it
                run(options)
    assert provider.requests == 0
    assert {row["state"] for row in ledger_calls()} == {"REFUSED"}


def test_client_that_is_kept_open_pays_for_each_of_its_questions(provider: FakeProvider, options: ClaudeAgentOptions) -> None:
    async def talk() -> None:
        async with ClaudeSDKClient(options=options) as client:
            for _ in range(2):
                await client.query("Say hello.")
                assert [message async for message in client.receive_response()]

    with wflo_nb.execution("agent", budget_usd=5):
        asyncio.run(asyncio.wait_for(talk(), 60))
    assert len(ledger_calls()) == provider.requests == 2
    assert sums_up(provider)


def test_program_that_calls_a_cloud_with_its_own_signatures_is_turned_away(provider: FakeProvider, options: ClaudeAgentOptions) -> None:
    options.env["CLAUDE_CODE_USE_BEDROCK"] = "1"
    with pytest.raises(UnsupportedFormatError, match="claude-agent-sdk starts"), wflo_nb.execution("agent", budget_usd=5):
        run(options)
    assert provider.requests == 0
