"""What a row of the matrix is, and what its forms are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SYNC, ASYNC, STREAM, ASYNC_STREAM, TOOLS = "sync", "async", "stream", "async stream", "tools"
FORMS = (SYNC, ASYNC, STREAM, ASYNC_STREAM, TOOLS)

PROMPT = "Say a few words about rivers, please."

#: What the small model of the demo is said to cost, in USD per million tokens. It costs nothing; both sides count with this.
LOCAL_RATES = {"input": 0.15, "cache_read": 0.075, "output": 0.6}


@dataclass(frozen=True)
class Absent:
    """A form that an SDK does not have, and why."""

    why: str


@dataclass(frozen=True)
class Place:
    """Where a form sends its calls.

    Attributes:
        url: of the provider, as Anthropic's SDK and most others want it; `openai_url` ends in ``/v1``.
        local: the name of the small model that answers there; None where the stand-in provider does.
        cap: how many tokens an answer may have.
    """

    url: str
    local: str | None = None
    cap: int = 60
    prompt: str = PROMPT

    @property
    def openai_url(self) -> str:
        """Base URL for OpenAI's SDK."""
        return f"{self.url}/v1"

    @property
    def messages(self) -> list[Any]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}]

    def model(self, name: str) -> str:
        """The model to ask for: the one named, or the small model in its place."""
        return self.local or name


#: A form: a plain function, or one that is awaited. It makes its calls and reads the answers to their end.
Work = Callable[[Place], Any]


@dataclass(frozen=True)
class Row:
    """One interface of an SDK, or one way of using a framework.

    Attributes:
        name: what is printed; unlike that of any other row.
        forms: for each of `FORMS` what does it, or why it does not exist.
        packages: the distributions whose versions are shown.
        owner: who sells the models, by OpenTelemetry's name; None where the path of a request tells.
        behave: how the stand-in provider answers, as fields of `wflo_nb.testing.Behaviour`.
        tools: which tools it calls in the form `TOOLS`, one after another; ``"*"`` is the first that a request offers.
        rates: USD per million tokens (input, output), declared to both sides, of a model that costs nothing or is not listed.
        local: whether it is run against the small model as well, and `not_local` why it is not.
        seconds: how long one form may take.
    """

    name: str
    forms: Mapping[str, Work | Absent]
    packages: tuple[str, ...]
    owner: str | None = None
    behave: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ("*",)
    rates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    local: bool = False
    not_local: str = "the model's server does not speak its format"
    seconds: float = 120.0

    def __post_init__(self) -> None:
        if "," in self.name:
            raise ValueError(f"{self.name}: --only separates names by commas, so none can be in one")
        if missing := [form for form in FORMS if form not in self.forms]:
            raise ValueError(f"{self.name}: no word about {', '.join(missing)}: say why a form does not exist with Absent(why)")
