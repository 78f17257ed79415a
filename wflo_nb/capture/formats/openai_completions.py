"""Text that is carried on, not answered: OpenAI's legacy completions, and fill-in-the-middle at Mistral.

Definitions: https://platform.openai.com/docs/api-reference/completions, https://docs.mistral.ai/api/#tag/fim. Every prompt of a list has
`n` answers, of `best_of` that are all billed; `echo` puts the prompt before each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from wflo_nb.capture.formats import caps, known
from wflo_nb.capture.formats.base import Facts, largest, text_or_none
from wflo_nb.capture.formats.openai import CHAT


def _prompts(given: Any) -> int:
    """How many prompts there are: texts or lists of token numbers; one list of numbers is one prompt."""
    if not isinstance(given, list) or not given or all(isinstance(one, int) for one in given):
        return 1
    return len(given)


#: Where a request without a cap has one all the same: OpenAI's legacy completions end after 16 tokens, and stay as short with us.
_SHORT = {"openai": 16, "azure.ai.openai": 16}


def _cap(body: dict[str, Any], seller: str | None) -> int | None:
    return _SHORT.get(seller or "") if "max_tokens" not in body else caps.stated(body, "max_tokens")


def _read(body: dict[str, Any], seller: str | None = None, _path: str = "") -> Facts:
    counts = [body.get(name) for name in ("n", "best_of")]
    odd = any(isinstance(one, bool) or not isinstance(one, int | None) for one in counts)
    prompt = body.get("prompt")
    choices = (largest(body, "n", "best_of") or 1) * _prompts(prompt)
    echoed = len(str(prompt).encode("utf-8", "surrogatepass")) * choices if body.get("echo") else 0
    return Facts(
        model=str(body.get("model") or ""),
        stream=body.get("stream") is True,
        cap=_cap(body, seller),
        choices=choices,
        unbounded="the number of answers is not a whole number" if odd else known.unlimited(body),
        service_tier=text_or_none(body.get("service_tier")),
        extra_output=echoed,
    )


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    caps.write(body, cap, "max_tokens")


def _said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for choice in obj.get("choices") or ():
        if isinstance(choice.get("text"), str):
            yield int(choice.get("index") or 0), choice["text"]


FORMATS = (
    replace(
        CHAT,
        api="completions",
        path=re.compile(r"(?<!/chat)(?<!/fim)(?<!/agents)/completions$"),
        recognises=lambda b: "model" in b and "prompt" in b,
        read=_read,
        write_cap=_write_cap,
        texts=None,
        said=_said,
    ),
    replace(
        CHAT,
        api="fim",
        path="/fim/completions",
        provider="mistral_ai",
        recognises=lambda b: "model" in b and "prompt" in b,
        read=_read,
        write_cap=_write_cap,
        ask_usage=lambda _body, _seller=None: False,
        texts=None,
    ),
)
