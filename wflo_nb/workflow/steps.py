"""``with wflo_nb.step("researcher"):`` – a name for the calls of a piece of work, and the door of its own budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from wflo_nb import _context, telemetry
from wflo_nb.budget.account import Account
from wflo_nb.errors import BudgetExceededError, ConfigurationError
from wflo_nb.workflow.session import current_session
from wflo_nb.workflow.wrapping import Before, Watch, wrap


class step:  # noqa: N801 - used like a function
    """Label the calls of a block, or of a function, with a name: an agent's, a node's, a tool's.

        with wflo_nb.step("researcher"):        # also `async with`
            ...
        with wflo_nb.step("search", kind="tool"):
            ...

        @wflo_nb.step("writer")                 # plain, async and generator functions
        def write(notes): ...

    The label is the ``step`` of `wflo_nb.report.calls` and of ``costs(by="step")``; of steps inside each other the innermost one counts.
    With a `kind` (``"agent"``, ``"task"`` or ``"tool"``) the name stands in the column of that kind as well, and in ``costs(by="tool")``,
    whatever steps of other kinds lie inside.
    In a `WfloWorkflow` the step spends what `per_agent_budgets` gives its name, and counts as one of its `max_iterations`.

    Raises:
        BudgetExceededError: at the end of the block at the latest, if its own budget refused a call and something swallowed that.
        WorkflowError: `max_iterations` of the workflow are used up.
    """

    _counted = True

    def __init__(self, name: str, *, kind: str | None = None) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"A step needs a name, not {name!r}: with wflo_nb.step('researcher').")
        if kind is not None and kind not in _context.KINDS:
            raise ConfigurationError(f"kind={kind!r} is no kind of step. Use one of: {', '.join(_context.KINDS)}; or leave it out.")
        self._name = name
        self._kind = kind
        self._open: list[_Open] = []

    def __enter__(self) -> step:
        session = current_session()
        if session is not None and self._counted:
            session.tick(self._name)
        labels = None if self._kind is None else {self._kind: self._name}
        one = _context.Frame(self._name, _context.frame(), labels=labels)
        framed = _context.framed(one)
        framed.__enter__()
        payer = session.agent(self._name) if session is not None else None
        scope = _context.current()
        end = telemetry.enter_step(scope.id, self._name) if isinstance(scope, Account) else _nothing
        self._open.append(_Open(one, framed, end, payer, payer.refusal if payer is not None else None))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        left = self._left()
        payer, before = left.payer, left.before
        left.end()
        left.framed.__exit__(kind, error, trace)
        refusal = payer.refusal if payer is not None else None
        if refusal is None or payer is None:
            return
        session = current_session()
        if session is not None and (refusal is not before or isinstance(error, BudgetExceededError)):
            session.shown.add(payer.id)
        if refusal is not before and isinstance(error, Exception | None) and not isinstance(error, BudgetExceededError):
            raise refusal from error

    def _left(self) -> _Open:
        """What ends here: one step may be entered by many tasks and threads at once, which leave it in any order."""
        here = _context.frame()
        found = next((one for one in reversed(self._open) if one.frame is here), self._open[-1])
        self._open.remove(found)
        return found

    async def __aenter__(self) -> step:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function each call of which is such a step."""
        return wrap(fn, lambda *_: _Step(self._name, self._kind))


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """A step that was entered: `payer` is the budget of its own, `before` the refusal that this had by then."""

    frame: _context.Frame
    framed: AbstractContextManager[None]
    end: Callable[[], None]
    payer: Account | None
    before: BudgetExceededError | None


def _nothing() -> None:
    pass


class _Step(Watch):
    """One call of a function that is a step. Its frame is set anew around each piece of a generator."""

    def __init__(self, name: str, kind: str | None) -> None:
        self._name = name
        self._kind = kind

    def begin(self) -> Before | None:
        session = current_session()
        if session is not None:
            session.tick(self._name)
        return None

    def within(self) -> AbstractContextManager[object]:
        return _Inside(self._name, kind=self._kind)


class _Inside(step):
    """The inside of a step that was counted already."""

    _counted = False
