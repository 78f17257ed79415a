"""What a wire format tells about a request and an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from wflo_nb.model import Usage

#: More than this is no count of anything in one call.
_NO_COUNT = 10**12


@dataclass(slots=True)  # not frozen: made for every call, and that takes three times as long
class Facts:
    """What matters of a request. Nobody changes it.

    Attributes:
        model: the model asked for.
        stream: whether the answer is asked for in events.
        cap: the largest output cap among the fields that state one, None if there is none.
        choices: how many answers are generated.
        window: why the input cannot be bounded by the request's bytes (images, files, server-side context), so that the model's
            whole context window is the bound; None if the bytes are enough.
        unbounded: why no bound can be given at all (tools billed per use, premium rates), and what to state; None if there is one.
        service_tier: the tier asked for; None leaves it to the account's settings.
        media: whether the input holds images, audio or the like; `audio`: whether it holds what text rates do not cover.
        inline: bytes of the request that are no text, because what they are has its own part in `extra_input`.
        extra_input, extra_output: tokens to add to the bounds, for what is billed and not in the body.
        images: how many of `extra_input` are images by the provider's formula.
        produces: False for calls without output tokens (embeddings).
        rounds: how often the model may be run over the growing context, because tools run at the provider.
        uses: tools billed per use, by the name that `wflo_nb.pricing.uses` has for them; together they run at most `most_uses` times.
    """

    model: str
    stream: bool = False
    cap: int | None = None
    choices: int = 1
    window: str | None = None
    unbounded: str | None = None
    service_tier: str | None = None
    media: bool = False
    audio: bool = False
    inline: int = 0
    extra_input: int = 0
    extra_output: int = 0
    images: int = 0
    produces: bool = True
    rounds: int = 1
    uses: tuple[str, ...] = ()
    most_uses: int = 0


@dataclass(slots=True)
class Answer:
    """What has been read of an answer so far.

    Attributes:
        streaming: whether it comes in events, so that a count may still grow.
        paid: whether tokens cost money, so that a count of none is not believed.
        counts: token counts by our names, as the provider reported them.
        uses: how often tools that are billed per use ran, by their names in `wflo_nb.pricing.uses`.
        lists_uses: whether the answer would have told of a use.
        complete: whether these counts are final; a stream that was cut is not.
        ended: whether the provider has said its last word, so that nothing more of the stream matters.
        regional: whether the provider says that it ran in a region that costs extra.
        problem: why the usage could not be read, or not be believed.
        truncated: whether the provider stopped at the output cap.
    """

    streaming: bool = False
    paid: bool = True
    model: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    lists_uses: bool = False
    service_tier: str | None = None
    complete: bool = False
    ended: bool = False
    regional: bool = False
    problem: str | None = None
    truncated: bool = False

    def put(self, **counts: Any) -> bool:
        """Take counts as reported. A value that is not a count is a problem, never a zero. True if all could be read."""
        for name, value in counts.items():
            if value is None:
                continue
            if not self._is_count(name, value):
                return False
            # Usage sent twice, or growing: the larger reading stands.
            self.counts[name] = max(value, self.counts.get(name, 0))
        return True

    def used(self, tool: str, times: Any) -> None:
        """Take how often a tool ran, as reported."""
        if times is not None and self._is_count(tool, times):
            self.uses[tool] = max(times, self.uses.get(tool, 0))

    def _is_count(self, name: str, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _NO_COUNT:
            self.problem = f"the provider reported {name}={value!r}"
            return False
        return True

    def usage(self) -> Usage | None:
        """The usage, if it is there, final and not in contradiction to itself."""
        if not self.complete or self.problem or not self.counts:
            return None
        usage = Usage(**self.counts)
        self.problem = _contradiction(usage, self.paid)
        return None if self.problem else usage


def _contradiction(usage: Usage, paid: bool) -> str | None:
    """Why the counts cannot all be true. A guess between readings of them would be a guess about money."""
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    if cached > usage.input_tokens:
        return f"the provider reported {cached} cached tokens of {usage.input_tokens} input tokens"
    if usage.cache_write_1h_tokens > usage.cache_write_tokens:
        return f"the provider reported {usage.cache_write_1h_tokens} one-hour cache writes of {usage.cache_write_tokens} cache writes"
    if usage.reasoning_tokens > usage.output_tokens:
        return f"the provider reported {usage.reasoning_tokens} reasoning tokens of {usage.output_tokens} output tokens"
    if paid and usage.input_tokens == 0:
        return "the provider reported no input tokens for a request that has some"
    return None


class Reader(Protocol):
    """Request body to `Facts`. `seller` is who answers, by the host's name; None for a host that nobody knows."""

    def __call__(self, body: dict[str, Any], seller: str | None = None) -> Facts: ...


@dataclass(frozen=True, slots=True)
class WireFormat:
    """One interface of one provider family.

    Attributes:
        api: its short name in the ledger.
        path: the end of its URL path.
        provider: whose format it is, used where the host is nobody's that we know.
        recognises: whether a body really is of this format (other services share paths such as ``/messages``).
        read: request body to `Facts`.
        fold: one JSON answer, or one event of a stream, into an `Answer`.
        write_cap: put an output cap into a request body (`host` decides between fields that are not understood everywhere).
        ask_usage: put the wish for usage into a streaming request body; False if it is sent anyhow or was asked for.
        is_extra: whether a stream event was sent only because we asked for usage.
        texts: the texts that the model reads as they are, taken out of a copy of the body (see `wflo_nb.capture.exact`).
        said: the text in one JSON answer, or in one event of a stream, piece by piece, each with the number of its choice; None where
            an answer is no text.
    """

    api: str
    path: str
    provider: str
    recognises: Callable[[dict[str, Any]], bool]
    read: Reader
    fold: Callable[[Answer, dict[str, Any]], None]
    write_cap: Callable[[dict[str, Any], int, str], None]
    ask_usage: Callable[[dict[str, Any]], bool] = lambda _: False
    is_extra: Callable[[bytes], bool] = lambda _: False
    texts: Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]] | None = None
    said: Callable[[dict[str, Any]], Iterator[tuple[int, str]]] | None = None


def from_json(data: bytes) -> Any:
    """The value of a JSON text, as `json.loads` reads it, without its guesses about an encoding that is evident.

    Raises:
        ValueError: it is none.
    """
    return json.loads(data.decode("utf-8", "surrogatepass") if data[:1] == b"{" and data[1:2] != b"\0" else data)


def text_or_none(value: Any) -> str | None:
    """`value` if it is text."""
    return value if isinstance(value, str) else None


def largest(body: dict[str, Any], *fields: str) -> int | None:
    """The largest positive integer among the fields: with several caps stated, only the largest is safe to count on."""
    most = None
    for field_ in fields:
        value = body.get(field_)
        if isinstance(value, int) and not isinstance(value, bool) and value > (most or 0):
            most = value
    return most


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object below a message list or content list, depth first."""
    if isinstance(value, dict):
        yield value
        children: Iterable[Any] = value.values()
    elif isinstance(value, list):
        children = value
    else:
        return
    for child in children:
        yield from parts(child)
