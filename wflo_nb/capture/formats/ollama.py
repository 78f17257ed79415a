"""Ollama's own interface: chat, generate and embeddings, streamed as JSON lines unless told otherwise.

Definition: https://github.com/ollama/ollama/blob/main/docs/api.md. Its models run on the user's machine and cost nothing unless a price is
declared; those with ``cloud`` at the end of their name run elsewhere. The last line of a stream has ``"done": true`` and the counts;
`prompt_eval_count` is left out where the whole prompt was cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wflo_nb.capture.formats import caps
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat


def _read(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    options, messages = body.get("options"), body.get("messages")
    messages = messages if isinstance(messages, list) else []
    pictures = body.get("images") or any(isinstance(one, dict) and one.get("images") for one in messages)
    window = "a context kept at the server" if body.get("context") else None
    if pictures:
        window = "images, which are counted as the model likes"
    return Facts(
        model=str(body.get("model") or ""),
        stream=body.get("stream") is not False,
        cap=caps.stated(options, "num_predict") if isinstance(options, dict) else None,
        window=window,
    )


def _read_embedding(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    return Facts(model=str(body.get("model") or ""), produces=False)


def _fold(answer: Answer, obj: dict[str, Any]) -> None:
    if isinstance(obj.get("model"), str):
        answer.model = obj["model"]
    if obj.get("done") is not True:
        return
    answer.truncated = obj.get("done_reason") == "length"
    written = obj.get("eval_count")
    if written is None and answer.paid:
        answer.problem = "the last line has no eval_count"
        return
    answer.complete = answer.put(input_tokens=obj.get("prompt_eval_count") or 0, output_tokens=written or 0)
    answer.ended = True


def _fold_embedding(answer: Answer, obj: dict[str, Any]) -> None:
    if isinstance(obj.get("model"), str):
        answer.model = obj["model"]
    if "embeddings" in obj or "embedding" in obj:
        answer.complete = answer.put(input_tokens=obj.get("prompt_eval_count") or 0)


def _write_cap(body: dict[str, Any], cap: int, _host: str) -> None:
    options = body.get("options")
    body["options"] = written = dict(options) if isinstance(options, dict) else {}
    caps.write(written, cap, "num_predict")


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """Nothing is generated, so there is nothing to cap."""


def _said(obj: dict[str, Any]) -> Iterator[tuple[int, str]]:
    message = obj.get("message")
    text = message.get("content") if isinstance(message, dict) else obj.get("response")
    if isinstance(text, str):
        yield 0, text


def _ends(data: bytes) -> bool:
    return b'"done"' in data and b"true" in data


FORMATS = (
    WireFormat(
        "ollama_chat",
        "/api/chat",
        "ollama",
        lambda b: "model" in b and "messages" in b,
        _read,
        _fold,
        _write_cap,
        said=_said,
        matters=_ends,
        local=True,
    ),
    WireFormat(
        "ollama_generate",
        "/api/generate",
        "ollama",
        lambda b: "model" in b,
        _read,
        _fold,
        _write_cap,
        said=_said,
        matters=_ends,
        local=True,
    ),
    WireFormat("ollama_embed", "/api/embed", "ollama", lambda b: "model" in b, _read_embedding, _fold_embedding, _no_cap, local=True),
    WireFormat("ollama_embed", "/api/embeddings", "ollama", lambda b: "prompt" in b, _read_embedding, _fold_embedding, _no_cap, local=True),
)
