"""Keys never reach the stored bytes. Every test searches all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import numpy as np
import openai
import pandas as pd
import pytest

from wflo_nb import credentials
from wflo_nb.credentials import masked
from wflo_nb.snapshot.engine import SnapshotEngine

Run = Callable[[str], None]
KEY = "sk-proj-Zq81LmNvT2x9Pw47RbYc"
PLAIN = "correct horse battery staple 42"


class Settings:
    def __init__(self) -> None:
        self.api_key = PLAIN
        self.model = "gpt-4o"


class SecretStr:
    def __init__(self, value: str) -> None:
        self._value = value


HOLDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "a variable with the name of a key": lambda: {"OPENAI_API_KEY": PLAIN},
    "a password": lambda: {"db_password": PLAIN},
    "a token": lambda: {"token": "0123456789abcdef", "PLAIN": 0},
    "a value with the form of a key": lambda: {"k": KEY},
    "a bearer header": lambda: {"h": {"X-Auth": f"Bearer {KEY}"}},
    "a URL with a password": lambda: {"u": f"postgresql://me:{KEY}@db/x"},
    "a dict": lambda: {"config": {"api_key": PLAIN, "model": "gpt-4o"}},
    "a dict in a list in a dict": lambda: {"all": {"c": [{"nested": {"clientSecret": PLAIN}}]}},
    "an object": lambda: {"settings": Settings()},
    "objects in a list": lambda: {"several": [Settings(), 1]},
    "a secret string": lambda: {"s": [SecretStr(PLAIN)]},
    "an OpenAI client": lambda: {"client": openai.OpenAI(api_key=KEY)},
    "an Anthropic client": lambda: {"client": {"c": anthropic.AsyncAnthropic(api_key=KEY)}},
    "a part of a client": lambda: {"chat": openai.OpenAI(api_key=KEY).chat.completions},
    "an HTTP client": lambda: {"h": httpx.Client(headers={"Authorization": f"Basic {PLAIN}"})},
    "the same text elsewhere": lambda: {"api_key": PLAIN, "prompt": f"please use {PLAIN} to log in", "rows": [PLAIN.encode()]},
    "an array of text": lambda: {"api_key": PLAIN, "a": np.array([PLAIN, "x"] * 500)},
    "a frame": lambda: {"api_key": PLAIN, "df": pd.DataFrame({"t": [PLAIN] * 500})},
    "a class": lambda: {"Config": type("Config", (), {"api_key": PLAIN, "__module__": "__main__"})},
}


@pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS.keys())
def test_the_key_is_in_no_stored_byte(
    ns: dict[str, Any], engine: SnapshotEngine, everything_stored: Callable[[], bytes], make: Callable[[], dict[str, Any]]
) -> None:
    variables = make()
    ns.update(variables, plain="kept")
    info = engine.take("start")
    stored = everything_stored()
    for text in (KEY, PLAIN, "0123456789abcdef"):
        for form in ("utf-8", "utf-16-le", "utf-32-le"):
            assert text.encode(form) not in stored
    assert b"kept" in stored  # the search does find what is there
    assert set(info.left_out) <= set(variables) and any("credentials" in reason for reason in info.left_out.values())
    for name in variables:
        ns[name] = None
    engine.restore("start")
    assert {
        name for name in variables if ns[name] is not variables[name] and name in info.left_out and "inside" not in info.left_out[name]
    } == set()


def test_only_the_key_of_a_dict_is_by_reference(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    ns["config"] = {"api_key": PLAIN, "model": "gpt-4o", "seen": [1]}
    assert "inside" in engine.take("start").left_out["config"]
    ns["config"] = None
    engine.restore("start")
    assert ns["config"] == {"api_key": PLAIN, "model": "gpt-4o", "seen": [1]}


def test_a_copy_of_the_environment_is_by_reference(
    ns: dict[str, Any], engine: SnapshotEngine, everything_stored: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INNOCENT_LOOKING", "a-value-nobody-would-suspect-77")
    monkeypatch.setenv("SOME_API_KEY", "another-key-of-the-environment")
    ns.update(env=dict(os.environ), live=os.environ, inside=[os.environ.copy(), 5], note="uses another-key-of-the-environment")
    info = engine.take("start")
    stored = everything_stored()
    assert b"a-value-nobody-would-suspect-77" not in stored and b"another-key-of-the-environment" not in stored
    assert set(info.left_out) == {"env", "live", "inside", "note"}
    ns["inside"] = None
    engine.restore("start")
    assert ns["inside"][0]["INNOCENT_LOOKING"] and ns["inside"][1] == 5


def test_keys_in_code_are_by_reference(
    ns: dict[str, Any], run: Run, engine: SnapshotEngine, everything_stored: Callable[[], bytes]
) -> None:
    run(f"def make(): return {KEY!r}\ndef quiet(api_key={PLAIN!r}): return api_key\nauth = dict(password={PLAIN!r})")
    engine.take("start")
    assert KEY.encode() not in everything_stored() and PLAIN.encode() not in everything_stored()
    run("make = quiet = None")
    engine.restore("start")
    assert ns["make"]() == KEY and ns["quiet"]() == PLAIN


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "OPENAI_API_KEY",
        "openaiApiKey",
        "x-api-key",
        "password",
        "DB_PASSWORD",
        "secret",
        "AWS_SECRET_ACCESS_KEY",
        "client_secret",
        "Authorization",
        "private_key",
        "accessToken",
        "HF_TOKEN",
    ],
)
def test_names_of_keys_are_known(name: str) -> None:
    assert credentials.is_secret(name, "0123456789abcdef")


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "keys",
        "monkey",
        "eos_token",
        "pad_token",
        "next_token",
        "max_tokens",
        "secretary",
        "tokenizer",
        "author",
        "public_keyboard",
        "turkey",
    ],
)
def test_other_names_are_not(name: str) -> None:
    assert not credentials.is_secret(name, "0123456789abcdef")


def test_tokens_of_a_text_are_no_keys() -> None:
    assert not credentials.is_secret("token", "hello") and not credentials.is_secret("token", "a sentence of words")
    assert not credentials.is_secret("token", 5) and not credentials.is_secret("password", "")
    assert not credentials.is_key_shaped("skating is fun") and not credentials.is_key_shaped("https://example.org/a@b")


@pytest.mark.parametrize("piece", ["abcdefghij", "eyJ", "a+", "sk", "https:"], ids=["base64", "token", "scheme", "key", "address"])
def test_masking_a_long_text_takes_no_longer_than_reading_it(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))  # of a search that starts anew at every letter nobody would see the end
    assert masked(text, 2_000_000) == text


def test_whatever_stands_before_a_key_and_wherever_a_text_is_cut_the_key_is_masked() -> None:
    key = "sk-" + "a1B2" * 10
    assert masked(f"see 1postgres://ann:secret@host/db and {key}", 300) == "see 1[secret] and [secret]"
    assert masked("x" * 295 + key, 300) == "x" * 295 + "[secr…"
    assert masked("x" * 290 + key, 300) == "x" * 290 + "[secret]"
