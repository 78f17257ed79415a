"""A refusal as an answer, for SDKs that retry and wrap whatever a transport raises.

OpenAI's and Anthropic's let their own root errors pass, and a refusal is one (`wflo_nb.capture.refusal`). Others that are generated as
theirs are (Groq, Together, Cerebras) take any exception for a lost connection. They get a 402 that says not to try again, and that
raises the refusal itself where they look whether an answer is a good one.
"""

from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

from wflo_nb.errors import WfloError

#: Such SDKs tell in the first of these headers that they are generated, in the second who they are, and obey the last one in an answer.
_GENERATED, _NAME, _RETRY = "x-stainless-lang", "user-agent", "x-should-retry"
#: ``Groq/Python 1.2``. Frameworks that put their own name there may stand on any SDK.
_ITSELF = re.compile(r"\w+/Python ")
_PASSING = ("OpenAI", "Anthropic")


def answer(lib: ModuleType, request: Any, error: WfloError) -> Any:
    """What the client of a request gets in place of the provider's answer.

    Raises:
        WfloError: the refusal, where the client lets it through.
    """
    headers, name = request.headers, request.headers.get(_NAME, "")
    if _GENERATED not in headers or not _ITSELF.match(name) or any(passing in name for passing in _PASSING):
        raise error

    class Refused(lib.Response):  # type: ignore[misc, name-defined]
        def raise_for_status(self) -> Any:
            raise error

    told = {"error": {"message": str(error), "type": type(error).__name__, "code": "refused_before_it_was_sent"}}
    return Refused(402, headers={"content-type": "application/json", _RETRY: "false"}, content=json.dumps(told).encode())
