"""A hostile provider: answers and streams of every wire format, damaged in any way, read through the gate and the exchange.

Used by the tests with some hundred examples, and by ``benchmarks/hostile.py`` with as many as one likes. What must hold of each: the user
gets exactly the bytes that came; the call ends, once; what was paid for is never recorded as $0; nothing is raised.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from wflo_nb.budget.account import Account
from wflo_nb.capture import formats, framing, gate
from wflo_nb.capture.formats.base import WireFormat
from wflo_nb.capture.framing import AwsEvents, aws_message
from wflo_nb.capture.shown import Request
from wflo_nb.errors import ConfigurationError, UnknownModelError, WfloError
from wflo_nb.model import CallState

FOLDER = Path(__file__).parent / "data" / "formats"
#: What a value is replaced by.
JUNK: tuple[Any, ...] = (None, -1, 0, "many", 1.5, 1e300, True, [], {}, [[]], 10**30, "", {"usage": None}, "\ud800", float("nan"))
#: Ways to end: the body is read to its end, the user stops, the connection breaks.
ENDS = ("finished", "closed", "failed")


class Sample(NamedTuple):
    """One request that is sent, and the answer that would come."""

    name: str
    host: str
    path: str
    request: bytes
    kind: str
    answer: bytes


HOSTS = {
    "openai": "api.openai.com",
    "gcp.gemini": "generativelanguage.googleapis.com",
    "gcp.vertex_ai": "aiplatform.googleapis.com",
    "aws.bedrock": "bedrock-runtime.us-east-1.amazonaws.com",
    "mistral_ai": "api.mistral.ai",
    "cohere": "api.cohere.com",
    "groq": "api.groq.com",
    "deepseek": "api.deepseek.com",
    "openrouter": "openrouter.ai",
    "x_ai": "api.x.ai",
    "together": "api.together.xyz",
}


def samples() -> Iterator[Sample]:
    """Every payload of the test data that can be sent under a budget."""
    for folder in sorted(FOLDER.iterdir()):
        meta = json.loads((folder / "case.json").read_text())
        if meta["facts"].get("unbounded"):
            continue
        body = json.loads((folder / "request.json").read_text())
        host = HOSTS.get(meta["seller"], "127.0.0.1")
        response, stream = folder / "response.json", next(folder.glob("stream.*"), None)
        if response.exists():
            yield Sample(folder.name, host, meta["path"], json.dumps(body).encode(), "application/json", response.read_bytes())
        if stream is not None:
            path = meta.get("stream_path", meta["path"])
            if path.endswith(("completions", "/messages", "/chat", "/generate", "/images/generations")):
                body = {**body, "stream": True}
            if path.endswith("completions"):
                body["stream_options"] = {"include_usage": True}  # nothing of ours is then to be taken out again
            yield Sample(f"{folder.name} stream", host, path, json.dumps(body).encode(), meta["stream_type"], stream.read_bytes())


def spoken(sample: Sample) -> WireFormat:
    """The format of a sample."""
    return next(found for found in formats.all_at(sample.path) if found.recognises(json.loads(sample.request)))


def declare_all(account: Account, found: list[Sample]) -> list[Sample]:
    """The samples that can be admitted, after a price was declared for each model that nobody lists."""
    able = []
    for sample in found:
        format = spoken(sample)
        seller = formats.provider_of(sample.host) or (format.provider if format.local else None)
        model = format.read(json.loads(sample.request), seller, sample.path).model
        try:
            account.book.find(seller, model)
        except UnknownModelError:
            account.book.declare(model, input=1, output=2, max_input_tokens=100_000, max_output_tokens=1000)
        try:
            exchange = admitted(account, sample)
        except (WfloError, ConfigurationError):
            continue
        exchange.failed(RuntimeError(), sent=False)
        able.append(sample)
    return able


def admitted(account: Account, sample: Sample) -> Any:
    exchange = gate.admit(account, Request(sample.host, sample.path, sample.request))
    assert exchange is not None
    return exchange


# -- damage ------------------------------------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value that something else can be put in."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield value, key
        yield from places(child)


def spoiled(text: bytes, where: float, junk: int) -> bytes:
    """A JSON text with one value replaced."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    found = list(places(value))
    if not found:
        return text
    holder, key = found[int(where * len(found)) % len(found)]
    if junk >= len(JUNK):
        del holder[key]
    else:
        holder[key] = JUNK[junk]
    return json.dumps(value).encode("utf-8", "surrogatepass")


