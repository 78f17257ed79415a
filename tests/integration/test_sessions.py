"""Ways to a model that carry no request we could read: refused under a budget, recorded as unmetered without one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import websocket
import websockets.asyncio.client
import websockets.sync.client
import websockets.sync.server

import wflo_nb
from tests.integration.conftest import ledger_calls

KNOWN = "127.0.0.1=openai"


@pytest.fixture
def socket_url() -> Iterator[str]:
    with websockets.sync.server.serve(lambda connection: connection.send("hello"), "127.0.0.1", 0) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever)
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/v1/realtime?model=gpt-realtime"
        server.shutdown()


def by_sync(url: str) -> object:
    with websockets.sync.client.connect(url) as connection:
        return connection.recv()


def by_asyncio(url: str) -> object:
    async def work() -> object:
        async with websockets.asyncio.client.connect(url) as connection:
            return await connection.recv()

    return asyncio.run(work())


def by_websocket_client(url: str) -> object:
    connection = websocket.create_connection(url)
    try:
        return connection.recv()
    finally:
        connection.close()


@pytest.fixture
def grpc_host() -> Iterator[str]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method.endswith("StreamGenerateContent"):
                return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([b"hello"]))
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"hello")

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(5)


SERVICE = "/google.cloud.aiplatform.v1.PredictionService/"


def by_grpc(host: str, method: str = "GenerateContent") -> object:
    with grpc.insecure_channel(host) as channel:
        return channel.unary_unary(SERVICE + method)(b"", timeout=5).decode()


def by_grpc_future(host: str) -> object:
    with grpc.insecure_channel(host) as channel:
        return channel.unary_unary(SERVICE + "GenerateContent").future(b"", timeout=5).result().decode()


def by_grpc_stream(host: str) -> object:
    with grpc.insecure_channel(host) as channel:
        return next(channel.unary_stream(SERVICE + "StreamGenerateContent")(b"", timeout=5)).decode()


def by_grpc_aio(host: str) -> object:
    async def work() -> object:
        async with grpc.aio.insecure_channel(host) as channel:
            return (await channel.unary_unary(SERVICE + "GenerateContent")(b"", timeout=5)).decode()

    return asyncio.run(work())


SOCKETS = [by_sync, by_asyncio, by_websocket_client]
CALLS = [by_grpc, by_grpc_future, by_grpc_stream, by_grpc_aio]


@pytest.mark.parametrize("call", [*SOCKETS, *CALLS])
def test_session_with_a_known_provider_is_refused_under_a_budget_and_recorded_without(
    call: Callable[[str], object], socket_url: str, grpc_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = socket_url if call in SOCKETS else grpc_host
    with wflo_nb.execution(budget_usd=0):
        assert call(where) == "hello"  # nobody's that we know
    assert ledger_calls() == []
    monkeypatch.setenv("WFLO_GATEWAYS", KNOWN)
    with pytest.raises(wflo_nb.errors.UnsupportedFormatError, match="cannot be read"), wflo_nb.execution(budget_usd=1):
        call(where)
    with wflo_nb.execution() as run:
        assert call(where) == "hello"
    assert [row["state"] for row in ledger_calls()] == ["REFUSED", "SETTLED"] and run.figures().unpriced == 1
    assert call(where) == "hello"
    assert len(ledger_calls()) == 2


def test_grpc_methods_that_only_look_are_left_alone(grpc_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_GATEWAYS", KNOWN)
    with wflo_nb.execution(budget_usd=0):
        assert by_grpc(grpc_host, "CountTokens") == by_grpc(grpc_host, "ListModels") == "hello"
    assert ledger_calls() == []


LITELLM = """
import os, sys, types, importlib.abc, importlib.machinery
class Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "litellm" else None
    def create_module(self, spec): return None
    def exec_module(self, module): pass
sys.meta_path.insert(0, Stand())
import wflo_nb
with wflo_nb.execution():
    before = os.environ.get("LITELLM_RUST")
    import litellm
    print(before, os.environ.get("LITELLM_RUST"))
from wflo_nb.workflow.runtime import runtime
runtime().restore()
print(os.environ.get("LITELLM_RUST"))
"""


def test_compiled_client_of_litellm_is_off_while_calls_are_watched() -> None:
    done = subprocess.run([sys.executable, "-c", LITELLM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "0", "None"]
