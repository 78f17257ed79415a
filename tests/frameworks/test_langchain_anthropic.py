"""langchain-anthropic, unchanged: alone and as the model of a graph."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain_anthropic import ChatAnthropic
from langgraph.graph import END, START, StateGraph

import wflo_nb
from tests.frameworks.conftest import ledger_calls, steps, sums_up
from wflo_nb import BudgetExceededError, WfloWorkflow
from wflo_nb.testing import FakeProvider

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def model(provider: FakeProvider) -> ChatAnthropic:
    return ChatAnthropic(model="claude-sonnet-4-5", max_tokens=50, base_url=provider.url, api_key="test")  # type: ignore[call-arg, arg-type]


async def _astream(model: ChatAnthropic) -> list[Any]:
    return [chunk async for chunk in model.astream("rivers")]


WAYS: dict[str, Callable[[ChatAnthropic], object]] = {
    "invoke": lambda model: model.invoke("rivers"),
    "ainvoke": lambda model: asyncio.run(model.ainvoke("rivers")),
    "stream": lambda model: list(model.stream("rivers")),
    "astream": lambda model: asyncio.run(_astream(model)),
    "batch": lambda model: model.batch(["rivers", "lakes"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_calls_are_the_providers_bill_and_a_spent_budget_sends_none(provider: FakeProvider, model: ChatAnthropic, way: str) -> None:
    with wflo_nb.execution("t", budget_usd=1):
        WAYS[way](model)
    assert {row["state"] for row in ledger_calls()} == {"SETTLED"}
    assert len(ledger_calls()) == provider.requests == (2 if way == "batch" else 1)
    assert sums_up(provider)
    sent = provider.requests
    reached: list[BaseException] = []
    with pytest.raises(BudgetExceededError), wflo_nb.execution("poor", budget_usd=0):
        for _ in range(2):  # also of somebody who swallows it
            try:
                WAYS[way](model)
            except Exception as error:
                reached.append(error)
    assert [isinstance(error, BudgetExceededError) for error in reached] == [True, True]
    assert provider.requests == sent


def test_graph_on_claude_is_labelled_and_limited(provider: FakeProvider, model: ChatAnthropic) -> None:
    class State(TypedDict, total=False):
        text: str

    def write(state: State) -> State:
        return {"text": str(model.invoke("rivers").content)}

    graph = StateGraph(State)
    graph.add_node("write", write)
    graph.add_edge(START, "write")
    graph.add_edge("write", END)
    result = WfloWorkflow("claude", budget_usd=1).execute_sync(graph.compile(), {})
    assert result["text"]
    assert steps() == ["write"]
    assert sums_up(provider)
    with pytest.raises(BudgetExceededError):
        WfloWorkflow("poor", budget_usd=0).execute_sync(graph.compile(), {})
    assert provider.requests == 1
