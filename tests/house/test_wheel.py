"""The built wheel, not the source tree: what users get is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run_from(site: Path, program: str) -> str:
    """Runs a program on the unpacked wheel: `PYTHONPATH` comes before the source tree of an editable install."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", program], cwd=site, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_carries_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "wflo_nb"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    expected = listed or [str(path.relative_to(ROOT)) for path in (ROOT / "wflo_nb").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert expected
    assert {name for name in expected if (ROOT / name).exists()} - files_in(wheel) == set()


def test_it_carries_the_card_the_prices_and_the_type_marker(wheel: Path) -> None:
    files = files_in(wheel)
    assert {"wflo_nb/py.typed", "wflo_nb/notebook/card.js", "wflo_nb/notebook/card.css"} <= files
    assert [name for name in files if name.startswith("wflo_nb/pricing/") and not name.endswith(".py")]


def test_it_carries_nothing_but_the_package(wheel: Path) -> None:
    assert {name.split("/")[0] for name in files_in(wheel)} == {"wflo_nb", f"wflo_nb-{version()}.dist-info"}
    assert not [name for name in files_in(wheel) if "__pycache__" in name]


def version() -> str:
    import wflo_nb

    return wflo_nb.__version__


def test_it_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 1_000_000


def test_the_prices_are_found_in_the_installed_package(unpacked: Path) -> None:
    program = (
        "import wflo_nb\nfrom wflo_nb.model import Usage\nfrom wflo_nb.pricing.book import PriceBook\n"
        "print(wflo_nb.__file__); print(PriceBook().find('openai', 'gpt-4o-mini').cost(Usage(1000, 1000)).nano_usd)"
    )
    where, nano = run_from(unpacked, program).splitlines()
    assert Path(where).is_relative_to(unpacked)
    assert int(nano) == 750_000


def test_the_extension_loads_from_the_installed_package(unpacked: Path, state_dir: Path) -> None:
    program = (
        "from IPython.core.interactiveshell import InteractiveShell as S\n"
        "shell = S.instance(); shell.run_line_magic('load_ext', 'wflo_nb'); import wflo_nb\n"
        "result = shell.run_cell('%%wflo budget=1\\n6 * 7'); print(wflo_nb.__file__); print(result.result)"
    )
    lines = run_from(unpacked, program).splitlines()
    assert Path(lines[-2]).is_relative_to(unpacked)
    assert lines[-1] == "42"
