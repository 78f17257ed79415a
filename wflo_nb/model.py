"""The records that every room speaks of: plain, frozen, with no behaviour beyond their own arithmetic.

Money is an integer number of nano-USD everywhere inside (1 USD = 1_000_000_000 nano) and `Decimal` USD at the public edge.
Times are timezone-aware UTC datetimes. Ids are text made by the client with random bits.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from wflo_nb.errors import ConfigurationError

#: int64 holds this many nano-USD (about 9.2e9 USD); caps beyond it are typing errors.
MAX_NANO = 2**63 - 1


#: Random bits for ids to come, 64 for each. A forked child draws its own.
_bits: list[str] = []
_DRAWN = 64

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_bits.clear)


def usd(nano: int) -> Decimal:
    """Nano-USD as exact Decimal USD."""
    return Decimal(nano).scaleb(-9)


def nano_from_usd(value: object, what: str = "budget", *, up: bool = False) -> int:
    """A dollar amount typed by a user as nano-USD, rounded down so that a cap is never widened, or `up`.

    Accepts int, Decimal, float (by its shortest decimal form, so 0.1 means one tenth) and text such as ``"2"`` or ``"$2.50"``.

    Raises:
        ConfigurationError: the value is not a finite amount of zero or more dollars, or so small that it would become zero.
    """
    text = str(value).strip().removeprefix("$").replace("_", "")
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ConfigurationError(
            f"{what}={value!s} is not an amount in USD. Write a plain number, for example {what}=2 or {what}=0.25."
        ) from None
    if isinstance(value, bool) or not amount.is_finite():
        raise ConfigurationError(f"{what}={value!s} is not a finite amount in USD. Write a plain number, for example {what}=2.")
    if amount < 0:
        raise ConfigurationError(f"{what}={value!s} is negative. Use 0 to allow no paid call, or a positive number of USD.")
    if amount > usd(MAX_NANO):
        raise ConfigurationError(f"{what}={value!s} is more than {usd(MAX_NANO):,.0f} USD, the largest amount that can be counted.")
    nano = int(amount.scaleb(9).to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))
    if not nano and amount:
        raise ConfigurationError(
            f"{what}={value!s} is less than a billionth of a USD, the smallest amount that is counted. Use 0 to allow no paid call."
        )
    return nano


def new_id(kind: str) -> str:
    """A new id such as ``exec-019aa3…``; `kind` is ``exec``, ``call`` or ``snap``. 48 bits of time in milliseconds, as a UUID of version 7
    has them, and 64 random bits: rows that are written together lie together in an index, which is half the work of writing them.
    """
    try:
        bits = _bits.pop()
    except IndexError:
        drawn = secrets.token_hex(8 * _DRAWN)  # asking the system once for each call takes longer than the rest of an id
        _bits.extend([drawn[at : at + 16] for at in range(16, len(drawn), 16)])
        bits = drawn[:16]
    return f"{kind}-{time.time_ns() // 1_000_000:012x}{bits}"


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


def now_us() -> int:
    """The present moment in microseconds since 1970: what a call is stamped with, in a tenth of the time that a `datetime` takes."""
    return time.time_ns() // 1000


def moment(us: int) -> datetime:
    """The UTC time of so many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=us)


def microseconds(moment: datetime) -> int:
    """The inverse of `moment`. A time without a zone is taken to be UTC."""
    return ((moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment) - _EPOCH) // _MICROSECOND


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, normalised to the OpenTelemetry GenAI meaning.

    Attributes:
        input_tokens: everything read, including cache reads and cache writes.
        output_tokens: everything generated, including reasoning.
        cache_read_tokens: the part of the input served from the provider's cache.
        cache_write_tokens: the part of the input written to the provider's cache (all lifetimes).
        cache_write_1h_tokens: the part of `cache_write_tokens` written with the one-hour lifetime, which has its own rate.
        reasoning_tokens: the part of the output that was reasoning.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call cost by a stated price table.

    Attributes:
        nano_usd: nano-USD, rounded up once.
        price_source: where the rates come from: ``"genai-prices 0.2.3"``, ``"litellm 1.106.2"``, ``"declared"``.
        price_date: ISO date of that source.
    """

    nano_usd: int
    price_source: str
    price_date: str

    @property
    def usd(self) -> Decimal:
        """Exact USD."""
        return usd(self.nano_usd)


class CallState(StrEnum):
    """The life of a call: RESERVED until its outcome is known, then one of the others for good (UNCONFIRMED may still settle)."""

    RESERVED = "RESERVED"
    SETTLED = "SETTLED"
    RELEASED = "RELEASED"
    UNCONFIRMED = "UNCONFIRMED"
    REFUSED = "REFUSED"


class ExecutionStatus(StrEnum):
    """The life of an execution."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True)  # without slots, so that `changed` can copy it at once
