"""What a wire format tells about a request and an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from wflo_nb.model import Usage


@dataclass(frozen=True, slots=True)
class Facts:
    """What matters of a request.

    Attributes:
        model: the model asked for.
        stream: whether the answer is asked for in events.
        cap: the largest output cap among the fields that state one, None if there is none.
        choices: how many answers are generated.
        window: why the input cannot be bounded by the request's bytes (images, files, server-side context), so that the model's
            whole context window is the bound; None if the bytes are enough.
        unbounded: why no bound can be given at all (tools billed per use, premium rates); None if there is one.
        service_tier: the tier asked for; None leaves it to the account's settings.
        media: whether the input holds images, audio or the like.
        extra_input, extra_output: tokens to add to the bounds, for what is billed and not in the body.
        produces: False for calls without output tokens (embeddings).
    """

    model: str
    stream: bool = False
    cap: int | None = None
    choices: int = 1
    window: str | None = None
    unbounded: str | None = None
    service_tier: str | None = None
    media: bool = False
    extra_input: int = 0
    extra_output: int = 0
    produces: bool = True


@dataclass(slots=True)
class Answer:
    """What has been read of an answer so far.

    Attributes:
        streaming: whether it comes in events, so that a count may still grow.
        counts: token counts by our names, as the provider reported them.
        complete: whether these counts are final; a stream that was cut is not.
        ended: whether the provider has said its last word, so that nothing more of the stream matters.
        regional: whether the provider says that it ran in a region that costs extra.
        problem: why the usage could not be read.
        truncated: whether the provider stopped at the output cap.
    """

    streaming: bool = False
    model: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
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
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                self.problem = f"the provider reported {name}={value!r}"
                return False
            # Usage sent twice, or growing: the larger reading stands.
            self.counts[name] = max(value, self.counts.get(name, 0))
        return True

    def usage(self) -> Usage | None:
        """The usage, if it is there and final."""
        if not self.complete or self.problem or not self.counts:
            return None
        return Usage(**self.counts)


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
    """

    api: str
    path: str
    provider: str
    recognises: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], Facts]
    fold: Callable[[Answer, dict[str, Any]], None]
    write_cap: Callable[[dict[str, Any], int, str], None]
    ask_usage: Callable[[dict[str, Any]], bool] = lambda _: False
    is_extra: Callable[[bytes], bool] = lambda _: False


def text_or_none(value: Any) -> str | None:
    """`value` if it is text."""
    return value if isinstance(value, str) else None


def largest(body: dict[str, Any], *fields: str) -> int | None:
    """The largest positive integer among the fields: with several caps stated, only the largest is safe to count on."""
    found = [v for f in fields if isinstance(v := body.get(f), int) and not isinstance(v, bool) and v > 0]
    return max(found, default=None)


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
