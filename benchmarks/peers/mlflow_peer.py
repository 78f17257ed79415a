"""MLflow 3.17.2, by `mlflow.openai.autolog()`, with its tracking store in an SQLite file.

See https://mlflow.org/docs/latest/genai/tracing/integrations/listing/openai/. Traces are written by threads of its own, as by default.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import base
from base import Given

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


class Session(base.Session):
    def flush(self) -> None:
        import mlflow

        mlflow.flush_trace_async_logging()


class Enforcer(base.Enforcer):
    leaves = True

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        import mlflow

        mlflow.set_tracking_uri(f"sqlite:///{given.folder}/mlflow.db")
        mlflow.set_experiment("bench")
        mlflow.openai.autolog()
        yield Session(given)

    def recorded(self, given: Given) -> int | None:
        with closing(sqlite3.connect(given.folder / "mlflow.db")) as database:
            return int(database.execute("SELECT count(*) FROM trace_info").fetchone()[0])
