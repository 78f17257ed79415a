"""Anthropic's messages.

Definition: https://docs.anthropic.com/en/api/messages. `input_tokens` excludes what was read from or written to the cache, so
both are added here. In a stream the input side comes in `message_start` and the output, growing, in `message_delta`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from wflo_nb.capture.formats import caps, known, thinking
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, text_or_none
from wflo_nb.capture.media import Media

#: Tools that the client runs; everything else with a type of its own runs, and is billed, at the provider.
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
#: Offering tools adds a system prompt of up to 530 tokens, the computer and editor tools up to about 1,500 more.
_TOOLS_PROMPT = 2048
_FILES = ("document", "container_upload", "file", "audio", "video")
#: Tools at the provider that take `max_uses`: type without its date → name in `wflo_nb.pricing.uses`.
_PER_USE = {"web_search": "web_search", "web_fetch": "web_fetch"}
_DATE = re.compile(r"_(20\d{6})$")
#: From here on a search may filter its results by running code, in rounds that `max_uses` does not count. The provider ends such
#: a loop after ten rounds.
_FILTERS, _LOOP = "20260209", 10


class _Tools(NamedTuple):
    uses: tuple[str, ...] = ()
    most: int = 0
    rounds: int = 1
    window: str | None = None
    unbounded: str | None = None


def _brought(messages: Any) -> Iterator[Any]:
    """Tools that are defined in the messages, also in what is left of messages that were compacted."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, list) else ():
            kind = block.get("type") if isinstance(block, dict) else None
            if kind == "tool_addition":
                yield from _defined(block)
            elif kind == "compaction" and isinstance(changes := block.get("tool_changes"), list):
                for change in changes:
                    yield from _defined(change)


def _defined(change: Any) -> Iterator[Any]:
    tool = change.get("tool") if isinstance(change, dict) else None
    if isinstance(tool, dict) and "definition" in tool:
        yield tool["definition"]


def _tools(body: dict[str, Any]) -> _Tools:
    tools = body.get("tools")
    uses: set[str] = set()
    most, least_rounds, window, unbounded = 0, 1, None, None
    for tool in (*(tools if isinstance(tools, list) else ()), *_brought(body.get("messages"))):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and "_toolset_" in kind:  # at the client, but many tools at once, whose descriptions are not here
            window = f"instructions that come with {kind}"
            continue
        if kind is None or (isinstance(kind, str) and kind.startswith(_CLIENT_TOOLS)):
            continue
        dated = _DATE.search(str(kind))
        name = _PER_USE.get(str(kind)[: dated.start()] if dated else str(kind))
        if name is None:
            unbounded = f"the tool {kind} runs at the provider and is billed by what no request limits"
            continue
        uses.add(name)
        limit = tool.get("max_uses")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            unbounded = unbounded or f"the tool {kind} runs at the provider and is billed per use; state its max_uses to limit it"
            continue
        most += limit
        if dated is None or dated[1] >= _FILTERS:
            least_rounds = _LOOP
    if not uses:
        return _Tools(window=window, unbounded=unbounded)
    # Every use is followed by a round over the whole context; one more for the attempt too many, which fails.
    names = tuple(sorted(uses))
    return _Tools(names, most, max(most + 2, least_rounds), f"the results of the tool {', '.join(names)}", unbounded)


def _unbounded(body: dict[str, Any]) -> str | None:
    if body.get("mcp_servers"):
        return "MCP servers run at the provider"
    if body.get("fallbacks"):
        return "it names further models to fall back to, each with a price and an output cap of its own (fallbacks)"
    thread = body.get("thread")
    if thread and not (isinstance(thread, dict) and thread.get("type") == "create"):
        return "the thread that it continues keeps messages and tools at the provider"
    return known.unlimited(body)


def _skills(container: Any) -> str | None:
    skilled = isinstance(container, dict) and container.get("skills")
    return "instructions that come with the skills of a container" if skilled else None


def _take(media: Media, part: dict[str, Any]) -> bool:
    """Count a part that is not text. False if there may be such a part further down."""
    kind, source = part.get("type"), part.get("source")
    if kind == "image":
        given = source if isinstance(source, dict) else {}
        inline = given.get("type") == "base64" and isinstance(given.get("data"), str)
        media.add_image(given["data"] if inline else None, inline=inline)
    elif kind == "document" and isinstance(source, dict) and source.get("type") in ("text", "content") and not part.get("citations"):
        return False  # its text, and whatever else it holds, is in the request
    elif kind in _FILES:
        data = source.get("data") if isinstance(source, dict) and source.get("type") == "base64" else None
        why = f"a content part of type {kind!r}"
        if kind in ("audio", "video"):
            media.add("audio", None, data, why=why)
        else:
            media.add_document(data, why=why)
    elif "encrypted_content" in part:
        media.window = media.window or "results of an earlier search, which are not in the request as text"
    else:
        return False
    return True


def _only_reads(body: dict[str, Any]) -> bool:
    """Whether nothing is to be written: a cap of zero fills the cache, for requests to come."""
    cap = body.get("max_tokens")
    return isinstance(cap, int) and not isinstance(cap, bool) and cap == 0


