"""`WfloWorkflow`: any workflow under one budget, with checkpoints, costs by step, and a record of each execution."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from wflo_nb import _context, telemetry
from wflo_nb import store as stores
from wflo_nb.budget.account import Account
from wflo_nb.config import UnknownModels
from wflo_nb.errors import BudgetExceededError, ConfigurationError, WorkflowError
from wflo_nb.model import nano_from_usd
from wflo_nb.store import Store
from wflo_nb.workflow.adapters import Adapter, adapter_for
from wflo_nb.workflow.attempt import Attempt
from wflo_nb.workflow.calling import bound, in_loop, items_of, pulled, waited_for
from wflo_nb.workflow.costs import breakdown
from wflo_nb.workflow.execution import execution
from wflo_nb.workflow.offloop import aside, off_the_loop
from wflo_nb.workflow.run import Run
from wflo_nb.workflow.runtime import runtime
from wflo_nb.workflow.session import Session, session_of
from wflo_nb.workflow.shelf import Saved, Shelf
from wflo_nb.workflow.wrapping import awaited, bare, called, follow, follow_async, is_async

#: The newest execution of each workflow that this context has run.
_here: ContextVar[Mapping[object, Session]] = ContextVar("wflo_nb_workflows", default={})  # noqa: B039 - never changed in place


class WfloWorkflow:
    """Run workflows under a budget, keep their checkpoints, and know what they cost.

        wflo = WfloWorkflow("research", budget_usd=2)
        answer = await wflo.execute(my_agent, {"topic": "rivers"})
        print(await wflo.get_cost_breakdown())

    Args:
        name: what it is called in reports; its checkpoints are found by it, also by another process.
        budget_usd: the cap in USD of each execution, over every model call that it makes; None only tracks.
        enable_checkpointing: keep checkpoints of `@checkpoint` steps, of the nodes, tasks and messages of frameworks, and by `checkpoint`.
        enable_observability: executions are traced and measured where a collector is set up (`wflo_nb.telemetry.auto`), and `get_trace_id`
            names each.
        per_agent_budgets: caps in USD inside the budget, by the name of a step (see `wflo_nb.step`), a graph's node, a crew's agent (its
            role), a team's agent, an agent or its tool. Of steps inside each other the innermost that has one counts.
        max_iterations: how many steps an execution may take: steps and `@checkpoint` functions, a graph's supersteps, a crew's tasks, a
            team's messages, an agent's turns, a generator's items.
        unknown_models, wait, prices, store, team, user, per, tz: as of `wflo_nb.execution`.

    Raises:
        ConfigurationError: a bad argument.
    """

    def __init__(
        self,
        name: str,
        budget_usd: object = None,
        enable_checkpointing: bool = True,
        enable_observability: bool = True,
        *,
        per_agent_budgets: Mapping[str, object] | None = None,
        max_iterations: int | None = None,
        unknown_models: UnknownModels | None = None,
        wait: float | None = None,
        prices: Mapping[str, Mapping[str, Any]] | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        team: str | None = None,
        user: str | bool | None = None,
        per: str | None = None,
        tz: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"A workflow needs a name, not {name!r}: WfloWorkflow('research', budget_usd=2).")
        if max_iterations is not None and (isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1):
            raise ConfigurationError(f"max_iterations={max_iterations!r} is not a whole number of one or more steps.")
        self.name = name
        self.enable_checkpointing = enable_checkpointing
        self.enable_observability = enable_observability
        if enable_observability:
            telemetry.auto()
        self._most = max_iterations
        if not isinstance(per_agent_budgets, Mapping | None):
            raise ConfigurationError(
                f"per_agent_budgets={per_agent_budgets!r} does not say whose: write per_agent_budgets={{'researcher': 0.5}}, in USD."
            )
        self._agents = {
            agent: nano_from_usd(amount, f"per_agent_budgets[{agent!r}]") for agent, amount in (per_agent_budgets or {}).items()
        }
        self._store = store if store is None or isinstance(store, Store) else stores.at(store)
        self._block = functools.partial(
            execution,
            name,
            budget_usd=budget_usd,
            unknown_models=unknown_models,
            wait=wait,
            prices=prices,
            store=self._store,
            team=team,
            user=user,
            per=per,
            tz=tz,
        )
        self._block()  # says now what is wrong with the arguments
        self._shelf = Shelf(self._place, name)
        self._newest: Session | None = None
        self._of_thread = threading.local()
        self._key = object()  # its own id may be another's, later
        self._work: tuple[Any, Any, dict[str, Any]] | None = None

    def _place(self) -> Store:
        return self._store or runtime().store

    # -- executing ---------------------------------------------------------------------------------------------------------

    async def execute(self, workflow: Any, inputs: Any = None, **options: Any) -> Any:
        """Run a workflow, and give what it gives.

        Args:
            workflow: a function (plain ones run in a thread, off the event loop), a partial, an object that is called; a generator
                function, whose items are given as they come: ``async for item in await wflo.execute(…)``; a LangGraph graph, a CrewAI crew,
                an AutoGen team, an agent of AutoGen, ag2, pydantic-ai, openai-agents, smolagents or LlamaIndex, an engine of the latter;
                anything with ``ainvoke``, ``run`` or ``kickoff``, or with an `wflo_nb.adapter`.
            inputs: given by name to a function whose parameters are called as they are, else as one argument; a graph's input, a crew's
                ``inputs``, a team's ``task``.
            options: passed on to the workflow, for example a graph's ``config=``.

        Raises:
            BudgetExceededError: a call was refused, whatever the workflow made of that. `partial` has the answers that were paid.
            WorkflowError: `max_iterations` are used up.
            ConfigurationError: this cannot be run as a workflow.
        """
        return await self._execute(workflow, inputs, options)

    def execute_sync(self, workflow: Any, inputs: Any = None, **options: Any) -> Any:
        """`execute` for code that is not async, also in a notebook's cell. Generators of both kinds are given as plain iterators."""
        attempt, found = self._attempt(inputs), adapter_for(workflow)
        self._work = (workflow, inputs, options)
        if found is not None:
            return self._waited_for(attempt, lambda: awaited(attempt, _driving(attempt, found, workflow, inputs, options)))
        work = bound(workflow, inputs, options)
        if inspect.isasyncgenfunction(bare(workflow)):
            return items_of(follow_async(attempt, work))
        if inspect.isgeneratorfunction(bare(workflow)):
            return follow(attempt, work)
        if is_async(workflow):
            return self._waited_for(attempt, lambda: awaited(attempt, work))
        answer = called(attempt, work)
        if inspect.iscoroutine(answer):
            return self._waited_for(attempt, lambda: answer)
        return items_of(answer) if inspect.isasyncgen(answer) else answer

    def _waited_for(self, attempt: Attempt, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            answer = waited_for(work)
        finally:
            if attempt.begun:  # in another context, or another thread
                self._entered(attempt.session)
        return items_of(answer) if inspect.isasyncgen(answer) else answer

    async def resume(self, name: str, version: int | None = None, *, workflow: Any = None, inputs: Any = None, **options: Any) -> Any:
        """Run a workflow from the step after a checkpoint. What was finished until then is not run, and not paid, again.

        `@checkpoint` functions that were finished give their answers from before, each once, to the calls with the same arguments (in their
        order, where arguments cannot be pickled); a LangGraph graph goes on behind the node. Code outside of such steps runs again.

        Args:
            name: of the checkpoint.
            version: by default the newest of the last execution here, else the newest of all.
            workflow: by default that of the last execution of this object, as are `inputs` and `options`.
            inputs: see `execute`.
            options: see `execute`.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            WorkflowError: a workflow of this kind cannot go on from this kind of checkpoint.
        """
        saved = await aside(self._load, name, version)
        known = self._work or (None, None, {})
        work = known[0] if workflow is None else workflow
        if work is None:
            raise WorkflowError("Nothing was executed with this object yet. Say what to resume: resume(name, workflow=…, inputs=…).")
        again = known[1] if inputs is None else inputs
        adapted = adapter_for(work)
        if saved.kind not in ({"step"} if adapted is None else adapted.resumes | {"step"}):
            raise WorkflowError(
                f"Checkpoint {saved} was taken as a {saved.kind}, and {_called(work)} cannot be entered after it without paying for what "
                f"came before. Get its state with `await wflo.rollback_to_checkpoint({name!r})` and go on from there, or make the step a "
                "function with @wflo_nb.checkpoint."
            )
        replay = await aside(self._until, saved)
        return await self._execute(work, again, options or known[2], replay)

    async def _execute(self, workflow: Any, inputs: Any, options: dict[str, Any], replay: Sequence[Saved] = ()) -> Any:
        found = adapter_for(workflow)
        self._work = (workflow, inputs, options)
        attempt = self._attempt(inputs, replay)
        if found is not None:
            return await awaited(attempt, lambda: _streamed(_driving(attempt, found, workflow, inputs, options)))
        work = bound(workflow, inputs, options)
        if inspect.isasyncgenfunction(bare(workflow)):
            return follow_async(attempt, work)
        if inspect.isgeneratorfunction(bare(workflow)):
            return follow_async(attempt, lambda: pulled(work()))
        return await awaited(attempt, lambda: _streamed(work if is_async(workflow) else lambda: _off_the_loop(work)))

    def _attempt(self, inputs: Any, replay: Sequence[Saved] = ()) -> Attempt:
        return Attempt(
            self._block(),
            self._agents,
            inputs,
            checkpoints=self._shelf_of if self.enable_checkpointing else None,
            most=self._most,
            replay=replay,
            entered=self._entered,
        )

    def _shelf_of(self, run: Run) -> Shelf:
        """Inside another execution the checkpoints are where that is recorded."""
        store = run.account.store
        return self._shelf if store is self._place() else Shelf(lambda: store, self.name)

    def _entered(self, session: Session) -> None:
        session.owner = self
        self._newest = self._of_thread.session = session
        _here.set({**_here.get(), self._key: session})

    # -- the execution -----------------------------------------------------------------------------------------------------

    def _session(self) -> Session | None:
        """The execution that this code runs in, else the last one of this context, else the last one."""
        scope = _context.told()  # not a guess: what else runs in this process may be another execution of this very object
        for account in scope.lineage if isinstance(scope, Account) else ():
            session = session_of(account)
            if session is not None and session.owner is self:
                return session
        last: Session | None = getattr(self._of_thread, "session", self._newest)
        return _here.get().get(self._key, last) if in_loop() else last

    @property
    def execution_id(self) -> str | None:
        """``exec-…`` of the execution that this code runs in or has run last; None before the first."""
        session = self._session()
        return None if session is None else session.run.id

    def get_trace_id(self) -> str | None:
        """The OpenTelemetry trace that the execution is part of, 32 hexadecimal digits; where none is kept (see `wflo_nb.telemetry`), a
        name of that form made from its id. None before the first, and where observability is off.
        """
        id = self.execution_id
        if id is None or not self.enable_observability:
            return None
        return telemetry.trace_id(id) or hashlib.sha256(id.encode()).hexdigest()[:32]

    async def get_cost_breakdown(self) -> dict[str, Any]:
        """What the execution has cost so far, by the ledger. Amounts are exact Decimal USD; unpriced calls are in no sum.

        Returns:
            ``total_usd``, ``budget_usd`` and ``remaining_usd`` (None without a budget), ``exceeded`` (a call was refused for lack of
            money, or more was spent than the budget); ``held_usd`` for calls in flight; ``unconfirmed_usd``; the numbers of ``calls``,
            ``refused`` and ``unpriced`` ones; and the total split up in ``by_model``, ``by_step`` and ``by_token_class`` (with ``tokens``);
            a model or step none of whose calls has a price is in neither.

        Raises:
            WorkflowError: nothing was executed yet.
        """
        session = self._session()
        if session is None:
            raise WorkflowError("Nothing was executed with this object yet, so nothing was spent. Run it first: await wflo.execute(…).")
        return await aside(breakdown, session.run.account)

    async def check_budget(self) -> None:
        """Raise if the execution's money is gone: for a loop that would rather end between two steps than go on without calls. Calls that
        do not fit are refused without it.

        Raises:
            BudgetExceededError: a call was refused for lack of money, or more was spent than the budget (a price bound was wrong).
        """
        session = self._session()
        if session is None:
            return
        run = session.run
        if run.account.refusal is not None:
            raise run.account.refusal
        if run.budget_usd is not None and run.spent_usd > run.budget_usd:
            raise BudgetExceededError(spent_usd=run.spent_usd, budget_usd=run.budget_usd, execution_id=run.id)

    # -- checkpoints -------------------------------------------------------------------------------------------------------

    async def checkpoint(self, name: str, state: Any) -> Saved:
        """Keep a state of any kind that can be pickled, as the next version of `name`.

        Raises:
            StoreError, SnapshotError: it could not be kept.
            WorkflowError: checkpoints are switched off.
        """
        if not self.enable_checkpointing:
            raise WorkflowError(f"Checkpoint {name!r} was not taken: the workflow {self.name!r} was made with enable_checkpointing=False.")
        session = self._session()
        if session is not None:
            session.partial = state
        put = functools.partial(self._shelf.put, name, state, execution_id=self.execution_id, kind="state")
        return await aside(put)

    async def rollback_to_checkpoint(self, name: str, version: int | None = None) -> Any:
        """The state of a checkpoint, as fresh objects: the newest version of this execution, else of all. Nothing is run again.

        Raises:
            CheckpointNotFoundError: there is none.
            SignatureError, ChunkCorruptedError, RestoreError: it is not this user's, is damaged, or cannot be rebuilt.
        """
        return (await aside(self._load, name, version)).state

    async def rollback_to_last_checkpoint(self) -> Any:
        """The state of the newest checkpoint of this execution, else of all."""
        return (await aside(self._load, None, None)).state

    def list_checkpoints(self) -> list[Saved]:
        """Every checkpoint of the workflow, oldest first, without their states. Also inside a running event loop."""
        return self._shelf.listed()

    def _load(self, name: str | None, version: int | None) -> Saved:
        return self._shelf.load(self._shelf.find(name, version, prefer=self.execution_id))

    def _until(self, last: Saved) -> list[Saved]:
        """The checkpoints of an execution up to this one, with their states."""
        listed = self._shelf.listed(last.execution_id) if last.execution_id else []
        before = [
            one
            for one in listed
            if one.id != last.id and (one.version < last.version if one.name == last.name else one.created_at <= last.created_at)
        ]
        return [*(found for one in before if (found := self._shelf.load(one)).kind == "step"), last]


def _driving(attempt: Attempt, found: Adapter, workflow: Any, inputs: Any, options: dict[str, Any]) -> Callable[[], Awaitable[Any]]:
    """A workflow as its adapter runs it, once the attempt has begun."""

    def work() -> Any:
        drive = functools.partial(found.drive, workflow, inputs, attempt.session, **options)
        return drive() if is_async(drive) else _off_the_loop(drive)

    return work


async def _streamed(work: Callable[[], Awaitable[Any]]) -> Any:
    """What a workflow gives; a plain generator that it hands out as an async one, so that its pieces do not block the loop."""
    answer = await work()
    return pulled(answer) if inspect.isgenerator(answer) else answer


async def _off_the_loop(work: Callable[[], Any]) -> Any:
    """A plain function in a thread. What it only hands out, it hands to the loop."""
    answer = await off_the_loop(work)
    return await answer if inspect.isawaitable(answer) else answer


def _called(work: Any) -> str:
    return str(getattr(work, "__name__", None) or f"a {type(work).__name__}")
