"""The list of public names is honest."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import wflo_nb

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", wflo_nb.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(wflo_nb, name) is not None


def test_the_list_is_sorted_and_names_nothing_twice() -> None:
    assert list(wflo_nb.__all__) == sorted(set(wflo_nb.__all__))


def test_what_the_type_checker_sees_is_what_python_gives() -> None:
    tree = ast.parse((ROOT / "wflo_nb" / "__init__.py").read_text())
    seen: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            seen |= {alias.asname or alias.name for part in node.body if isinstance(part, ast.ImportFrom) for alias in part.names}
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            seen.add(node.name)
    assert seen == set(wflo_nb.__all__)


def test_dir_shows_the_public_names_only() -> None:
    assert set(dir(wflo_nb)) == {*wflo_nb.__all__, "__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'budgets'"):
        _ = wflo_nb.budgets  # type: ignore[attr-defined]


def test_a_star_import_brings_exactly_the_public_names() -> None:
    program = "before = set(globals()); from wflo_nb import *; print(*sorted(set(globals()) - before - {'before'}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(wflo_nb.__all__)


def test_the_version_is_the_same_everywhere() -> None:
    assert wflo_nb.__version__ == metadata.version("wflo_nb")
    assert f"## {wflo_nb.__version__}" in (ROOT / "CHANGELOG.md").read_text()
