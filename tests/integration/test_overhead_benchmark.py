"""The comparison of overheads, run for this package alone: its harness works, and the record of a call outlives a kill right after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import overhead_peers  # makes the two beneath importable

# isort: split
import rows
import sink

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "overhead_peers.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_calls_are_in_the_ledger_when_their_process_is_killed_right_after_the_answer() -> None:
    done = benchmark("--only", "wflo", "--calls", "4", "--rounds", "2", "--starts", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert line["kept"] == {"0": rows.LAST, str(rows.SHORT): rows.LAST}
    assert min(line["bare_us"].values()) > 0


def test_a_tool_that_does_not_exist_is_answered_with_those_that_do() -> None:
    done = benchmark("--only", "nobody")
    assert done.returncode == 1
    assert "There are: wflo, " in done.stderr


def tool(key: str, group: str, call_us: float, chunk_us: float, kept: int) -> rows.Row:
    """One whose calls cost so much beside a bare SDK of 1000 µs and 100 µs a chunk."""
    row = rows.Row(key, key, group, "a file")
    for chunks in rows.KINDS:
        row.cpu[chunks, rows.BARE] = [(1000 + 100 * chunks) / 1e6] * 5
        row.cpu[chunks, rows.WITH] = [(1000 + 100 * chunks + call_us + chunk_us * chunks) / 1e6] * 5
    row.kept = {0: kept, rows.SHORT: kept}
    return row


@pytest.mark.parametrize(
    ("call_us", "chunk_us", "kept", "good"),
    [
        (90, 4, 3, True),
        (110, 4, 3, False),  # dearer for each call
        (90, 6, 3, False),  # dearer for each chunk
        (90, 4, 2, False),  # lost a call
    ],
)
def test_ours_must_be_as_cheap_as_the_cheapest_that_keeps_its_record(call_us: float, chunk_us: float, kept: int, good: bool) -> None:
    others = [tool("durable", "budget", 100, 5, 3), tool("dear", "budget", 900, 50, 3), tool("forgets", "budget", 1, 0, 0)]
    tracing = tool("tracing", "tracing", 1, 0, 0)  # an aim, no condition
    assert overhead_peers.compare([tool("ours", "ours", call_us, chunk_us, kept), *others, tracing]) is good


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def test_the_sink_counts_the_spans_of_an_export() -> None:
    span = field(1, b"t" * 16) + bytes([6 << 3, 3]) + bytes([7 << 3 | 1]) + b"\0" * 8 + field(5, b"chat")
    scope = field(1, b"") + field(2, span) + field(2, span)
    resource = field(1, field(1, b"")) + field(2, scope)
    assert sink.count("/tool/v1/traces", resource_spans := field(1, resource) + field(1, field(2, field(2, span)))) == 3
    assert sink.count("/tool/v1/metrics", resource_spans) == 0
    assert sink.count("/tool/v1/ingest", b'{"events": [{}, {}]}') == 2
