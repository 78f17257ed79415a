"""LangGraph: compiled graphs, run through their public stream; every node's calls bear its name, and every node is checkpointed."""

from __future__ import annotations

import functools
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from wflo_nb import _context
from wflo_nb.errors import ConfigurationError, WorkflowError
from wflo_nb.workflow.adapters.places import nodes
from wflo_nb.workflow.offloop import aside
from wflo_nb.workflow.session import Session
from wflo_nb.workflow.shelf import Saved

#: Kinds of checkpoints after which a graph can go on.
RESUMES = frozenset({"node"})
_INTERRUPT = "__interrupt__"
#: The channel of what nodes are sent by ``Send``.
_SENT = "__pregel_tasks"


def fits(workflow: Any) -> bool:
    """Whether it is a compiled graph."""
    return all(hasattr(workflow, name) for name in ("astream", "nodes", "output_channels", "stream_channels_asis"))


async def drive(graph: Any, inputs: Any, session: Session, *, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """As ``graph.ainvoke(inputs, config, …)``, with the same result.

    Raises:
        ConfigurationError: something else of the graph's stream is wanted than its last values.
    """
    if (mode := options.pop("stream_mode", "values")) != "values":
        raise ConfigurationError(
            f"stream_mode={mode!r} is not for execute: it gives the last values of a graph. Execute a function that reads the stream: "
            f"async def work(inputs): return [part async for part in graph.astream(inputs, stream_mode={mode!r})]"
        )
    settings, most = dict(config or {}), session.most
    session.most = None  # supersteps are counted; steps of the user's inside nodes do not count a second time
    if getattr(graph, "checkpointer", None) not in (None, True, False) and "thread_id" not in settings.get("configurable", {}):
        settings["configurable"] = {**settings.get("configurable", {}), "thread_id": session.run.id}
    if session.resumed is not None and session.resumed.kind == "node":
        graph, settings = await _at(graph, settings, session)
        inputs = None
    try:
        tool = _following_tools(settings)
        with _context.framed(_context.Frame(nodes, _context.frame(), labels=lambda: _labels(tool()))):
            return await _run(graph, inputs, session, settings, options, most)
    except Exception as error:
        if most is None or type(error).__name__ != "GraphRecursionError":
            raise
        raise _overran(session, most, "the next node") from error


def _overran(session: Session, most: int, where: str) -> WorkflowError:
    session.run.stop()
    session.most, session.last, session.beyond = most, where, True
    return session.overran()


async def _run(graph: Any, inputs: Any, session: Session, settings: dict[str, Any], options: dict[str, Any], most: int | None) -> Any:
    """What ``ainvoke`` does with the same stream: the last values are the result, interrupts stand beside them."""
    told = options.pop("output_keys", None)
    shown, everything = graph.output_channels if told is None else told, graph.stream_channels_asis
    whole = _covers(everything, shown)
    signals = _signals(graph) if whole else frozenset()
    asked = [*everything, *signals] if signals else everything if whole else shown
    if most is not None:  # a graph needs one more than it runs to see that it is at its end, unless its own count is all there is
        limit = most + bool(signals)
        settings["recursion_limit"] = min(limit, settings.get("recursion_limit", limit))
    latest: Any = None
    interrupts: list[Any] = []
    ended: list[str] = []
    supersteps = 0
    stream = graph.astream(inputs, settings, stream_mode=["updates", "values"], output_keys=asked, **options)
    async with aclosing(stream):
        async for part in stream:
            mode, payload = part[-2:]
            if mode == "values":
                latest, then = _told_apart(graph, payload, signals)
                await _save(session, ended, latest, {} if interrupts else then)
                supersteps += bool(ended)
                if most is not None and supersteps >= most and not interrupts and (beyond := _beyond(graph, options, ended, then)):
                    raise _overran(session, most, beyond)  # now: with the next part, the next node is begun
                ended = []
            elif isinstance(payload, dict):
                interrupts.extend(payload.get(_INTERRUPT, ()))
                ended += [name for name in payload if not name.startswith("__")]
                if ended:
                    session.partial = {name: _told_apart(graph, given, signals)[0] for name, given in payload.items()}
    if whole and not isinstance(shown, str) and isinstance(latest, dict):
        latest = {name: latest[name] for name in shown if name in latest}
    elif whole and isinstance(shown, str) and not isinstance(everything, str) and isinstance(latest, dict):
        latest = latest.get(shown)
    if interrupts:
        return {**latest, _INTERRUPT: interrupts} if isinstance(latest, dict) else {_INTERRUPT: interrupts}
    return latest


async def _save(session: Session, ended: list[str], state: Any, facts: dict[str, Any]) -> None:
    for name in ended:
        beside = [other for other in ended if other != name]
        await aside(functools.partial(session.save, name, state, kind="node", beside=beside, **facts))


def _beyond(graph: Any, options: dict[str, Any], ended: list[str], facts: dict[str, Any]) -> str | None:
    """The node that is about to run; None if the graph is at its end, or stops here for somebody to look."""
    following = [*facts.get("next", ()), *(name for name, _ in facts.get("sent", ()))]
    for when, names in (("interrupt_after", ended), ("interrupt_before", following)):
        told: Any = options.get(when) or getattr(graph, f"{when}_nodes", ())
        if told == "*" or not set(told).isdisjoint(names):
            return None
    return next(iter(following), None)


def _signals(graph: Any) -> frozenset[str]:
    """The channels that say which nodes are next; none where the graph's own state does."""
    everything = graph.stream_channels_asis
    if isinstance(everything, str):
        return frozenset()
    found = {trigger for one in graph.nodes.values() for trigger in one.triggers}.difference(everything)
    return frozenset(found | {_SENT}).intersection(graph.channels) if found else frozenset()


def _told_apart(graph: Any, values: Any, signals: frozenset[str]) -> tuple[Any, dict[str, Any]]:
    """The state among what a graph tells, and the facts of a checkpoint: the nodes that are `next`, and what was `sent` to some."""
    if not signals or not isinstance(values, dict):
        return values, {}
    sent = [(one.node, one.arg) for one in values.get(_SENT) or ()]
    triggered = signals.intersection(values)
    facts: dict[str, Any] = {"next": [name for name, one in graph.nodes.items() if triggered.intersection(one.triggers)]}
    if sent:
        facts["sent"] = sent
    return {name: value for name, value in values.items() if name not in signals}, facts


def _labels(tool: str | None) -> dict[str, str]:
    return {} if tool is None else {"tool": tool}


def _following_tools(settings: dict[str, Any]) -> Callable[[], str | None]:
    """Put a callback into a graph's settings that hears of its tools. Returns what tells the name of the tool that runs here."""
    core: Any = importlib.import_module("langchain_core.callbacks")
    config: Any = importlib.import_module("langgraph.config")
    names: dict[Any, str] = {}
    around: dict[Any, Any] = {}  # what runs inside a tool, with what it runs in

    class Tools(core.BaseCallbackHandler):  # type: ignore[misc]
        run_inline = True  # before the tool, and not at about the same time
        ignore_llm = ignore_chat_model = ignore_retriever = ignore_retry = ignore_custom_event = True

        def on_tool_start(self, serialized: Any, _input: str, *, run_id: Any, **_: Any) -> None:
            names[run_id] = str((serialized or {}).get("name") or "tool")

        def on_tool_end(self, _output: Any, *, run_id: Any, **_: Any) -> None:
            names.pop(run_id, None)

        on_tool_error = on_tool_end

        def on_chain_start(self, _serialized: Any, _inputs: Any, *, run_id: Any, parent_run_id: Any = None, **_: Any) -> None:
            if parent_run_id in names or parent_run_id in around:
                around[run_id] = parent_run_id

        def on_chain_end(self, _outputs: Any, *, run_id: Any, **_: Any) -> None:
            around.pop(run_id, None)

        on_chain_error = on_chain_end

    def tool() -> str | None:
        if not names:
            return None
        try:
            here = config.get_config()["callbacks"].parent_run_id
        except (AttributeError, KeyError, RuntimeError, TypeError):  # not inside a node
            return None
        while here in around:
            here = around[here]
        return names.get(here)

    given = settings.get("callbacks")
    if given is None or isinstance(given, list):
        settings["callbacks"] = [*(given or []), Tools()]
    else:
        settings["callbacks"] = given.copy()
        settings["callbacks"].add_handler(Tools(), inherit=True)
    return tool


def _covers(everything: Any, shown: Any) -> bool:
    def names(channels: Any) -> set[str]:
        return {channels} if isinstance(channels, str) else set(channels) if isinstance(channels, Iterable) else set()

    return names(shown) <= names(everything)


async def _at(graph: Any, settings: dict[str, Any], session: Session) -> tuple[Any, dict[str, Any]]:
    """The graph, standing behind the node of a checkpoint: the state goes in as what that node gave, on a thread of its own."""
    saved = session.resumed
    assert saved is not None
    memory: Any = sys.modules.get("langgraph.checkpoint.memory")
    if memory is None:
        memory = importlib.import_module("langgraph.checkpoint.memory")
    types: Any = sys.modules["langgraph.types"]
    if not isinstance(saved.state, Mapping):
        raise WorkflowError(f"Checkpoint {saved} is no state of a graph with named channels, so that the graph cannot go on after it.")
    settings = {**settings, "configurable": {**settings.get("configurable", {}), "thread_id": session.run.id}}
    state = _as_they_are(graph, saved.state, types)

    async def standing(given: Any) -> tuple[Any, list[str]]:
        again = graph.copy({"checkpointer": memory.InMemorySaver()})
        updates = [types.StateUpdate(given, saved.name), *(types.StateUpdate({}, name) for name in saved.facts.get("beside", ()))]
        await again.abulk_update_state(settings, [updates])
        return again, list((await again.aget_state(settings)).next)

    again, reached = await standing(state)
    missing = _missing(saved, reached, types)
    if missing:  # edges do not lead there: the node said itself where to go
        again, reached = await standing(types.Command(update=state, goto=missing))
    if missing and not reached:
        raise WorkflowError(
            f"The graph does not go on after checkpoint {saved}, though it did when that was taken. Get its state with "
            f"`await wflo.rollback_to_checkpoint({saved.name!r})` and go on from there."
        )
    return again, settings


def _missing(saved: Saved, reached: list[str], types: Any) -> list[Any]:
    """Where the graph went on after a checkpoint, and would not now."""
    left = Counter(reached)
    missing: list[Any] = []
    for name, goal in [
        *((name, name) for name in saved.facts.get("next", ())),
        *((name, types.Send(name, given)) for name, given in saved.facts.get("sent", ())),
    ]:
        left[name] -= 1
        if left[name] < 0:
            missing.append(goal)
    return missing


def _as_they_are(graph: Any, state: Mapping[str, Any], types: Any) -> dict[str, Any]:
    """A state that replaces what is there: channels that put a value and another one together do not do so again."""
    gathering = {name for name, channel in graph.channels.items() if hasattr(channel, "operator") or hasattr(channel, "reducer")}
    return {name: types.Overwrite(value) if name in gathering else value for name, value in state.items()}
