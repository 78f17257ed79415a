"""One shell's session: which run belongs to which cell, from the cell's first line to its last output.

Cells are told apart by their ExecutionInfo object: nested ``run_cell`` calls and cells on a subshell fire the same events.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from wflo_nb import _context, config
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.reconcile import unconfirmed
from wflo_nb.budget.shared import Sharing
from wflo_nb.errors import BudgetExceededError, ConfigurationError, StoreError, WfloError, WorkflowError
from wflo_nb.model import Checkpoint
from wflo_nb.notebook import identity
from wflo_nb.notebook.allowance import Allowance
from wflo_nb.notebook.checkpoints import Checkpoints
from wflo_nb.notebook.live import Deck, LiveCard, Style, warn
from wflo_nb.notebook.options import CellOptions, cell_options, shorten
from wflo_nb.notebook.panel import Panel
from wflo_nb.notebook.transformer import BEGIN
from wflo_nb.store import open_store
from wflo_nb.workflow.runtime import runtime

if TYPE_CHECKING:
    from wflo_nb.workflow.run import Run


@dataclass(eq=False, slots=True)
class Frame:
    """One cell that is running: `run` is None for a cell run by a cell, whose calls belong to the outer one.

    Attributes:
        info: IPython's ExecutionInfo, None for the cell that loaded the extension.
        count: the shell's counter when the cell started; `cell` is the number that the user sees.
        options: set once the cell turned out to be a ``%%wflo`` cell.
        refused: what a cell run by this one was refused with; ``%%capture`` and its like would hide it.
    """

    info: object
    thread: int
    cell: str
    cell_id: str | None
    count: int
    run: Run | None = None
    leave: Callable[[], None] | None = None
    options: CellOptions | None = None
    card: LiveCard | None = None
    refused: BudgetExceededError | None = None
    before: Checkpoint | None = None


class Session:
    """Everything between one IPython shell and the money path."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.settings = config.load()
        self.runtime = runtime()
        self.notebook_id = identity.notebook_id(shell)
        self.kernel_id = identity.kernel_id(shell)
        self.session_id = identity.session_id(shell)
        self.allowance = Allowance(self.session_id, lambda: self.runtime.store)
        self.checkpoints = Checkpoints(shell, self.notebook_id, lambda: self.runtime.store)
        self.panel = Panel(self.checkpoints, self._in_the_way)
        self.deck = Deck()
        self._frames: list[Frame] = []
        self._cells: dict[str, str] = {}
        self._lock = threading.RLock()
        self._ahead: int | None = None
        self._idle_count = 0
        self._between = self._new_run("between cells")
        self.runtime.install()
        _context.set_default(self._between.account)
        atexit.register(self._end_between)

    # -- the shell ---------------------------------------------------------------------------------------------------------

    def open(self, *, inside_cell: bool) -> None:
        """Start following cells; with `inside_cell`, the cell that is running right now is followed too."""
        self._ahead = self._counted_ahead() if inside_cell else None
        self._idle_count = self.shell.execution_count
        self._offer_begin()
        self.shell.events.register("pre_run_cell", self.cell_starts)
        self.shell.events.register("post_run_cell", self.cell_ends)
        if inside_cell:
            self._push(None, None)

    def close(self) -> None:
        """Stop following cells. Work still on its way keeps its own run and is counted to its end."""
        self.shell.events.unregister("pre_run_cell", self.cell_starts)
        self.shell.events.unregister("post_run_cell", self.cell_ends)
        while self._frames:
            self._end(self._frames.pop(), None, None)
        _context.set_default(None)
        atexit.unregister(self._end_between)
        self._end_between()
        self.deck.close()
        self.runtime.uninstall()
        if left := self.runtime.restore():
            warn(
                f"Still at work for a cell: {', '.join(left[:5])}{' and others' if len(left) > 5 else ''}. Their calls go on being counted "
                "and limited; `%load_ext wflo_nb` and `%unload_ext wflo_nb` once they are over leave everything as it was."
            )
        for names in (self.shell.user_ns, self.shell.user_ns_hidden):
            if getattr(names.get(BEGIN), "__self__", None) is self:
                del names[BEGIN]

    def _offer_begin(self) -> None:
        # Repeated for every cell, because `%reset` empties the namespace and the list of hidden names.
        self.shell.user_ns[BEGIN] = self.shell.user_ns_hidden[BEGIN] = self.begin

    def style(self) -> Style:
        """How cards are shown: a terminal has no place for a live one."""
        return "static" if self.settings.card == "live" and not hasattr(self.shell, "kernel") else self.settings.card

    # -- cells -------------------------------------------------------------------------------------------------------------

    def cell_starts(self, info: Any) -> None:
        """``pre_run_cell``: whatever the cell calls is charged to a run of its own from here on."""
        self._offer_begin()
        self._push(info, getattr(info, "cell_id", None))

    def _push(self, info: Any, cell_id: str | None) -> None:
        self.panel.meet_loop()
        thread = threading.get_ident()
        with self._lock:
            outer = next((frame for frame in reversed(self._frames) if frame.thread == thread), None)
            frame = Frame(info, thread, outer.cell if outer else self._number(info), cell_id, self.shell.execution_count)
            self._frames.append(frame)
        if outer is None:
            self._enter_plain(frame)

    def _counted_ahead(self) -> int:
        """1 if IPython counts a cell when it starts, 0 if it does when the cell is over (it changed)."""
        return max(0, min(1, int(self.shell.execution_count) - (len(self.shell.user_ns.get("In", ())) - 1)))

    def _number(self, info: Any) -> str:
        if info is None or getattr(info, "store_history", False):
            if self._ahead is None:
                self._ahead = max(0, min(1, self.shell.execution_count - self._idle_count))
            return f"In [{self.shell.execution_count - self._ahead}]"
        return f"In [{self.shell.execution_count}]"

    def _enter_plain(self, frame: Frame) -> None:
        frame.run = self._new_run(frame.cell, frame)
        frame.leave = frame.run.enter()

    def _new_run(
        self,
        name: str,
        frame: Frame | None = None,
        options: CellOptions | None = None,
        outer: Run | None = None,
        shared: tuple[Budget, ...] = (),
    ) -> Run:
        """A run inside the notebook's budget, or inside that of the ``%%wflo`` cell that runs this cell."""
        return self.runtime.new_run(
            name,
            budget_nano=options.budget_nano if options else None,
            scope="cell",
            around=(outer.account.innermost if outer else None) or self.allowance.budget,
            outer=outer.account if outer else None,
            shared=shared,
            notebook_id=self.notebook_id,
            kernel_id=self.kernel_id,
            cell=frame.cell if frame else None,
            cell_id=frame.cell_id if frame else None,
            unknown_models=options.unknown_models if options else None,
            wait=options.wait if options else None,
        )

    def begin(self, line: str) -> None:
        """The first line of a ``%%wflo`` cell. Whatever fails here fails the cell before its body runs."""
        try:
            self._begin(line)
        except WfloError as error:
            shorten(error)
            raise

    def _begin(self, line: str) -> None:
        frame = self._top()
        if frame is None:
            raise ConfigurationError("%%wflo works on the first line of a cell that the notebook runs; nothing else can be tracked by it.")
        if frame.options is not None:
            raise ConfigurationError("%%wflo is on this cell already. Give all its options on one line.")
        if "{" in line or "$" in line:
            line = self.shell.var_expand(line, depth=3)
        options = cell_options(line)
        outer = self._outer(frame)
        shared, said = self.allowance.beside(outer.account.store if outer else None, options.sharing, options.budget_nano)
        run = self._new_run(options.name or frame.cell, frame, options, outer, shared)
        run.begin()
        if options.budget_nano is not None:
            self._cells[run.id] = options.name or frame.cell
        self._finish_run(frame, None)
        frame.options, frame.run, frame.leave = options, run, run.enter()
        frame.card = LiveCard(run, name=options.name or frame.cell, cell=frame.cell, style=self.style(), variables=self.panel)
        self.deck.put(frame.card)
        frame.card.say(" ".join([*said, *self.allowance.tighter(shared, options.budget_nano)]))
        if frame.card.style != "live":
            for sentence in said:
                warn(sentence)
        if options.checkpoint:
            frame.before = self.checkpoints.try_take(f"before {frame.cell}", execution_id=run.id)

    def _outer(self, frame: Frame) -> Run | None:
        with self._lock:
            above = self._frames[: self._frames.index(frame)]
        return next((f.run for f in reversed(above) if f.thread == frame.thread and f.options is not None), None)

    def _top(self) -> Frame | None:
        thread = threading.get_ident()
        with self._lock:
            return next((frame for frame in reversed(self._frames) if frame.thread == thread), None)

    def cell_ends(self, result: Any) -> None:
        """``post_run_cell``: settle the cell's run; a refusal that the cell swallowed fails it here."""
        frame = self._pop(getattr(result, "info", None))
        if frame is None:
            return
        # An interrupt may leave no result at all.
        if getattr(frame.info, "store_history", False) and getattr(result, "execution_count", None) is not None:
            self._ahead = int(frame.count - result.execution_count)
        error = KeyboardInterrupt() if result is None else (result.error_before_exec or result.error_in_exec)
        self._end(frame, error, result)

    def _pop(self, info: object) -> Frame | None:
        thread = threading.get_ident()
        with self._lock:
            mine = [frame for frame in self._frames if frame.thread == thread]
            found = next((frame for frame in reversed(mine) if frame.info is info), None)
            if found is None and info is not None:
                # The end of a cell that was interrupted while it awaited something comes with a description made anew.
                text = getattr(info, "raw_cell", None)
                again = (frame for frame in reversed(mine) if text and getattr(frame.info, "raw_cell", None) == text)
                found = next(again, None) or next((frame for frame in mine if frame.info is None), None)  # the cell that loaded us
            elif found is None and mine:
                found = mine[-1]
            if found is None:
                return None
            # Frames above it never told their end; they inherited its run or lost theirs with it.
            dropped = mine[mine.index(found) + 1 :]
            self._frames = [frame for frame in self._frames if frame is not found and frame not in dropped]
        for frame in reversed(dropped):
            self._end(frame, None, None)
        return found

    def _finish_run(self, frame: Frame, error: BaseException | None) -> BudgetExceededError | None:
        refusal = None
        try:
            refusal = frame.run.end(error) if frame.run is not None else None
        except StoreError as problem:
            refusal = None if frame.run is None or isinstance(error, BudgetExceededError) else frame.run.account.refusal
            warn(f"The end of {frame.cell} could not be recorded: {problem}")
        finally:
            if frame.leave is not None:
                frame.leave()
            frame.run = frame.leave = None
        return refusal

    def _end(self, frame: Frame, error: BaseException | None, result: Any) -> None:
        run = frame.run
        refusal = self._finish_run(frame, error)
        if refusal is None and not isinstance(error, BudgetExceededError):
            refusal = frame.refused
        outer = self._top()
        if outer is not None:
            outer.refused = outer.refused or (error if isinstance(error, BudgetExceededError) else refusal)
        if frame.card is not None and run is not None:
            # The numbers first: saving the variables may take a while, and may be interrupted.
            frame.card.finish(error if isinstance(error, WfloError) else refusal)
            if frame.options is not None and frame.options.checkpoint:
                after = self.checkpoints.try_take(f"after {frame.cell}", execution_id=run.id)
                frame.card.list_checkpoints(self._offered(frame.before, after))
        if refusal is not None and result is not None and not isinstance(error, (KeyboardInterrupt, asyncio.CancelledError)):
            self._fail(result, refusal)

    def _offered(self, before: Checkpoint | None, after: Checkpoint | None) -> list[Checkpoint]:
        """What the card offers: this cell's own first, then the newest others."""
        own = [c for c in (before, after) if c is not None]
        if not own:
            return []
        try:
            others = [c for c in self.checkpoints.recent() if c.id not in {o.id for o in own} and not c.automatic and c.trusted]
        except WfloError:
            others = []
        return [*own, *others[:20]]

    def _fail(self, result: Any, refusal: BudgetExceededError) -> None:
        """Fail a cell that has run through: the reply's status becomes error, so that Run All and nbclient stop here."""
        shorten(refusal)
        result.error_in_exec = refusal
        self.shell.last_execution_succeeded = False
        self.shell.showtraceback((type(refusal), refusal, None))

    # -- the store ---------------------------------------------------------------------------------------------------------

    def connect(self, where: str | None) -> str:
        """Keep everything from now on in another store. Returns a sentence with its location.

        The notebook's cap goes along with what was left of it, so that switching stores never buys more.
        """
        if any(frame.options for frame in self._frames):
            raise WorkflowError("A %%wflo cell is running: its money is in the present store. Connect in a cell of its own.")
        location, said = self.allowance.move(open_store(where, settings=self.settings), self.runtime.connect)
        self._cells = {}
        self.checkpoints.reconnect()
        self._renew_between()
        frame = self._top()
        if frame is not None and frame.run is not None:
            self._finish_run(frame, None)
            self._enter_plain(frame)
        return f"Budgets, calls and checkpoints are now kept in {location}.{said}"

    def set_notebook_cap(self, nano: int | None, sharing: Sharing | None = None) -> list[str]:
        """Set or lift the cap over the whole notebook (see `Allowance.set_cap`). What was refused between cells under the old one may be
        tried again.
        """
        said = self.allowance.set_cap(nano, sharing)
        self._renew_between()
        return said

    def money_came_back(self) -> None:
        """What was refused between cells may be tried again."""
        self._renew_between()

    def _renew_between(self) -> None:
        self._end_between()
        self._between = self._new_run("between cells")
        _context.set_default(self._between.account)

    def _end_between(self) -> None:
        # At the end of the process the store may be gone before us.
        with suppress(WfloError):
            self._between.end(None)

    def cell_names(self) -> dict[str, str]:
        """Execution id → what the user calls the cell."""
        return dict(self._cells)

    def calls_in_doubt(self) -> list[str]:
        """Ids of unconfirmed calls, newest first, for completion; none of a store that may be slow to answer."""
        try:
            store = self.runtime.store
            return [entry.call.id for entry in reversed(unconfirmed(store)[-20:])] if store.local else []
        except StoreError:
            return []

    def _in_the_way(self, from_cell: bool) -> str | None:
        thread, alive = threading.get_ident(), {t.ident for t in threading.enumerate()}
        with self._lock:
            others = [f for f in self._frames if f.thread in alive and not (from_cell and f.thread == thread and f.options is None)]
        return others[0].cell if others else None


def inside_cell(shell: Any) -> bool:
    """Whether the code that called us belongs to a cell (and not to the shell's start-up)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals is not shell.user_ns:
        frame = frame.f_back
    return frame is not None
