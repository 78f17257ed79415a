"""One execution of a workflow, as steps, decorators and adapters see it: its counts, checkpoints and what it is replayed from."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from wflo_nb import _context
from wflo_nb.budget.account import Account
from wflo_nb.errors import WorkflowError, tell
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.shelf import Saved, Shelf

#: By the id of the execution. Whoever runs it keeps the session alive, and nothing here does.
_sessions: WeakValueDictionary[str, Session] = WeakValueDictionary()
#: The innermost checkpointed call that this code runs in, with the id of its execution.
_inside: ContextVar[tuple[str, str] | None] = ContextVar("wflo_nb_inside", default=None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a checkpointed function, told apart from all others, in the same way in every execution.

    Attributes:
        print_: of its arguments; `by`: objects that are no part of that (what a method belongs to, what cannot be pickled).
        by_order: whether not all of its arguments are in its print.
        id: all of this in short; `around`: that of the call around it.
    """

    name: str
    print_: str | None
    by: tuple[Any, ...]
    by_order: bool
    id: str
    around: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """What its checkpoint keeps of it."""
        return {"print_": self.print_, "call": self.id, "around": self.around}


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
        self._begun: dict[tuple[str | None, str, str | None], int] = {}
        self._failed: list[Call] = []
        self._steps = 0
        self._lock = threading.Lock()
        _sessions[run.id] = self

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

    def calling(self, name: str, print_: str | None, by: Sequence[Any] = (), *, by_order: bool = False) -> Call:
        """A call of a checkpointed function begins here: it is told apart from others of its name and print, in the call around it,
        by the order in which they begin. One that failed and is made again is the same call.
        """
        inside = _inside.get()
        around = inside[1] if inside is not None and inside[0] == self.run.id else None
        key = (around, name, print_)
        with self._lock:
            for one in self._failed:
                if (one.around, one.name, one.print_) == key and [*map(id, one.by)] == [*map(id, by)]:
                    self._failed.remove(one)
                    return one
            number = self._begun[key] = self._begun.get(key, -1) + 1
        short = hashlib.sha256(repr((*key, number)).encode()).hexdigest()[:32]
        return Call(name, print_, tuple(by), by_order, short, around)

    def gave_up(self, call: Call) -> None:
        """A call failed."""
        with self._lock:
            self._failed.append(call)

    @contextmanager
    def inside(self, call: Call) -> Iterator[None]:
        """Calls that are made in a ``with`` block are made by this one."""
        before = _inside.get()
        _inside.set((self.run.id, call.id))
        try:
            yield
        finally:
            _inside.set(before)  # not `reset`: the block of a generator may end in another context

    def answered(self, call: Call) -> Saved | None:
        """What a call gave before, in a workflow that is resumed; each saved answer is given once."""
        with self._lock:
            found = self._answer(call)
            if found is None:
                return None
            self._replay.remove(found)
            self._drop_inside(found)
        self.save(call.name, found.state, **{**found.facts, **call.facts})  # this execution can be resumed as well
        return found

    def _answer(self, call: Call) -> Saved | None:
        """Other arguments make it another call. Those of equal arguments are told apart by where, and in which order, they began."""
        steps = [one for one in self._replay if (one.name, one.kind) == (call.name, "step")]
        same = [one for one in steps if "call" in one.facts and one.facts.get("print_") == call.print_]
        exact = next((one for one in same if one.facts["call"] == call.id), None)
        if exact is not None:
            return exact
        if len(same) == 1 and same[0].facts.get("around") != call.around:
            return same[0]  # it was asked in another place then, and nobody else can be meant
        # Kept before calls were told apart: by order alone, where there was something that could not be pickled.
        print_ = None if call.by_order else call.print_
        return next((one for one in steps if "call" not in one.facts and one.facts.get("print_") == print_), None)

    def _drop_inside(self, outer: Saved) -> None:
        """Forget what a call had asked for that is not made again."""
        gone = {outer.facts.get("call")} - {None}
        while gone:
            inner = [one for one in self._replay if one.facts.get("around") in gone]
            self._replay = [one for one in self._replay if one.facts.get("around") not in gone]
            gone = {one.facts.get("call") for one in inner} - {None}


def current_session() -> Session | None:
    """The innermost workflow that this code runs in."""
    scope = _context.current()
    if not isinstance(scope, Account):
        return None
    return next((found for account in scope.lineage if (found := _sessions.get(account.id)) is not None), None)


def session_of(account: Account) -> Session | None:
    """The workflow whose execution this is."""
    return _sessions.get(account.id)
