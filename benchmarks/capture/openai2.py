"""OpenAI's SDK 2, which stands on another HTTP library than 3."""

from __future__ import annotations

from benchmarks.capture import openai_rows

ROWS = openai_rows.rows("openai 2")
