"""An environment for each enforcer, made when it is first needed, from the pins in ``requirements``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "bench"
#: Adapters that are two ways of using one package.
SAME = {
    "litellm_completion": "litellm",
    "litellm_max_budget": "litellm",
    "litellm_manager": "litellm",
    "agentguard47_file": "agentguard47",
    "pydantic_ai_kept": "pydantic_ai",
}
#: Adapters of packages that count with tiktoken.
TIKTOKEN = {"agent_budget_guard", "agentkavach"}


class NotInstalled(Exception):
    """The packages of an enforcer could not be installed."""


def pins(adapter: str) -> list[str]:
    """What the environment of an adapter holds, first the enforcer itself."""
    return (HERE / "requirements" / f"{SAME.get(adapter, adapter)}.txt").read_text().split()


def python(adapter: str) -> str:
    """The interpreter to run an adapter with; its environment is made if it is not there.

    Raises:
        NotInstalled: the packages could not be had.
    """
    if adapter == "wflo":
        return sys.executable
    wanted = pins(adapter)
    folder = CACHE / f"{SAME.get(adapter, adapter)}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:8]}"
    program = folder / "bin" / "python"
    if (folder / "ready").exists():
        return str(program)
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv")
    if uv:
        _run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "--quiet", "--python", str(program), *wanted)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
    (folder / "ready").touch()
    return str(program)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(f"{' '.join(command[:3])} … failed: {(done.stderr or done.stdout).strip()[-300:]}")


def environment(adapter: str) -> dict[str, str]:
    """The variables an adapter runs with: none of the user's keys, no way to a real provider."""
    theirs = ("OPENAI_", "ANTHROPIC_", "WFLO_", "LITELLM_", "OTEL_", "LANGFUSE_", "LOGFIRE_", "MLFLOW_", "TRACELOOP_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
    kept |= {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    # tiktoken fetches its tables from the network, and some count nothing without; litellm brings those that matter.
    if adapter in TIKTOKEN:
        with contextlib.suppress(NotInstalled):
            python("litellm_manager")
    tables = sorted(CACHE.glob("litellm-*/lib/python*/site-packages/litellm/litellm_core_utils/tokenizers"))
    if tables and adapter != "wflo":
        kept["TIKTOKEN_CACHE_DIR"] = str(tables[-1])
    return kept
