"""Frames are told apart wherever the network cut them, and a damaged one is never read."""

from __future__ import annotations

import base64
import json

import pytest

from wflo_nb.capture import framing
from wflo_nb.capture.framing import AwsEvents, Lines, aws_message

HEADERS = {":event-type": "metadata", ":content-type": "application/json", ":message-type": "event"}
MESSAGE = aws_message(HEADERS, b'{"usage":{"inputTokens":1}}')


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("text/event-stream; charset=utf-8", "Splitter"),
        ("application/x-ndjson", "Lines"),
        ("application/jsonl", "Lines"),
        ("application/stream+json", "Lines"),
        ("application/vnd.amazon.eventstream", "AwsEvents"),
        ("application/json", "NoneType"),
        ("", "NoneType"),
    ],
)
def test_framing_is_chosen_by_content_type(kind: str, found: str) -> None:
    assert type(framing.of(kind)).__name__ == found


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_lines_are_handed_back_as_they_came(piece: int) -> None:
    data = b'{"a":1}\r\n\n{"b":2}\n{"c":3}'
    lines = Lines()
    found = [line for at in range(0, len(data), piece) for line in lines.feed(data[at : at + piece])]
    rest = lines.flush()
    assert b"".join(found) + rest == data
    assert [json.loads(text) for line in (*found, rest) if (text := lines.payload(line))] == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_message_of_aws_is_its_json_under_its_event_type() -> None:
    assert json.loads(AwsEvents().payload(MESSAGE)) == {"metadata": {"usage": {"inputTokens": 1}}}


def test_exception_in_a_stream_of_aws_is_told_by_its_name() -> None:
    broken = aws_message({":message-type": "exception", ":exception-type": "throttlingException"}, b'{"message":"slow down"}')
    assert json.loads(AwsEvents().payload(broken)) == {"exception": "throttlingException"}


def test_chunk_of_bedrock_is_the_event_inside_it() -> None:
    inner = b'{"type":"message_stop"}'
    message = aws_message({":event-type": "chunk"}, json.dumps({"bytes": base64.b64encode(inner).decode()}).encode())
    assert AwsEvents().payload(message) == inner


@pytest.mark.parametrize("at", range(0, len(MESSAGE), 3))
def test_one_changed_byte_anywhere_makes_a_message_of_aws_unreadable_and_passes_on(at: int) -> None:
    damaged = MESSAGE[:at] + bytes([MESSAGE[at] ^ 0x41]) + MESSAGE[at + 1 :]
    events = AwsEvents()
    found = [*events.feed(damaged[:9]), *events.feed(damaged[9:]), events.flush()]
    assert b"".join(found) == damaged
    for frame in found:
        if frame:
            with pytest.raises(ValueError, match="damaged"):
                events.payload(frame)


def test_nothing_is_told_apart_after_a_damaged_beginning() -> None:
    events = AwsEvents()
    assert events.feed(b"\xff" * 20) == [b"\xff" * 20]
    assert events.feed(MESSAGE) == [MESSAGE]  # passed on as it came, in pieces that need not be messages
    assert events.rest == b""


def test_damaged_frames_are_left_out_of_what_was_delivered() -> None:
    assert framing.payloads(AwsEvents(), MESSAGE + MESSAGE[:-1] + b"\0") == [AwsEvents().payload(MESSAGE)]