class Call:
    """One attempt to call a model: a row of ``llm_calls``. SDK-internal retries are calls of their own.

    Attributes:
        provider: who is called, by its OpenTelemetry name (``openai``, ``anthropic``, …).
        api: which of its interfaces (``chat``, ``responses``, ``embeddings``, ``messages``).
        model: the model asked for; `answered_model`: the model that the answer names.
        usage: None when the provider never sent one (`reason` says why).
        reserved_nano: the upper bound held before the call was sent.
        cost_nano: what the call cost; the whole hold when UNCONFIRMED; None when no price is known.
        cap_written: the output cap that we wrote into the request because the caller gave none.
        latency_ms: request sent to last byte; `ttft_ms`: request sent to first byte of a streamed body.
        reason: why it was refused, released, unconfirmed or unpriced, in words.
        cell: what the user calls the cell (``In [3]``).
        holder: the process that made the hold (``host:pid:random``), to find holds of dead processes.
        created_us: when it was about to be made, in microseconds since 1970 (`created_at` is the same as a UTC time); `settled_us` and
            `settled_at`: when it was over, None until then.
    """

    id: str
    execution_id: str
    provider: str
    api: str
    model: str
    state: CallState
    created_us: int
    budget_id: str | None = None
    answered_model: str | None = None
    stream: bool = False
    usage: Usage | None = None
    reserved_nano: int = 0
    cost_nano: int | None = 0
    price_source: str | None = None
    price_date: str | None = None
    cap_written: int | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    http_status: int | None = None
    reason: str | None = None
    cell: str | None = None
    cell_id: str | None = None
    step: str | None = None
    holder: str | None = None
    settled_us: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def created_at(self) -> datetime:
        """When it was about to be made, in UTC."""
        return moment(self.created_us)

    @property
    def settled_at(self) -> datetime | None:
        """When it was over, in UTC; None until then."""
        return None if self.settled_us is None else moment(self.settled_us)

    def changed(self, **changes: Any) -> Call:
        """The same call with other values: `dataclasses.replace`, ten times as fast, for the path that every call takes."""
        twin: Call = object.__new__(Call)
        twin.__dict__.update(self.__dict__, **changes)
        return twin


@dataclass(frozen=True, slots=True)
class Partial:
    """What one paid call had delivered when its execution was stopped.

    Attributes:
        text: the text of the answer so far. Several choices follow each other, with a blank line between them.
        complete: whether the provider had said its last word; False for a stream that was cut, closed early or is still being read.
    """

    call_id: str
    model: str
    text: str
    complete: bool

    def __repr__(self) -> str:
        return f"<Partial of {self.call_id}, {self.model}: {len(self.text)} characters, {'complete' if self.complete else 'incomplete'}>"


@dataclass(frozen=True, slots=True)
class Execution:
    """One tracked cell, block or workflow run: a row of ``workflow_executions``.

    Attributes:
        workflow: the name of what runs (``workflow_definition_id``): a cell's name, a workflow's name.
        cost_nano: settled and unconfirmed cost of its own calls (not of nested executions).
        budget_nano: its own cap, None if it has none.
        error: ``{"type": …, "message": …}`` of a FAILED execution.
    """

    id: str
    workflow: str
    status: ExecutionStatus
    created_at: datetime
    updated_at: datetime
    cost_nano: int = 0
    budget_nano: int | None = None
    parent_id: str | None = None
    notebook_id: str | None = None
    kernel_id: str | None = None
    cell: str | None = None
    cell_id: str | None = None
    inputs: Any = None
    outputs: Any = None
    error: dict[str, Any] | None = None

    @property
    def cost_total_usd(self) -> Decimal:
        """Exact USD."""
        return usd(self.cost_nano)


@dataclass(frozen=True, slots=True)
class BudgetState:
    """One budget as the ledger has it. At every instant ``spent_nano + held_nano <= cap_nano`` unless a price bound was wrong.

    Attributes:
        id: an execution's id for a cell or block, ``nb:…`` for a notebook.
        scope: what the user calls it (``cell``, ``execution``, ``notebook``).
        cap_nano: None means no cap: the row only counts.
        spent_nano: settled and unconfirmed money; `unconfirmed_nano` is the unconfirmed part of it.
        name: a shared budget's own name (``research``), None for others.
        period: ``day``, ``week``, ``month`` or ``year`` if its cap is for each such period of the time zone `zone` (IANA name).
    """

    id: str
    scope: str
    cap_nano: int | None
    spent_nano: int = 0
    held_nano: int = 0
    unconfirmed_nano: int = 0
    parent_id: str | None = None
    name: str | None = None
    period: str | None = None
    zone: str | None = None

    @property
    def left_nano(self) -> int | None:
        """What a new call may still ask for; None without a cap."""
        return None if self.cap_nano is None else max(0, self.cap_nano - self.spent_nano - self.held_nano)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of variables, as users see it in a list.

    Attributes:
        id: ``snap-…``.
        label: ``before In [3]``, ``after In [3]`` or the user's own name.
        variables: how many variables it holds; `bytes_total`: their stored size before sharing of equal chunks.
        left_out: names that are kept by reference only, each with the reason.
    """

    id: str
    label: str
    created_at: datetime
    execution_id: str | None = None
    variables: int = 0
    bytes_total: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
