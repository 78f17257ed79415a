"""One call on its way: what was asked, what came back, and how it ended. Ends exactly once, whatever happens to the stream."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from wflo_nb.budget import endings
from wflo_nb.budget.account import Account
from wflo_nb.budget.answers import BYTES, SHARE
from wflo_nb.budget.ledger import within_money
from wflo_nb.capture import content, delivered, framing, sse
from wflo_nb.capture.bounds import billed_uses, unasked_uses
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat, from_json
from wflo_nb.capture.remarks import remark
from wflo_nb.errors import UnknownModelError, tell
from wflo_nb.model import Call, CallState, Cost, Partial, Usage, now_us
from wflo_nb.pricing.book import ModelPrice

#: The client may send the call, with its body, to another place. Some turn it into a GET at the first two, not all.
REDIRECTS = frozenset({301, 302, 307, 308})
#: Pieces of a stream that are put away together.
_MOST_PASSED = 32
#: Bytes up to which a packed answer counts as small; a larger one is unpacked by the client in pieces of its own.
_SMALL = 1 << 16
#: A gateway gave up waiting, or was left: the provider behind it may have billed the call.
_TIMED_OUT = frozenset({408, 499})


_process = os.getpid()


def _remember_process() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_process)


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond. By whole numbers: rounding a float to decimals took 2 % of what a call costs here."""
    return int(seconds * 1e6 + 0.5) / 1000


