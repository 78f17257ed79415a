"""smolagents: agents through `run`, in a thread. Its callbacks are for steps alone, so tools and agents below are named on the way."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from wflo_nb import _context
from wflo_nb.errors import BudgetExceededError, ConfigurationError
from wflo_nb.workflow.adapters.asking import asked_as, asked_aside, keep
from wflo_nb.workflow.session import Session, current_session


def fits(workflow: Any) -> bool:
    """Whether it is an agent."""
    return all(hasattr(workflow, name) for name in ("run", "step_callbacks", "managed_agents", "tools"))


async def drive(agent: Any, inputs: Any, session: Session, **options: Any) -> Any:
    """As ``agent.run(…)``, with the same result. The steps that it took are checkpointed."""
    if options.get("stream"):
        raise ConfigurationError(
            "An agent's stream is given by a generator function: def work(task): yield from agent.run(task, stream=True); then "
            "execute(work, task)."
        )
    name = _name(agent)
    with ExitStack() as watching, _context.framed(_context.Frame(name, _context.frame(), labels={"agent": name})):
        _watch(agent, watching, set())
        result = await asked_aside(session, lambda: agent.run(**{**asked_as(inputs, "task"), **options}))
    await keep(session, name, lambda: agent.memory.get_full_steps())
    return result


def _name(agent: Any) -> str:
    return str(agent.name or type(agent).__name__)


def _watch(agent: Any, watching: ExitStack, known: set[int]) -> None:
    known.add(id(agent))
    watching.enter_context(_in_place_of(agent, "step_callbacks", lambda theirs: _Steps(theirs, _name(agent))))
    if hasattr(retryer := getattr(agent.model, "retryer", None), "retry_predicate"):
        watching.enter_context(_in_place_of(retryer, "retry_predicate", _not_of_money))
    for name, tool in agent.tools.items():
        watching.enter_context(_in_place_of(tool, "forward", functools.partial(_named, "tool", name)))
    for other in agent.managed_agents.values():
        watching.enter_context(_in_place_of(other, "run", functools.partial(_named, "agent", _name(other))))
        if id(other) not in known:
            _watch(other, watching, known)


def _named(kind: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        with _context.framed(_context.Frame(name, _context.frame(), labels={kind: name})):
            return function(*args, **kwargs)

    return named


def _not_of_money(theirs: Callable[[BaseException], bool]) -> Callable[[BaseException], bool]:
    """It waits a minute and tries again when it reads 429 in an error; so may an amount."""
    return lambda error: not isinstance(error, BudgetExceededError) and theirs(error)


class _Steps:
    """The callbacks of an agent, with ours behind them. Which workflow it works for is told by where it is called."""

    def __init__(self, theirs: Any, name: str) -> None:
        self._theirs = theirs
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs, name)

    def callback(self, memory_step: Any, **facts: Any) -> None:
        self._theirs.callback(memory_step, **facts)
        session = current_session()
        if session is not None and type(memory_step).__name__ == "ActionStep":
            session.ticked(self._name)


_lock = threading.Lock()
#: What is replaced now: by how many runs, and what puts it back.
_replaced: dict[tuple[int, str], tuple[int, Callable[[], None]]] = {}


@contextmanager
def _in_place_of(owner: Any, attribute: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """What is made from an attribute of one object in its place. Counted: tools are shared, and agents may be run several times at once."""
    key = (id(owner), attribute)
    with _lock:
        count, put_back = _replaced.get(key) or (0, _replace(vars(owner), attribute, made(getattr(owner, attribute))))
        _replaced[key] = (count + 1, put_back)
    try:
        yield
    finally:
        with _lock:
            count, put_back = _replaced.pop(key)
            if count > 1:
                _replaced[key] = (count - 1, put_back)
            else:
                put_back()


def _replace(own: dict[str, Any], attribute: str, new: Any) -> Callable[[], None]:
    had, before = attribute in own, own.get(attribute)
    own[attribute] = new

    def put_back() -> None:
        if own.get(attribute) is not new:  # the user's code has changed it
            return
        if had:
            own[attribute] = before
        else:
            del own[attribute]

    return put_back
