"""Paths where work is ordered whose cost is nowhere in the request: recorded as unmetered, refused under a budget in words that say
why.

Definitions: https://platform.openai.com/docs/api-reference/batch, https://docs.anthropic.com/en/api/creating-message-batches,
https://docs.mistral.ai/api/#tag/batch, https://ai.google.dev/gemini-api/docs/batch-api.
"""

from __future__ import annotations

import re
from typing import Any

from wflo_nb.capture.formats.base import Answer, Facts, WireFormat

_BATCH = "starts a batch: what it costs is decided by files and answers at the provider, hours later"


def _read(body: dict[str, Any], _seller: str | None = None, _path: str = "") -> Facts:
    return Facts(model=str(body.get("model") or ""), unbounded="nothing in the request bounds it")


def _fold(_answer: Answer, _obj: dict[str, Any]) -> None:
    """Nothing that an answer says is the cost of such a call."""


def _no_cap(_body: dict[str, Any], _cap: int, _host: str) -> None:
    """There is nothing to cap."""


def _unmetered(api: str, path: str, provider: str, field: str, why: str) -> WireFormat:
    return WireFormat(api, re.compile(path), provider, lambda b: field in b, _read, _fold, _no_cap, unmetered=why)


FORMATS = (
    _unmetered("batches", r"(?<!/messages)/batches$", "openai", "input_file_id", _BATCH),
    _unmetered("batches", r"/messages/batches$", "anthropic", "requests", _BATCH),
    _unmetered("batches", r"/batch/jobs$", "mistral_ai", "model", _BATCH),
    _unmetered("batches", r":(?:batchGenerateContent|asyncBatchEmbedContent)$", "gcp.gemini", "batch", _BATCH),
)
