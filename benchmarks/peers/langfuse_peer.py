"""Langfuse 5.0.4, by ``from langfuse.openai import openai``, its drop-in for the SDK; its exporter sends to the sink.

See https://langfuse.com/docs/integrations/openai. The import patches the SDK for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import base
from base import Given


class Session(base.Session):
    tracer: Any

    def flush(self) -> None:
        self.tracer.flush()


class Enforcer(base.Enforcer):
    leaves = True

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        import langfuse.openai
        from langfuse import Langfuse

        session = Session(given)
        session.tracer = Langfuse(public_key="pk-lf-none", secret_key="sk-lf-none", base_url=given.sink)
        assert langfuse.openai.OpenAI is not None
        yield session
        session.tracer.shutdown()
