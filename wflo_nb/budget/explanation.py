"""Why a call was refused, number by number, from what the ledger kept with it.

`explain` finds the refusal and lays it out as sentences and tables; the rooms above only draw them. Every amount adds up: what was
left is cap − spent − held, and the parts of what the call could have cost make the sum that was asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from wflo_nb.budget.refusals import last_unreachable
from wflo_nb.errors import ConfigurationError, StoreError
from wflo_nb.model import Call, CallState, usd
from wflo_nb.store import Store
from wflo_nb.store.holder import told
from wflo_nb.store.looking import Ran


@dataclass(frozen=True, slots=True)
class Part:
    """One table of an explanation. Cells are text, whole numbers, moments, or Decimal USD."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why nothing was sent.

    Attributes:
        call: the refused call, None if the ledger could not even record it.
        sentences: what happened, the most important first.
        parts: the numbers.
        steps: what can be done next: a line to copy, and what it does.
    """

    call: Call | None
    sentences: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    steps: tuple[tuple[str, str], ...] = ()


def explain(store: Store, call_id: str | None = None, *, notebook: str | None = None) -> Explanation:
    """Why a call was refused; without an id the last one, of a notebook if one is named.

    Raises:
        ConfigurationError: there is no such call, it was not refused, or nothing was refused yet.
        StoreError: the ledger cannot be read.
    """
    unreachable = last_unreachable()
    if call_id is not None:
        return _explained(store, _named(store, call_id))
    try:
        found = store.calls(CallState.REFUSED, notebook=notebook, newest=1)
    except StoreError:
        if unreachable is None:
            raise
        return _without_ledger(*unreachable)
    if unreachable is not None and (not found or found[0].call.created_at < unreachable[0]):
        return _without_ledger(*unreachable)
    if not found:
        others = store.calls(CallState.REFUSED, newest=1) if notebook is not None else []
        hint = f" The last one elsewhere in {store.location}: `%wflo why {others[0].call.id}`." if others else ""
        raise ConfigurationError(f"No call of this notebook was refused.{hint}")
    return _explained(store, found[0].call)


def _named(store: Store, call_id: str) -> Call:
    entry = store.call(call_id)
    if entry is None:
        raise ConfigurationError(f"No call {call_id} is in the store {store.location}. `%wflo report calls` lists those that are.")
    if entry.call.state is not CallState.REFUSED:
        raise ConfigurationError(f"Call {call_id} was not refused: it is {entry.call.state.value}.")
    return entry.call


def _without_ledger(at: datetime, words: str) -> Explanation:
    return Explanation(
        None,
        (f"At {_clock(at)} calls were refused because the ledger could not be used: without it nobody knows what is left.", words),
        (),
        (
            ("%wflo connect default", "keep budgets in the store on this machine"),
            ("%wflo connect PATH", "or in a file, or behind a postgresql:// address"),
        ),
    )


def _explained(store: Store, call: Call) -> Explanation:
    facts: Mapping[str, Any] = call.meta.get("refused") or {}
    if facts.get("stopped") == "user":
        return _stopped_by_user(call)
    first = store.call(facts["first"]) if facts.get("first") else None
    if first is not None and first.call.id != call.id:
        begun = _explained(store, first.call)
        latch = f"{_what(call)} was refused because an earlier call of the same run had been: after that nothing more is sent."
        return Explanation(call, (latch, *begun.sentences), begun.parts, begun.steps)
    if facts.get("levels"):
        return _short_of_money(call, facts, store.runs([level["id"] for level in facts["levels"]]))
    return _other(call)


# -- for lack of money -------------------------------------------------------------------------------------------------------


def _short_of_money(call: Call, facts: Mapping[str, Any], runs: Mapping[str, Ran]) -> Explanation:
    bound: Mapping[str, Any] = call.meta.get("bound") or {}
    levels: Sequence[Mapping[str, Any]] = facts["levels"]
    refuser = next(level for level in levels if level["id"] == facts["budget"])
    asked, left = int(facts["requested_nano"]), int(refuser["left_nano"] or 0)
    sentences = (
        f"{_what(call)} was refused before it was sent.",
        f"It could have cost {_money(asked)}, and the {refuser['scope']} budget of {_money(refuser['cap_nano'])} had {_money(left)} left: "
        f"{_money(asked - left)} too little.",
    )
    names = {level["id"]: f'{level["scope"]} "{runs[level["id"]].name}"' if level["id"] in runs else level["scope"] for level in levels}
    parts = [_left(levels, names, refuser, asked), *_cost(bound, asked), *_holders(call, facts)]
    return Explanation(call, (*sentences, *_fitting(bound, left)), tuple(parts), _steps(call, refuser, bound, asked, left))


def _left(levels: Sequence[Mapping[str, Any]], called: Mapping[str, str], refuser: Mapping[str, Any], asked: int) -> Part:
    def row(level: Mapping[str, Any]) -> tuple[object, ...]:
        left = level["left_nano"]
        verdict = "no cap" if left is None else "refused" if level is refuser else "too little" if left < asked else "enough"
        names = ("cap_nano", "spent_nano", "held_nano", "left_nano")
        return (called[level["id"]], *(None if level[name] is None else usd(level[name]) for name in names), usd(asked), verdict)

    doubt = [
        f"{_money(s['unconfirmed_nano'])} of what the {s['scope']} budget spent is unconfirmed." for s in levels if s["unconfirmed_nano"]
    ]
    note = "Left is cap − spent − held. A call needs its whole bound in every budget at once."
    columns = ("budget", "cap", "spent", "held", "left", "needed", "verdict")
    return Part("What was left", columns, tuple(row(level) for level in levels), " ".join([note, *doubt]))


def cost_rows(bound: Mapping[str, Any]) -> list[tuple[str, int, int, Decimal]]:
    """The parts of an upper bound: what, how many, its rate in pico-USD each, and exact USD. They sum to its ``total_nano``, rounded up."""
    base = bound["input_tokens"] * bound["input_rate_pico"] + bound["output_tokens"] * bound["output_rate_pico"] + bound["call_pico"]
    surcharge = Decimal(base * (bound["surcharge_mille"] - 1000)) / 1000
    found: list[tuple[str, int, int, Decimal]] = [
        (_input_words(bound), bound["input_tokens"], bound["input_rate_pico"], _usd(bound["input_tokens"] * bound["input_rate_pico"])),
        (_output_words(bound), bound["output_tokens"], bound["output_rate_pico"], _usd(bound["output_tokens"] * bound["output_rate_pico"])),
    ]
    if bound["call_pico"]:
        found.append(("each call", 1, bound["call_pico"], _usd(bound["call_pico"])))
    if surcharge:
        found.append((f"a region may cost {Decimal(bound['surcharge_mille'] - 1000) / 10:f} % more", 1, 0, _usd(surcharge)))
    if bound["uses"]:
        nano = bound["uses"] * bound["use_nano"]
        found.append((f"uses of {bound['tools'] or 'tools'}, each billed", bound["uses"], bound["use_nano"] * 1000, usd(nano)))
    exact = sum((row[3] for row in found), Decimal(0))
    rest = usd(bound["total_nano"]) - exact
    if rest:
        found.append(("rounded up to a whole nano-dollar", 1, 0, rest))
    return found


def _input_words(bound: Mapping[str, Any]) -> str:
    how = {
        "bytes": "a token is at least a byte of the request",
        "image formula": f"{bound.get('image_tokens', 0):,} of them images, by the provider's formula",
        "window": "the whole context window",
        "tokenizer": "counted by the model's tokenizer",
    }.get(str(bound.get("input_by")), str(bound.get("input_by")))
    rounds = f", read {bound['rounds']} times" if bound.get("rounds", 1) > 1 else ""
    why = f": {bound['input_why']}" if bound.get("input_why") else ""
    return f"input tokens at most ({how}{why}{rounds})"


def _output_words(bound: Mapping[str, Any]) -> str:
    answers = f", {bound['choices']} answers" if bound.get("choices", 1) > 1 else ""
    return f"output tokens at most ({bound.get('output_by') or 'the cap'}{answers})"


def _cost(bound: Mapping[str, Any], asked: int) -> list[Part]:
    if not bound:
        return []
    # A caller's cap makes one bound; where the cap would be ours, what was asked for is the least answer worth a call.
    rows: list[tuple[object, ...]] = [
        (what, many if rate else None, _per_unit(what, rate), amount) for what, many, rate, amount in cost_rows(bound)
    ]
    rows.append(("at most", None, None, usd(bound["total_nano"])))
    if bound["total_nano"] != asked:
        rows.append(("the least that makes sense to ask for", None, None, usd(asked)))
    tiers = f" Service tiers counted: {bound['tiers']}." if bound.get("tiers") else ""
    region = "is" if bound["surcharge_mille"] > 1000 else "is not"
    note = (
        f"By {bound['price_source']} of {bound['price_date']}, at the dearest rates that can apply.{tiers} "
        f"A surcharge for a region {region} counted."
    )
    return [Part(f"What a call to {bound['model']} could have cost", ("part", "how many", "price", "USD"), tuple(rows), note)]


def _per_unit(what: str, pico: int) -> str | None:
    if not pico:
        return None
    return f"{_amount(Decimal(pico).scaleb(-6))} per million" if "tokens" in what else f"{_amount(_usd(pico))} each"


def _holders(call: Call, facts: Mapping[str, Any]) -> list[Part]:
    holders: Sequence[Mapping[str, Any]] = facts.get("holders") or ()
    if not holders:
        return []
    rows: list[tuple[object, ...]] = []
    for held in holders:
        if "call" in held:
            age = _age((call.created_at - datetime.fromisoformat(held["since"])).total_seconds())
            rows.append((usd(held["held_nano"]), held["model"], age, held["cell"], told(held["holder"]), held["call"]))
        else:
            rows.append((usd(held["held_nano"]), f"{held['calls']} smaller ones", None, None, None, None))
    columns = ("held", "by a call to", "for", "cell", "process", "call")
    return [Part("Who held money at that moment", columns, tuple(rows), "What they do not spend comes back when they end.")]


def fitting_output(bound: Mapping[str, Any], left_nano: int) -> int:
    """The most output tokens of each answer whose bound fits into what was left; negative if not even the input does."""
    room = (left_nano - bound["uses"] * bound["use_nano"]) * 1_000_000 // bound["surcharge_mille"]  # nano-USD × 1000 ‰ is pico-USD × 10⁶
    room -= bound["input_tokens"] * bound["input_rate_pico"] + bound["call_pico"]
    if room < 0 or not bound["output_rate_pico"]:
        return -1
    return int(room // (bound["output_rate_pico"] * max(1, bound.get("choices", 1)) * max(1, bound.get("rounds", 1))))


def _fitting(bound: Mapping[str, Any], left: int) -> list[str]:
    if not bound:
        return []
    tokens = fitting_output(bound, left)
    if tokens < 0:
        return ["Not even its input fitted into what was left."]
    if tokens == 0:
        return ["Its input fitted into what was left, and no output beside it."]
    return [f"With an output of at most {tokens:,} tokens{' for each answer' if bound.get('choices', 1) > 1 else ''} it would have fitted."]


def _steps(call: Call, refuser: Mapping[str, Any], bound: Mapping[str, Any], asked: int, left: int) -> tuple[tuple[str, str], ...]:
    steps = []
    enough = _round_up(int(refuser["cap_nano"] or 0) + asked - left)
    steps.append(
        (_raise_line(refuser, enough), f"makes room for this call ({_money(int(refuser['cap_nano'] or 0) + asked - left)} is the least)")
    )
    tokens = fitting_output(bound, left) if bound else -1
    if tokens > 0:
        steps.append((f"max_tokens={tokens}", f"or max_completion_tokens, max_output_tokens: whatever {call.api} calls it"))
    if refuser["held_nano"]:
        steps.append(("%wflo budget", f"shows who holds {_money(refuser['held_nano'])} now; what they do not spend comes back"))
    if refuser["unconfirmed_nano"]:
        steps.append(("%wflo reconcile", f"settles {_money(refuser['unconfirmed_nano'])} that nobody confirmed"))
    return tuple(steps)


def _raise_line(refuser: Mapping[str, Any], nano: int) -> str:
    amount = _amount(usd(nano)).removeprefix("$").removesuffix(".00")
    kind, colon, name = str(refuser["id"]).partition(":")
    if kind == "nb":
        return f"%wflo budget {amount}"
    if colon and kind in ("team", "user"):
        plain = name.partition("@")[0].replace("%40", "@").replace("%25", "%")
        return f"%wflo budget {amount} {shlex.quote(f'{kind}={plain}')}"
    return f"%%wflo budget={amount}" if refuser["scope"] == "cell" else f"execution(budget_usd={amount})"


def _round_up(nano: int) -> int:
    """To two digits, as people write a budget."""
    step = Decimal(10) ** max(0, len(str(nano)) - 2)
    return int((Decimal(nano) / step).to_integral_value(ROUND_CEILING) * step)


# -- for other reasons -------------------------------------------------------------------------------------------------------


def _stopped_by_user(call: Call) -> Explanation:
    words = f"{_what(call)} was refused because you stopped the run: after that nothing more is sent. Calls on their way are counted."
    return Explanation(call, (words,), (), (("Run the cell again", "a new run starts without the stop"),))


def _other(call: Call) -> Explanation:
    model = shlex.quote(call.model) if call.model else "MODEL"
    declare = (f"%wflo price {model} input=… output=…", "tells what it costs, in USD per million tokens")
    outside = ("a cell without %%wflo, while the notebook has no budget", "sends it and records it as unmetered")
    steps: dict[str, tuple[tuple[str, str], ...]] = {
        "UnknownModelError": (declare, ("%%wflo budget=… unknown_models=allow", "lets such calls through; their cost is in no sum")),
        "UnboundedCallError": (
            (f"%wflo price {model} input=… output=… max_input=… max_output=…", "if what is missing is the size of the model's context"),
            outside,
        ),
        "UnsupportedFormatError": (
            outside,
            ("an entry point of the group wflo_nb.formats", "teaches how to read such requests; see wflo_nb.capture.formats.base"),
        ),
    }
    kind = str(call.meta.get("error"))
    bound: Mapping[str, Any] = call.meta.get("bound") or {}
    first = f"{_what(call)} was refused before it was sent, and not for lack of money: nobody could say what it may cost."
    parts = _cost(bound, bound["total_nano"]) if bound else []
    return Explanation(call, (first, call.reason or ""), tuple(parts), steps.get(kind, (outside,)))


# -- in words ----------------------------------------------------------------------------------------------------------------


def _what(call: Call) -> str:
    where = f" from {call.cell}" if call.cell else ""
    return f"Call {call.id} to {call.model or 'an unnamed model'} ({call.provider} {call.api}){where} at {_clock(call.created_at)}"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _usd(pico: int | Decimal) -> Decimal:
    return Decimal(pico).scaleb(-12)


def _amount(value: Decimal) -> str:
    """Every digit that is there, at least two decimals."""
    whole, _, decimals = f"{value:f}".partition(".")
    return f"${whole}.{decimals.rstrip('0'):0<2}"


def _money(nano: int | None) -> str:
    return "no amount" if nano is None else _amount(usd(nano))
