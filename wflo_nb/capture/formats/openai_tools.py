"""What OpenAI's requests say about tools that run at the provider, and what its answers say about their use.

Definitions: https://developers.openai.com/api/docs/guides/tools, https://developers.openai.com/api/docs/pricing. A use is one call
of a tool; its results are read by the model in a further round over the whole context. `max_tool_calls` limits all uses of a
response together; attempts beyond it are ignored.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from wflo_nb.capture.formats.base import Answer
from wflo_nb.capture.formats.known import fetches

_CLIENT_TOOLS = frozenset({"function", "custom"})
#: They run at the client, but bring instructions of unknown length.
_INSTRUCTED = frozenset({"computer_use_preview", "computer", "local_shell", "apply_patch"})
#: Type of a tool, without the date at its end → its name in `wflo_nb.pricing.uses`.
_PER_USE = {"web_search": "web_search", "web_search_preview": "web_search_preview", "file_search": "file_search", "mcp": "mcp"}
_DATE = re.compile(r"_20\d\d_\d\d_\d\d$")
#: Chat models that search without being asked to, as often as they like.
#: What a gateway takes for that of Perplexity's stands in no source of prices; at Perplexity's own door it does.
_SEARCHES = re.compile(r"-search-(?:preview|api)|-deep-research|:online$|(?:^|/)compound|perplexity/.*sonar")


class Tools(NamedTuple):
    """What the tools of a request may cost beside the tokens that it shows.

    Attributes:
        uses: the tools that are billed per use; `most`: how often they may be used together.
        window: why the bytes of the request do not bound its input.
        unbounded: why nothing bounds its cost.
    """

    uses: tuple[str, ...] = ()
    most: int = 0
    window: str | None = None
    unbounded: str | None = None


NONE = Tools()


@functools.lru_cache(512)
def searches(model: str) -> bool:
    """Whether a chat model searches by itself, as often as it likes."""
    return _SEARCHES.search(model) is not None


def kind_of(tool: Any) -> str:
    """The type of a tool; one without a type is a function only if it says which."""
    if not isinstance(tool, dict):
        return "of unknown type"
    kind = tool.get("type")
    if kind is None and "function" in tool:
        return "function"
    return kind if isinstance(kind, str) else str(next(iter(tool), "of unknown type"))


def of_chat(body: dict[str, Any], model: str) -> Tools:
    """Tools of a chat request. Nothing in one limits how often the provider searches."""
    tools = body.get("tools")
    foreign = sorted({kind_of(tool) for tool in tools} - _CLIENT_TOOLS) if isinstance(tools, list) else []
    why = None
    if foreign:
        why = f"the tool {', '.join(foreign)} runs at the provider and is billed per use"
    elif fetches(body):
        why = "a web search is billed per use"
    elif searches(model):
        why = f"{model} searches at the provider by itself, billed per use"
    if why is None:
        return NONE
    return Tools(unbounded=f"{why}, and a chat request cannot state how often (responses can: max_tool_calls)")


#: Items of an input that bring tools along.
_BRINGS_TOOLS = frozenset({"additional_tools", "tool_search_output"})


def _brought(given: Any) -> list[Any]:
    """Tools that stand in the input of a response."""
    items = [one for one in given if isinstance(one, dict) and one.get("type") in _BRINGS_TOOLS] if isinstance(given, list) else ()
    return [tool for item in items if isinstance(item.get("tools"), list) for tool in item["tools"]]


#: Who is known to heed `max_tool_calls` (or hands it on: a host that nobody knows). xAI limits turns instead, each with any number of uses;
#: what OpenRouter searches costs more than the fees that we know.
_HEEDING = frozenset({None, "openai", "azure.ai.openai"})


def of_response(body: dict[str, Any], seller: str | None = None) -> Tools:
    """Tools of a responses request."""
    model = str(body.get("model") or "")
    if seller not in _HEEDING and searches(model):
        return Tools(unbounded=f"{model} searches at the provider by itself, billed per use, and max_tool_calls limits nothing at {seller}")
    tools, brought = body.get("tools"), _brought(body.get("input"))
    if not isinstance(tools, list):
        if body.get("prompt"):
            return Tools(unbounded="a stored prompt may bring tools that are billed per use; state tools=[…] to overrule them")
        tools = []
    tools = [*tools, *brought]
    kinds = {_DATE.sub("", kind_of(tool)) for tool in tools} - _CLIENT_TOOLS
    if not kinds:
        return NONE
    foreign = sorted(kinds - _INSTRUCTED - _PER_USE.keys())
    uses = tuple(sorted(_PER_USE[kind] for kind in kinds & _PER_USE.keys()))
    most = body.get("max_tool_calls")
    unbounded = None
    if foreign:
        unbounded = (
            f"the tool {', '.join(foreign)} runs at the provider and is billed by time or amount, which no request limits; "
            "make such calls outside the budget"
        )
    elif uses and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        unbounded = f"the tool {', '.join(uses)} runs at the provider and is billed per use; state max_tool_calls to limit it"
    elif uses and seller not in _HEEDING:
        unbounded = f"the tool {', '.join(uses)} runs at the provider and is billed per use, and max_tool_calls limits nothing at {seller}"
    if unbounded is not None:
        return Tools(uses, unbounded=unbounded)  # without a budget such a call is made, and the uses that it reports are billed
    if not uses:
        return Tools(window=f"instructions that come with the tool {', '.join(sorted(kinds))}")
    return Tools(uses, int(most or 0), f"the results of the tool {', '.join(uses)}")


#: Type of an item of an answer → the tool that was used.
_USED = {"file_search_call": ("file_search",), "web_search_call": ("web_search", "web_search_preview"), "mcp_call": ("mcp",)}


def count_uses(answer: Answer, response: dict[str, Any]) -> None:
    """Count the uses that an answer lists among its output. The two kinds of search look the same there: both are counted."""
    output = response.get("output")
    if not isinstance(output, list):
        return
    found: dict[str, int] = {}
    for item in output:
        names = _USED.get(str(item.get("type"))) if isinstance(item, dict) else None
        if names is None or _is_free(item):
            continue
        for name in names:
            found[name] = found.get(name, 0) + 1
    answer.lists_uses = True
    for name, times in found.items():
        answer.used(name, times)


def _is_free(item: dict[str, Any]) -> bool:
    """Opening a page and looking through it are no searches, and not billed."""
    action = item.get("action")
    return isinstance(action, dict) and action.get("type") in ("open_page", "find_in_page", "find")
