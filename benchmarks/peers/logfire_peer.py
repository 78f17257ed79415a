"""Logfire 5.4.0, by `logfire.instrument_openai(client)`, without its cloud: spans go by OTLP to a backend of one's own, here the sink.

See https://logfire.pydantic.dev/docs/how-to-guides/alternative-backends/. Nothing is printed to the console.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import base
import logfire
from base import Given


class Session(base.Session):
    def make_openai(self) -> Any:
        client = super().make_openai()
        logfire.instrument_openai(client)
        return client

    def flush(self) -> None:
        logfire.force_flush()


class Enforcer(base.Enforcer):
    ready = False

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        if not self.ready:
            os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{given.sink}/v1/traces"
            logfire.configure(send_to_logfire=False, console=False)
            self.ready = True
        yield Session(given)
