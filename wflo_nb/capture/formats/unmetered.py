"""Paths where work is ordered whose cost is nowhere in the request: recorded as unmetered, refused under a budget in words that say
why.

Definitions: https://platform.openai.com/docs/api-reference/batch, https://docs.anthropic.com/en/api/creating-message-batches,
https://docs.mistral.ai/api/#tag/batch, https://docs.mistral.ai/api/#tag/beta.conversations,
https://platform.openai.com/docs/api-reference/videos, https://ai.google.dev/gemini-api/docs/batch-api.
"""

from __future__ import annotations

import re
from typing import Any

from wflo_nb.capture.formats.base import Answer, Facts, WireFormat
from wflo_nb.capture.formats.openai_media import form_or_json

_VIDEO = "orders a video: it is billed by the second, at rates that the price table does not state"
_CONVERSATION = "goes on with a conversation whose history, agent and tools are kept at the provider, some of them billed per use"
_BATCH = "starts a batch: what it costs is decided by files and answers at the provider, hours later"


def _read(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    return Facts(model=str(body.get("model") or ""), unbounded="nothing in the request bounds it")


def _fold(_answer: Answer, _obj: dict[str, Any]) -> None:
    """Nothing that an answer says is the cost of such a call."""


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """There is nothing to cap."""


def _unmetered(api: str, path: str, provider: str, field: str, why: str) -> WireFormat:
    needed = field.split()
    return WireFormat(
        api,
        re.compile(path),
        provider,
        lambda b: all(name in b for name in needed),
        _read,
        _fold,
        _no_cap,
        parse=form_or_json,
        unmetered=why,
    )


FORMATS = (
    _unmetered("batches", r"(?<!/messages)/batches$", "openai", "input_file_id", _BATCH),
    _unmetered("batches", r"/messages/batches$", "anthropic", "requests", _BATCH),
    _unmetered("batches", r"/batch/jobs$", "mistral_ai", "model", _BATCH),
    _unmetered("conversations", r"/v1/conversations(?:/[^/]+(?:/restart)?)?$", "mistral_ai", "inputs", _CONVERSATION),
    _unmetered("videos", r"/videos(?:/generations|/edits|/extensions|/[^/]+/remix)?$", "openai", "model prompt", _VIDEO),
    _unmetered("videos", r"/video/generations/jobs$", "azure.ai.openai", "model prompt", _VIDEO),
    _unmetered("batches", r":(?:batchGenerateContent|asyncBatchEmbedContent)$", "gcp.gemini", "batch", _BATCH),
)
