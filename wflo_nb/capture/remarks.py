"""What is said of a call that was settled, where its answer was not what was asked or held for."""

from __future__ import annotations

from wflo_nb.capture.formats.base import Answer, Facts
from wflo_nb.errors import format_usd, tell
from wflo_nb.model import Call, Cost, Usage, usd


def remark(call: Call, facts: Facts, answer: Answer, usage: Usage, cost: Cost, *, limited: bool) -> str | None:
    """The reason for its record, None as a rule; what a user can do about it is told at once. `limited`: whether a cap applies."""
    cap = facts.cap or call.cap_written
    reason = _beyond_the_cap(facts, usage, cap) if cap and usage.output_tokens > cap else None
    if cost.nano_usd > call.reserved_nano and limited:
        reason = (
            f"broken bound: {format_usd(cost.usd)} were billed where at most {format_usd(usd(call.reserved_nano))} "
            f"were expected by {cost.price_source}"
        )
        tell(f"{call.model}: {reason}. Declare the right price with `%wflo price`.")
    if answer.truncated and call.cap_written is not None:
        reason = f"cut off at {call.cap_written} output tokens, what the budget could afford"
        tell(f"The answer of {call.model} was {reason}. Raise the budget, or set an output cap of your own.")
    return reason


def _beyond_the_cap(facts: Facts, usage: Usage, cap: int) -> str | None:
    """More output than was allowed is billed as reported, which is the dearer reading, and said."""
    most = (cap * facts.choices + facts.extra_output) * facts.rounds
    words = f"{usage.output_tokens} output tokens were reported where at most {most} were asked for"
    return words if usage.output_tokens > most else None
