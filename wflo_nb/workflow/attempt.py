"""One execution of a workflow from its beginning to its edge: entered, driven, recorded, and closed exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from wflo_nb.errors import BudgetExceededError, WfloError, tell
from wflo_nb.workflow.execution import execution, lies_in
from wflo_nb.workflow.kept import kept
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.runtime import runtime
from wflo_nb.workflow.session import Session
from wflo_nb.workflow.shelf import Saved, Shelf
from wflo_nb.workflow.wrapping import Before, How, Watch


class Attempt(Watch):
    """What happens around one call of `WfloWorkflow.execute`.

    Attributes:
        session: what the workflow's steps and adapters talk to; there once it has begun.
    """

    session: Session

    def __init__(
        self,
        block: execution,
        agents: dict[str, int],
        inputs: Any,
        *,
        checkpoints: Callable[[Run], Shelf] | None,
        most: int | None,
        replay: Sequence[Saved],
        entered: Callable[[Session], None],
    ) -> None:
        self._block = block
        self._agents = agents
        self._inputs = inputs
        self._checkpoints = checkpoints
        self._most = most
        self._replay = replay
        self._entered = entered
        self._scope = lies_in()  # here, and not in the thread that begins it
        self._over = False
        self._lock = threading.Lock()

    def begin(self) -> Before | None:
        run = self._block.prepared(self._scope)
        shelf = self._checkpoints(run) if self._checkpoints is not None else None
        self.session = Session(run, shelf, most=self._most, replay=self._replay)
        run.account.execution = replace(run.account.execution, inputs=self._record("inputs", self._inputs))
        self._block.enter_ledger(run)
        self._give_agents(run)
        runtime().install()
        return None

    def _give_agents(self, run: Run) -> None:
        """An execution inside this one for each step with a budget of its own; it enters the ledger at its first call."""
        account = run.account
        for name, nano in self._agents.items():
            self.session.agents[name] = runtime().new_run(
                name,
                budget_nano=nano,
                scope=f'step "{name}"',
                outer=account,
                notebook_id=account.execution.notebook_id,
                kernel_id=account.execution.kernel_id,
                cell=account.execution.cell,
                cell_id=account.execution.cell_id,
                unknown_models=account.unknown_models,
                wait=account.wait,
                book=account.book,
            )
        # After they were made: each would take them for its own.
        account.steps = {name: inner.account for name, inner in self.session.agents.items()}
        for inner in self.session.agents.values():
            inner.account.steps = account.steps

    @property
    def begun(self) -> bool:
        """Whether it has begun."""
        return hasattr(self, "session")

    @contextmanager
    def within(self) -> Iterator[None]:
        leave = self.session.run.enter()
        self._entered(self.session)
        try:
            yield
        finally:
            leave()
            self._entered(self.session)  # again: an execution of the same object inside this one is not the last

    def item(self, value: Any) -> None:
        self.session.partial = value
        self.session.ticked("the next item")

    def done(self, value: Any, how: How) -> None:  # noqa: ARG002 - it is the value that tells
        stop = self._end(None, self._record("outputs", value))
        if stop is not None:
            raise stop

    def failed(self, error: BaseException) -> None:
        partial = self.session.partial
        stop = self._end(error, None if partial is None else {"partial": kept(partial)[0]})
        if stop is not None:
            raise stop from error

    def _end(self, error: BaseException | None, outputs: Any) -> BaseException | None:
        """Close what was entered. Returns what the user must see in place of `error`."""
        with self._lock:
            if self._over:
                return None
            self._over = True
        session, run = self.session, self.session.run
        refusals = [inner.end(error) for inner in session.agents.values() if inner.begun]
        unseen = next((r for r in refusals if r is not None and r.execution_id not in session.shown), None)
        stop: WfloError | None = None
        if session.last is not None and isinstance(error, Exception | None) and (session.beyond or run.figures().refused):
            stop = error if isinstance(error, BudgetExceededError) and run.account.refusal is not None else session.overran()
        elif error is None or (isinstance(error, Exception) and not isinstance(error, BudgetExceededError)):
            stop = unseen
        try:
            refusal = run.end(stop or error, outputs=outputs)
        finally:
            runtime().uninstall()
        found = stop or refusal
        return None if found is error else found

    def _record(self, name: str, value: Any) -> Any:
        """A value as the ledger keeps it. What JSON cannot say is kept whole as a snapshot, if checkpoints are on."""
        told, whole = kept(value)
        if whole:
            return told
        run, reference = self.session.run, None
        if self.session.shelf is not None:
            try:
                shelf = Shelf(lambda: run.account.store, self.session.shelf.workflow, within=":values")
                reference = shelf.put(name, value, execution_id=run.id, kind=name).id
            except Exception as error:
                tell(f"The {name} of {run.account.execution.workflow} are kept as a preview only ({type(error).__name__}: {error}).")
        return {"preview": told, "snapshot": reference}
