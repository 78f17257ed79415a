"""Counting the input with the model's own tokenizer, where money is short and one is at hand.

The bytes of English text are about four times its tokens. When a call does not fit into what is left by its bytes, its texts are
counted exactly instead; everything else in the request stays at its bytes. Only for models whose tokenizer is surely known, at
their maker: another server may count as it likes. Only with tiktoken installed and its vocabulary already on this machine: nothing
is ever fetched, and litellm, in whose folder a copy may lie, is not imported. Whatever goes wrong, the bytes stay the bound.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import logging
import os
import re
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

from wflo_nb.capture.bounds import FRAMING, encoded
from wflo_nb.capture.formats.base import Facts, WireFormat

_log = logging.getLogger(__name__)

_ENCODING = "o200k_base"
#: Models that read with it. Newer ones may, too; that is not certain.
_READS = re.compile(
    r"(?:gpt-4o|gpt-4o-mini|chatgpt-4o-latest|gpt-4\.1|gpt-4\.1-mini|gpt-4\.1-nano|gpt-5|gpt-5-mini|gpt-5-nano|o1|o3|o4-mini)(?:-20\d\d-\d\d-\d\d)?"
)
_SELLERS = frozenset({"openai", "azure.ai.openai"})
#: Longer texts are not worth the wait: their answers cost little beside them.
_LONGEST = 1_000_000
#: Its way to cut text into pieces is slow in long blanks, and runs out of stack in very long ones.
_BLANK = re.compile(r"\s{256}")

_lock = threading.Lock()
_loaded: Any = None
_missing = False


def input_tokens(format: WireFormat, facts: Facts, seller: str | None, body: dict[str, Any]) -> int | None:
    """The input tokens of a request, counted; None where that cannot be done or would bound nothing."""
    if format.texts is None or facts.window is not None or seller not in _SELLERS or not _READS.fullmatch(facts.model):
        return None
    try:
        skeleton, texts = format.texts(body)
        if sum(map(len, texts)) > _LONGEST or any(map(_BLANK.search, texts)):
            return None
        encoding = _tokenizer()
        if encoding is None:
            return None
        counted = sum(len(encoding.encode_ordinary(text)) for text in texts)
        return counted + len(encoded(skeleton)) + FRAMING - facts.inline + facts.extra_input
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException:  # a panic of its native code is no Exception
        _log.debug("the input could not be counted by its tokenizer", exc_info=True)
        return None


def _tokenizer() -> Any:
    """The tokenizer, None if it is not on this machine. Looked for once."""
    global _loaded, _missing
    with _lock:
        if _loaded is None and not _missing:
            _loaded = _load()
            _missing = _loaded is None
        return _loaded


def _load() -> Any:
    if importlib.util.find_spec("tiktoken") is None:
        return None
    tiktoken: Any = importlib.import_module("tiktoken")  # no dependency of ours
    openai_public: Any = importlib.import_module("tiktoken_ext.openai_public")

    made = tiktoken.registry.ENCODINGS.get(_ENCODING)
    if made is not None:
        return made
    # tiktoken's own definition of the encoding, with its way to the network taken out.
    definition = openai_public.o200k_base
    offline = types.FunctionType(definition.__code__, {**definition.__globals__, "load_tiktoken_bpe": _vocabulary})
    try:
        return tiktoken.Encoding(**offline())
    except FileNotFoundError:
        return None


def _vocabulary(url: str, expected_hash: str | None = None) -> dict[bytes, int]:
    """The ranks of a vocabulary that was fetched once, from the file that is kept of it.

    Raises:
        FileNotFoundError: there is none, or it is not the one that is meant.
    """
    name = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    for folder in _folders():
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            if expected_hash is not None and hashlib.sha256(data).hexdigest() == expected_hash:
                lines = (line.split() for line in data.splitlines() if line)
                return {base64.b64decode(token): int(rank) for token, rank in lines}
    raise FileNotFoundError(url)


def _folders() -> list[Path]:
    """Where tiktoken keeps what it has fetched, and where litellm brings it along."""
    kept = next((os.environ[key] for key in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if key in os.environ), None)
    folders = [Path(kept) if kept is not None else Path(tempfile.gettempdir(), "data-gym-cache")]
    spec = importlib.util.find_spec("litellm")  # finds the folder and runs none of its code
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    return folders
