"""What a wire format tells about a request and an answer.

A format that is not among ours plugs in by the entry point group ``wflo_nb.formats``: a `WireFormat`, or a sequence of them, in any
installed package,

    [project.entry-points."wflo_nb.formats"]
    my-provider = "my_package.wire:FORMATS"

It is loaded when a path that none of our formats speaks is met for the first time, and found by the end of its path, or by a pattern of
it. One that cannot be loaded is told once and left out: calls to its path are then as unread as they were before it was installed. An
error in its `read` refuses the call under a budget; one in its `fold` makes the call unconfirmed. Neither reaches the user's code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from wflo_nb.model import Usage

#: An amount as programs write it.
_NUMBER = re.compile(r"[0-9][0-9.eE+-]{0,39}")
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
        usual: whether it is a text and nothing else, so that its bytes and its cap are all that bounds it.
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
    usual: bool = False


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
        choices: how many answers were asked for; `finished`: those of a stream that have come to their end.
        stale: whether something came in a stream after its latest usage, which that cannot have counted.
        final: the counts of an event that holds nothing but usage, if there was one.
        closing: whether the latest counts came with, or after, the end of every choice, though more events may follow.
        ended: whether the provider has said its last word, so that nothing more of the stream matters.
        regional: whether the provider says that it ran in a region that costs extra.
        plain: whether the provider says that all of the input was billed like text, whatever the request may have held.
        problem: why the usage could not be read, or not be believed.
        truncated: whether the provider stopped at the output cap.
        claims: what the provider or a gateway says beside the usage, for the record of the call (``provider_cost_usd``).
    """

    streaming: bool = False
    paid: bool = True
    model: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    lists_uses: bool = False
    service_tier: str | None = None
    complete: bool = False
    choices: int = 1
    finished: set[int] = field(default_factory=set)
    stale: bool = False
    final: dict[str, Any] | None = None
    closing: bool = False
    ended: bool = False
    regional: bool = False
    plain: bool = False
    problem: str | None = None
    truncated: bool = False
    claims: dict[str, str] | None = None

    def put(self, **counts: Any) -> bool:
        """Take counts as reported. A value that is not a count is a problem, never a zero. True if all could be read."""
        for name, value in counts.items():
            if value is None:
                continue
            if (type(value) is not int or not 0 <= value < _NO_COUNT) and not self._is_count(name, value):
                return False
            # Usage sent twice, or growing: the larger reading stands.
            self.counts[name] = max(value, self.counts.get(name, 0))
        return True

    def used(self, tool: str, times: Any) -> None:
        """Take how often a tool ran, as reported."""
        if times is not None and self._is_count(tool, times):
            self.uses[tool] = max(times, self.uses.get(tool, 0))

    def claimed(self, cost: Any) -> None:
        """Take the cost that the answer states itself, in USD: kept beside ours, never instead of it."""
        text = str(cost)
        if not isinstance(cost, bool) and _NUMBER.fullmatch(text):
            self.claims = {"provider_cost_usd": text}

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
    """Request body to `Facts`. `seller` is who answers, by the host's name; None for a host that nobody knows. `path` is the URL's, where
    some interfaces have the model in.
    """

    def __call__(self, body: dict[str, Any], seller: str | None = None, path: str = "", /) -> Facts: ...


class Asker(Protocol):
    """Puts the wish for usage into a streaming request body; False if `seller` sends it anyhow or it was asked for."""

    def __call__(self, body: dict[str, Any], seller: str | None = None, /) -> bool: ...


def _ask_nothing(_body: dict[str, Any], _seller: str | None = None) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class WireFormat:
    """One interface of one provider family.

    Attributes:
        api: its short name in the ledger.
        path: the end of its URL path, or a pattern that is found in it.
        provider: whose format it is, used where the host is nobody's that we know.
        recognises: whether a body really is of this format (other services share paths such as ``/messages``).
        read: request body to `Facts`.
        fold: one JSON answer, or one event of a stream, into an `Answer`.
        write_cap: put an output cap into a request body (`host` decides between fields that are not understood everywhere).
        ask_usage: see `Asker`.
        is_extra: whether a stream event was sent only because we asked for usage.
        texts: the texts that the model reads as they are, taken out of a copy of the body (see `wflo_nb.capture.exact`).
        said: the text in one JSON answer, or in one event of a stream, piece by piece, each with the number of its choice; None where
            an answer is no text.
        parse: the body of a request as an object, where it is not JSON (forms with files); None if it cannot be.
        matters: whether a frame of a stream may say anything about money, all else only passing by; None for the words that OpenAI's and
            Anthropic's formats share.
        last_words: beside a usage, what a frame holds that must be read at once, because it may be the last word of a stream.
        grows: whether usage that stands in the events of a stream is final once the provider has said its last word (``[DONE]``,
            `Answer.ended` or `Answer.closing`) and the stream has ended by itself.
        local: whether its servers run on the user's own machines, so that an unknown host is one of those.
        by_request: for answers that say nothing about usage: what the request shows is what is billed.
        unmetered: why nothing can bound a call at this path, whatever it asks, in words that follow “a request to …, which”; None for
            all others.
        headers: names of the answer's headers that `told` reads, in lower case.
        told: one of these headers and its value, into the `Answer`.
    """

    api: str
    path: str | re.Pattern[str]
    provider: str
    recognises: Callable[[dict[str, Any]], bool]
    read: Reader
    fold: Callable[[Answer, dict[str, Any]], None]
    write_cap: Callable[[dict[str, Any], int, str], None]
    ask_usage: Asker = _ask_nothing
    is_extra: Callable[[bytes], bool] = lambda _: False
    texts: Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]] | None = None
    said: Callable[[dict[str, Any]], Iterator[tuple[int, str]]] | None = None
    parse: Callable[[bytes], dict[str, Any] | None] | None = None
    matters: Callable[[bytes], bool] | None = None
    last_words: tuple[bytes, ...] = (b'"message_stop"', b'"response":')
    grows: bool = False
    local: bool = False
    by_request: Callable[[Answer, Facts], None] | None = None
    unmetered: str | None = None
    headers: tuple[str, ...] = ()
    told: Callable[[Answer, str, str], None] | None = None

    def speaks_at(self, path: str) -> bool:
        """Whether this is the format of a path."""
        return path.endswith(self.path) if isinstance(self.path, str) else self.path.search(path) is not None


_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # as old as the class


def from_json(data: bytes) -> Any:
    """The value of a JSON text, as `json.loads` reads it, without its guesses about an encoding that is evident.

    Raises:
        ValueError: it is none.
    """
    if data[:1] != b"{" or data[1:2] == b"\0":
        return json.loads(data)
    text = data.decode("utf-8", "surrogatepass")
    try:
        value, end = _scan(text, 0)  # what `json.loads` comes to, three calls further down
    except StopIteration:  # its word for a value that is none
        end = -1
    return value if end == len(text) else json.loads(text)


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
