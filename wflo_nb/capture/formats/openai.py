"""OpenAI's chat completions, responses and embeddings, also spoken by most other providers, gateways and local servers.

Definitions: https://platform.openai.com/docs/api-reference/chat, …/responses, …/embeddings. `prompt_tokens` and `input_tokens`
include cached tokens; `completion_tokens` and `output_tokens` include reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from wflo_nb.capture.formats import caps, known, openai_tools
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, largest, text_or_none
from wflo_nb.capture.formats.openai_tools import Tools
from wflo_nb.capture.media import Media
from wflo_nb.capture.sse import without_null_usage

_MEDIA = ("image", "audio", "file", "video", "screenshot")
_AUDIO = ("audio", "video")
_COUNT = (int, type(None))
#: Where a part has its base64.
_DATA = {"input_audio": "data", "file": "file_data", "input_file": "file_data"}
#: Writing to a cache for half a day has a price of its own, which no source of the table states.
_KEPT_LONG = "no price is known for a prompt cache of 12 hours; ask for 30m"


#: Where a path names what answers: a deployment of Azure's, an endpoint of one's own at Vertex AI.
_IN_PATH = re.compile(r"/deployments/([^/]+)/|/(endpoints/\d+)/")


def _model(body: dict[str, Any], path: str) -> str:
    model = body.get("model")
    if model:
        return str(model)
    found = _IN_PATH.search(path)
    return (found[1] or found[2]) if found else ""


def _is_kept_long(options: Any) -> bool:
    return isinstance(options, dict) and options.get("ttl") not in (None, "30m")


def _look(media: Media, value: Any, in_content: bool = False) -> None:
    """Find what is not text, below a list of messages, items or parts."""
    if isinstance(value, dict):
        if not _take(media, value) and not known.notice(media, value, known.OPENAI, in_content):
            for name, child in value.items():
                if child is not None and not isinstance(child, str) and name not in known.SETTINGS:
                    _look(media, child, name in known.CONTENT)
    elif isinstance(value, list):
        for child in value:
            _look(media, child, in_content)


def _take(media: Media, part: dict[str, Any]) -> bool:
    """Count a part that is not text. False if there may be such a part further down."""
    kind = part.get("type")
    if "prompt_cache_breakpoint" in part and _is_kept_long(part["prompt_cache_breakpoint"]):
        media.unbounded = _KEPT_LONG
    if kind == "image_url":
        image = part.get("image_url")
        source, detail = (image.get("url"), image.get("detail")) if isinstance(image, dict) else (image, None)
        media.add_image(text_or_none(source), detail)
    elif kind == "input_image":
        media.add_image(text_or_none(part.get("image_url")), part.get("detail"))
    elif isinstance(kind, str) and any(word in kind for word in _MEDIA):
        inner = part.get(kind)
        holder = inner if isinstance(inner, dict) else part
        found = "audio" if any(word in kind for word in _AUDIO) else "file"
        media.add(found, None, holder.get(_DATA.get(kind, "")), why=f"a content part of type {kind!r}")
    elif isinstance(part.get("audio"), dict) or "input_audio" in part:
        media.add("audio", None, why="audio")
    elif "image_url" in part or "file_id" in part or kind == "item_reference":
        media.add("file", None, why="content that is not in the request")
    elif kind == "reasoning" and not part.get("encrypted_content"):
        media.window = media.window or "reasoning that is kept at the provider"
    else:
        return False
    return True


def _media(content: Any, seller: str | None, model: str) -> Media | None:
    """What is not text in a list of messages or items, None if all is text."""
    if isinstance(content, str) or content is None:
        return None
    media = None
    for message in content if isinstance(content, list) else (content,):
        if isinstance(message, dict) and "type" not in message and "role" in message:
            for value in message.values():
                if not isinstance(value, str) and value is not None:
                    break
            else:
                continue  # the usual message: a role and a text
        if media is None:
            media = Media.at(seller, model)
        _look(media, message, not (isinstance(message, dict) and "role" in message))
    return media


def _facts(body: dict[str, Any], model: str, media: Media | None, tools: Tools, window: str | None = None, **more: Any) -> Facts:
    if media is None and tools is openai_tools.NONE and "prompt_cache_options" not in body:  # the usual request: a text
        return Facts(model, body.get("stream") is True, window=window, service_tier=text_or_none(body.get("service_tier")), **more)
    media = media or _NO_MEDIA
    kept_long = _KEPT_LONG if "prompt_cache_options" in body and _is_kept_long(body["prompt_cache_options"]) else None
    more["unbounded"] = more["unbounded"] or media.unbounded or kept_long
    return Facts(
        model=model,
        stream=body.get("stream") is True,
        window=tools.window or window or media.window,
        service_tier=text_or_none(body.get("service_tier")),
        media=bool(media.kinds),
        audio="audio" in media.kinds,
        inline=media.inline,
        extra_input=media.tokens,
        images=media.tokens,
        # Every use is followed by a round over the whole context; one more for the attempt too many, which is ignored.
        rounds=tools.most + 2 if tools.uses else 1,
        uses=tools.uses,
        most_uses=tools.most,
        **more,
    )


_NO_MEDIA = Media()


# -- chat completions ------------------------------------------------------------------------------------------------------


#: Fields that bring nothing but text, and whose values change nothing about how it is counted.
_USUAL = frozenset(
    [
        "frequency_penalty",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
    ]
)


def _read_chat(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
    model = _model(body, path)
    if body.keys() <= _USUAL and not openai_tools.searches(model) and _media(body.get("messages"), seller, model) is None:
        return Facts(model, body.get("stream") is True, caps.stated(body, "max_completion_tokens", "max_tokens"), usual=True)
    return _read_any_chat(body, model, seller)


def _read_any_chat(body: dict[str, Any], model: str, seller: str | None) -> Facts:
    tools = openai_tools.of_chat(body, model)
    unbounded, window = tools.unbounded, None
    modalities = body.get("modalities")
    if modalities and modalities != ["text"]:
        unbounded = "output that is not text has rates of its own"
    elif not isinstance(body.get("n"), _COUNT) or not isinstance(body.get("best_of"), _COUNT):
        unbounded = "the number of answers is not a whole number"  # some servers read "4" and 4.0 as 4
    elif body.get("models") or body.get("route"):
        unbounded = "it names further models to fall back to, each with a price of its own"
    elif body.get("data_sources"):
        unbounded = "data_sources run further calls at the provider"
    extra = body.get("extra_body") or body.get("google")
    if extra and "cach" in str(extra):
        window = "context kept at the provider"
    choices = largest(body, "n", "best_of", "candidate_count") or 1
    prediction = body.get("prediction")
    return _facts(
        body,
        model,
        _media(body.get("messages"), seller, model),
        tools,
        window,
        cap=caps.stated(body, "max_completion_tokens", "max_tokens"),
        choices=choices,
        unbounded=unbounded,
        # Rejected tokens of a predicted output are billed as output; each byte of it is at most one token.
        extra_output=len(str(prediction).encode("utf-8", "surrogatepass")) * choices if prediction else 0,
    )


def _texts_chat(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    texts: list[str] = []
    messages = body.get("messages")
    return {**body, "messages": _without_texts(messages, texts)}, texts


def _without_texts(items: Any, texts: list[str]) -> Any:
    """A copy of messages, items or parts with their texts taken out and appended to `texts`."""
    if not isinstance(items, list):
        return items
    left = []
    for item in items:
        if isinstance(item, dict):
            item = dict(item)
            for name in ("content", "text"):
                value = item.get(name)
                if isinstance(value, str):
                    texts.append(value)
                    item[name] = ""
                elif name == "content" and isinstance(value, list):
                    item[name] = _without_texts(value, texts)
        left.append(item)
    return left


def _fold_openai_usage(answer: Answer, usage: dict[str, Any], read: str, written: str) -> bool:
    took, wrote, total = usage.get(read), usage.get(written), usage.get("total_tokens")
    if took is None or wrote is None:
        answer.problem = f"usage without {read if took is None else written}"
        return False
    if total is not None:
        if type(total) is not int:
            answer.problem = f"the provider reported total_tokens={total!r}"
            return False
        if type(took) is int and type(wrote) is int:
            if total < took + wrote:
                answer.problem = f"the provider reported {total} tokens in total, and {took} read and {wrote} written"
                return False
            wrote = total - took  # as it is billed: xAI and Gemini leave reasoning out of the output, and count it in the total alone
    if usage.get("cost") is not None:  # OpenRouter's and xAI's own figure
        answer.claimed(usage["cost"])
    into, out = usage.get(f"{read}_details"), usage.get(f"{written}_details")
    into, out = into if isinstance(into, dict) else _NOTHING, out if isinstance(out, dict) else _NOTHING
    cached = into.get("cached_tokens")
    if cached is None:  # DeepSeek; Moonshot and Together
        cached = usage.get("prompt_cache_hit_tokens", usage.get("cached_tokens"))
    return answer.put(
        input_tokens=took,
        output_tokens=wrote,
        cache_read_tokens=cached,
        cache_write_tokens=into.get("cache_write_tokens"),
        reasoning_tokens=out.get("reasoning_tokens"),
    )


_NOTHING: dict[str, Any] = {}


def _fold_common(answer: Answer, obj: dict[str, Any]) -> None:
    if isinstance(obj.get("model"), str):
        answer.model = obj["model"]
    if isinstance(obj.get("service_tier"), str):
        answer.service_tier = obj["service_tier"]


def _fold_chat(answer: Answer, obj: dict[str, Any]) -> None:
    _fold_common(answer, obj)
    choices, usage = obj.get("choices"), obj.get("usage")
    if not isinstance(usage, dict):
        groq = obj.get("x_groq")
        usage = groq.get("usage") if isinstance(groq, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if finish := choice.get("finish_reason"):
            answer.truncated = answer.truncated or finish == "length"
            answer.finished.add(choice.get("index") or 0)
        if not isinstance(usage, dict) and _says_something(choice):
            answer.stale = True
    if isinstance(usage, dict):
        if not _fold_openai_usage(answer, usage, "prompt_tokens", "completion_tokens"):
            return
        answer.stale = False
        if answer.streaming and not choices:
            if answer.final is not None and answer.final != usage:
                answer.problem = "the provider reported two different usages, each as the last one"
            answer.final = usage
    # A whole answer; or the last usage of a stream, of which every choice has ended. With several, each event may count one alone.
    done = len(answer.finished) >= answer.choices and (answer.choices == 1 or answer.final is not None)
    answer.complete = bool(answer.counts) and (not answer.streaming or (done and not answer.stale))


def _says_something(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    return bool(choice.get("text")) or (isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role"))


#: They send usage in every stream, and turn away a field that they do not know.
_TELL_ANYHOW = frozenset({"mistral_ai", "mistral"})


def _ask_chat(body: dict[str, Any], seller: str | None = None) -> bool:
    options = body.get("stream_options")
    if seller in _TELL_ANYHOW or body.get("stream") is not True or (isinstance(options, dict) and options.get("include_usage") is True):
        return False
    body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return True


_EXTRA = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def _is_extra_chat(event: bytes) -> bool:
    # Azure's first event has no choices either; `"usage": null` in it does not make it the one that we asked for.
    return b'"usage"' in without_null_usage(event) and _EXTRA.search(event) is not None


#: OpenAI's models that reason, also as gateways write them.
_REASONS = re.compile(r"(?:[\w.-]+/)?(?:o\d|gpt-(?:[5-9]|\d\d))")


def _cap_chat(body: dict[str, Any], cap: int, host: str) -> None:
    # OpenAI takes the new field for every model; its reasoning models refuse `max_tokens` wherever they are served. Everywhere
    # else, old interfaces of Azure included, servers may know the old field alone.
    new = host == "api.openai.com" or host.endswith(".api.openai.com") or _REASONS.match(str(body.get("model") or "")) is not None
    caps.write(body, cap, "max_completion_tokens" if new else "max_tokens", "max_completion_tokens", "max_tokens")


# -- responses -------------------------------------------------------------------------------------------------------------


#: Where a request for a response has its input, one of them at least. A stored prompt may name the model too.
_CONTEXT = frozenset({"input", "prompt", "previous_response_id", "conversation"})


def _read_responses(body: dict[str, Any], seller: str | None = None, _path: str = "") -> Facts:
    model = str(body.get("model") or "")
    tools = openai_tools.of_response(body)
    window = None
    for field in ("previous_response_id", "conversation", "prompt"):
        if body.get(field):
            window = f"context kept at the provider ({field})"
    media = _media(body.get("input"), seller, model)
    unbounded = tools.unbounded or known.unlimited(body)
    return _facts(body, model, media, tools, window, cap=caps.stated(body, "max_output_tokens"), unbounded=unbounded)


def _texts_response(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    texts: list[str] = []
    given = body.get("input")
    if isinstance(given, str):
        texts.append(given)
        given = ""
    skeleton = {**body, "input": _without_texts(given, texts)}
    if isinstance(body.get("instructions"), str):
        texts.append(body["instructions"])
        skeleton["instructions"] = ""
    return skeleton, texts


def _fold_responses(answer: Answer, obj: dict[str, Any]) -> None:
    inner = obj.get("response")
    response = inner if isinstance(inner, dict) else obj
    _fold_common(answer, response)
    details = response.get("incomplete_details")
    if isinstance(details, dict) and details.get("reason") == "max_output_tokens":
        answer.truncated = True
    answer.ended = obj.get("type") in ("response.completed", "response.incomplete", "response.failed")
    if answer.streaming and not answer.ended:
        return  # what is counted at the beginning is not what will be billed
    usage = response.get("usage")
    if response.get("status") in ("queued", "in_progress"):
        answer.problem = f"the answer is made in the background; what it cost is known once {response.get('id')} has completed"
    elif isinstance(usage, dict) and _fold_openai_usage(answer, usage, "input_tokens", "output_tokens"):
        openai_tools.count_uses(answer, response)
        answer.complete = True


def _cap_responses(body: dict[str, Any], cap: int, _host: str) -> None:
    caps.write(body, max(cap, 16), "max_output_tokens")  # the least that the interface accepts


# -- embeddings ------------------------------------------------------------------------------------------------------------


def _read_embeddings(body: dict[str, Any], _seller: str | None = None, path: str = "") -> Facts:
    given = body.get("input")
    foreign = isinstance(given, dict) or (isinstance(given, list) and any(isinstance(item, dict) for item in given))
    why = "an input that is not text has no bound that the request shows" if foreign else None
    return Facts(model=_model(body, path), produces=False, unbounded=why)


def _fold_embeddings(answer: Answer, obj: dict[str, Any]) -> None:
    _fold_common(answer, obj)
    usage = obj.get("usage")
    if isinstance(usage, dict) and answer.put(input_tokens=usage.get("prompt_tokens", usage.get("input_tokens"))):
        answer.put(input_tokens=usage.get("total_tokens"))  # nothing is written, so all of the total was read
        answer.complete = "input_tokens" in answer.counts


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """Nothing is generated, so there is nothing to cap."""


# -- what an answer says ---------------------------------------------------------------------------------------------------


def _said_chat(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for choice in obj.get("choices") or ():
        told = choice.get("delta") or choice.get("message") or {}
        text = told.get("content") or told.get("refusal")
        if isinstance(text, str):
            yield int(choice.get("index") or 0), text


def _said_responses(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    kind = obj.get("type")
    if kind in ("response.output_text.delta", "response.refusal.delta"):
        yield 0, obj["delta"]
    elif not isinstance(kind, str):  # a whole answer; in a stream the last event says everything once more
        for item in obj.get("output") or ():
            for part in item.get("content") or ():
                if isinstance(text := part.get("text") or part.get("refusal"), str):
                    yield 0, text


CHAT = WireFormat(
    "chat",
    "/chat/completions",
    "openai",
    lambda b: "messages" in b,
    _read_chat,
    _fold_chat,
    _cap_chat,
    _ask_chat,
    _is_extra_chat,
    _texts_chat,
    _said_chat,
    last_words=(),
    grows=True,
)

_EMBEDDINGS = WireFormat(
    "embeddings", "/embeddings", "openai", lambda b: "model" in b and "input" in b, _read_embeddings, _fold_embeddings, _no_cap
)

FORMATS = (
    CHAT,
    WireFormat(
        "responses",
        "/responses",
        "openai",
        lambda b: isinstance(b.get("prompt"), dict) or ("model" in b and not _CONTEXT.isdisjoint(b)),
        _read_responses,
        _fold_responses,
        _cap_responses,
        texts=_texts_response,
        said=_said_responses,
    ),
    _EMBEDDINGS,
    replace(_EMBEDDINGS, path=re.compile(r"/deployments/[^/]+/embeddings$"), recognises=lambda b: "input" in b),
)
