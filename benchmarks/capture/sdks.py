"""SDKs in the project's own environment."""

from __future__ import annotations

from benchmarks.capture.openai_rows import rows as openai_rows

ROWS = [*openai_rows("openai 3")]
