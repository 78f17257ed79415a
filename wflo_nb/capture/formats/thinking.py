"""What a model thinks before its answer, where that is billed and not counted to the cap of the answer: Alibaba's Model Studio.

Definition: https://www.alibabacloud.com/help/en/model-studio/qwen-api-reference. There `max_tokens` limits the answer alone, of Anthropic's
interface too; `thinking_budget` limits what comes before it; `max_completion_tokens` limits both together, for some models. Most models
think unless they are told not to. Elsewhere a cap is one of everything that is written.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from wflo_nb.capture.formats import caps

_BESIDE = frozenset({"dashscope"})
#: Models for which `max_completion_tokens` limits everything, give or take some tokens.
_WHOLE = re.compile(
    r"qwen(?:3\.[7-9]|[4-9](?:\.\d)?)-max|qwen(?:3\.[5-9]|[4-9](?:\.\d)?)-(?:plus|flash)|deepseek-(?:v3|r1(?:-0528)?$|v3\.[12]|v4-)"
)
#: Models that think whatever they are told.
_ALWAYS = re.compile(r"qwq|qvq|thinking|deepseek-r1")
_DRIFT = 16


class Thought(NamedTuple):
    """How many tokens may be written beside the cap of the answer, for each; and why nobody knows."""

    tokens: int = 0
    unbounded: str | None = None


def is_beside(seller: str | None) -> bool:
    """Whether this provider bills thoughts beside the cap."""
    return seller in _BESIDE


def caps_all(model: str) -> bool:
    """Whether there is a cap of everything for this model."""
    return _WHOLE.match(model) is not None


def of_chat(body: dict[str, Any], model: str) -> Thought:
    """Thoughts of a chat completion where they are billed beside the cap."""
    whole, cap = body.get("max_completion_tokens"), caps.stated(body, "max_completion_tokens", "max_tokens")
    if caps_all(model) and (cap is None or caps.stated({"max_completion_tokens": whole}, "max_completion_tokens") is not None):
        return Thought(_DRIFT)  # without a cap, ours is written under that name
    if body.get("enable_thinking") is False and not _ALWAYS.search(model):
        return Thought()
    return _budgeted(body.get("thinking_budget"), "max_completion_tokens (if the model knows it), thinking_budget or enable_thinking=False")


def of_messages(body: dict[str, Any]) -> Thought:
    """The same of Anthropic's interface."""
    thinking = body.get("thinking")
    told = thinking if isinstance(thinking, dict) else {}
    if told.get("type") == "disabled" and not _ALWAYS.search(str(body.get("model") or "")):
        return Thought()
    return _budgeted(told.get("budget_tokens"), "thinking's budget_tokens, or that it is disabled")


def _budgeted(budget: Any, advice: str) -> Thought:
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return Thought(budget + _DRIFT)
    return Thought(unbounded=f"what the model thinks is billed beside the cap of its answer, and has no limit; state {advice}")
