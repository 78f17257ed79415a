"""A pytest plugin: a pgbouncer in transaction mode before the PostgreSQL server of the tests.

Each statement, or each transaction, may be given another server session, and several clients take turns on few of them: what
hosted databases put before theirs. When no pgbouncer is installed, a test that asks for it fails; it is never skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.postgres import _free_port, _unprivileged
from tests.proxy import moved

_MISSING = "No pgbouncer for the tests: install it (Debian: apt-get install pgbouncer; macOS: brew install pgbouncer)."
#: Server sessions per database: fewer than the clients of any test that is about them.
POOL = 3

_SETTINGS = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
admin_users = admin
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 500
logfile = {log}
"""


def _program() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin:/usr/local/bin")


@pytest.fixture(scope="session")
def pgbouncer_port(postgres_server: str) -> Iterator[int]:
    """The port behind which every database of the tests' server is found through a pooler."""
    program = _program()
    if program is None:
        pytest.fail(_MISSING, pytrace=False)
    at = urlsplit(postgres_server)
    folder = Path(tempfile.mkdtemp(prefix="wflo-pgbouncer-"))
    own, log = _free_port(), folder / "log"
    text = _SETTINGS.format(host=at.hostname, port=at.port or 5432, user=at.username or "postgres", own=own, pool=POOL, log=log)
    (folder / "ini").write_text(text + (f"[users]\n{at.username} = password={at.password}\n" if at.password else ""))
    unprivileged = _unprivileged()
    if unprivileged:
        for path in (folder, folder / "ini"):
            shutil.chown(path, unprivileged["user"], unprivileged["group"])
    process = subprocess.Popen([program, "--quiet", folder / "ini"], start_new_session=True, **unprivileged)
    try:
        _wait(process, own, log)
        with psycopg.connect(f"postgresql://admin@127.0.0.1:{own}/pgbouncer", autocommit=True, prepare_threshold=None) as console:
            console.cursor_factory = psycopg.ClientCursor
            settings = {row[0]: row[1] for row in console.execute("SHOW CONFIG")}
        assert settings["pool_mode"] == "transaction", settings["pool_mode"]
        yield own
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pgbouncer_url(postgres_url: str, pgbouncer_port: int) -> str:
    """URL of an empty database of this test alone, through the pooler."""
    return moved(postgres_url, pgbouncer_port)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            psycopg.connect(f"postgresql://admin@127.0.0.1:{port}/pgbouncer", connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                pytest.fail(f"pgbouncer did not start: {error}\n{said}", pytrace=False)
            time.sleep(0.05)
