"""OpenAI's chat completions and embeddings, also spoken by most other providers, gateways and local servers.

Definitions: https://platform.openai.com/docs/api-reference/chat, …/embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from wflo_nb.capture.formats import caps, known, openai_tools, thinking
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, largest
from wflo_nb.capture.formats.openai_parts import facts_of, fold_common, fold_usage, media_in, model_of, without_texts
from wflo_nb.capture.sse import without_null_usage

_COUNT = (int, type(None))


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
    model = model_of(body, path)
    plain = body.keys() <= _USUAL and not openai_tools.searches(model) and not thinking.is_beside(seller)
    if plain and media_in(body.get("messages"), seller, model) is None:
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
    elif body.get("data_sources"):
        unbounded = "data_sources run further calls at the provider"
    thought = thinking.of_chat(body, model) if thinking.is_beside(seller) else thinking.Thought()
    unbounded = unbounded or known.elsewhere(body) or thought.unbounded
    extra = body.get("extra_body") or body.get("google")
    if extra and "cach" in str(extra):
        window = "context kept at the provider"
    choices = largest(body, "n", "best_of", "candidate_count") or 1
    prediction = body.get("prediction")
    return facts_of(
        body,
        model,
        media_in(body.get("messages"), seller, model),
        tools,
        window,
        cap=caps.stated(body, "max_completion_tokens", "max_tokens"),
        choices=choices,
        unbounded=unbounded,
        # Rejected tokens of a predicted output are billed as output; each byte of it is at most one token.
        extra_output=(thought.tokens + (len(str(prediction).encode("utf-8", "surrogatepass")) if prediction else 0)) * choices,
    )


def _texts_chat(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    texts: list[str] = []
    messages = body.get("messages")
    return {**body, "messages": without_texts(messages, texts)}, texts


def _fold_chat(answer: Answer, obj: dict[str, Any]) -> None:
    fold_common(answer, obj)
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
        if not fold_usage(answer, usage, "prompt_tokens", "completion_tokens"):
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
    from wflo_nb.capture.formats import provider_of  # which imports us

    model = str(body.get("model") or "")
    new = host == "api.openai.com" or host.endswith(".api.openai.com") or _REASONS.match(model) is not None
    new = new or (thinking.is_beside(provider_of(host)) and thinking.caps_all(model))
    caps.write(body, cap, "max_completion_tokens" if new else "max_tokens", "max_completion_tokens", "max_tokens")


# -- embeddings ------------------------------------------------------------------------------------------------------------


def _read_embeddings(body: dict[str, Any], _seller: str | None = None, path: str = "") -> Facts:
    given = body.get("input")
    foreign = isinstance(given, dict) or (isinstance(given, list) and any(isinstance(item, dict) for item in given))
    why = "an input that is not text has no bound that the request shows" if foreign else None
    return Facts(model=model_of(body, path), produces=False, unbounded=why)


def _fold_embeddings(answer: Answer, obj: dict[str, Any]) -> None:
    fold_common(answer, obj)
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
    _EMBEDDINGS,
    replace(_EMBEDDINGS, path=re.compile(r"/deployments/[^/]+/embeddings$"), recognises=lambda b: "input" in b),
)
