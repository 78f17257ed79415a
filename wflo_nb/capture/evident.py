"""What is evidently a call to a model, at a host that nobody knows and in a form that nobody reads.

Such a call is not sent under a budget. By the path alone where only models are called; elsewhere a path that models are called at
and a `model` named in the body, as JSON or as a form: other services share such paths, and name none.
"""

from __future__ import annotations

import functools
import json
import re

#: Only models are called at these, whatever the body.
_ALWAYS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r":(?:stream)?(?:generateContent|GenerateContent)$|:(?:batchE|e)mbedContents?$"), "gcp.gemini"),
    (re.compile(r":(?:streamR|r)awPredict$"), "gcp.vertex_ai"),
    (re.compile(r"/model/[^/]+(?:/[^/]+)*/(?:converse|converse-stream|invoke|invoke-with-response-stream)$"), "aws.bedrock"),
)
_NAMING = re.compile(
    r"/(?:chat/completions|completions|responses|embeddings|rerank|ocr"
    r"|images/(?:generations|edits|variations)|audio/(?:speech|transcriptions|translations)|videos(?:/generations)?)$"
)
_FORM = re.compile(rb'name="?model"?(?=[\r\n;]).{0,200}?\r\n\r\n([^\r\n]{1,200})\r\n', re.DOTALL)


@functools.lru_cache(512)
def may_be(path: str) -> bool:
    """A quick look, before any body is read: whether models are called at such a path."""
    path = path.rstrip("/")
    return _NAMING.search(path) is not None or any(always.search(path) for always, _ in _ALWAYS)


def model_of(path: str, content: bytes) -> tuple[str, str] | None:
    """The provider whose format it seems to be and the model asked for, as far as it is named; None for anything else."""
    path = path.rstrip("/")
    for always, provider in _ALWAYS:
        if always.search(path):
            return provider, ""
    if _NAMING.search(path) is None:
        return None
    model = _named(content)
    return None if model is None else ("openai", model)


def _named(content: bytes) -> str | None:
    """The model that a body names."""
    form = _FORM.search(content) if content[:2] == b"--" else None
    if form is not None:
        return form[1].decode("utf-8", "replace").strip()
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) and model else None
