"""Every error this package raises, as one tree.

    WfloError
    ├── ConfigurationError (ValueError)
    ├── MissingDependencyError (ImportError)
    ├── BudgetExceededError
    ├── BudgetUnavailableError
    ├── UnboundedCallError
    ├── PricingError
    │   └── UnknownModelError (LookupError)
    ├── CaptureError
    │   └── UnsupportedFormatError
    ├── StoreError
    │   ├── StoreUnavailableError
    │   ├── SchemaVersionError
    │   ├── ExecutionNotFoundError (LookupError)
    │   └── CheckpointNotFoundError (LookupError)
    ├── SnapshotError
    │   ├── SerializationError
    │   ├── ChunkCorruptedError
    │   ├── SignatureError
    │   └── RestoreError
    └── WorkflowError
    WfloWarning (UserWarning)

A message says what happened, the numbers, and what to do next; the same facts are attributes. Every error survives pickling,
because frameworks carry errors between processes.
"""

from __future__ import annotations

import logging
import warnings
from decimal import Decimal
from typing import Any

_log = logging.getLogger(__name__)


class WfloError(Exception):
    """Root of every error of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default rebuilds an exception from `args` alone, which loses (or breaks on) keyword-only attributes.
        return _rebuild, (_pickled_as(type(self)), self.args, dict(self.__dict__))


def _pickled_as(cls: type[WfloError]) -> type[WfloError]:
    """The nearest class a fresh process can import: classes joined at run time with an SDK's errors are not importable."""
    found: type[WfloError] = next(c for c in cls.__mro__ if globals().get(c.__name__) is c)
    return found


def _rebuild(cls: type[WfloError], args: tuple[Any, ...], state: dict[str, Any]) -> WfloError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class WfloWarning(UserWarning):
    """Something the user should know that does not stop the work."""


_told: dict[str | tuple[str, type[Warning], int], int] = {}


def tell(message: str) -> None:
    """Warn. Never raises, even where warnings are made errors: the money is spent, and the answer is the user's."""
    try:
        # Without a place in the code: it would be one of ours or of an SDK's, and say nothing to the user.
        warnings.warn_explicit(message, WfloWarning, "wflo_nb", 1, registry=_told)
    except WfloWarning:
        _log.warning("%s", message)


class ConfigurationError(WfloError, ValueError):
    """A setting or an argument has a value that cannot be used."""