def reframed(sample: Sample, edits: list[tuple[int, float, int]]) -> bytes:
    """The answer with some values replaced inside its frames, each frame whole and its checksums right."""
    frames = framing.of(sample.kind.lower())
    pieces = [sample.answer] if frames is None else [*frames.feed(sample.answer), frames.flush()]
    for number, where, junk in edits:
        at = number % len(pieces)
        piece = pieces[at]
        if isinstance(frames, AwsEvents):
            headers, body = framing._opened(piece) if piece else ({}, b"")
            pieces[at] = aws_message(headers, spoiled(body, where, junk)) if piece else piece
        elif piece.lstrip().startswith((b"data:", b"event:")):
            head, mark, rest = piece.partition(b"data: ")
            pieces[at] = head + mark + spoiled(rest.strip(), where, junk) + b"\n\n"
        elif piece.strip():
            pieces[at] = spoiled(piece, where, junk) + (b"\n" if frames is not None else b"")
    return b"".join(pieces)


#: Parts of the names of what is counted, or holds what is counted; and of what is said.
COUNTED = ("oken", "usage", "count", "page", "unit", "second", "data", "cache")
SAID = ("text", "content", "delta", "message", "choices", "parts", "candidates", "output", "generation", "index", "response")


def named(sample: Sample, *words: str) -> Iterator[tuple[int, float]]:
    """Where an answer has a field with one of these words in its name: its frame, and its place in there, as `reframed` takes them."""
    frames = framing.of(sample.kind.lower())
    pieces = [sample.answer] if frames is None else [*frames.feed(sample.answer), frames.flush()]
    for number, piece in enumerate(pieces):
        try:
            text = framing._opened(piece)[1] if isinstance(frames, AwsEvents) else (frames or framing.Lines()).payload(piece)
            found = list(places(json.loads(text)))
        except ValueError:  # no JSON in it
            continue
        for at, (_, key) in enumerate(found):
            if isinstance(key, str) and any(word in key.lower() for word in words):
                yield number, (at + 0.5) / len(found)


def damaged(data: bytes, edits: list[tuple[int, float, int, bytes]]) -> bytes:
    """The bytes with a few cuts, doublings and insertions."""
    for kind, where, length, junk in edits:
        at = int(where * len(data))
        piece = data[at : at + length]
        data = [
            data[:at] + data[at + length :],
            data[:at] + piece + data[at:],
            data[:at] + junk + data[at:],
            data[:at],
            data[:at] + b"[" * 3000 + data[at:],
        ][kind]
    return data


ENCODERS = {"": lambda data: data, "gzip": gzip.compress, "deflate": zlib.compress, "br": lambda data: data, "gzip, gzip": gzip.compress}


class Attack(NamedTuple):
    """What is done to one answer."""

    sample: float
    values: list[tuple[int, float, int]]
    edits: list[tuple[int, float, int, bytes]]
    piece: int
    encoding: str
    kind: str | None
    end: str


ATTACKS = st.builds(
    Attack,
    st.floats(0, 0.999),
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.999), st.integers(0, len(JUNK))), max_size=3),
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8)), max_size=2),
    st.integers(1, 400),
    st.sampled_from([*ENCODERS, "", "", ""]),
    st.sampled_from([None, None, None, "", "text/html", "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream"]),
    st.sampled_from(ENDS),
)


def suffer(account: Account, found: list[Sample], attack: Attack) -> None:
    """One attack, and everything that must hold after it.

    Raises:
        AssertionError: something does not.
    """
    sample = found[int(attack.sample * len(found))]
    raw = ENCODERS[attack.encoding](damaged(reframed(sample, attack.values), attack.edits))
    before = account.figures.spent_nano
    exchange = admitted(account, sample)
    headers = {"x-amzn-bedrock-input-token-count": "many", "x-amzn-bedrock-output-token-count": "4"}
    exchange.head(200, (sample.kind if attack.kind is None else attack.kind).lower(), attack.encoding, headers)
    got = b"".join(exchange.feed(raw[at : at + attack.piece]) for at in range(0, len(raw), attack.piece)) + exchange.flush()
    if attack.end == "failed":
        exchange.failed(ConnectionError(), sent=True)
    elif attack.end == "finished":
        exchange.finished()
    exchange.closed()
    exchange.partial()
    call = exchange.call
    assert got == raw, sample.name
    assert call.state in (CallState.SETTLED, CallState.UNCONFIRMED), (sample.name, call.state)
    free = exchange.price is not None and exchange.price.is_free
    assert free or call.cost_nano, (sample.name, call.state, call.cost_nano, call.reason)
    assert account.figures.spent_nano - before == call.cost_nano
    assert account.figures.held_nano == account.figures.in_flight == 0
