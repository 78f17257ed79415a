"""One execution of a workflow, as steps, decorators and adapters see it: its counts, checkpoints and what it is replayed from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

from wflo_nb import _context
from wflo_nb.budget.account import Account
from wflo_nb.errors import WorkflowError, tell
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.shelf import Saved, Shelf

_sessions: WeakKeyDictionary[Account, Session] = WeakKeyDictionary()


class Session:
    """What an adapter is given besides the workflow and its inputs.

    Attributes:
        run: the execution; `agents`: executions inside it, for steps with a budget of their own, by the step's name.
        owner: the `WfloWorkflow` that runs it.
        partial: the newest state, output or item, for the record of an execution that fails.
        shown: ids of the agents' executions whose refusal somebody has seen.
        resumed: the checkpoint that this execution goes on after, None for one from the beginning.
        last: the step at which `max_iterations` were used up, None before; `beyond`: whether there was to be one more.
    """

    def __init__(self, run: Run, shelf: Shelf | None, *, most: int | None = None, replay: Sequence[Saved] = ()) -> None:
        self.run = run
        self.owner: object = None
        self.shelf = shelf
        self.most = most
        self.agents: dict[str, Run] = {}
        self.partial: Any = None
        self.shown: set[str] = set()
        self.resumed: Saved | None = replay[-1] if replay else None
        self.last: str | None = None
        self.beyond = False
        self._replay = list(replay)
        self._steps = 0
        self._lock = threading.Lock()
        _sessions[run.account] = self

    def agent(self, name: str) -> Account | None:
        """The account of a step that has a budget of its own."""
        run = self.agents.get(name)
        return None if run is None else run.account

    # -- counting ----------------------------------------------------------------------------------------------------------

    def tick(self, what: str) -> None:
        """A step begins.

        Raises:
            WorkflowError: `max_iterations` are used up. From then on no call is sent, whoever swallows this.
        """
        with self._lock:
            self._steps += 1
            over = self.most is not None and self._steps > self.most
        if over:
            self.run.stop()
            self.last, self.beyond = what, True
            raise self.overran()

    def ticked(self, what: str) -> None:
        """A step is over, whose beginning nobody told. After the last one that is allowed, no call is sent any more.

        Raises:
            WorkflowError: there was one more.
        """
        with self._lock:
            self._steps += 1
            beyond = self._steps - (self.most or self._steps + 1)
        if beyond >= 0:
            self.run.stop()
            self.last = self.last or what
        if beyond > 0:
            self.beyond = True
            raise self.overran()

    def due(self, what: str, untold: int) -> None:
        """So many steps are over that were not told yet, and the next one begins. If that is one too many, no call is sent any more."""
        with self._lock:
            over = self.most is not None and self._steps + untold >= self.most
        if over:
            self.run.stop()
            self.last, self.beyond = self.last or what, True

    def overran(self) -> WorkflowError:
        """The workflow wants more steps than it may have."""
        return WorkflowError(
            f"The workflow {self.run.account.execution.workflow!r} was stopped at {self.last!r}: its max_iterations={self.most} are used "
            "up. Raise max_iterations, or look why the workflow does not come to an end."
        )

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    def step(self, name: str, *, kind: str | None = None) -> AbstractContextManager[Any]:
        """A named step of the workflow (see `wflo_nb.step`)."""
        from wflo_nb.workflow.steps import step

        return step(name, kind=kind)

    def save(self, name: str, state: Any, *, kind: str = "step", **facts: Any) -> None:
        """Checkpoint what a step gave. Never raises: the step is paid, and its answer is the user's."""
        self.partial = state
        if self.shelf is None:
            return
        try:
            self.shelf.put(name, state, execution_id=self.run.id, kind=kind, **facts)
        except Exception as error:
            tell(f"No checkpoint {name!r} was taken ({type(error).__name__}: {error}). The step itself is not affected.")

    def answered(self, name: str, print_: str | None) -> Saved | None:
        """What a step gave before, in a workflow that is resumed; each saved answer is given once."""
        with self._lock:
            # Other arguments make it another call. Those that have no print are told apart by their order alone.
            asked = (name, "step", print_)
            found = next((one for one in self._replay if (one.name, one.kind, one.facts.get("print_")) == asked), None)
            if found is None:
                return None
            self._replay.remove(found)
        self.save(name, found.state, **found.facts)  # this execution can be resumed as well
        return found


def current_session() -> Session | None:
    """The innermost workflow that this code runs in."""
    scope = _context.current()
    if not isinstance(scope, Account):
        return None
    return next((found for account in scope.lineage if (found := _sessions.get(account)) is not None), None)


def session_of(account: Account) -> Session | None:
    """The workflow whose execution this is."""
    return _sessions.get(account)
