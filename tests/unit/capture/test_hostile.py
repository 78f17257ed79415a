"""Whatever a provider sends: the user gets those bytes, nothing paid becomes free, nothing is raised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from tests.hostile import ATTACKS, COUNTED, JUNK, SAID, Attack, Sample, admitted, declare_all, named, samples, spoken, suffer
from wflo_nb.budget.account import Account
from wflo_nb.capture import formats
from wflo_nb.model import CallState
from wflo_nb.workflow.runtime import runtime

pytestmark = pytest.mark.filterwarnings("ignore::wflo_nb.errors.WfloWarning")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    from wflo_nb.store import open_store

    store = open_store(tmp_path_factory.mktemp("hostile") / "x.db")
    yield runtime().new_run("hostile", budget_nano=10**15, store=store).account
    store.close()


@pytest.fixture(scope="module")
def found(account: Account) -> list[Sample]:
    return declare_all(account, list(samples()))


def test_every_format_that_can_be_sent_under_a_budget_is_attacked(found: list[Sample]) -> None:
    attacked = {spoken(sample) for sample in found}
    unbounded = {"transcriptions", "batches", "videos", "conversations", "image_edits"}
    no_words = {"speech", "rerank"}  # nothing of the answer is read (of rerank at Bedrock)
    assert {one.api for one in formats.FORMATS if one not in attacked} <= unbounded | no_words


def test_undamaged_answers_settle(account: Account, found: list[Sample]) -> None:
    for sample in found:
        exchange = admitted(account, sample)
        exchange.head(200, sample.kind.lower(), "", {"x-amzn-bedrock-input-token-count": "8", "x-amzn-bedrock-output-token-count": "2"})
        assert exchange.feed(sample.answer) + exchange.flush() == sample.answer
        exchange.finished()
        assert exchange.call.state is CallState.SETTLED, (sample.name, exchange.call.reason)


def test_each_count_and_each_text_replaced_by_junk_makes_nothing_free(account: Account, found: list[Sample]) -> None:
    tried = 0
    for index, sample in enumerate(found):
        for words, kinds in ((COUNTED, (0, 1, 2, 3, 4, 8, len(JUNK))), (SAID, (0,))):
            for number, where in named(sample, *words):
                for junk in kinds:
                    suffer(account, found, Attack((index + 0.5) / len(found), [(number, where, junk)], [], 10**6, "", None, "finished"))
                    tried += 1
    assert tried > 2500


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(attack=ATTACKS)
def test_nothing_a_provider_sends_changes_bytes_or_makes_a_paid_call_free(account: Account, found: list[Sample], attack: Attack) -> None:
    suffer(account, found, attack)
