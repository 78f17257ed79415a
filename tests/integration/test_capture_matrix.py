"""The capture matrix finds holes: each of its checks fails where what it looks at is wrong, and none where all is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import matrix
from benchmarks.capture import run, table
from benchmarks.capture.cells import SYNC, Row
from benchmarks.capture.counters import Counted, counted, stand_in
from benchmarks.capture.environments import ENVIRONMENTS, Environment
from benchmarks.capture.judge import AGAIN, CALLS, CHECKS, COST, HANGS, REFUSED, TOKENS
from tests.integration import capture_rows
from wflo_nb.demo import LocalModel

ROOT = Path(__file__).parents[2]
ROWS = {row.name: row for row in capture_rows.ROWS}


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.3)
    monkeypatch.setattr(run, "END_SECONDS", 3.0)


def measured(name: str) -> run.Result:
    row = ROWS[name]
    with stand_in(row) as counter:
        return run.measure(Path(sys.executable), capture_rows.__name__, row, counter)


def test_row_in_which_nothing_is_wrong_is_whole() -> None:
    result = measured("right")
    assert result.whole
    assert (result.cells[SYNC].calls, result.cells[SYNC].holes) == (1, {})
    assert "| right | openai" in table.markdown([result]) and "| ✓ 1 | – | – | – | – |" in table.markdown([result])


@pytest.mark.parametrize(
    ("name", "checks"),
    [
        ("unseen", {CALLS, TOKENS, COST, REFUSED, AGAIN}),
        ("a thread", {HANGS}),
        ("a process", {HANGS}),
        ("a task", {HANGS}),
        ("goes on", {REFUSED, AGAIN}),
        ("goes on midway", {REFUSED}),
        ("fails bare", {CALLS}),
        ("no usage", {CALLS, TOKENS, COST}),
        ("another price", {COST}),
    ],
)
def test_what_is_wrong_is_a_hole(name: str, checks: set[str]) -> None:
    result = measured(name)
    assert not result.whole
    assert set(result.cells[SYNC].holes) == checks, result.cells[SYNC].holes
    failed = ", ".join(str(CHECKS.index(check) + 1) for check in sorted(checks, key=CHECKS.index))
    assert f"**✗ {failed}**" in table.markdown([result])


def test_form_that_ends_its_process_is_a_hole_and_the_others_are_measured_all_the_same() -> None:
    result = measured("dies")
    assert not result.cells[SYNC].holes
    for form, cell in result.cells.items():
        assert form == SYNC or "the process ended" in cell.holes[HANGS], cell.holes
    assert len(result.cells) == 5


def test_row_must_say_a_word_about_every_form() -> None:
    with pytest.raises(ValueError, match="say why a form does not exist"):
        Row("half", {SYNC: capture_rows.chat}, ("openai",))


def test_environment_that_is_missing_is_told_with_what_makes_it(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Environment("nowhere", ".venv-nowhere", "make .venv-nowhere/.ready", (capture_rows.__name__,))
    rows = [(nowhere, capture_rows.__name__, ROWS["right"])]
    (result,) = matrix.run(rows, None, quick=False)
    assert not result.whole
    assert list(table.holes(result)) == [".venv-nowhere is not installed; this makes it: make .venv-nowhere/.ready"]
    assert list(matrix.run(rows, None, quick=True)) == []
    assert "right: left out" in capsys.readouterr().err


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "matrix.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rows_of_openai_have_no_hole_beside_the_stand_in_and_the_small_model(tmp_path: Path) -> None:
    done = benchmark("--only", "openai 3 chat", "--json", str(tmp_path / "found"), "--markdown", str(tmp_path / "table"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()]
    assert [(line["local"] is not None, line["whole"], len(line["cells"])) for line in lines] == [(False, True, 5), (True, True, 5)]
    assert (tmp_path / "table").read_text() in done.stdout
    assert "10 forms" in done.stdout and "60 checks, 0 holes" in done.stdout


def test_table_is_written_between_the_marks_of_a_document(tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text(f"before\n{table._MARKS[0]}\nold\n{table._MARKS[1]}\nafter\n")
    table.write(document, "new")
    assert document.read_text() == f"before\n{table._MARKS[0]}\nnew\n{table._MARKS[1]}\nafter\n"


def test_matrix_in_the_documents_has_every_row_and_no_hole() -> None:
    written = (ROOT / "docs" / "benchmarks.md").read_text().partition(table._MARKS[0])[2].partition(table._MARKS[1])[0]
    rows = [row for environment in ENVIRONMENTS for _, row in environment.rows()]
    assert [row.name for row in rows if f"| {row.name} |" not in written] == []
    assert [row.name for row in rows if row.local and f"| {row.name}, {LocalModel.name} |" not in written] == []
    assert "✗" not in written and "not run" not in written and " 0 holes" in written


def test_name_that_does_not_exist_is_answered_with_those_that_do() -> None:
    done = benchmark("--only", "nobody")
    assert done.returncode == 1
    assert "No such row: nobody. There are: sdks, " in done.stderr


CHAT = {"usage": {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}}
RESPONSE = {"usage": {"input_tokens": 10, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 8}}}
MESSAGE = {"usage": {"input_tokens": 2, "cache_read_input_tokens": 8, "output_tokens": 4}}


def sse(*events: object) -> bytes:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", json.dumps(CHAT).encode()),
        ("/v1/chat/completions", sse({"choices": [1]}, {"choices": [], **CHAT})),
        ("/v1/chat/completions", sse({"choices": [1], "timings": {"prompt_n": 2, "cache_n": 8, "predicted_n": 4}})),
        ("/v1/responses", json.dumps(RESPONSE).encode()),
        ("/v1/responses", sse({"type": "response.created"}, {"type": "response.completed", "response": RESPONSE})),
        ("/v1/messages", json.dumps(MESSAGE).encode()),
        (
            "/v1/messages",
            sse(
                {"message": {"usage": {"input_tokens": 2, "cache_read_input_tokens": 8, "output_tokens": 0}}},
                {"usage": {"output_tokens": 4}},
            ),
        ),
    ],
)
def test_usage_is_found_in_every_answer_of_the_small_models_server(path: str, body: bytes) -> None:
    assert counted(path, body) == Counted(10, 4, 8, 0, 0, 2 * 150 + 8 * 75 + 4 * 600)


def test_answer_without_usage_is_no_answer_of_nothing() -> None:
    with pytest.raises(ValueError, match="no usage in the answer"):
        counted("/v1/chat/completions", b'{"choices": []}')