def read(body: dict[str, Any], seller: str | None = None, _path: str = "") -> Facts:
    model = str(body.get("model") or "")
    media, tools = Media.at(seller, model), _tools(body)
    thought = thinking.of_messages(body) if thinking.is_beside(seller) else thinking.Thought()
    for content in (body.get("messages"), body.get("system")):
        if not isinstance(content, str):
            known.look(media, content, known.ANTHROPIC, _take)
    return Facts(
        model=model,
        stream=body.get("stream") is True,
        cap=caps.stated(body, "max_tokens"),
        window=tools.window or media.window or _skills(body.get("container")),
        unbounded=tools.unbounded or _unbounded(body) or thought.unbounded or media.unbounded,
        produces=not _only_reads(body),
        service_tier="fast" if body.get("speed") == "fast" else text_or_none(body.get("service_tier")),
        media=bool(media.kinds),
        audio="audio" in media.kinds,
        inline=media.inline,
        extra_input=media.tokens + (_TOOLS_PROMPT if body.get("tools") else 0),
        extra_output=thought.tokens,
        images=media.tokens,
        rounds=tools.rounds,
        uses=tools.uses,
        most_uses=tools.most,
    )


def _with_compaction(usage: dict[str, Any]) -> dict[str, Any]:
    """The usage with that of passes which compacted the context: it is billed, and not in the counts at the top."""
    steps = usage.get("iterations")
    extra = [one for one in steps if isinstance(one, dict) and one.get("type") == "compaction"] if isinstance(steps, list) else []
    for one in extra:
        names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        usage = {**usage, **{name: _sum(usage.get(name), one.get(name)) for name in names}}
        if isinstance(made := one.get("cache_creation"), dict):
            before = usage.get("cache_creation")
            before = before if isinstance(before, dict) else {}
            name = "ephemeral_1h_input_tokens"
            usage = {**usage, "cache_creation": {**before, name: _sum(before.get(name), made.get(name))}}
    return usage


def _sum(one: Any, other: Any) -> Any:
    """Two counts together; what is none stays as it is, so that it is seen."""
    if one is None or other is None:
        return other if one is None else one
    odd = [value for value in (one, other) if isinstance(value, bool) or not isinstance(value, int) or value < 0]
    return odd[0] if odd else one + other


def _fold_usage(answer: Answer, usage: dict[str, Any]) -> bool:
    if usage.get("iterations"):
        usage = _with_compaction(usage)
    made = usage.get("cache_creation")
    seen = answer.counts
    ok = answer.put(
        output_tokens=usage.get("output_tokens"),
        cache_read_tokens=usage.get("cache_read_input_tokens"),
        cache_write_tokens=usage.get("cache_creation_input_tokens"),
        cache_write_1h_tokens=made.get("ephemeral_1h_input_tokens") if isinstance(made, dict) else None,
    )
    plain = usage.get("input_tokens")
    if ok and plain is not None:
        if isinstance(plain, bool) or not isinstance(plain, int) or plain < 0:
            answer.problem = f"the provider reported input_tokens={plain!r}"
            return False
        ok = answer.put(input_tokens=plain + seen.get("cache_read_tokens", 0) + seen.get("cache_write_tokens", 0))
    ran = usage.get("server_tool_use")
    if isinstance(ran, dict):
        answer.used("web_search", ran.get("web_search_requests"))
        answer.used("web_fetch", ran.get("web_fetch_requests"))
    if isinstance(usage.get("service_tier"), str):
        answer.service_tier = usage["service_tier"]
    if usage.get("speed") == "fast":
        answer.service_tier = "fast"
    if usage.get("inference_geo") not in (None, "global", "not_available"):
        answer.regional = True
    return ok and answer.problem is None


def _count_searches(answer: Answer, content: Any) -> None:
    """Searches that stand in the answer itself count where the usage is silent about them."""
    if isinstance(content, list) and "web_search" not in answer.uses:
        found = [part for part in content if isinstance(part, dict) and part.get("type") == "server_tool_use"]
        answer.used("web_search", sum(part.get("name") == "web_search" for part in found))


def fold(answer: Answer, obj: dict[str, Any]) -> None:
    kind = obj.get("type")
    answer.ended = kind == "message_stop"
    message = obj.get("message") if kind == "message_start" else obj
    if not isinstance(message, dict):
        return
    if isinstance(message.get("model"), str):
        answer.model = message["model"]
    delta = obj.get("delta")
    stop = message.get("stop_reason") or (delta.get("stop_reason") if isinstance(delta, dict) else None)
    if stop == "max_tokens":
        answer.truncated = True
    usage = message.get("usage")
    if isinstance(usage, dict) and _fold_usage(answer, usage) and kind != "message_start":
        answer.lists_uses = True
        _count_searches(answer, message.get("content"))
    if not answer.streaming or stop or answer.ended:  # counts grow until then
        answer.complete = answer.lists_uses and "input_tokens" in answer.counts and "output_tokens" in answer.counts


def write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    caps.write(body, cap, "max_tokens")


def said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    kind = obj.get("type")
    if kind == "content_block_delta":
        content = [obj["delta"]]
    elif kind == "content_block_start":
        content = [obj["content_block"]]
    else:
        content = obj.get("content") or []
    for part in content:
        if isinstance(part.get("text"), str):
            yield 0, part["text"]


FORMATS = (WireFormat("messages", "/messages", "anthropic", lambda b: "model" in b and "messages" in b, read, fold, write_cap, said=said),)
