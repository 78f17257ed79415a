"""What `import wflo_nb` costs a script that may never use it."""

from __future__ import annotations

import json
import subprocess
import sys

NOTEBOOK = {"IPython", "ipywidgets", "anywidget", "traitlets", "ipykernel"}
TABLES = {"pandas", "numpy", "pyarrow", "duckdb", "matplotlib"}
DATABASES = {"sqlalchemy", "sqlite3", "psycopg", "adbc_driver_sqlite", "adbc_driver_postgresql"}
HTTP = {"httpx", "httpx2", "aiohttp", "requests", "urllib3", "urllib.request", "http.client", "openai", "anthropic"}
TELEMETRY = {"opentelemetry", "prometheus_client"}
OTHERS = {"asyncio", "genai_prices", "cloudpickle", "xllamacpp", "platformdirs"}
HEAVY = NOTEBOOK | TABLES | DATABASES | HTTP | TELEMETRY | OTHERS


def modules_after(statement: str) -> set[str]:
    program = f"import sys; before = set(sys.modules); {statement}; import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import wflo_nb") & HEAVY


def test_importing_the_package_loads_no_room_of_it() -> None:
    assert {name for name in modules_after("import wflo_nb") if name.startswith("wflo_nb.")} == set()


def test_errors_and_records_come_without_anything_heavy() -> None:
    statement = "from wflo_nb import BudgetExceededError, Cost, Usage, WfloError, subscribe"
    # asyncio is not ours to load, but the standard library's own modules may ask for parts of it
    assert not modules_after(statement) & (HEAVY - {"asyncio"})


def test_the_demo_module_loads_no_engine_and_no_sdk() -> None:
    found = modules_after("import wflo_nb.demo")
    assert not found & (NOTEBOOK | TABLES | {"xllamacpp", "openai", "sqlalchemy", "httpx", "httpx2"})


def test_the_store_room_comes_without_its_database_library() -> None:
    found = modules_after("import wflo_nb.store")
    assert not found & (NOTEBOOK | TABLES | {"sqlalchemy", "psycopg"})


def test_the_telemetry_room_comes_without_its_libraries() -> None:
    assert not modules_after("import wflo_nb; wflo_nb.telemetry.auto(); wflo_nb.telemetry.trace_id('exec-1')") & (HEAVY - {"asyncio"})


def test_scripts_that_track_calls_load_no_notebook_library() -> None:
    statement = "from wflo_nb import execution, open_store, report"
    assert not modules_after(statement) & {
        "IPython",
        "ipywidgets",
        "anywidget",
        "ipykernel",
        "pandas",
        "duckdb",
        "sqlalchemy",
        "httpx",
        "httpx2",
    }
