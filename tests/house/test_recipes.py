"""The recipes, the set-up and the documents agree, and failures of the set-up end in one clear line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = {"demo", "lab", "test", "test-matrix", "lint", "fmt", "bench", "help"}


def sh(*command: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"PATH": str(path)} if path else {})}
    env.pop("PYTHON", None)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "scripts" / "prepare.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_help_lists_the_recipes() -> None:
    listed = set(re.findall(r"^  make ([\w-]+)", sh("make", "help").stdout, re.MULTILINE))
    assert listed >= RECIPES


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/guarantee.md", "docs/telemetry.md", "docs/workflows.md"],
)
def test_documents_name_recipes_and_files_that_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z0-9-]+)", text)) <= targets
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
        assert ((ROOT / document).parent / (link[0] or link[1])).exists(), link
    for command in re.findall(r"`(?:pytest|python) ([^`]+)`", text):
        for path in command.split():
            assert (ROOT / path).exists(), f"{document} names {path}"


def test_a_python_that_is_too_old_gives_one_line_that_says_what_to_get(tmp_path: Path) -> None:
    program(tmp_path, "python3", '[ "$1" = --version ] && echo "Python 3.9.2" && exit 0; exit 1')
    done = sh("/bin/sh", "scripts/python.sh", "-c", "pass", path=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11 or newer is needed and Python 3.9.2 was found" in done.stderr


def test_a_python_without_venv_gives_one_line_that_says_what_to_get(tmp_path: Path) -> None:
    program(tmp_path, "python3", 'case "$2" in *ensurepip*) exit 1;; esac; exit 0')
    done = sh("/bin/sh", "scripts/python.sh", "-c", "pass", path=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "apt-get install python3-venv" in done.stderr


def test_constraint_files_are_exact_and_hold_no_addresses_or_paths() -> None:
    for name in sorted(path.name for path in ROOT.glob("constraints*.txt")):
        lines = (ROOT / name).read_text().splitlines()
        assert lines
        for line in lines:
            assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][\w.!+]*( ; [^/@]+)?", line), line


def test_every_framework_is_tested_by_a_recipe_that_ci_or_the_matrix_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "frameworks").glob("test_*.py")}
    assert set(re.findall(r"tests/frameworks/test_\w+\.py", makefile)) == files
    assert re.search(r"^test-matrix: graphs crews agents indexes", makefile, re.MULTILINE)
    assert "graphs" in re.findall(r"^test: (.*?) ##", makefile, re.MULTILINE)[0].split()


def test_the_second_environment_has_the_older_sdk() -> None:
    assert re.search(r"^openai==3\.", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert re.search(r"^openai==2\.", (ROOT / "constraints-openai2.txt").read_text(), re.MULTILINE)


def test_a_database_client_alone_is_no_server(prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psql", "pg_dump"):
        program(tmp_path / "client", name, "exit 0")
    for name in ("initdb", "postgres", "pg_ctl"):
        program(tmp_path / "server", name, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'client'}{os.pathsep}{tmp_path / 'server'}")
    assert prepare.postgres_folder() == tmp_path / "server"


def test_what_cannot_be_installed_is_said_in_one_line(
    prepare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "chromium_program", lambda: None)
    monkeypatch.setattr(prepare, "driver_works", lambda: True)
    monkeypatch.setattr(prepare, "apt_get", lambda *packages: False)
    monkeypatch.setattr(prepare, "run", lambda *command, **options: False)
    assert prepare.main(["chromium"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no headless Chromium" in line and "apt-get install chromium" in line


@pytest.mark.parametrize(
    ("output", "status", "expected"),
    [
        ("== 12 passed in 3.45s ==", 0, 0),
        ("== 12 passed, 2 warnings in 3.45s ==", 0, 0),
        ("SKIPPED [1] tests/a.py:3: no server\n== 11 passed, 1 skipped in 3.45s ==\n== 5 passed in 1.00s ==", 0, 1),
        ("11 passed, 1 deselected in 3.45s", 0, 1),
        ("== 1 failed, 11 passed in 3.45s ==", 2, 2),
        ("wflo_nb: no PostgreSQL server could be found or installed.", 2, 2),
    ],
)
def test_continuous_integration_fails_on_a_failed_or_skipped_test(tmp_path: Path, output: str, status: int, expected: int) -> None:
    program(tmp_path, "make", f"cat <<'X'\n{output}\nX\nexit {status}")
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", ".ci/run"], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == expected, done.stdout
    if "SKIPPED" in output:
        assert done.stdout.count("no server") == 2  # in the run, and again as the reason


def test_notebooks_are_stored_without_outputs_that_change() -> None:
    notebooks = [path for path in (ROOT / "notebooks").glob("*.ipynb") if path.is_file()]
    assert notebooks
    for path in notebooks:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code" and "nbval-check-output" not in cell["metadata"].get("tags", []):
                assert not cell["outputs"], f"{path.name}: {cell['id']} has stored outputs"
                assert cell["execution_count"] is None
