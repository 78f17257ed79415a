"""OpenLLMetry (opentelemetry-instrumentation-openai 0.62.4), by `OpenAIInstrumentor().instrument()`; spans only, no metrics.

See https://www.traceloop.com/docs/openllmetry. Prompts and answers are in its spans, as by default. The SDK is wrapped
in many places, so the bare SDK has a process of its own.
"""

from __future__ import annotations

from typing import Any

import otlp
from opentelemetry.instrumentation.openai import OpenAIInstrumentor


class Enforcer(otlp.Enforcer):
    leaves = True

    def instrumentor(self) -> Any:
        return OpenAIInstrumentor()
