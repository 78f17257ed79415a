"""Where rows run: an environment for SDKs and frameworks that can be installed together, each with its tables."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.capture.cells import Row

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Environment:
    """An environment that a recipe makes.

    Attributes:
        key: for ``--only``.
        folder: its place in the project.
        make: what makes it.
        tables: modules with rows.
    """

    key: str
    folder: str
    make: str
    tables: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ROOT / self.folder / "bin" / "python"

    @property
    def present(self) -> bool:
        """Whether it was made."""
        return self.python.exists()

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Its rows, each with the table it is in."""
        for table in self.tables:
            for row in importlib.import_module(table).ROWS:
                yield table, row


ENVIRONMENTS = (
    Environment("sdks", ".venv", "make .venv/.test", ("benchmarks.capture.sdks",)),
    Environment("graphs", ".venv-frameworks-graphs", "make .venv-frameworks-graphs/.ready", ("benchmarks.capture.graphs",)),
    Environment("crews", ".venv-frameworks-crews", "make .venv-frameworks-crews/.ready", ("benchmarks.capture.crews",)),
    Environment("agents", ".venv-frameworks-agents", "make .venv-frameworks-agents/.ready", ("benchmarks.capture.agents",)),
    Environment("indexes", ".venv-frameworks-indexes", "make .venv-frameworks-indexes/.ready", ("benchmarks.capture.indexes",)),
    Environment("openai2", ".venv-openai2", "make .venv-openai2/.ready", ("benchmarks.capture.openai2",)),
)

#: No way to any host but this one.
SHUT = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
_THEIRS = ("OPENAI_", "ANTHROPIC_", "GOOGLE_", "GEMINI_", "AWS_", "WFLO_", "LITELLM_", "OTEL_", "CREWAI_", "LANGCHAIN_", "LANGSMITH_")


def variables(row: Row, home: str) -> dict[str, str]:
    """What a worker finds in its environment: none of the user's keys and files, no way to a real provider."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_THEIRS)}
    kept |= SHUT | {name.upper(): value for name, value in SHUT.items()}
    kept |= {f"{name}_API_KEY": "none" for name in ("OPENAI", "ANTHROPIC")}
    kept |= {"HOME": home, "WFLO_STATE_DIR": f"{home}/state", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    kept |= {"CREWAI_DISABLE_TELEMETRY": "true", "CREWAI_TRACING_ENABLED": "false", "CREWAI_STORAGE_DIR": f"{home}/crewai"}
    kept |= {"OTEL_SDK_DISABLED": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "AWS_EC2_METADATA_DISABLED": "true"}
    return kept | ({"WFLO_GATEWAYS": f"127.0.0.1={row.owner}"} if row.owner else {})
