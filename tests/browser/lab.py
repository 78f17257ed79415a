"""JupyterLab on loopback and Chromium in front of it: the page is driven by application commands, not by key presses."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import BrowserContext, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def chromium() -> str:
    """The browser: WFLO_CHROMIUM, or the first one on PATH."""
    names = (os.environ.get("WFLO_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise RuntimeError("These tests need a Chromium on PATH, or its path in WFLO_CHROMIUM.")
    return found


@contextlib.contextmanager
def browser() -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            yield running.new_context(viewport={"width": 1200, "height": 860}, device_scale_factor=2)
        finally:
            running.close()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Lab:
    """One server with directories, port and token of its own."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.files = root / "files"
        self.files.mkdir(parents=True)
        self.token, self.url = secrets.token_hex(8), f"http://127.0.0.1:{_free_port()}"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("WFLO_", "JPY_", "JUPYTER"))}
        env.update(environment, WFLO_STATE_DIR=str(root / "state"), JUPYTER_PREFER_ENV_PATH="0")
        for name, folder in {
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }.items():
            (root / folder).mkdir()
            env[name] = str(root / folder)
        spec = root / "data" / "kernels" / "here"
        spec.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "here", "language": "python", "metadata": {"debugger": False}})
        )
        quiet = root / "settings" / "@jupyterlab" / "apputils-extension"
        quiet.mkdir(parents=True)
        (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        self.log = root / "server.log"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.url.rsplit(':', 1)[1]}"]
        command += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.files}", "--ServerApp.port_retries=0"]
        command += [
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.news_url=",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]
        command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                self.ask("/api/status")
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        self.close()
        raise RuntimeError(f"JupyterLab did not come up:\n{self.log.read_text()[-3000:]}")

    def ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(self.url + path, method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def write(self, name: str, cells: Sequence[str]) -> None:
        notebook = nbformat.v4.new_notebook()
        notebook.metadata["kernelspec"] = {"name": "here", "display_name": "here", "language": "python"}
        notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbformat.write(notebook, self.files / name)

    def end_kernels(self) -> None:
        with contextlib.suppress(OSError):
            for session in self.ask("/api/sessions"):
                with contextlib.suppress(OSError):
                    self.ask(f"/api/sessions/{session['id']}", "DELETE")

    def close(self) -> None:
        if self.process.poll() is not None:
            return
        self.end_kernels()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(8)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Page:
    """One notebook in JupyterLab. Cell states come from the model: the kernel's status says idle while a cell is blocked."""

    def __init__(self, lab: Lab, context: BrowserContext, name: str) -> None:
        self.lab = lab
        self.page = context.new_page()
        self.console: list[str] = []
        self.page.on("console", lambda m: self.console.append(f"{m.type}: {m.text}"))
        self.page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        here = "window.jupyterapp.shell.currentWidget"
        self.page.wait_for_function(f"() => window.jupyterapp && {here} && {here}.sessionContext", timeout=60_000)
        self.page.evaluate(f"async () => {{ await {here}.sessionContext.ready }}")
        self.page.wait_for_function(f"() => {here}.sessionContext.session?.kernel?.status === 'idle'", timeout=60_000)

    def run(self, cell: int, *, wait: bool = True, timeout: float = 60) -> None:
        self.page.evaluate(
            """i => { const w = window.jupyterapp.shell.currentWidget; w.content.activeCellIndex = i; w.content.deselectAll();
                      window.jupyterapp.commands.execute('notebook:run-cell'); }""",
            cell,
        )
        if wait:
            self.wait_done(cell, timeout)

    def wait_done(self, cell: int, timeout: float = 60) -> None:
        self.page.wait_for_function(
            """i => { const w = window.jupyterapp.shell.currentWidget;
                      return w.content.widgets[i].model.executionState === 'idle' && w.model.cells.get(i).executionCount !== null }""",
            arg=cell,
            timeout=timeout * 1000,
        )

    def is_running(self, cell: int) -> bool:
        return bool(
            self.page.evaluate("i => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionState === 'running'", cell)
        )

    def outputs(self, cell: int) -> list[dict[str, Any]]:
        found = self.page.evaluate("i => window.jupyterapp.shell.currentWidget.model.cells.get(i).outputs.toJSON()", cell)
        return list(found)

    def text(self, cell: int) -> str:
        parts = [o.get("text") or o.get("evalue") or o.get("data", {}).get("text/plain", "") for o in self.outputs(cell)]
        return "\n".join("".join(p) if isinstance(p, list) else p for p in parts)

    def value(self, expression: str) -> str:
        """The repr of an expression in the kernel, asked over the page's own connection, without history."""
        found = self.page.evaluate(
            """async e => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const r = await k.requestExecute({code: '', silent: true, store_history: false, user_expressions: {x: e}}).done;
                return r.content.user_expressions.x }""",
            expression,
        )
        assert found["status"] == "ok", found
        return str(found["data"]["text/plain"])

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        self.page.evaluate("async ([n, a]) => { await window.jupyterapp.commands.execute(n, a || {}) }", [name, arguments])

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", {"theme": name})
        light = "true" if "Light" in name else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_timeout(600)  # the style sheet swaps after the attribute

    def close(self) -> None:
        self.page.close()
        self.lab.end_kernels()