class MissingDependencyError(WfloError, ImportError):
    """An optional library is needed and not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed. Install it with: pip install 'wflo_nb[{extra}]'")
        self.module = module
        self.extra = extra


def format_usd(amount: Decimal | None) -> str:
    """Dollars as people read them, never rounded: at least two decimals, otherwise every digit that is there."""
    if amount is None:
        return "unknown"
    text = f"{amount:.9f}".rstrip("0")
    whole, _, decimals = text.partition(".")
    return f"${whole}.{decimals:0<2}"


class BudgetExceededError(WfloError):
    """A call was refused before it was sent, because its upper bound does not fit into what is left of a budget.

    Attributes:
        spent_usd: settled and unconfirmed money of the budget that refused, in USD.
        budget_usd: the cap of that budget, in USD.
        held_usd: money held for calls in flight, in USD.
        requested_usd: what the refused call could have cost at most, in USD.
        scope: which budget refused: ``"cell"``, ``"execution"``, ``"notebook"`` or a budget's own name.
        execution_id: the execution that the call belongs to (``exec-…``).
        model: the model the call asked for.
        cell: what the user calls the cell, e.g. ``"In [3]"``; None outside a notebook.

    What the calls of the execution had delivered before is paid, and is not lost with the program that was stopped:

        except BudgetExceededError as error:
            drafts = [answer.text for answer in error.partial]
        call_id: the refused call in the ledger (``call-…``), which `%wflo why` explains number by number.
        bound: how `requested_usd` came about, number by number (`wflo_nb.capture.bounds.Reckoning`); None if it was not reckoned.
    """

    bound: Any = None

    def __init__(
        self,
        message: str | None = None,
        *,
        spent_usd: Decimal = Decimal(0),
        budget_usd: Decimal = Decimal(0),
        held_usd: Decimal = Decimal(0),
        requested_usd: Decimal | None = None,
        scope: str = "execution",
        execution_id: str | None = None,
        model: str | None = None,
        cell: str | None = None,
        hint: str | None = None,
        call_id: str | None = None,
    ) -> None:
        self.spent_usd = spent_usd
        self.budget_usd = budget_usd
        self.held_usd = held_usd
        self.requested_usd = requested_usd
        self.scope = scope
        self.execution_id = execution_id
        self.model = model
        self.cell = cell
        self._delivered: tuple[Any, ...] = ()
        self.call_id = call_id
        super().__init__(message or self._compose(hint))

    @property
    def partial(self) -> tuple[Any, ...]:
        """The answers that the execution's calls had got, newest last, as `wflo_nb.model.Partial`: call, model, text, whether complete.

        A stream that was cut or is still being read is among them with its text so far. The last 32 are kept, 4 MiB of them in all, in
        this process only: an error that was pickled has none.
        """
        return tuple(one.partial() for one in self._delivered)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (cls, args, state) = super().__reduce__()
        return rebuild, (cls, args, {**state, "_delivered": ()})

    def _compose(self, hint: str | None) -> str:
        where = f" from {self.cell}" if self.cell else ""
        asked = f" may cost up to {format_usd(self.requested_usd)}" if self.requested_usd is not None else ""
        left = max(Decimal(0), self.budget_usd - self.spent_usd - self.held_usd)
        return (
            f"Call to {self.model or 'an unnamed model'}{where} refused before it was sent: it{asked or ' does not fit'}, and the "
            f"{self.scope} budget of {format_usd(self.budget_usd)} has {format_usd(left)} left "
            f"(spent {format_usd(self.spent_usd)}, held {format_usd(self.held_usd)}). "
            + (hint or "Raise the budget, ask for fewer output tokens, or choose a cheaper model.")
        )


class BudgetUnavailableError(WfloError):
    """The ledger that keeps the budget cannot be reached, so no paid call may be sent."""


class UnboundedCallError(WfloError):
    """No upper bound can be given for what a call may cost, so it cannot be sent under a budget.

    Attributes:
        bound: what could be reckoned of it (`wflo_nb.capture.bounds.Reckoning`); None if nothing.
    """

    bound: Any = None


class PricingError(WfloError):
    """A price is missing, malformed or absurd."""


class UnknownModelError(PricingError, LookupError):
    """No price is known for a model."""

    def __init__(self, model: str | None, provider: str | None = None, suggestions: tuple[str, ...] = ()) -> None:
        named = f"{provider}/{model}" if provider else f"{model}"
        near = f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""
        super().__init__(
            f"No price is known for model {named!r}, so its cost cannot be bounded.{near} Declare one with "
            f"`%wflo price {model} input=… output=…` (USD per million tokens) or prices={{…}}, "
            f'or accept unpriced calls with unknown_models="allow".'
        )
        self.model = model
        self.provider = provider
        self.suggestions = suggestions


class CaptureError(WfloError):
    """A call could not be observed as it must be."""


class UnsupportedFormatError(CaptureError):
    """A request to a provider that no wire format can read, so neither its bound nor its cost can be told."""


class StoreError(WfloError):
    """The store could not do what it was asked."""


class StoreUnavailableError(StoreError):
    """The store cannot be opened, reached or written.

    Attributes:
        unreachable: a server did not answer at all; it may do so in a while.
    """

    unreachable: bool = False


class SchemaVersionError(StoreError):
    """The store was written by a newer version of this package."""


class ExecutionNotFoundError(StoreError, LookupError):
    """No execution has this id."""


class CheckpointNotFoundError(StoreError, LookupError):
    """No checkpoint has this id or name."""


class SnapshotError(WfloError):
    """Variables could not be saved or restored."""


class SerializationError(SnapshotError):
    """One variable cannot be saved.

    Attributes:
        name: the variable.
        reason: why, in words.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be saved: {reason}")
        self.name = name
        self.reason = reason


class ChunkCorruptedError(SnapshotError):
    """Stored bytes are missing or are not the bytes that were written."""


class SignatureError(SnapshotError):
    """A snapshot was not signed with this user's key, so its bytes are not loaded."""


class RestoreError(SnapshotError):
    """A restore could not be completed; the variables are as they were before it.

    Attributes:
        plan: the restore plan that failed, None if there was none yet.
    """

    def __init__(self, message: str, plan: Any = None) -> None:
        super().__init__(message)
        self.plan = plan


class WorkflowError(WfloError):
    """A workflow was used in a way it cannot work."""
