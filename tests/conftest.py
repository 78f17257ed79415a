"""What every test gets: a state folder of its own, a provider on loopback, and no way to a real one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.testing import FakeProvider

pytest_plugins = ["tests.postgres", "tests.pgbouncer"]


def pytest_configure() -> None:
    """Whoever was started in the background of a shell ignores interrupts, and so do its children: many tests send them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty state folder; nothing of the user's own records is read or written."""
    names = ["STORE", "TEAM", "NB", "UNKNOWN_MODELS", "SERVICE_TIER", "GATEWAYS", "SNAPSHOT_KEY", "TELEMETRY", "RECORD_CONTENT"]
    for name in [*(f"WFLO_{name}" for name in names), *(name for name in os.environ if name.startswith("OTEL_"))]:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "state"
    monkeypatch.setenv("WFLO_STATE_DIR", str(folder))
    yield folder
    import wflo_nb.store as store_room
    import wflo_nb.workflow.runtime as runtime_module

    if store_room._current is not None:
        store_room._current.close()
        store_room._current = None
    if runtime_module._runtime is not None:
        _leave(runtime_module._runtime)
    runtime_module._runtime = None
    refusals = sys.modules.get("wflo_nb.budget.refusals")
    if refusals is not None:
        refusals._unavailable = None  # what one test could not reach is nothing to the next


def _leave(runtime: Any) -> None:
    """Put libraries and threads back; also if a library keeps a thread of its own for ever (gRPC does)."""
    until = time.monotonic() + 1
    while runtime.restore():
        if time.monotonic() > until:
            from wflo_nb.capture import transports

            transports.uninstall()
            runtime._unfollow()
            return
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_real_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that forgets to name its provider must fail, not spend."""
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_API_KEY", "test-key")
        monkeypatch.setenv(f"{name}_BASE_URL", "http://127.0.0.1:9/v1")


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    """A provider on loopback that keeps the true bill."""
    with FakeProvider() as running:
        yield running
