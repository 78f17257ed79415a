"""LiteLLM has a second HTTP client in compiled code, where nothing can be seen. While calls are watched it stays off.

``LITELLM_RUST=0`` is asked for at every call and goes before `litellm.rust(True)`. What exists only there (OCR and Bedrock transcription)
is not affected.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType

_SWITCH = "LITELLM_RUST"


def patch(lib: ModuleType) -> Callable[[], None]:  # noqa: ARG001 - any version: who does not know the switch does not mind it
    """Keep litellm on the path that is seen. Returns the undo."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "0"

    def undo() -> None:
        if os.environ.get(_SWITCH) != "0":  # the user's own later choice
            return
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before

    return undo
