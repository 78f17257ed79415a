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
    assert line["kept"] == {"call": rows.LAST, f"stream_of_{rows.SHORT}": rows.LAST}
    assert min(line["bare_us"].values()) > 0


def test_a_tool_that_does_not_exist_is_answered_with_those_that_do() -> None:
    done = benchmark("--only", "nobody")
    assert done.returncode == 1
    assert "There are: wflo, " in done.stderr


def tool(key: str, group: str, call_us: float, chunk_us: float, kept: int, *, step_us: float = 0, follows: bool = True) -> rows.Row:
    """One whose calls cost so much beside a bare SDK of 1000 µs and 100 µs a chunk, and an agent's steps so much more."""
    row = rows.Row(key, key, group, "a file", follows=follows)
    for kind in rows.KINDS:
        bare = 1000 + 100 * kind.chunks
        more = call_us + chunk_us * kind.chunks + (step_us if kind is rows.STEP else 0)
        row.cpu[kind, rows.BARE] = [bare / 1e6] * 5
        row.cpu[kind, rows.WITH] = [(bare + more) / 1e6] * 5
    row.kept = {rows.CALL: kept, rows.STREAM: kept}
    return row


@pytest.mark.parametrize(
    ("call_us", "step_us", "chunk_us", "kept", "good"),
    [
        (90, 0, 4, 3, True),
        (110, -20, 4, 3, False),  # dearer for each call
        (90, 20, 4, 3, False),  # dearer for each step
        (90, 0, 6, 3, False),  # dearer for each chunk
        (90, 0, 4, 2, False),  # lost a call
    ],
)
def test_ours_must_be_as_cheap_as_the_cheapest_that_keeps_its_record(
    call_us: float, step_us: float, chunk_us: float, kept: int, good: bool
) -> None:
    others = [tool("durable", "budget", 100, 5, 3), tool("dear", "budget", 900, 50, 3), tool("forgets", "budget", 1, 0, 0)]
    told = tool("told by its user's loop", "budget", 200, 1, 3, follows=False)
    tracing = tool("tracing", "tracing", 1, 0, 0)  # an aim, no condition
    plain = tool("makes no steps", "budget", 150, 50, 3)
    plain.cpu[rows.STEP, rows.BARE] = plain.cpu[rows.STEP, rows.WITH] = []
    ours = tool("ours", "ours", call_us, chunk_us, kept, step_us=step_us)
    assert overhead_peers.compare([ours, *others, told, plain, tracing]) is good


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
