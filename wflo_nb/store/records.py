"""What goes in and out of a store besides the records of `wflo_nb.model`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wflo_nb.model import BudgetState

#: A result as plain columns of equal length: name → values. Times are UTC datetimes, money integer nano-USD, unknown is None.
Columns = dict[str, list[Any]]

#: How the ids of budgets begin that one run or one notebook alone spends: after a restart of the machine nobody does.
LOCAL = ("exec-", "nb:")


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why nothing was held: the tightest budget of the chain has less left than the least that the call needs.

    Attributes:
        budget: that budget as it was at the moment of the refusal.
        needed_nano: the least that had to fit (``lo_nano`` of the reserve).
    """

    budget: BudgetState
    needed_nano: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What other processes did for one execution and those inside it.

    Attributes:
        calls: sent and over; `in_flight`: sent and not over; `refused`: never sent; `unpriced`: over, with no known price.
        short_of_money: their refusals for lack of money, oldest first: the budget that refused (None if that was not kept), and the words.
            Not those that only followed from an earlier one.
    """

    calls: int = 0
    in_flight: int = 0
    refused: int = 0
    unpriced: int = 0
    spent_nano: int = 0
    held_nano: int = 0
    unconfirmed_nano: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    short_of_money: tuple[tuple[str | None, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a snapshot.

    Attributes:
        digest: 32 bytes, BLAKE3 of the raw bytes: the identity of the chunk.
        raw_bytes: length before encoding.
        codec: how `data` encodes the raw bytes (``raw``, ``zstd``, …).
        data: the bytes that are kept.
    """

    digest: bytes
    raw_bytes: int
    codec: str
    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot as a store keeps it: a row of ``state_snapshots``.

    Attributes:
        scope: whose variables these are (a notebook's id).
        step_id: the label.
        version: 1, 2, … per scope and label; filled by the store.
        manifest: canonical JSON, kept byte for byte because it is signed.
        signature: of the manifest.
        digests: every chunk the manifest needs, so that no chunk in use is collected.
        variables: how many variables it holds.
        bytes_total: their stored size before sharing of equal chunks.
        parent_id: the snapshot it was taken after.
    """

    id: str
    scope: str
    step_id: str
    created_at: datetime
    manifest: bytes
    signature: bytes = b""
    digests: tuple[bytes, ...] = ()
    execution_id: str | None = None
    version: int = 0
    variables: int = 0
    bytes_total: int = 0
    parent_id: str | None = None
