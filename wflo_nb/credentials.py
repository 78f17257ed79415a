"""What must never reach stored bytes: API keys, clients that carry them, copies of the environment.

Rules by name, by shape of the value and by class. A false alarm costs a rollback of that one value; a miss would put a key
into a database, so the rules lean to the careful side.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

HOLDS_CREDENTIALS = "holds credentials"

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_NAME = re.compile(
    r"(?:^|.*_)(?:api_?key|secret(?:_?(?:key|access_key|value|token))?|(?:access|private|signing|snapshot|account|encryption|master|auth)_?key(?:_id)?"
    r"|password|passwd|pwd|passphrase|authorization|bearer|credentials?|connection_string|(?:database|db|redis|postgres|mongo)_?ur[li]|dsn)s?\d*"
)
_TOKEN_NAME = re.compile(r"(?:(.*)_)?tokens?\d*")
#: Words before "token" with which it is a piece of text, not a key.
_TEXT_TOKENS = re.compile(
    r"(?:.*_)?(?:eos|bos|pad|unk|sep|cls|mask|special|stop|start|end|first|last|next|prev|previous|max|min|num|n|per|input|output|total|image|audio|word)"
)
_KEY_SHAPE = re.compile(
    r"(?:bearer\s+)?(?:sk-[\w\-]{16,}|[rp]k_(?:live|test)_\w{16,}|sk_(?:live|test)_\w{16,}|A[KS]IA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}"
    r"|xox[abeoprs]-[\w\-]{10,}|AIza[\w\-]{30,}|hf_\w{20,}|gsk_\w{20,}|r8_\w{20,}|pplx-\w{20,}|xai-\w{20,}|lsv2_\w{16,}|tvly-\w{16,}|eyJ[\w\-]{10,1024}+\.[\w\-]{10,}\.[\w\-]*)"
    r"|bearer\s+\S{16,}|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*|[a-z][a-z0-9+]{0,40}+://[^/\s:@]*:[^/\s@]+@\S+",
    re.IGNORECASE | re.DOTALL,
)
#: A key that begins where a text is cut is seen as a whole.
_LONGEST_KEY = 8192
_KEY_STARTS = (
    "sk-",
    "sk_",
    "rk_",
    "pk_",
    "AKI",
    "ASI",
    "ghp",
    "gho",
    "ghu",
    "ghs",
    "ghr",
    "git",
    "glp",
    "xox",
    "AIz",
    "hf_",
    "gsk",
    "r8_",
    "ppl",
    "xai",
    "lsv",
    "tvl",
    "eyJ",
    "Bea",
    "bea",
    "---",
)

#: Classes of these libraries whose names end so are connections to somewhere: they carry keys, sockets or both.
_CLIENT_LIBRARIES = {
    "openai", "anthropic", "httpx", "httpx2", "requests", "aiohttp", "urllib3", "google", "mistralai", "cohere", "groq", "together",
    "replicate", "huggingface_hub", "boto3", "botocore", "azure", "litellm", "ollama", "cerebras", "fireworks", "voyageai", "pinecone",
    "weaviate", "qdrant_client", "langsmith", "langfuse", "sqlalchemy", "psycopg", "psycopg2", "asyncpg", "pymongo", "redis",
    "pymysql", "snowflake", "duckdb", "adbc_driver_manager",
}  # fmt: skip
_CLIENT_CLASS = re.compile(
    r".*(?:Client|Session|OpenAI|Anthropic|AnthropicBedrock|AnthropicVertex|Bedrock|Vertex|Connection|ConnectionPool|Pool|Engine|Transport|Auth|Credentials?|Cursor|Redis|PyConnection|Request|Headers)"
)
_SECRET_CLASSES = {"SecretStr", "SecretBytes", "Secret"}

_names: dict[str, int] = {}
_client_types: dict[type, bool] = {}
_NO, _SECRET, _TOKEN = 0, 1, 2


def _kind_of_name(name: str) -> int:
    known = _names.get(name)
    if known is None:
        plain = _CAMEL.sub("_", name[:200]).replace("-", "_").replace(".", "_").replace(" ", "_").lower().strip("_")
        if _SECRET_NAME.fullmatch(plain):
            known = _SECRET
        else:
            token = _TOKEN_NAME.fullmatch(plain)
            known = _TOKEN if token and not (token[1] and _TEXT_TOKENS.fullmatch(token[1])) else _NO
        if len(_names) < 100_000:
            _names[name] = known
    return known


def is_secret(name: str, value: object) -> bool:
    """Is this text, held under this name, a key or a password?"""
    kind = _kind_of_name(name)
    if kind == _NO:
        return False
    if type(value) not in (str, bytes, bytearray):
        return type(value).__name__ in _SECRET_CLASSES
    text = value if isinstance(value, str) else bytes(value).decode("latin-1")  # type: ignore[call-overload]
    # "token" is also a word of text processing, so there the value must look like a key.
    return bool(text) if kind == _SECRET else len(text) >= 8 and not any(c.isspace() for c in text.removeprefix("Bearer "))


def is_key_shaped(text: str | bytes) -> bool:
    """Has this text the form of a provider's key, a bearer header, a private key or a URL with a password?"""
    if isinstance(text, bytes):
        text = text[:4096].decode("latin-1")
    return (text[:3] in _KEY_STARTS or "://" in text[:24]) and _KEY_SHAPE.fullmatch(text) is not None


