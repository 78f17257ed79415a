"""What OpenAI's chat completions and responses have in common: content that is not text, circumstances, and usage.

`prompt_tokens` and `input_tokens` include cached tokens; `completion_tokens` and `output_tokens` include reasoning.
"""

from __future__ import annotations

import re
from typing import Any

from wflo_nb.capture.formats import known, openai_tools
from wflo_nb.capture.formats.base import Answer, Facts, text_or_none
from wflo_nb.capture.formats.openai_tools import Tools
from wflo_nb.capture.media import Media

_MEDIA = ("image", "audio", "file", "video", "screenshot")
_AUDIO = ("audio", "video")
#: Where a part has its base64.
_DATA = {"input_audio": "data", "file": "file_data", "input_file": "file_data"}
#: Writing to a cache for half a day has a price of its own, which no source of the table states.
_KEPT_LONG = "no price is known for a prompt cache of 12 hours; ask for 30m"


#: Where a path names what answers: a deployment of Azure's, an endpoint of one's own at Vertex AI.
_IN_PATH = re.compile(r"/deployments/([^/]+)/|/(endpoints/\d+)/")


def model_of(body: dict[str, Any], path: str) -> str:
    """The model that a request names, in its body or its path; none if it names none."""
    model = body.get("model")
    if model:
        return str(model)
    found = _IN_PATH.search(path)
    return (found[1] or found[2]) if found else ""


def _is_kept_long(options: Any) -> bool:
    return isinstance(options, dict) and options.get("ttl") not in (None, "30m")


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
        data, why = holder.get(_DATA.get(kind, "")), f"a content part of type {kind!r}"
        if any(word in kind for word in _AUDIO):
            media.add("audio", None, data, why=why)
        else:
            media.add_document(data, why=why)
    elif isinstance(part.get("audio"), dict) or "input_audio" in part:
        media.add("audio", None, why="audio")
    elif "image_url" in part or "file_id" in part or kind == "item_reference":
        media.add("file", None, why="content that is not in the request")
    elif kind == "reasoning" and not part.get("encrypted_content"):
        media.window = media.window or "reasoning that is kept at the provider"
    else:
        return False
    return True


def media_in(content: Any, seller: str | None, model: str) -> Media | None:
    """What is not text in a list of messages or items; None if all is text."""
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
        known.look(media, message, known.OPENAI, _take, not (isinstance(message, dict) and "role" in message))
    return media


def facts_of(body: dict[str, Any], model: str, media: Media | None, tools: Tools, window: str | None = None, **more: Any) -> Facts:
    """The facts of a request, from what was found in it; `more` are those that only its own interface has."""
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


def without_texts(items: Any, texts: list[str]) -> Any:
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
                    item[name] = without_texts(value, texts)
        left.append(item)
    return left


def fold_usage(answer: Answer, usage: dict[str, Any], read: str, written: str) -> bool:
    """Take in a usage whose counts of tokens have the names `read` and `written`. False if it makes no sense; `answer.problem` says why."""
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


def fold_common(answer: Answer, obj: dict[str, Any]) -> None:
    """Take in what every answer says of itself: its model and its service tier."""
    if isinstance(obj.get("model"), str):
        answer.model = obj["model"]
    if isinstance(obj.get("service_tier"), str):
        answer.service_tier = obj["service_tier"]
