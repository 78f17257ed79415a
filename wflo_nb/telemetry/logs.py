"""One line of the standard library's logging for each call that is over, each refused call and each ended execution.

    logging.basicConfig(level=logging.INFO)
    telemetry.enable(logs=True)

The facts stand on the record as ``record.wflo``, a dict of the names that spans use; `JsonFormatter` writes them out.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from decimal import Decimal

from wflo_nb import events
from wflo_nb.errors import format_usd
from wflo_nb.model import Call, CallState, usd
from wflo_nb.telemetry import names

_log = logging.getLogger("wflo_nb")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, then the record's facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= getattr(record, "wflo", {})
        return json.dumps(line, ensure_ascii=False, default=str)


class Logs:
    """The listener. It lets the logger ``wflo_nb`` say INFO, unless a level was set on it; handlers are the user's."""

    where = "the logger wflo_nb"

    def __init__(self) -> None:
        self._raised = _log.level == logging.NOTSET
        if self._raised:
            _log.setLevel(logging.INFO)

    def __call__(self, event: events.Event) -> None:
        """Hear an event."""
        if isinstance(event, events.CallChanged) and event.call.state is not CallState.RESERVED:
            _call(event.call)
        elif isinstance(event, events.ExecutionEnded):
            _execution(event)
        elif isinstance(event, events.CallReconciled):
            _reconciled(event.before, event.after)

    def close(self) -> None:
        """Leave the logger as it was found."""
        if self._raised and _log.level == logging.INFO:
            _log.setLevel(logging.NOTSET)


def _call(call: Call) -> None:
    facts = {"wflo": names.call_attributes(call)}
    what = f"{names.operation(call)} {call.model}".rstrip()
    if call.state is CallState.REFUSED:
        _log.warning("%s refused: %s", what, call.reason, extra=facts)
        return
    cost: Decimal | None = None if call.cost_nano is None else usd(call.cost_nano)
    tokens = f", {call.usage.input_tokens} in, {call.usage.output_tokens} out" if call.usage else ""
    seconds = f" in {call.latency_ms / 1000:.3f} s" if call.latency_ms is not None else ""
    why = f": {call.reason}" if call.reason else ""
    level = logging.INFO if call.state is CallState.SETTLED else logging.WARNING
    _log.log(level, "%s %s%s, %s%s%s", what, call.state.value.lower(), seconds, format_usd(cost), tokens, why, extra=facts)


def _reconciled(before: Call, after: Call) -> None:
    was, now = (None if call.cost_nano is None else usd(call.cost_nano) for call in (before, after))
    words = (f"{names.operation(after)} {after.model}".rstrip(), format_usd(was), format_usd(now))
    _log.info("%s reconciled: %s were %s in truth", *words, extra={"wflo": names.call_attributes(after)})


def _execution(event: events.ExecutionEnded) -> None:
    execution, figures = event.execution, event.figures
    _log.info(
        "%s %s: %d calls, %d refused, %s spent",
        names.execution_name(execution),
        execution.status.value.lower(),
        figures.calls,
        figures.refused,
        format_usd(usd(figures.spent_nano)),
        extra={"wflo": names.execution_attributes(execution, figures)},
    )
