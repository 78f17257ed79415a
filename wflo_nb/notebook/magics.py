"""``%wflo``: each subcommand reads its words and hands over; the value it returns shows itself and is usable as an object."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from wflo_nb import store as stores
from wflo_nb.budget.explanation import explain
from wflo_nb.budget.periods import PERIODS
from wflo_nb.budget.shared import define, find, sharing
from wflo_nb.errors import ConfigurationError, StoreError, WfloError, format_usd
from wflo_nb.model import nano_from_usd
from wflo_nb.notebook import reconciling, tree
from wflo_nb.notebook.checkpoints import BACK, BACK_AGAIN, told
from wflo_nb.notebook.live import count
from wflo_nb.notebook.options import choice, did_you_mean, pairs, shared_options, shorten, words
from wflo_nb.notebook.reconciling import COUNTS, FILTERS
from wflo_nb.notebook.session import Session
from wflo_nb.notebook.tables import Answer, Said, Table, size
from wflo_nb.notebook.telemetry import USUAL_PORT, Watching
from wflo_nb.notebook.view import money

#: What `%wflo report` can be grouped by, and the plain tables it can give.
_BY = ("cell", "model", "step", "agent", "task", "tool", "workflow", "day", "provider", "status")
_TABLES = ("executions", "calls", "checkpoints", "budgets")
_RATES = ("input", "output", "cache_read", "cache_write")
_LIMITS = ("max_input", "max_output")


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One word behind ``%wflo``: how it is written, what it does, and what completion offers behind it."""

    usage: str
    does: str
    options: tuple[str, ...] = ()


SUBCOMMANDS: dict[str, Subcommand] = {
    "budget": Subcommand(
        "budget [USD | off | --all] [notebook=USD|off] [team=NAME | user=NAME [per=day|week|month|year] [tz=ZONE]]",
        "Show the budgets, each below the one it lies in: cap, spent, held, unconfirmed, left, and who holds what since when; --all shows "
        "those of every notebook. With an amount, set the cap over the whole notebook (off lifts it); it ends with the kernel. "
        "With an amount and team= or user=, create or change a budget that many notebooks spend together, for good or per period.",
        ("off", "--all", "notebook=", "notebook=off", "team=", "user=", *(f"per={per}" for per in PERIODS), "tz="),
    ),
    "why": Subcommand(
        "why [CALL]", "Explain the last refusal of this notebook, or that of one call, number by number, and what to do next."
    ),
    "reconcile": Subcommand(
        "reconcile [CALL… | all [model=M] [cell=C] [older=2h]] [cost=USD | free | usage input=N output=N | dead] [--yes]",
        "List the calls whose outcome nobody confirmed, or settle them by what you know: what the provider billed, that it did not bill, "
        "what it counted. dead says of a hold of another machine that its process is over. all asks first, --yes does it. It cannot be "
        "undone.",
        ("all", "cost=", "free", "usage", *(f"{name}=" for name in COUNTS), "dead", *(f"{name}=" for name in FILTERS), "--yes"),
    ),
    "checkpoint": Subcommand("checkpoint NAME", "Save all variables of this notebook under a name."),
    "checkpoints": Subcommand("checkpoints", "List the checkpoints of this notebook, newest first."),
    "rollback": Subcommand(
        "rollback ID | NAME | last [without=VARIABLE,…]",
        "Bring the variables of a checkpoint back, all or without some. No cell and no call is run again. What is there now is saved "
        "first, for `%wflo undo`.",
        ("last", "without="),
    ),
    "undo": Subcommand("undo", "Take the last rollback back; once more, and it is done again."),
    "connect": Subcommand(
        "connect URL | PATH | default",
        "Keep budgets, calls and checkpoints in another store from now on: postgresql://… for a team, a path for a file, default for the "
        "one on this machine.",
        ("default",),
    ),
    "report": Subcommand(
        "report [by=cell|model|step|agent|task|tool|workflow|day|provider|status | executions | calls | checkpoints | budgets]",
        "Where the money went, as a DataFrame.",
        (*(f"by={by}" for by in _BY), *_TABLES),
    ),
    "price": Subcommand(
        "price [MODEL [input=USD output=USD [cache_read=USD] [cache_write=USD] [provider=NAME] [max_input=N] [max_output=N]]]",
        "Declare what a model costs, in USD per million tokens, and how many tokens it can read and write; show the price of a model; or "
        "list the declared ones. allow_absurd=True takes a price that looks like a typing error.",
        (*(f"{rate}=" for rate in _RATES), "provider=", *(f"{limit}=" for limit in _LIMITS), "allow_absurd=True"),
    ),
    "metrics": Subcommand(
        "metrics [PORT | off]",
        "Serve the figures of this kernel for Prometheus on a port of this machine (9464 is usual, 0 is any free one): spend, holds, "
        "refusals, tokens and times by model, budgets left.",
        (str(USUAL_PORT), "0", "off"),
    ),
    "trace": Subcommand(
        "trace [on [URL] [content] | off]",
        "Send spans and metrics of what runs here where OpenTelemetry is set up to (OTEL_EXPORTER_OTLP_ENDPOINT, or the provider of this "
        "process), or to the OTLP collector at a URL. Prompts and answers go along only with `content`.",
        ("on", "off"),
    ),
    "help": Subcommand("help [SUBCOMMAND]", "This text, or that of one subcommand."),
}

