"""What an adapter is: a module ``<name>_peer`` of this folder with a class `Enforcer` that opens sessions under a budget.

Everything here runs in the enforcer's own environment, so it needs the standard library and an SDK only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Given:
    """What a session is opened with.

    Attributes:
        budget_usd: the budget.
        url: the provider's address, without a path.
        folder: an empty folder of this case, shared by its processes.
        shared: whether other processes spend the same budget.
        client: options of the SDK's clients (``timeout``, ``max_retries``).
        postgres: a PostgreSQL URL to record in, for the case that asks for one.
        sink: where telemetry may be sent (see ``sink.py``); empty where there is no such place.
    """

    budget_usd: float
    url: str
    folder: Path
    shared: bool = False
    client: dict[str, Any] = field(default_factory=dict)
    postgres: str | None = None
    sink: str = ""


class Session:
    """Calls under one budget. As it stands it enforces nothing; adapters override what their enforcer wants done differently."""

    #: The errors by which the enforcer refuses a call, or says that the budget is spent.
    refusals: tuple[type[BaseException], ...] = ()

    def __init__(self, given: Given) -> None:
        self.given = given
        self._sync: Any = None
        self._async: Any = None
        self._anthropic: Any = None
        self._lock = threading.Lock()  # one client a session, whichever thread asks first: wrappers keep their count in it

    # -- clients: made once a session, as the adapter's enforcer wants them wrapped

    def make_openai(self) -> Any:
        """A client for `chat` and `stream`."""
        from openai import OpenAI

        return OpenAI(base_url=f"{self.given.url}/v1", api_key="none", **self.given.client)

    def make_async_openai(self) -> Any:
        """A client for `achat`."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=f"{self.given.url}/v1", api_key="none", **self.given.client)

    def make_anthropic(self) -> Any:
        """A client for `message`."""
        from anthropic import Anthropic

        return Anthropic(base_url=self.given.url, api_key="none", **self.given.client)

    # -- calls

    def chat(self, **request: Any) -> Any:
        """One chat completion."""
        with self._lock:
            self._sync = self._sync or self.make_openai()
        return self._sync.chat.completions.create(**request)

    async def achat(self, **request: Any) -> Any:
        """One chat completion, asynchronously."""
        if self._async is None:
            self._async = self.make_async_openai()
        return await self._async.chat.completions.create(**request)

    def stream(self, **request: Any) -> Iterator[Any]:
        """The chunks of one streamed chat completion; closed when the caller stops listening."""
        answer = self.chat(stream=True, **request)
        try:
            yield from answer
        finally:
            if hasattr(answer, "close"):
                answer.close()

    def message(self, **request: Any) -> Any:
        """One message in Anthropic's format."""
        with self._lock:
            self._anthropic = self._anthropic or self.make_anthropic()
        return self._anthropic.messages.create(**request)

    def nested(self, budget_usd: float) -> AbstractContextManager[Session]:
        """A budget inside this one."""
        raise NotImplementedError

    def believed_usd(self) -> float | None:
        """What the enforcer thinks was spent; None if it does not say."""
        return None

    def flush(self) -> None:
        """Wait until what was recorded is where it is meant to be: written, or sent."""


class Enforcer:
    """The bare SDK. Adapters subclass this.

    Attributes:
        can: which kinds of cases it supports by its own documentation: ``"async"``, ``"stream"``, ``"raw"`` (any field of a chat
            request), ``"anthropic"``, ``"processes"`` (one budget over several), ``"nested"``.
        leaves: whether its patches stay in the process when a session ends, so that the bare SDK must be measured in another.
        grows: whether a call costs more the more of them were recorded, so that a measurement begins with an empty record.
    """

    can: frozenset[str] = frozenset({"async", "stream", "raw", "anthropic"})
    leaves: bool = False
    grows: bool = False
    session_class: type[Session] = Session

    @contextmanager
    def session(self, given: Given) -> Iterator[Session]:
        """Open a session; leaving it never raises a refusal."""
        yield self.session_class(given)

    def ledger(self, given: Given) -> dict[str, int] | None:  # noqa: ARG002 - for those that have one
        """After the case, in a new process: nano-USD ``settled``, ``unconfirmed`` and ``held`` by the enforcer's durable record."""
        return None

    def recorded(self, given: Given) -> int | None:  # noqa: ARG002 - for those that keep one
        """How many calls its record in `given.folder` holds, read by a process that has not made them; None if it keeps none there."""
        return None
