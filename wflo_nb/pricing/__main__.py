"""``python -m wflo_nb.pricing``: what the price table holds. With a provider and a model: their price."""

from __future__ import annotations

import sys

from wflo_nb.errors import UnknownModelError
from wflo_nb.pricing.book import PriceBook
from wflo_nb.pricing.table import load


def main(arguments: list[str]) -> int:
    """Prints the counts that documents quote, or one price in USD per million tokens."""
    if len(arguments) == 2:
        try:
            price = PriceBook().find(*arguments)
        except UnknownModelError as error:
            print(error)
            return 1
        rates = ", ".join(f"{name} {rate.normalize():f}" for name, rate in price.per_million().items())
        print(f"{price.model} at {price.provider}: {rates} (USD per million tokens; {price.source} of {price.date})")
        return 0
    table = load()
    ids = [(provider, name) for provider in table.providers() for name in table.ids(provider)]
    print(*(f"{source} of {source.date}" for source in table.sources), sep="\n")
    print(f"{len(ids)} prices by provider and model id, {len({name for _, name in ids})} different ids, {len(table.providers())} providers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