_INTRODUCTION = """%%wflo [budget=USD] [name=TEXT] [checkpoint=on|off] [unknown_models=refuse|allow] [wait=SECONDS]
         [team=NAME] [user[=NAME]] [per=day|week|month|year] [tz=ZONE]

    On the first line of a cell: no more than `budget` is spent by the LLM calls of this
    cell, whatever SDK, framework, thread or stream makes them. A call that may not fit is
    refused before it is sent, with BudgetExceededError. The card below the cell shows the
    money; its buttons work while the cell runs. Variables are saved before and after,
    unless checkpoint=off. unknown_models=allow lets calls through whose price is not known;
    their cost is in no sum. A call that does not fit while others are on their way waits
    for what they give back, 30 seconds at most; wait=0 refuses it at once.

    team= and user= (alone: your login name) charge the cell to a budget that notebooks and
    machines share as well. One that does not exist is created with `budget` as its cap, per
    day, week, month or year of the time zone tz (UTC) if so told; one that does keeps its
    own. `%wflo budget 500 team=NAME per=month tz=Europe/Berlin` sets it. Worker processes
    that the cell starts charge it once they call wflo_nb.join().
"""


def help_text(sub: str | None = None) -> str:
    """The documentation of everything, or of one subcommand."""
    if sub is not None:
        return f"%wflo {SUBCOMMANDS[sub].usage}\n\n{_indented(SUBCOMMANDS[sub].does)}"
    lines = [f"%wflo {s.usage}\n{_indented(s.does)}" for s in SUBCOMMANDS.values()]
    return "\n".join([_INTRODUCTION, "%wflo\n    The state of things in short.", *lines])


def _indented(text: str) -> str:
    """Lines that a notebook's column shows without breaking them."""
    return textwrap.fill(text, 88, initial_indent="    ", subsequent_indent="    ")


def wflo_cell(line: str, cell: str) -> None:  # noqa: ARG001 - the signature of a cell magic
    # Registered for `%%wflo?`, `%lsmagic` and the completion of the name; the input transformer is faster when it can work.
    raise shorten(ConfigurationError("%%wflo must be on the first line of the cell."))


wflo_cell.__doc__ = _INTRODUCTION