class Exchange:
    """Follows one admitted call from its send to its end.

    Attributes:
        call: the ledger's record of it, RESERVED until the end.
        body: the request body to send in place of the caller's, None to send theirs.
        plain: the body to fall back to if the server does not understand our wish for usage, None if we had none.
        seller: who sells the model, by the host's name; None for a host that nobody knows, where a maker's price is not taken blindly.
        regional: whether the call went to a host with a regional surcharge.
        in_loop: whether the answer is read in an event loop, which must not wait for the ledger.
        size: bytes of the answer that are kept.
        asked: the request's body, where somebody wants to see what calls ask and answer.
        seen_again: whether a call that is sent on to another place is seen there, as a call of its own, if it is made there at all.
    """

    def __init__(
        self,
        account: Account,
        format: WireFormat,
        facts: Facts,
        price: ModelPrice | None,
        call: Call,
        in_loop: bool,
        seller: str | None,
        regional: bool,
    ) -> None:
        self.account = account
        self.format = format
        self.facts = facts
        self.price = price
        self.call = call
        self.in_loop = in_loop
        self.seller = seller
        self.regional = regional
        self._answer = Answer(False, price is not None and price.bills_tokens, choices=facts.choices)
        self._started = time.perf_counter()
        self._process = _process
        self._received: list[bytes] = []
        self._passed: list[bytes] = []  # pieces of a stream that said nothing about money, and are not put away yet

    # As it begins: on the class, since most calls leave most of it so, and there is one for every call.
    body: bytes | None = None
    plain: bytes | None = None
    over = False
    size = 0
    seen_again = False
    asked: dict[str, Any] | None = None
    _first: float | None = None
    _status: int | None = None
    _events: framing.Framing | None = None
    _begun = False
    _passes = False
    _decoder: sse.Decoder | None = None
    _unreadable: str | None = None
    _unpacked: tuple[bytes, bytes] | None = None
    _answered = False
    _keeps = False

    @property
    def injected(self) -> bool:
        """Whether we asked for usage in the caller's name, so that the answer to it has to be taken out again."""
        return self.plain is not None

    def announce(self, longest: int | None) -> None:
        """Tell the user, once an execution, that the money decided how long an answer may get."""
        cap = self.call.cap_written
        if cap is not None and longest is not None and cap < longest and not self.account.told_of_cap:
            self.account.told_of_cap = True
            tell(
                f"A call to {self.call.model} names no output limit. {cap} tokens were written into it, what the budget can pay for "
                f"(the model allows {longest}). Name a limit of your own, or raise the budget, to decide yourself."
            )

    @property
    def _bills_refusals(self) -> bool:
        """Azure evaluates, and may bill, prompts that its content filter then turns away with a 400."""
        return (self.seller or "").startswith("azure")

    # -- the answer comes in -----------------------------------------------------------------------------------------------

    def misunderstood(self, status: int) -> bool:
        """Whether the server may have refused our wish for usage: then the call is sent once more as the caller wrote it."""
        if self.plain is None or status not in (400, 422) or (self._bills_refusals and self.account.limited):
            return False
        self.body, self.plain = self.plain, None
        return True

    def head(self, status: int, content_type: str, encoding: str, headers: Mapping[str, str] | None = None) -> bool:
        """The status line and headers are there. True if the body is handed on decoded (its encoding header must go).

        `headers` are asked for by `WireFormat.headers`; None if the format needs none of them.
        """
        self._status = status
        if status >= 500 or status in _TIMED_OUT:
            self._end(CallState.UNCONFIRMED, f"the provider answered {status}; it may have billed the call")
        elif status in REDIRECTS and not self.seen_again:
            self._end(CallState.UNCONFIRMED, f"the call was sent on ({status}) to a place that is not watched, and may be billed there")
        elif status == 400 and self._bills_refusals:
            advice = "; should it not know stream_options, use a newer api-version" if self.injected else ""
            self._end(
                CallState.UNCONFIRMED, f"the provider refused the call (400); Azure may bill a prompt that its filter turns away{advice}"
            )
        elif status >= 300:
            self._end(CallState.RELEASED, f"the provider refused the call ({status})")
        elif self.format.said is not None:
            self._keeps = True
            self.account.answers.add(self)
        self._events = framing.of(content_type, quick=self.format.matters is None)
        self._answer.streaming = self._events is not None
        if headers is not None and self.format.told is not None:
            for name in self.format.headers:
                if (value := headers.get(name)) is not None:
                    self.format.told(self._answer, name, value)
        try:
            self._decoder = sse.decoder(encoding) if encoding else None
        except LookupError:
            self._unreadable = f"the answer is encoded as {encoding!r}, which cannot be read"
        return self._decoder is not None and self.plain is not None

    def claimed(self, cost: str) -> None:
        """What the call cost by the word of a gateway (the header ``x-litellm-response-cost``), in USD: kept beside ours."""
        self._answer.claimed(cost)

    def feed(self, data: bytes) -> bytes:
        """Read a piece of the body; returns what the user gets of it."""
        events = self._events
        # Nearly every piece of a stream:
        if self._passes and events is not None and (bare := events.passing(data, self.format.last_words)) is not None:
            self._passed.append(bare)
            if len(self._passed) >= _MOST_PASSED:
                self._put_away()
            return data if self.plain is None else bare
        if self._passed:
            self._put_away()
        kept = self._read(data)
        # What comes after a usage that seemed to be the last one is read in any case: it may show that it was not.
        wary = self.over or self._unreadable or self._answer.complete or (events and events.rest)
        self._passes = self._begun and self._decoder is None and not wary
        return kept

    def unpacked(self, data: bytes) -> bytes | None:
        """What this piece of the body says, if it came packed, is all of it and was read a moment ago. Can be asked once."""
        both, self._unpacked = self._unpacked, None
        return both[1] if both is not None and both[0] is data else None

    def _put_away(self) -> None:
        """Keep what has passed: many pieces at once, which takes a fraction of the time."""
        data, self._passed = b"".join(self._passed), []
        self._answer.stale = True
        if self._keeps:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._received.append(data)
        self.size += len(data)
        if self.size > SHARE:
            self._keeps = self.size <= BYTES
            self.account.answers.weigh()

    def _read(self, data: bytes) -> bytes:
        if self._first is None:
            self._first = time.perf_counter()
        if self._unreadable or (self.over and not self.injected):
            return data
        plain = data
        if self._decoder is not None:
            try:
                plain = self._decoder.decompress(data)
            except Exception as error:  # zlib.error, ZstdError: broken bytes are the user's to see
                self._unreadable = f"the answer could not be decoded: {error}"
                return data
            if self._events is None and self._decoder.eof and not self._received and len(plain) <= _SMALL:
                self._unpacked = data, plain
        if self._keeps:
            self._keep(plain)
        elif self._events is None:
            self._received.append(plain)  # a whole answer is read at its end
        if self._events is None:
            return data if self.plain is None else plain
        found = self._events.feed(plain)
        for event in found:
            self._event(event)
        return data if self.plain is None else self._kept(found)

    def _kept(self, events: list[bytes]) -> bytes:
        return b"".join(sse.without_null_usage(e) for e in events if not self.format.is_extra(e))

    def _event(self, event: bytes) -> None:
        events = self._events
        worth = not self._begun or self._answer.complete or (self.format.matters or sse.matters)(event)
        if not worth and events is not None and events.is_plain(event):
            self._answer.stale = True
            return
        try:
            data = event if events is None else events.payload(event)
            if not data:  # a comment
                return
            self._begun = True
            if data == b"[DONE]":
                self._answer.ended = True
                self.finished()
                return
            obj = json.loads(data)
        except (ValueError, RecursionError):
            self._answer.problem = "an event of the stream is not JSON"
            return
        if not worth:
            self._answer.stale = True
        elif isinstance(obj, dict):
            self._fold(obj)
        if self._answer.ended:  # settle now: many loops stop at the last word and never read, or close, the rest
            self.finished()

    def _fold(self, obj: Any) -> None:
        if isinstance(obj, list) and obj and self.facts.stream:  # a stream as one array
            self._answer.streaming = True
            for one in obj:
                self._fold(one)
            return
        if not isinstance(obj, dict):
            self._answer.problem = "the answer is not a JSON object"
            return
        try:
            self.format.fold(self._answer, obj)
        except Exception as error:  # formats of other packages included: a fault of ours must never be the user's
            self._answer.problem = f"the answer is not as documented ({type(error).__name__})"

    def flush(self) -> bytes:
        """The body is whole. Returns what was kept back of it; then `finished` ends the call."""
        if self._passed:
            self._put_away()
        if self._events is None:
            return b""
        rest = self._events.flush()
        if rest:
            self._event(rest)
        return rest if self.injected and not self.format.is_extra(rest) else b""

    # -- what was delivered ------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Keep nothing of the answer for later. What is needed to settle it stays until then."""
        self._keeps = False
        self._unpacked = None
        self.size = 0
        if self.over or self._events is not None:
            self._received = []

    def partial(self) -> Partial:
        """What has been delivered so far."""
        text = delivered.text_of(self._objects(), self.format.said)
        return Partial(self.call.id, self._answer.model or self.call.model, text, self._answered or self._answer.ended)

    def _delivered(self) -> bool:
        """Whether an answer that is a text has any; one that was too long to be kept has."""
        return self.format.said is not None and (not self._keeps or bool(self.partial().text))

    def _objects(self) -> Iterator[Any]:
        return delivered.objects(self._events, b"".join((*self._received, *self._passed)))

    # -- the end -----------------------------------------------------------------------------------------------------------

    def finished(self) -> None:
        """The body was read to its end."""
        if self.over:
            return
        if self._passed:
            self._put_away()
        self._answered = True
        if self.format.by_request is not None and self._events is None:
            self.format.by_request(self._answer, self.facts)
        elif self._events is None and self._received:
            try:
                self._fold(from_json(b"".join(self._received)))
            except (ValueError, RecursionError):
                self._answer.problem = "the answer is not JSON"
        answer = self._answer
        if self.format.grows and answer.streaming and answer.counts and (answer.ended or answer.closing) and not answer.stale:
            answer.complete = True  # usage that grew in every chunk is final once the provider has said its last word
        self._settle("the provider sent no usage")

    def closed(self) -> None:
        """The user stopped reading, or the garbage collector found a stream that nobody reads any more."""
        if self.over:
            return
        if within_money():
            self.account.ledger.later(self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        if self._passed:
            self._put_away()
        self._settle("the stream was closed before its usage came")

    def dropped(self) -> None:
        """Nobody has the answer any more. Called where the garbage collector happens to run, perhaps in a child that inherited it."""
        if not self.over and self.is_here():
            self.closed()

    def is_here(self) -> bool:
        """Whether this is the process that made the call, and it lives on."""
        return self._process == _process and not sys.is_finalizing()

    def failed(self, error: BaseException, *, sent: bool) -> None:
        """The call broke. `sent` is False only if it provably never reached the provider."""
        if not self.over:
            kind = type(error).__name__
            self.call = self.call.changed(meta={**self.call.meta, "error": kind})
            if sent:
                self._end(CallState.UNCONFIRMED, f"the outcome is unknown ({kind}); the provider may have billed the call")
            else:
                self._end(CallState.RELEASED, f"the call never reached the provider ({kind})")

    def _settle(self, missing: str) -> None:
        if self.over:
            return
        usage = self._answer.usage()
        if usage is not None and not usage.output_tokens and self._answer.paid and self._delivered():
            usage, self._answer.problem = None, "the provider reported no output tokens for an answer that has text"
        if usage is None:
            self._end(CallState.UNCONFIRMED, self._unreadable or self._answer.problem or missing)
            return
        cost = self._cost(usage)
        if cost is None:
            self._end(CallState.SETTLED, f"no price is known for {self._answer.model or self.call.model}", usage)
            return
        if self.facts.uses:
            fees = None if self.price is None else billed_uses(self.facts, self._answer, self.price)
            if fees is None:
                self._end(CallState.UNCONFIRMED, f"the answer does not say how often {', '.join(self.facts.uses)} ran")
                return
            cost = replace(cost, nano_usd=cost.nano_usd + fees)
            self.call = replace(
                self.call, meta={**self.call.meta, "uses": {tool: self._answer.uses.get(tool, 0) for tool in self.facts.uses}}
            )
        elif self._answer.uses and self.price is not None:
            cost = replace(cost, nano_usd=cost.nano_usd + unasked_uses(self._answer, self.price, self.facts.model))
        if self._answer.claims is not None:
            self.call = replace(self.call, meta={**self.call.meta, **self._answer.claims})
        reason = remark(self.call, self.facts, self._answer, usage, cost, limited=self.account.limited)
        self._end(CallState.SETTLED, reason, usage, cost)

    def _cost(self, usage: Usage) -> Cost | None:
        """By the model that the answer names; a price that the user declared for the model asked for stands."""
        price, answered = self.price, self._answer.model
        if answered and answered != self.call.model and not (price is not None and price.source == "declared"):
            try:
                price = self.account.price(self.seller, answered)
            except UnknownModelError:
                price = self.price
        if price is None or (price.unit is not None and price.unit not in self.facts.uses):
            return None  # by the unit, and nobody counted: unknown, not $0
        regional = self.regional or self._answer.regional
        return price.cost(
            usage, service_tier=self._answer.service_tier, regional=regional, media=self.facts.media and not self._answer.plain
        )

    def _end(self, state: CallState, reason: str | None, usage: Usage | None = None, cost: Cost | None = None) -> None:
        if self.over:
            return
        self.over = True  # first: the garbage collector may run in here, and close it
        try:
            self.call = call = self._at_its_end(state, reason, usage, cost)
        except BaseException:  # an interrupt: whoever closes it ends it
            self.over = False
            raise
        if self.in_loop:
            endings.finish_in_loop(self.account, call)
        else:
            endings.finish(self.account, call)

    def _at_its_end(self, state: CallState, reason: str | None, usage: Usage | None, cost: Cost | None) -> Call:
        if self.asked is not None:
            content.tell(self.call.id, self.format, self.asked, self._objects())
            self.asked = None
        if state is CallState.SETTLED:
            nano = cost.nano_usd if cost else None
        elif state is CallState.UNCONFIRMED:
            # A hold of nothing for lack of a price says nothing about the cost: unknown, not $0.
            nano = self.call.reserved_nano if self.price is not None else None
        else:
            nano = 0
        ended, first, price = time.perf_counter(), self._first, self.price
        return self.call.changed(
            state=state,
            answered_model=self._answer.model,
            usage=usage,
            cost_nano=nano,
            price_source=cost.price_source if cost is not None else price.source if price is not None else None,
            price_date=cost.price_date if cost is not None else price.date if price is not None else None,
            latency_ms=_ms(ended - self._started),
            ttft_ms=_ms(first - self._started) if first is not None and self._events is not None else None,
            http_status=self._status,
            reason=reason,
            settled_us=now_us(),
        )
