"""For tests, ours and yours: a provider on loopback that speaks the real wire formats and keeps the true bill.

    with FakeProvider() as provider:
        client = OpenAI(base_url=provider.openai_url, api_key="test")
        ...
        assert provider.spent_nano == ledger_total

It counts tokens and money by itself, with rates of its own, so that a ledger can be compared with an independent judge.
It bills a streamed answer in full when the answer starts, as providers may, even if the client goes away.
"""

from wflo_nb.testing.billing import LONG_PROMPTS, RATES, UNIT_RATES, Behaviour, Billed, Rates, count_tokens, price
from wflo_nb.testing.provider import FakeProvider

__all__ = ["LONG_PROMPTS", "RATES", "UNIT_RATES", "Behaviour", "Billed", "FakeProvider", "Rates", "count_tokens", "price"]
