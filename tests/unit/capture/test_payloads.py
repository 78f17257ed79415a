"""Each wire format reads payloads of its provider's documented shape: the request, the answer, the stream, wherever the network cut it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wflo_nb.capture import formats, framing
from wflo_nb.capture.formats.base import Answer, Facts, WireFormat
from wflo_nb.model import Usage

FOLDER = Path(__file__).parents[2] / "data" / "formats"


class Case(NamedTuple):
    meta: dict[str, Any]
    request: dict[str, Any]
    response: Any
    stream: bytes | None

    def format(self, stream: bool = False) -> WireFormat:
        path = self.meta.get("stream_path", self.meta["path"]) if stream else self.meta["path"]
        return next(found for found in formats.all_at(path) if found.recognises(self.request))

    def read(self, body: dict[str, Any]) -> Facts:
        return self.format().read(body, self.meta["seller"], self.meta["path"])


def load(name: str) -> Case:
    folder = FOLDER / name
    response, stream = folder / "response.json", next(folder.glob("stream.*"), None)
    return Case(
        json.loads((folder / "case.json").read_text()),
        json.loads((folder / "request.json").read_text()),
        json.loads(response.read_text()) if response.exists() else None,
        stream.read_bytes() if stream else None,
    )


NAMES = sorted(path.name for path in FOLDER.iterdir())
ANSWERED = [name for name in NAMES if (FOLDER / name / "response.json").exists()]
STREAMED = [name for name in NAMES if list((FOLDER / name).glob("stream.*"))]


@pytest.mark.parametrize("name", NAMES)
def test_request_is_recognised_and_read(name: str) -> None:
    case = load(name)
    assert case.format().recognises(case.request)
    facts, before = case.read(case.request), copy.deepcopy(case.request)
    found = {field: getattr(facts, field) for field in case.meta["facts"]}
    assert {field: list(value) if isinstance(value, tuple) else value for field, value in found.items()} == case.meta["facts"]
    assert case.request == before


@pytest.mark.parametrize(
    "name", [name for name in NAMES if load(name).meta["facts"].get("produces", True) and load(name).meta.get("written_cap", True)]
)
def test_cap_that_is_written_is_the_one_that_is_read(name: str) -> None:
    case = load(name)
    body = copy.deepcopy(case.request)
    facts = case.read(body)
    case.format().write_cap(body, 321, "api.example.com")
    assert case.read(body).cap == 321
    assert case.read(body).choices == facts.choices


def fold(format: WireFormat, answer: Answer, obj: Any) -> Answer:
    for one in obj if isinstance(obj, list) else [obj]:
        format.fold(answer, one)
    return answer


@pytest.mark.parametrize("name", ANSWERED)
def test_usage_of_an_answer(name: str) -> None:
    case = load(name)
    answer = fold(case.format(), Answer(paid=case.meta.get("paid", True)), case.response)
    for header, value in case.meta.get("headers", {}).items():
        told = case.format().told
        assert told is not None
        assert header in case.format().headers
        told(answer, header, value)
    assert answer.problem is None
    assert answer.usage() == Usage(**case.meta["usage"])
    if "answered_model" in case.meta:
        assert answer.model == case.meta["answered_model"]
    if "uses" in case.meta:
        assert answer.uses == case.meta["uses"]
        assert answer.lists_uses


@pytest.mark.parametrize("name", [name for name in ANSWERED if "said" in load(name).meta])
def test_text_of_an_answer(name: str) -> None:
    case = load(name)
    said = case.format().said
    assert said is not None
    texts: dict[int, str] = {}
    for one in case.response if isinstance(case.response, list) else [case.response]:
        for choice, text in said(one):
            texts[choice] = texts.get(choice, "") + text
    assert "\n\n".join(texts.values()) == case.meta["said"]


@pytest.mark.parametrize("piece", [1, 7, 64, 10**6])
@pytest.mark.parametrize("name", STREAMED)
def test_usage_of_a_stream_cut_anywhere(name: str, piece: int) -> None:
    case = load(name)
    assert case.stream is not None
    format = case.format(stream=True)
    frames = framing.of(case.meta["stream_type"].lower(), quick=format.matters is None)
    assert frames is not None
    answer, passed, began = Answer(streaming=True), b"", False
    for at in range(0, len(case.stream), piece):
        found = frames.feed(case.stream[at : at + piece])
        passed += b"".join(found)
        for frame in found:
            text = frames.payload(frame)
            if text[:1] == b"{" and (not began or format.matters is None or format.matters(frame)):
                format.fold(answer, json.loads(text))
                began = True
    assert passed + frames.flush() == case.stream
    answer.complete = answer.complete or format.grows
    assert answer.problem is None
    assert answer.usage() == Usage(**case.meta["stream_usage"])