def secrets_in(mapping: Mapping[object, object]) -> list[str | bytes]:
    """The secret values of a dict, by the names of its keys."""
    found: list[str | bytes] = []
    for key, value in mapping.items():
        if type(key) is str and _names.get(key, 1) and is_secret(key, value) and type(value) in (str, bytes):
            found.append(value)  # type: ignore[arg-type]
    return found


def is_client(kind: type) -> bool:
    """Is it a class of SDK clients, HTTP sessions or database connections?"""
    known = _client_types.get(kind)
    if known is None:
        known = any(
            c.__module__.partition(".")[0] in _CLIENT_LIBRARIES and _CLIENT_CLASS.fullmatch(c.__name__) is not None
            for c in kind.__mro__
            if isinstance(getattr(c, "__module__", None), str)
        )
        if len(_client_types) < 10_000:
            _client_types[kind] = known
    return known


def holds_credentials(thing: object) -> bool:
    """Must this object stay out of the bytes as a whole? Looks at its class and the names of its attributes, runs none of its code."""
    kind = type(thing)
    if kind is type(os.environ) or kind.__name__ in _SECRET_CLASSES or is_client(kind):
        return True
    try:
        attributes = object.__getattribute__(thing, "__dict__")
    except Exception:
        return False
    if type(attributes) is not dict or isinstance(thing, type):
        return False
    return any(type(name) is str and _names.get(name, 1) and is_secret(name, value) for name, value in list(attributes.items()))


def is_environment(mapping: dict[object, object]) -> bool:
    """Is it a copy of this process's environment?"""
    if len(mapping) < 8 or len(mapping) > 2000:
        return False
    env = os.environ
    if not any(name in mapping for name in ("PATH", "Path", "HOME", "USERPROFILE")):
        return False
    shared = sum(1 for name, value in mapping.items() if type(name) is str and type(value) is str and env.get(name) == value)
    return shared >= 5 and shared * 2 >= min(len(mapping), len(env))


def environment_secrets() -> set[str]:
    """The secret values of this process's environment, long enough to be searched for."""
    return {value for name, value in os.environ.items() if len(value) >= 12 and (is_secret(name, value) or is_key_shaped(value))}


def needles(values: Iterable[str | bytes]) -> list[bytes]:
    """Every form in which a secret may stand in bytes. Short ones are left to the rules by name: they would be found everywhere."""
    found = set()
    for value in values:
        text = value if isinstance(value, str) else value.decode("latin-1")
        if len(text) >= 8:
            found |= {text.encode("utf-8", "surrogatepass"), text.encode("utf-32-le", "surrogatepass")}
    return sorted(found)


def masked(text: str, longest: int = 300) -> str:
    """Text that came from somewhere else, fit to be kept: whatever is shaped like a key is taken out, and its end is cut off."""
    plain = _KEY_SHAPE.sub("[secret]", text[: longest + _LONGEST_KEY])
    return plain if len(plain) <= longest else f"{plain[:longest]}…"
