"""A pytest plugin: a real PostgreSQL server for tests, and a fresh database for each of them.

The server is one that ``WFLO_TEST_POSTGRES`` names (a URL whose user may create databases), else one started here from the
binaries of this machine: in a temporary folder, on a free loopback port, with fsync on, stopped and removed at the end. When
there is neither, a test that asks for a database fails; it is never skipped. The few tests that stop and start their server
(`own_postgres`) always need the binaries.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

_MISSING = (
    "No PostgreSQL server for the tests: install one (Debian: apt-get install postgresql; macOS: brew install postgresql), or set "
    "WFLO_TEST_POSTGRES to the URL of a server whose user may create databases."
)

# Stops the server and removes its folder when the tests end without doing so: killed, crashed, timed out. Their end closes the pipe.
_WATCHER = """
import os, shutil, signal, sys, time
pid, folder = int(sys.argv[1]), sys.argv[2]
if sys.stdin.read() != "stopped":
    try:
        os.kill(pid, signal.SIGINT)
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        pass
    shutil.rmtree(folder, ignore_errors=True)
"""


def _binaries() -> Path | None:
    """The folder that holds ``initdb`` and ``postgres``: on PATH, where Debian and Red Hat put it, or in a wheel."""
    candidates = [str(Path(found).resolve().parent) for name in ("postgres", "initdb") if (found := shutil.which(name))]
    for root, pattern in (("/usr/lib/postgresql", "*/bin"), ("/usr", "pgsql-*/bin"), ("/opt/homebrew/opt", "postgresql*/bin")):
        # The newest first: by the number in the name, so that 9 comes after 15.
        candidates += [
            str(p) for p in sorted(Path(root).glob(pattern), key=lambda p: int("0" + "".join(re.findall(r"\d", str(p)))), reverse=True)
        ]
    with contextlib.suppress(ImportError):
        import pgserver

        candidates.append(str(Path(pgserver.__file__).parent / "pginstall" / "bin"))
    return next((Path(c) for c in candidates if (Path(c) / "initdb").exists() and (Path(c) / "postgres").exists()), None)


def _unprivileged() -> dict[str, int]:
    """PostgreSQL refuses to run as root: whom to run it as then."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid}
    pytest.fail("The tests run as root, and there is no user `postgres` or `nobody` to run a PostgreSQL server as.", pytrace=False)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """A PostgreSQL server of our own."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._as = _unprivileged()
        # Directly under the system's temporary folder: pytest's own is closed to other users.
        self.folder = Path(tempfile.mkdtemp(prefix="wflo-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[str] | None = None
        self.port = _free_port()
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
        subprocess.run(
            [binaries / "initdb", "-D", self.folder / "data", "-U", "wflo", "-A", "trust", "-E", "UTF8", "--no-locale"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            env={"PATH": os.defpath, "TZ": "UTC"},
            **self._as,
        )
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://wflo@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": 200,
        }
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self.folder / "data", *(f"--{k}={v}" for k, v in settings.items())],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("wb"),
            cwd=self.folder,
            env={"PATH": os.defpath, "TZ": "UTC"},
            start_new_session=True,  # Ctrl-C in the terminal is for pytest, which then stops us in order
            **self._as,
        )
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", _WATCHER, str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(errors="replace")[-2000:]
                    self.remove()
                    pytest.fail(f"The PostgreSQL server of {self._binaries} did not start:\n{log}", pytrace=False)
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop at once, ending open sessions; what was committed stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # "fast shutdown"
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(20)
        if self._watcher is not None:
            self._watcher.communicate("stopped")
        self._process = self._watcher = None

    def freeze(self) -> None:
        """Stop all its processes in the middle of what they do: connections stay open, and nothing answers any more."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True).stdout.split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def remove(self) -> None:
        if self._process is not None:
            self.thaw()
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server whose user may create databases."""
    given = os.environ.get("WFLO_TEST_POSTGRES")
    if given:
        yield given
        return
    binaries = _binaries()
    if binaries is None:
        pytest.fail(_MISSING, pytrace=False)
    server = Server(binaries)
    try:
        yield server.url
    finally:
        server.remove()


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A server of this test alone, which it may stop and start."""
    binaries = _binaries()
    if binaries is None:
        pytest.fail(_MISSING, pytrace=False)
    server = Server(binaries)
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of this test alone, dropped afterwards whoever is still connected."""
    name = f"wflo_test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        yield urlunsplit(urlsplit(postgres_server)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(postgres_server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
