"""The tools whose cost is compared, and what was measured of each."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

BARE, WITH = WAYS = "bare", "with"
SHORT, LONG = 20, 200


@dataclass(frozen=True)
class Kind:
    """A kind of call: the chunks of its answer (0 for a whole one), and which part of ``--calls`` makes a block of them."""

    name: str
    chunks: int
    part: float


CALL, STEP, STREAM, LONG_STREAM = KINDS = (
    Kind("call", 0, 1.0),
    Kind("step", 0, 0.5),
    # As many of both: what a block costs by itself, to write out what is left say, is then no part of the slope between them.
    Kind(f"stream_of_{SHORT}", SHORT, 0.25),
    Kind(f"stream_of_{LONG}", LONG, 0.25),
)
#: Calls of the test whether a record outlives its process.
LAST = 3


@dataclass
class Row:
    """A tool and what was measured of it.

    Attributes:
        group: ``"ours"``, ``"budget"``, ``"tracing"`` or ``"other"``.
        records: what it keeps of a call, and where.
        adapter: the adapter's name, if it is not the row's.
        environment: whose environment it runs in, if not the adapter's.
        sends: whether it sends to the sink.
        follows: whether it reads streams along by itself; else its user's loop does, and what a chunk costs is not its doing.
        cpu: CPU seconds of a call, by kind and way, one for each round; none of a kind that it cannot make.
        kept: calls that outlived their process, by kind.
        calls: those made with the tool in processes that were not killed.
    """

    key: str
    name: str
    group: str
    records: str
    adapter: str = ""
    environment: str = ""
    sends: bool = False
    follows: bool = True
    cpu: dict[tuple[Kind, str], list[float]] = field(default_factory=dict)
    kept: dict[Kind, int | None] = field(default_factory=dict)
    apart: bool = False
    calls: int = 0
    failure: str = ""

    def __post_init__(self) -> None:
        self.adapter = self.adapter or self.key
        self.environment = self.environment or self.adapter
        self.cpu = {(kind, way): [] for kind in KINDS for way in WAYS}

    def added(self, kind: Kind) -> list[float]:
        """CPU seconds added to a call of a kind, by round."""
        return [w - b for b, w in zip(self.cpu[kind, BARE], self.cpu[kind, WITH], strict=True)]

    def ratio(self, kind: Kind) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(w / b for b, w in zip(self.cpu[kind, BARE], self.cpu[kind, WITH], strict=True))

    def slopes(self, way: str) -> list[float]:
        """CPU seconds of a chunk, by round."""
        return [(b - a) / (LONG - SHORT) for a, b in zip(self.cpu[STREAM, way], self.cpu[LONG_STREAM, way], strict=True)]

    def added_chunk(self) -> list[float]:
        """CPU seconds added to a chunk, by round."""
        return [w - b for b, w in zip(self.slopes(BARE), self.slopes(WITH), strict=True)]

    def survives(self, kind: Kind) -> bool:
        """Whether the record of such a call outlived the process."""
        return (self.kept.get(kind) or 0) >= LAST

    @property
    def kept_text(self) -> str:
        """The same, for people: whole answers / streams."""
        return " / ".join(str(min(self.kept.get(kind) or 0, LAST)) for kind in (CALL, STREAM)) if self.kept else "-"


def middle(values: list[float]) -> tuple[float, float]:
    """The median of some seconds and half of its 95 % interval, by order, in µs."""
    ordered = sorted(values)
    low = max(math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2), 0)
    return 1e6 * statistics.median(ordered), 1e6 * (ordered[-1 - low] - ordered[low]) / 2


ROWS = [
    Row("wflo", "wflo_nb, budget, SQLite", "ours", "hold, then usage and cost of each call: SQLite"),
    Row("wflo_openai2", "the same, openai 2", "ours", "hold, then usage and cost of each call: SQLite", "wflo", "wflo_openai2"),
    Row("ai_cost_guard", "ai-cost-guard", "budget", "tokens and cost of each call: JSON file, written anew each time", follows=False),
    Row("agentcap_guard", "agentcap-guard", "budget", "tokens and cost of each call: lines of a file, sums in SQLite", follows=False),
    Row("agentguard47", "agentguard47", "budget", "trace of each call: lines of a file; spend: memory"),
    Row("agentguard47_file", "agentguard47, file store", "budget", "hold and spend: JSON file, synced; traces: lines of a file"),
    Row("litellm_manager", "litellm BudgetManager", "budget", "sums of cost by user and model: JSON file, by a thread"),
    Row("agentkavach", "agentkavach", "budget", "sums: memory; events: sent in batches, to a file if that fails", sends=True),
    Row("agentbudget", "agentbudget", "budget", "memory"),
    Row("shekel", "shekel", "budget", "memory"),
    Row("agent_budget_guard", "agent-budget-guard", "budget", "memory"),
    Row("agent_cost_guardrails", "agent-cost-guardrails", "budget", "memory"),
    Row("pydantic_ai", "pydantic-ai UsageLimits", "budget", "memory", "pydantic_ai_kept"),
    Row("langfuse", "Langfuse", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("mlflow", "MLflow autolog", "tracing", "trace of each call with content: SQLite, by threads"),
    Row("openllmetry", "OpenLLMetry", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("openinference", "OpenInference", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("logfire", "Logfire", "tracing", "span of each call with content: sent in batches", sends=True),
    Row("litellm_completion", "litellm.completion", "other", "nothing"),
    Row("none", "bare SDK again", "other", "nothing: the noise"),
    Row("none_apart", "bare SDK again, apart", "other", "nothing: the noise of two processes", "none_apart", "none"),
]
