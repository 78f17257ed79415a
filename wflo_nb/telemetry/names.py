"""What traces, metrics and logs call things: OpenTelemetry's GenAI names, and ours (``wflo.*``) where it has none.

Read from the semantic conventions for GenAI (https://github.com/open-telemetry/semantic-conventions-genai, still in development). They
have no word for money, holds, refusals and budgets. No message of a foreign error is in any of them, and only `content_attributes` are
content.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from wflo_nb.events import CallContent, Figures
from wflo_nb.model import Call, CallState, Execution, ExecutionStatus

Value = str | bool | int | float

#: The ledger's short name of an interface to ``gen_ai.operation.name``; others stand for themselves.
OPERATIONS = {
    "chat": "chat",
    "responses": "chat",
    "messages": "chat",
    "converse": "chat",
    "invoke": "chat",
    "cohere_chat": "chat",
    "agents": "chat",
    "ollama_chat": "chat",
    "completions": "text_completion",
    "fim": "text_completion",
    "ollama_generate": "text_completion",
    "embeddings": "embeddings",
    "embedContent": "embeddings",
    "predict": "embeddings",
    "cohere_embed": "embeddings",
    "ollama_embed": "embeddings",
    "generateContent": "generate_content",
    "images": "generate_content",
    "image_edits": "generate_content",
}

#: Where the conventions draw the lines of their histograms.
TOKEN_BUCKETS = tuple(float(4**power) for power in range(14))
SECOND_BUCKETS = tuple(0.01 * 2**power for power in range(14))
FIRST_CHUNK_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since 1970, exact to the microsecond that a datetime has."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def dollars(nano: int) -> float:
    """Nano-USD as the nearest float of USD: telemetry has no decimals. The exact integer stands beside it where sums are made."""
    return nano / 1_000_000_000


def operation(call: Call) -> str:
    """``gen_ai.operation.name``."""
    return OPERATIONS.get(call.api, call.api)


def error_type(call: Call) -> str | None:
    """``error.type``: the kind of a failure, never its message; None for a call that did not fail.

    An answer that the user stopped reading is no error: its state says UNCONFIRMED.
    """
    status = call.http_status
    if status is not None and status >= 400:
        return str(status)
    kind = call.meta.get("error")
    if kind:
        return str(kind)
    return "_OTHER" if call.state in (CallState.RELEASED, CallState.UNCONFIRMED) and status is None else None


def shared_attributes(call: Call) -> dict[str, Value]:
    """What spans and metrics of a call have in common: few values each, so that metrics do not multiply."""
    found: dict[str, Value] = {"gen_ai.operation.name": operation(call), "gen_ai.provider.name": call.provider}
    if call.model:
        found["gen_ai.request.model"] = call.model
    if call.answered_model:
        found["gen_ai.response.model"] = call.answered_model
    host, port = call.meta.get("host"), call.meta.get("port")
    if host:
        found["server.address"] = str(host)
        if port:
            found["server.port"] = int(port)
    kind = error_type(call)
    if kind is not None:
        found["error.type"] = kind
    return found


def call_attributes(call: Call) -> dict[str, Value]:
    """Everything a finished call's span says."""
    found = shared_attributes(call) | _usage(call)
    found |= _known(
        {
            "gen_ai.request.stream": call.stream or None,
            "gen_ai.request.max_tokens": call.cap_written,
            "gen_ai.response.time_to_first_chunk": None if call.ttft_ms is None else call.ttft_ms / 1000,
            "http.response.status_code": call.http_status,
            "wflo.api": call.api,
            "wflo.call.id": call.id,
            "wflo.execution.id": call.execution_id,
            "wflo.state": call.state.value,
            "wflo.reason": call.reason,  # our own sentence
            "wflo.cap_written": call.cap_written,
            "wflo.price.source": call.price_source,
            "wflo.price.date": call.price_date,
            "wflo.cell": call.cell,
            "wflo.step": call.step,
            "gen_ai.agent.name": call.meta.get("agent"),
            "gen_ai.tool.name": call.meta.get("tool"),
            "wflo.task": call.meta.get("task"),
        }
    )
    found |= _money("wflo.held", call.reserved_nano)
    if call.cost_nano is not None:  # unknown is not $0
        found |= _money("wflo.cost", call.cost_nano)
    return found


def _usage(call: Call) -> dict[str, Value]:
    usage = call.usage
    if usage is None:
        return {}
    found: dict[str, Value] = {"gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens}
    parts = {
        "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
    }
    return found | {name: count for name, count in parts.items() if count}


def content_attributes(content: CallContent) -> dict[str, Value]:
    """What a call asked and was answered: structures as JSON, since attributes of spans are plain values."""
    told = {
        "gen_ai.system_instructions": content.instructions,
        "gen_ai.input.messages": content.asked,
        "gen_ai.output.messages": content.answered,
    }
    found: dict[str, Value] = {name: json.dumps(value, ensure_ascii=False) for name, value in told.items() if value}
    return found | ({"wflo.content.left_out": content.left_out} if content.left_out else {})


def is_cell(execution: Execution) -> bool:
    """Whether it is a notebook's cell, and not a block or a workflow in one."""
    return execution.notebook_id is not None and execution.parent_id is None


def execution_name(execution: Execution) -> str:
    """The name of its span."""
    if not is_cell(execution):
        return f"invoke_workflow {execution.workflow}"
    return f"cell {execution.workflow}" if execution.cell else execution.workflow


def execution_attributes(execution: Execution, figures: Figures) -> dict[str, Value]:
    """What an execution's span says; called at its start and again at its end. Its money includes that of executions inside it."""
    found = _known(
        {
            "wflo.execution.id": execution.id,
            "wflo.workflow": execution.workflow,
            "wflo.status": execution.status.value,
            "wflo.cell": execution.cell,
            "wflo.notebook.id": execution.notebook_id,
            "wflo.kernel.id": execution.kernel_id,
            "wflo.calls": figures.calls,
            "wflo.calls.refused": figures.refused,
            "wflo.calls.unpriced": figures.unpriced,
            "wflo.stopped": figures.stopped,
            "error.type": failure(execution),
        }
    )
    if not is_cell(execution):
        found |= {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": execution.workflow}
    found |= _money("wflo.spent", figures.spent_nano) | _money("wflo.unconfirmed", figures.unconfirmed_nano)
    if figures.cap_nano is not None:
        found |= _money("wflo.budget", figures.cap_nano)
    return found


def failure(execution: Execution) -> str | None:
    """The class name of the error that an execution failed with. Its message may quote what the user's code worked on."""
    if execution.status is not ExecutionStatus.FAILED:
        return None
    return str((execution.error or {}).get("type") or "_OTHER")


def _money(name: str, nano: int) -> dict[str, Value]:
    return {f"{name}.usd": dollars(nano), f"{name}.nano_usd": nano}


def _known(values: dict[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value is not None}