class Magics:
    """The subcommands over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.watching = Watching()

    def wflo(self, line: str) -> Any:  # the docstring is set below: it is what `%wflo?` shows
        try:
            return self._run(words(line, "%wflo"))
        except WfloError as error:
            shorten(error)
            raise

    wflo.__doc__ = help_text()

    def _run(self, parts: list[str]) -> Any:
        if not parts:
            return self._status()
        name, rest = parts[0].lower(), parts[1:]
        if name not in SUBCOMMANDS:
            hint = f"{did_you_mean(name, SUBCOMMANDS)} There are: {', '.join(SUBCOMMANDS)}."
            raise ConfigurationError(f"%wflo: unknown subcommand {parts[0]!r}.{hint}")
        return getattr(self, f"_{name}")(rest)

    # -- money -------------------------------------------------------------------------------------------------------------

    def _status(self) -> Table:
        session = self._session
        rows: list[tuple[str, object]] = []
        try:
            state = session.allowance.budget.state()
            rows.append(("store", session.runtime.store.location))
            none = "none (set one: %wflo budget 10)"
            rows.append(("notebook budget", none if state.cap_nano is None else f"{money(state.cap_nano)}, {money(state.left_nano)} left"))
            unconfirmed = f", {money(state.unconfirmed_nano)} of it unconfirmed" if state.unconfirmed_nano else ""
            rows.append(("spent by this notebook since its kernel started", money(state.spent_nano) + unconfirmed))
            if state.held_nano:
                rows.append(("held for calls in flight", money(state.held_nano)))
            rows.append(("checkpoints", len(session.checkpoints.listed())))
        except StoreError as error:
            rows.append(("store", f"cannot be used: {error}"))
        declared = [price.model for price in session.runtime.book.declared()]
        rows.append(("declared prices", ", ".join(declared) or "none"))
        return Table(("wflo", ""), rows, note="%wflo help lists what else there is.")

    def _budget(self, rest: list[str]) -> Table:
        session, everything = self._session, "--all" in rest
        rest = [word for word in rest if word != "--all"]
        if any(word.startswith("notebook=") for word in rest):
            found = pairs(rest, ("notebook", "team", "user", "per", "tz"), "%wflo budget")
            cap = _cap(found.pop("notebook"))
            said = session.set_notebook_cap(cap, sharing(**found) if found else None)
            return _beneath(tree.budgets(session), said)
        shared = shared_options(rest)
        if shared is not None:
            (nano, meant), store = shared, session.runtime.store
            kind, name = meant.names[0]
            if nano is not None:
                return tree.one(define(store, kind, name, nano, meant.per, meant.tz), session)
            return tree.one(find(store, kind, name, None, meant.per, meant.tz).state(), session)
        amounts = [word for word in rest if "=" not in word]
        if amounts and _AMOUNT.fullmatch(amounts[0]):
            if len(rest) > 1:
                raise ConfigurationError(
                    f"%wflo budget: {next(w for w in rest if w != amounts[0])!r} is not understood. Amounts are in USD already: write "
                    f"%wflo budget {amounts[0]} with nothing behind it, or add team=NAME for a budget that is shared."
                )
            session.set_notebook_cap(_cap(amounts[0]))
        else:
            pairs(rest, ("notebook", "team", "user", "per", "tz"), "%wflo budget")
            if rest:
                raise ConfigurationError("%wflo budget: which budget? Write team=NAME or user=NAME, and an amount to set one.")
        return tree.budgets(session, everything=everything)

    def _why(self, rest: list[str]) -> Answer:
        if len(rest) > 1:
            raise ConfigurationError("%wflo why explains one call: %wflo why call-…, or the last refusal without an id.")
        session = self._session
        told = explain(session.runtime.store, rest[0] if rest else None, notebook=session.notebook_id)
        parts = [Table(part.columns, part.rows, title=part.title, note=part.note) for part in told.parts]
        return Answer(told.sentences, parts, told.steps, told)

    def _reconcile(self, rest: list[str]) -> Table | Said:
        session = self._session
        if not rest:
            return reconciling.listed(session.runtime.store)
        answer = reconciling.reconcile(session.runtime.store, session.runtime.book, rest)
        if isinstance(answer, Said):
            session.money_came_back()
        return answer

    def _report(self, rest: list[str]) -> Any:
        from wflo_nb import report

        if len(rest) == 1 and rest[0] in _TABLES:
            return getattr(report, rest[0])()
        if len(rest) == 1 and "=" not in rest[0]:
            hint = f"{did_you_mean(rest[0], [*_TABLES, *(f'by={by}' for by in _BY)])} Use by=… or one of: {', '.join(_TABLES)}."
            raise ConfigurationError(f"%wflo report: {rest[0]!r} is not understood.{hint}")
        by = pairs(rest, ("by",), "%wflo report").get("by", "cell")
        if by not in _BY:
            raise ConfigurationError(f"%wflo report: by={by} is not understood.{did_you_mean(by, _BY)} Use one of: {', '.join(_BY)}.")
        return report.costs(by=by)

    def _price(self, rest: list[str]) -> Table:
        book = self._session.runtime.book
        if not rest:
            none = "No price is declared; those of the built-in table apply. %wflo price MODEL shows one."
            return _prices(book.declared(), note="" if book.declared() else none)
        model, options = rest[0], pairs(rest[1:], (*_RATES, "provider", *_LIMITS, "allow_absurd"), "%wflo price")
        if "=" in model:
            raise ConfigurationError("%wflo price: name the model first: %wflo price my-model input=0.50 output=1.50")
        if options.keys() <= {"provider"}:
            return _prices([book.find(options.get("provider"), model)])
        missing = [rate for rate in ("input", "output") if rate not in options]
        if missing:
            raise ConfigurationError(f"%wflo price {model}: {missing[0]}= is missing (USD per million tokens; 0 for a free model).")
        terms: dict[str, Any] = {name: value for name, value in options.items() if name in (*_RATES, "provider")}
        terms |= {f"{name}_tokens": _tokens(name, options[name]) for name in _LIMITS if name in options}
        absurd = choice(options, "allow_absurd", ("true", "false"), "false") == "true"
        return _prices([book.declare(model, **terms, allow_absurd=absurd)])

    def _connect(self, rest: list[str]) -> Said:
        if len(rest) != 1:
            raise ConfigurationError("%wflo connect needs one place: a postgresql:// URL, a path, or default.")
        # Not what WFLO_STORE names: this is the way back when that cannot be used.
        sentence = self._session.connect(str(stores.here()) if rest[0] == "default" else rest[0])
        return Said(sentence, self._session.runtime.store)

    def _metrics(self, rest: list[str]) -> Said:
        return self.watching.metrics(rest)

    def _trace(self, rest: list[str]) -> Said:
        return self.watching.trace(rest)

    # -- variables ---------------------------------------------------------------------------------------------------------

    def _checkpoint(self, rest: list[str]) -> Said:
        if len(rest) != 1:
            raise ConfigurationError("%wflo checkpoint needs one name (in quotes if it has spaces): %wflo checkpoint before-cleaning")
        if rest[0] == "last":
            raise ConfigurationError("%wflo checkpoint: last means the newest one in `%wflo rollback last`. Choose another name.")
        taken = self._session.checkpoints.take(rest[0])
        name = shlex.quote(taken.label) if set(taken.label) & set("'\"\\") else taken.label
        text = f"Saved {count(taken.variables)} ({size(taken.bytes_total)}). `%wflo rollback {name}` brings them back."
        if taken.left_out:
            text += "\nKept by reference only: " + ", ".join(f"{name} ({why})" for name, why in taken.left_out.items())
        return Said(text, taken)

    def _checkpoints(self, rest: list[str]) -> Table:
        _nothing(rest, "checkpoints")
        found = self._session.checkpoints.listed()
        rows = [(c.id, c.label, c.created_at, c.variables, size(c.bytes_total), ", ".join(c.left_out) or None) for c in found]
        note = "" if found else "No checkpoint yet: run a %%wflo cell or `%wflo checkpoint NAME`."
        foreign = sum(not c.trusted for c in found)
        if foreign:
            note = f"{foreign} of {len(found)} were signed with another key than yours: they are listed, and not loaded."
        return Table(("id", "label", "taken", "variables", "size", "by reference only"), rows, items=found, note=note)

    def _rollback(self, rest: list[str]) -> Said:
        if not rest:
            raise ConfigurationError("%wflo rollback needs the id or the name of a checkpoint, or last. `%wflo checkpoints` lists them.")
        self._session.panel.check(from_cell=True)
        without: list[str] = []
        if len(rest) > 1 and rest[-1].startswith("without="):
            without = [name for name in pairs(rest[-1:], ("without",), "%wflo rollback")["without"].split(",") if name]
            rest = rest[:-1]
        which = " ".join(rest)  # labels such as `before In [3]` may be written without quotes
        report = self._session.checkpoints.rollback(which, without=without)
        return Said(told(report, "Rolled back") + BACK, report)

    def _undo(self, rest: list[str]) -> Said:
        _nothing(rest, "undo")
        self._session.panel.check(from_cell=True)
        report = self._session.checkpoints.undo()
        return Said(told(report, "Undone") + BACK_AGAIN, report)

    def _help(self, rest: list[str]) -> Said:
        if rest and rest[0] not in SUBCOMMANDS:
            raise ConfigurationError(f"%wflo help: unknown subcommand {rest[0]!r}.{did_you_mean(rest[0], SUBCOMMANDS)}")
        return Said(help_text(rest[0] if rest else None))


_AMOUNT = re.compile(r"\$?[\d._]+(?:[eE]-?\d+)?|-[\d.]+|off|none", re.IGNORECASE)


def _cap(value: str) -> int | None:
    return None if value.lower() in ("off", "none") else nano_from_usd(value, "notebook")


def _tokens(name: str, value: str) -> int:
    count = value.replace("_", "").replace(",", "")
    if not count.isdecimal():
        raise ConfigurationError(f"{name}={value} is not a whole number of tokens.")
    return int(count)


def _beneath(table: Table, said: Sequence[str]) -> Table:
    table.note = "\n".join([*said, *([table.note] if table.note else [])])
    return table


def _nothing(rest: Sequence[str], sub: str) -> None:
    if rest:
        raise ConfigurationError(f"%wflo {sub} takes no options; {' '.join(rest)!r} is not understood.")


def _prices(prices: Sequence[Any], note: str = "") -> Table:
    def rate(price: Any, name: str) -> str:
        value: Decimal = price.per_million()[name]
        return format_usd(value)

    rows = [(p.model, p.provider or "any", *(rate(p, name) for name in _RATES), p.source, p.date) for p in prices]
    columns = ("model", "provider", "input", "output", "cache read", "cache write", "source", "date")
    return Table(columns, rows, items=list(prices), title="USD per million tokens" if rows else "", note=note)
