from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from wflo_nb.capture import sse

LINES = st.sampled_from([b"\n", b"\r\n"])


@given(st.lists(st.binary(max_size=20).map(lambda b: b"data: " + b.replace(b"\n", b"").replace(b"\r", b"")), max_size=8), LINES, st.data())
def test_events_are_the_same_wherever_the_network_cuts(events: list[bytes], newline: bytes, data: st.DataObject) -> None:
    whole = b"".join(e + newline + newline for e in events)
    splitter, got, rest = sse.Splitter(), [], whole
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        got += splitter.feed(rest[:cut])
        rest = rest[cut:]
    assert b"".join(got) + splitter.flush() == whole
    assert [sse.payload(e) for e in got] == [e[5:].strip() for e in events]


def test_data_of_several_lines_is_joined() -> None:
    assert sse.payload(b"event: x\r\ndata: {\r\ndata: }\r\n\r\n") == b"{\n}"


def test_null_usage_is_taken_out_and_nothing_else() -> None:
    plain = b'data: {"a": 1, "choices": [{"text": "he said \\"usage\\": null"}]}\n\n'
    assert sse.without_null_usage(plain) == plain
    assert sse.without_null_usage(b'data: {"a":1,"usage":null,"b":2}\n\n') == b'data: {"a":1,"b":2}\n\n'


NULL = b'data: {"a":1,"usage":null}\n\n'
BARE = b'data: {"a":1}\n\n'
PADDED = b'data: {"a":1,"usage":null,"obfuscation":"fjE24R0ZOJr"}\n\n'


@pytest.mark.parametrize(
    ("piece", "kept"),
    [
        (NULL, BARE),
        (NULL + NULL, BARE + BARE),
        (BARE + NULL, BARE + BARE),
        (BARE, BARE),
        (PADDED, b'data: {"a":1,"obfuscation":"fjE24R0ZOJr"}\n\n'),
        (PADDED + NULL, b'data: {"a":1,"obfuscation":"fjE24R0ZOJr"}\n\n' + BARE),
        (PADDED.replace(b"}", b',"usage":{"a":1}}'), None),
        (PADDED.replace(b"}", b',"b":{"usage":1}}'), None),
        (b"event: x\n" + PADDED, b'event: x\ndata: {"a":1,"obfuscation":"fjE24R0ZOJr"}\n\n'),
        (b'data: {"usage":{"a":1}}\n\n' + NULL, None),
        (b'data: {"usage":{"a":1}}\n\n', None),
        (b": waiting\n\n" + NULL, None),
        (NULL[:-1], None),
        (NULL + b"data: {", None),
        (b"data: [DONE]\n\n", None),
        (b'data: {"word":1,"usage":null}\n\n', None),
    ],
)
def test_pieces_pass_at_once_that_are_whole_events_without_a_usage(piece: bytes, kept: bytes | None) -> None:
    assert sse.Splitter().passing(piece, (b'"word"',)) == kept


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.ZstdCompressor().compress), ("", bytes), ("identity", bytes)],
)
def test_encodings_are_undone_piece_by_piece(encoding: str, encode: object) -> None:
    text = b"data: hello\n\n" * 50
    raw = encode(text)  # type: ignore[operator]
    decoder = sse.decoder(encoding)
    pieces = [raw[i : i + 7] for i in range(0, len(raw), 7)]
    assert b"".join(decoder.decompress(p) if decoder else p for p in pieces) == text


def test_unknown_encoding_says_so() -> None:
    with pytest.raises(LookupError):
        sse.decoder("br")


def test_long_event_is_looked_through_once_however_small_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is millions of bytes, and an event loop waits meanwhile."""
    looked, real = [], sse._BLANK_LINE

    class Counting:
        def finditer(self, data: bytes, start: int = 0) -> Any:
            looked.append(len(data) - start)
            return real.finditer(data, start)

    monkeypatch.setattr(sse, "_BLANK_LINE", Counting())
    splitter, event = sse.Splitter(), b"data: " + b"x" * 100_000 + b"\r\n\r\n"
    found = [one for at in range(0, len(event), 100) for one in splitter.feed(event[at : at + 100])]
    assert found == [event]
    assert sum(looked) < 2 * len(event)
