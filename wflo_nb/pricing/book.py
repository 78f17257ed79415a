"""The book of prices: what the table says, and what users declare in this process."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any

from wflo_nb.errors import ConfigurationError, PricingError, UnknownModelError
from wflo_nb.pricing.lookup import flat, from_table, near
from wflo_nb.pricing.names import canonical_provider
from wflo_nb.pricing.price import ModelPrice as ModelPrice
from wflo_nb.pricing.rates import Row

_SECONDS_PER_DAY = 86_400
_EPOCH = date(1970, 1, 1)
#: Found prices and misses kept, so that programs which make up model names do not fill the memory.
_KEPT = 4_000
#: Dearest and cheapest price per million tokens that is believed without being asked twice.
_DEAREST = Decimal(10_000)
_CHEAPEST = Decimal("0.000001")


class PriceBook:
    """Prices of the table and those declared in this process. Safe to use from many threads."""

    def __init__(self, base: PriceBook | None = None) -> None:
        """A book that starts with the declarations that `base` has now."""
        self._lock = threading.Lock()
        self._declared: dict[tuple[str, str], ModelPrice] = dict(base._declared) if base is not None else {}
        self._found: dict[tuple[str | None, str], tuple[int, ModelPrice]] = {}
        self._missed: dict[tuple[str | None, str], tuple[str, ...]] = {}
        self._edition = 0

    def renew_locks(self) -> None:
        """In a forked child: a thread that held the lock does not exist there."""
        self._lock = threading.Lock()

    def find(self, provider: str | None, model: str) -> ModelPrice:
        """The price of a model at a provider, a declared one first.

        Args:
            provider: its OpenTelemetry name (``openai``, ``gcp.gemini``, ``aws.bedrock``, …) or another usual one. None or a name
                that the table does not have means a host nobody knows: an id is then accepted when one of the makers lists it, or
                all who list it agree, and bounded by the dearest of them.
            model: the id as requests and answers write it.

        Raises:
            UnknownModelError: no price, with near matches.
        """
        key = (provider, model)
        found = self._found.get(key)
        if found is not None and found[0] == int(time.time()) // _SECONDS_PER_DAY:  # as `at_hand`: this runs several times for each call
            return found[1]
        missed = self._missed.get(key)
        if missed is not None:
            raise UnknownModelError(model, provider, missed)
        edition, today = self._edition, _today()
        price = self._look_up(provider or "", model, (_EPOCH + timedelta(today)).isoformat())
        if price is None:
            suggestions = near(provider or "", model)
            self._keep(self._missed, key, suggestions, edition)
            raise UnknownModelError(model, provider, suggestions)
        self._keep(self._found, key, (today, price), edition)
        return price

    def at_hand(self, provider: str | None, model: str) -> ModelPrice | None:
        """What `find` found before, None if it has to look: that may mean to read the table first."""
        found = self._found.get((provider, model))
        return found[1] if found is not None and found[0] == int(time.time()) // _SECONDS_PER_DAY else None

    def _keep(self, cache: dict[Any, Any], key: object, value: object, edition: int) -> None:
        with self._lock:
            if edition != self._edition:  # a price was declared while we looked
                return
            if len(cache) >= _KEPT:
                cache.clear()
            cache[key] = value

    def _look_up(self, provider: str, model: str, day: str) -> ModelPrice | None:
        declared = self._declared.get((canonical_provider(provider), model)) or self._declared.get(("", model))
        if declared is None:
            listed = from_table(provider, model, day)
            return listed if listed is not None or provider else self._declared_for_anyone(model)
        price = replace(declared, provider=provider or declared.provider)
        if price.max_output_tokens and price.max_input_tokens:
            return price
        listed = from_table(provider, model, day)  # the user told the price; the table may still know the model's limits
        if listed is None:
            return price
        return replace(
            price,
            max_input_tokens=price.max_input_tokens or listed.max_input_tokens,
            max_output_tokens=price.max_output_tokens or listed.max_output_tokens,
        )

    def _declared_for_anyone(self, model: str) -> ModelPrice | None:
        """For a host nobody knows, as a local server or a gateway: the dearest price that was declared for the model at any provider."""
        prices = [price for (_, id), price in self._declared.items() if id == model]
        return max(prices, key=lambda price: price.upper_bound(1_000_000, 1_000_000), default=None)

    def declare(
        self,
        model: str,
        *,
        input: object,
        output: object,
        cache_read: object = None,
        cache_write: object = None,
        cache_write_1h: object = None,
        provider: str | None = None,
        max_output_tokens: int | None = None,
        max_input_tokens: int | None = None,
        allow_absurd: bool = False,
    ) -> ModelPrice:
        """Sets the price of a model for this process, in USD per million tokens. It wins over the table.

        The id is matched exactly as written, at every provider unless one is named. Prices are numbers or text such as
        ``"2.50"``; floats count by their shortest decimal form; what is finer than 1e-6 USD per million is rounded up. 0 means
        free.

        Raises:
            ConfigurationError: not a finite number of zero or more, or no model id.
            PricingError: so large or so small that it was probably meant per token; `allow_absurd` takes it anyway.
        """
        if not isinstance(model, str) or not model.strip():
            raise ConfigurationError(f"A price needs the id of a model, not {model!r}.")
        row = Row(
            0,
            _pico(model, "input", input, allow_absurd),
            _pico(model, "output", output, allow_absurd),
            *(
                None if value is None else _pico(model, name, value, allow_absurd)
                for name, value in (("cache_read", cache_read), ("cache_write", cache_write), ("cache_write_1h", cache_write_1h))
            ),
        )
        price = replace(
            flat(provider or "", model, "declared", datetime.now(UTC).date().isoformat(), row),
            max_input_tokens=_limit("max_input_tokens", max_input_tokens),
            max_output_tokens=_limit("max_output_tokens", max_output_tokens),
        )
        with self._lock:
            self._declared[canonical_provider(provider), model] = price
            self._changed()
        return price

    def forget(self, model: str, provider: str | None = None) -> None:
        """Takes a declared price back; the table counts again. Without a provider, all declarations of that id go."""
        known = canonical_provider(provider)
        with self._lock:
            for key in [key for key in self._declared if key[1] == model and known in ("", key[0])]:
                del self._declared[key]
            self._changed()

    def declared(self) -> list[ModelPrice]:
        """The declared prices, in the order of their declaration."""
        with self._lock:
            return list(self._declared.values())

    def _changed(self) -> None:
        self._edition += 1
        self._found.clear()
        self._missed.clear()


def _today() -> int:
    """Days since 1970: some prices change on a date."""
    return int(time.time()) // _SECONDS_PER_DAY


def _pico(model: str, name: str, value: object, allow_absurd: bool) -> int:
    """USD per million tokens, as users write it, as pico-USD per token."""
    shown = f"{name}={value!s} of {model}"
    try:
        amount = Decimal(str(value).strip().removeprefix("$").replace("_", ""))
    except InvalidOperation:
        raise ConfigurationError(f"The price {shown} is not a number. Write USD per million tokens, for example {name}=2.50.") from None
    if isinstance(value, bool) or not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"The price {shown} is not a finite number of zero or more USD per million tokens.")
    if not allow_absurd and amount > _DEAREST:
        raise PricingError(
            f"The price {shown} is {amount:,f} USD per million tokens, and no model costs more than {_DEAREST:,}. Prices are per "
            f"million tokens: divide what is typed too large, or say allow_absurd=True if it is really meant."
        )
    if not allow_absurd and 0 < amount < _CHEAPEST:
        raise PricingError(
            f"The price {shown} is {amount:f} USD per million tokens, which is next to nothing. It was probably meant per token: "
            f"write {name}={(amount * 1_000_000).normalize():f} (per million), or say allow_absurd=True if it is really meant."
        )
    if isinstance(value, float):
        amount = Decimal(f"{amount:.14e}")  # 0.1 + 0.2 is meant as 0.3
    return int((amount * 1_000_000).to_integral_value(ROUND_CEILING))


def _limit(name: str, value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigurationError(f"{name}={value!r} is not a positive whole number of tokens.")
    return value
