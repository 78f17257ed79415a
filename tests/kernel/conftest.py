"""A real ipykernel per module, driven over its own wire, with the extension loaded and a local provider behind the SDKs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from wflo_nb.testing import FakeProvider

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Output:
    """What a cell sent: `kind` is the message's type, `text` its plain text."""

    kind: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ran:
    """One executed cell."""

    status: str
    outputs: list[Output]
    reply: dict[str, Any]

    @property
    def text(self) -> str:
        return "\n".join(o.text for o in self.outputs)

    @property
    def errors(self) -> list[Output]:
        return [o for o in self.outputs if o.kind == "error"]

    @property
    def result(self) -> str | None:
        return next((o.text for o in self.outputs if o.kind == "execute_result"), None)


class Kernel:
    """A running kernel and its client."""

    def __init__(self, folder: Path, provider: FakeProvider | None = None, **environment: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("WFLO_", "JPY_"))}
        env.update(WFLO_STATE_DIR=str(folder / "state"), IPYTHONDIR=str(folder / "ipython"), PYTHONWARNINGS="default", **environment)
        url = provider.url if provider else "http://127.0.0.1:9"
        env.update(OPENAI_API_KEY="test-key", OPENAI_BASE_URL=f"{url}/v1", ANTHROPIC_API_KEY="test-key", ANTHROPIC_BASE_URL=url)
        self.manager = KernelManager(kernel_name="python3")
        assert self.manager.kernel_spec is not None
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel(env=env, cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code: str, *, interrupt: float | None = None, timeout: float = 90, cell_id: str | None = None) -> Ran:
        """Run a cell to its end and collect what it sent."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell_id} if cell_id else None)
        self.client.shell_channel.send(message)
        id = message["header"]["msg_id"]
        if interrupt is not None:
            time.sleep(interrupt)
            self.manager.interrupt_kernel()
        outputs: list[Output] = []
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            got = self.client.get_iopub_msg(timeout=timeout)
            if got["parent_header"].get("msg_id") != id:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            if kind in ("execute_result", "display_data", "update_display_data"):
                outputs.append(Output(kind, content["data"].get("text/plain", ""), content["data"]))
            elif kind == "stream":
                outputs.append(Output(content["name"], content["text"]))
            elif kind == "error":
                trace = _ANSI.sub("", "\n".join(content["traceback"]))
                outputs.append(Output("error", f"{content['ename']}: {content['evalue']}\n{trace}", content))
        reply = self.reply(id, timeout)
        return Ran(reply["status"], outputs, reply)

    def value(self, expression: str) -> Any:
        """The value of a Python expression in the kernel, without leaving a trace in its history (silent)."""
        content = {"code": "", "silent": True, "store_history": False, "user_expressions": {"v": expression}, "allow_stdin": False}
        message = self.client.session.msg("execute_request", content)
        self.client.shell_channel.send(message)
        found = self.reply(message["header"]["msg_id"])["user_expressions"]["v"]
        assert found["status"] == "ok", found
        return eval(found["data"]["text/plain"])

    def reply(self, id: str, timeout: float = 60) -> dict[str, Any]:
        while True:
            got = self.client.get_shell_msg(timeout=timeout)
            if got["parent_header"].get("msg_id") == id:
                return dict(got["content"])


def start(folder: Path, provider: FakeProvider | None = None, **environment: str) -> Kernel:
    folder.mkdir(parents=True, exist_ok=True)
    return Kernel(folder, provider, **environment)


@pytest.fixture(scope="module")
def bill() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, bill: FakeProvider) -> Iterator[Kernel]:
    running = start(tmp_path_factory.mktemp("kernel"), bill)
    loaded = running.run("%load_ext wflo_nb")
    assert loaded.status == "ok", loaded.text
    yield running
    running.close()
