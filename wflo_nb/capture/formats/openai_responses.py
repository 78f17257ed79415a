"""OpenAI's responses, whose context may be kept at the provider and whose tools may run there.

Definition: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wflo_nb.capture.formats import caps, known, openai_tools
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat
from wflo_nb.capture.formats.openai_parts import facts_of, fold_common, fold_usage, media_in, without_texts

#: Where a request for a response has its input, one of them at least. A stored prompt may name the model too.
_CONTEXT = frozenset({"input", "prompt", "previous_response_id", "conversation"})


def _read(body: dict[str, Any], seller: str | None = None, _path: str = "") -> Facts:
    model = str(body.get("model") or "")
    tools = openai_tools.of_response(body, seller)
    window = None
    for field in ("previous_response_id", "conversation", "prompt"):
        if body.get(field):
            window = f"context kept at the provider ({field})"
    media = media_in(body.get("input"), seller, model)
    unbounded = tools.unbounded or known.unlimited(body)
    return facts_of(body, model, media, tools, window, cap=caps.stated(body, "max_output_tokens"), unbounded=unbounded)


def _texts(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    texts: list[str] = []
    given = body.get("input")
    if isinstance(given, str):
        texts.append(given)
        given = ""
    skeleton = {**body, "input": without_texts(given, texts)}
    if isinstance(body.get("instructions"), str):
        texts.append(body["instructions"])
        skeleton["instructions"] = ""
    return skeleton, texts


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    inner = obj.get("response")
    response = inner if isinstance(inner, dict) else obj
    fold_common(answer, response)
    details = response.get("incomplete_details")
    if isinstance(details, dict) and details.get("reason") == "max_output_tokens":
        answer.truncated = True
    answer.ended = obj.get("type") in ("response.completed", "response.incomplete", "response.failed")
    if answer.streaming and not answer.ended:
        return  # what is counted at the beginning is not what will be billed
    usage = response.get("usage")
    if response.get("status") in ("queued", "in_progress"):
        answer.problem = f"the answer is made in the background; what it cost is known once {response.get('id')} has completed"
    elif isinstance(usage, dict) and fold_usage(answer, usage, "input_tokens", "output_tokens"):
        openai_tools.count_uses(answer, response)
        answer.complete = True


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    caps.write(body, max(cap, 16), "max_output_tokens")  # the least that the interface accepts


def _said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    kind = obj.get("type")
    if kind in ("response.output_text.delta", "response.refusal.delta"):
        yield 0, obj["delta"]
    elif not isinstance(kind, str):  # a whole answer; in a stream the last event says everything once more
        for item in obj.get("output") or ():
            for part in item.get("content") or ():
                if isinstance(text := part.get("text") or part.get("refusal"), str):
                    yield 0, text


FORMATS = (
    WireFormat(
        "responses",
        "/responses",
        "openai",
        lambda b: isinstance(b.get("prompt"), dict) or ("model" in b and not _CONTEXT.isdisjoint(b)),
        _read,
        _fold,
        _write_cap,
        texts=_texts,
        said=_said,
    ),
)
