"""OpenInference (openinference-instrumentation-openai 0.1.66), by `OpenAIInstrumentor().instrument()`, as its README.

See https://arize-ai.github.io/openinference/. Prompts and answers are in its spans, as by default.
"""

from __future__ import annotations

from typing import Any

import otlp
from openinference.instrumentation.openai import OpenAIInstrumentor


class Enforcer(otlp.Enforcer):
    def instrumentor(self) -> Any:
        return OpenAIInstrumentor()
