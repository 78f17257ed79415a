"""Processes that a tracked block starts charge that block: spawned and forked pools, subprocesses, workers that are used again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

import wflo_nb
from tests.integration.conftest import PROMPT
from wflo_nb.errors import BudgetExceededError, ConfigurationError
from wflo_nb.model import nano_from_usd, usd
from wflo_nb.store import Store, open_store
from wflo_nb.testing import FakeProvider
from wflo_nb.workflow.runtime import runtime

SPAWN = multiprocessing.get_context("spawn")

WORKER = """
import sys, wflo_nb
from openai import OpenAI
joined = wflo_nb.join()
wflo_nb.join()
client = OpenAI(base_url=sys.argv[1], api_key="x")
for _ in range(int(sys.argv[2])):
    client.chat.completions.create(model=sys.argv[3], messages=[{"role": "user", "content": "hi"}], max_tokens=200)
print(joined.execution_id)
"""


def ask(url: str, times: int = 1) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="test")
    for _ in range(times):
        client.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=200)


def ask_until_refused(url: str) -> str:
    """What a framework does that swallows everything: it goes on."""
    refused = 0
    while refused < 5:
        try:
            ask(url)
        except BudgetExceededError:
            refused += 1
    return "swallowed"


def ask_for(ticket: str, url: str) -> str | None:
    with wflo_nb.join(ticket) as joined:
        ask(url)
        return joined.execution_id


def ask_inside(url: str) -> None:
    with wflo_nb.execution("inside", budget_usd=0.5):
        ask(url, 2)


def ask_beyond_a_budget_of_its_own(url: str) -> str:
    try:
        with wflo_nb.execution("careful", budget_usd="0.0001", wait=0):
            ask(url)
    except BudgetExceededError:
        return "did without"
    return "asked"


def ask_from_a_grandchild(url: str) -> str:
    return subprocess.run([sys.executable, "-c", WORKER, url, "1", "gpt-4o"], capture_output=True, text=True, check=True).stdout.strip()


def whoami() -> str | None:
    return wflo_nb.join().execution_id


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    where = str(tmp_path / "ledger.db") if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
    opened = open_store(where)
    yield opened
    opened.close()


def pool_of(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=SPAWN, initializer=wflo_nb.join)


def spent(store: Store, id: str) -> tuple[int, int]:
    state = store.budget(id)
    return state.spent_nano, state.held_nano


def test_spawned_pool_charges_the_block_and_its_figures_have_it_at_the_end(provider: FakeProvider, store: Store) -> None:
    provider.behave(tokens=200)
    with wflo_nb.execution("pool", budget_usd=1, store=store) as run:
        ask(provider.openai_url)
        with pool_of(2) as pool:
            list(pool.map(ask, [provider.openai_url] * 4))
    assert "WFLO_JOIN" not in os.environ
    figures = run.figures()
    assert (figures.calls, figures.spent_nano, figures.held_nano, figures.in_flight) == (5, provider.spent_nano, 0, 0)
    assert spent(store, run.id) == (provider.spent_nano, 0)
    assert store.execution(run.id).cost_nano == provider.spent_nano
    assert not list(Path(f"{store.location}.join").glob("*")) if store.local else True


@pytest.mark.parametrize("method", [m for m in ("spawn", "forkserver") if m in multiprocessing.get_all_start_methods()])
def test_initializer_takes_the_present_block_along_however_workers_are_started(provider: FakeProvider, method: str) -> None:
    context = multiprocessing.get_context(method)
    for name in ("first", "second"):  # a fork server started in the first would still name it in the second
        before = provider.spent_nano
        with wflo_nb.execution(name, budget_usd=1) as run:
            with ProcessPoolExecutor(1, mp_context=context, initializer=wflo_nb.join) as pool:
                pool.submit(ask, provider.openai_url).result()
            with context.Pool(1, initializer=wflo_nb.join) as pool:
                pool.apply(ask, (provider.openai_url,))
        assert run.figures().spent_nano == provider.spent_nano - before and run.figures().calls == 2
    with pytest.raises(ConfigurationError, match="nothing to join"):
        pickle.loads(pickle.dumps(wflo_nb.join))()


def test_four_workers_and_their_parent_never_exceed_one_budget_and_the_parent_is_told(provider: FakeProvider, store: Store) -> None:
    provider.behave(tokens=200)
    cap = "0.05"
    crowd = wflo_nb.execution("crowd", budget_usd=cap, wait=0, store=store)
    with pytest.raises(BudgetExceededError, match="In a worker process: Call to gpt-4o refused") as caught, crowd as run:
        ask(provider.openai_url)
        with pool_of(4) as pool:
            assert list(pool.map(ask_until_refused, [provider.openai_url] * 4)) == ["swallowed"] * 4
    assert caught.value.execution_id == run.id
    assert 0.9 * nano_from_usd(cap) < provider.spent_nano <= nano_from_usd(cap)
    assert spent(store, run.id) == (provider.spent_nano, 0)
    assert run.state == "stopped" and run.figures().spent_nano == provider.spent_nano


def test_refusal_of_a_worker_comes_back_as_what_it_is(provider: FakeProvider) -> None:
    with pytest.raises(BudgetExceededError), wflo_nb.execution("one", budget_usd=0.000001), pool_of(1) as pool:
        pool.submit(ask, provider.openai_url).result()
    assert provider.requests == 0


def test_subprocess_and_what_it_starts_in_turn_charge_the_block(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("script", budget_usd=1, store=store) as run:
        assert ask_from_a_grandchild(provider.openai_url) == run.id
        with pool_of(1) as pool:
            assert pool.submit(ask_from_a_grandchild, provider.openai_url).result() == run.id
    assert provider.requests == 2 and run.figures().calls == 2
    assert spent(store, run.id) == (provider.spent_nano, 0)


def test_forked_workers_charge_the_block_with_and_without_joining(provider: FakeProvider, store: Store) -> None:
    fork = multiprocessing.get_context("fork")
    with wflo_nb.execution("forks", budget_usd=1, store=store) as run:
        for initializer in (None, wflo_nb.join):
            with fork.Pool(2, initializer=initializer) as pool:
                pool.map(ask, [provider.openai_url] * 2)
                assert pool.apply(whoami) == run.id
    assert provider.requests == 4 and run.figures().calls == 4
    assert spent(store, run.id) == (provider.spent_nano, 0) == (run.figures().spent_nano, 0)


def test_execution_inside_a_worker_spends_both_budgets(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("outer", budget_usd=1, store=store) as run, pool_of(1) as pool:
        pool.submit(ask_inside, provider.openai_url).result()
    assert run.figures().spent_nano == provider.spent_nano > 0 and run.figures().calls == 2
    assert spent(store, run.id) == (provider.spent_nano, 0)


def test_refusal_by_a_budget_that_a_worker_has_inside_is_not_one_of_the_block(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("outer", budget_usd=1, store=store) as run, pool_of(1) as pool:
        assert pool.submit(ask_beyond_a_budget_of_its_own, provider.openai_url).result() == "did without"
        pool.submit(ask, provider.openai_url).result()
    assert run.state == "done" and run.figures().refused == 1
    assert run.figures().spent_nano == provider.spent_nano > 0


def test_blocks_around_the_one_that_workers_joined_have_their_calls_in_their_figures_too(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("outer", store=store) as outer:
        with wflo_nb.execution("middle", budget_usd=1) as middle, wflo_nb.execution("inner") as inner, pool_of(1) as pool:
            pool.submit(ask, provider.openai_url, 2).result()
        ask(provider.openai_url)
    assert [run.figures().calls for run in (outer, middle, inner)] == [3, 2, 2]
    assert outer.figures().spent_nano == provider.spent_nano
    assert not list(Path(f"{store.location}.join").glob("*")) if store.local else True


def test_refusal_of_a_worker_by_the_budget_of_an_outer_block_comes_out_of_that_too(provider: FakeProvider, store: Store) -> None:
    outer = wflo_nb.execution("outer", budget_usd="0.005", wait=0, store=store)
    inner = wflo_nb.execution("inner", budget_usd=1)
    swallowed = contextlib.suppress(BudgetExceededError)
    with pytest.raises(BudgetExceededError, match="In a worker process"), outer, swallowed, inner, pool_of(1) as pool:
        pool.submit(ask_until_refused, provider.openai_url).result()
    assert provider.spent_nano <= nano_from_usd("0.005")


def test_pools_of_blocks_side_by_side_charge_the_block_that_made_them(provider: FakeProvider, store: Store) -> None:
    entered, asked = threading.Barrier(2), threading.Barrier(2)
    runs: dict[int, wflo_nb.workflow.run.Run] = {}

    def block(calls: int) -> None:
        with wflo_nb.execution(f"{calls} calls", budget_usd=1, store=store) as run:
            runs[calls] = run
            entered.wait(60)
            with pool_of(1) as pool:
                pool.submit(ask, provider.openai_url, calls).result()
            asked.wait(60)

    threads = [threading.Thread(target=block, args=(calls,)) for calls in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {calls: run.figures().calls for calls, run in runs.items()} == {1: 1, 2: 2}


@pytest.mark.parametrize("method", [m for m in ("spawn", "fork") if m in multiprocessing.get_all_start_methods()])
def test_pool_of_a_step_is_held_to_the_budget_of_the_step(provider: FakeProvider, store: Store, method: str) -> None:
    provider.behave(tokens=200)
    context = multiprocessing.get_context(method)

    def write(topic: str) -> str:
        with wflo_nb.step("writer"), ProcessPoolExecutor(1, mp_context=context, initializer=wflo_nb.join) as pool:
            return pool.submit(ask_until_refused, provider.openai_url).result()

    wflo = wflo_nb.WfloWorkflow("article", budget_usd=1, per_agent_budgets={"writer": "0.01"}, store=store)
    with pytest.raises(BudgetExceededError, match='step "writer" budget'):
        asyncio.run(wflo.execute(write, "rivers"))
    assert 0 < provider.spent_nano <= nano_from_usd("0.01")
    assert asyncio.run(wflo.get_cost_breakdown())["total_usd"] == usd(provider.spent_nano)


def test_refusal_of_a_worker_by_a_budget_of_an_inner_block_stops_that_alone(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("outer", budget_usd=1, store=store) as outer:
        inner = wflo_nb.execution("inner", budget_usd="0.0001", wait=0)
        with pytest.raises(BudgetExceededError, match="In a worker process"), inner, pool_of(1) as pool:
            pool.submit(ask_until_refused, provider.openai_url).result()
        ask(provider.openai_url)
    assert outer.state == "done" and outer.figures().calls == 1


def test_pool_that_is_used_again_charges_the_block_whose_ticket_comes_with_the_work(provider: FakeProvider, store: Store) -> None:
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        bills = []
        for name in ("first", "second"):
            before = provider.spent_nano
            with wflo_nb.execution(name, budget_usd=1, store=store) as run:
                for _ in range(2):
                    assert pool.submit(ask_for, run.ticket, provider.openai_url).result() == run.id
            bills.append((run.figures().spent_nano, provider.spent_nano - before))
    assert [told for told, _ in bills] == [true for _, true in bills] and all(told for told, _ in bills)


def test_worker_that_is_killed_leaves_its_hold_counted_and_the_block_says_so(provider: FakeProvider, store: Store) -> None:
    provider.behave(delay=60)
    with wflo_nb.execution("killed", budget_usd=1, store=store) as run:
        command = [sys.executable, "-c", WORKER, provider.openai_url, "1", "gpt-4o"]
        child = subprocess.Popen(command)
        until = time.monotonic() + 60
        while not provider.requests and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    figures = run.figures()
    assert provider.requests == 1
    assert (figures.held_nano, figures.in_flight, figures.calls) == (0, 0, 1)
    assert figures.unconfirmed_nano == figures.spent_nano >= provider.spent_nano > 0
    assert spent(store, run.id) == (figures.spent_nano, 0)


def test_worker_that_joins_after_the_block_has_ended_is_charged_to_it_still(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("left behind", budget_usd=1, store=store) as run:
        ticket = run.ticket
    environment = {**os.environ, "WFLO_JOIN": ticket}
    subprocess.run([sys.executable, "-c", WORKER, provider.openai_url, "2", "gpt-4o"], env=environment, check=True, capture_output=True)
    assert spent(store, run.id) == (provider.spent_nano, 0) and provider.requests == 2
    assert store.execution(run.id).status.value == "COMPLETED"


def test_run_that_made_no_call_itself_is_charged_and_closed_all_the_same(provider: FakeProvider, store: Store) -> None:
    runtime().install()
    run = runtime().new_run("plain cell", store=store)
    leave = run.enter()
    try:
        assert ask_from_a_grandchild(provider.openai_url) == run.id
    finally:
        run.end()
        leave()
        runtime().uninstall()
    found = store.execution(run.id)
    assert (found.cost_nano, found.status.value) == (provider.spent_nano, "COMPLETED")


def test_shared_budget_holds_for_the_workers_too(provider: FakeProvider, store: Store) -> None:
    provider.behave(tokens=200)
    wflo_nb.shared_budget(team="research", budget_usd="0.02", per="month", store=store)
    mine = wflo_nb.execution("mine", team="research", wait=0, store=store)
    with pytest.raises(BudgetExceededError, match='team "research"'), mine, pool_of(2) as pool:
        list(pool.map(ask_until_refused, [provider.openai_url] * 2))
    assert 0.8 * nano_from_usd("0.02") < provider.spent_nano <= nano_from_usd("0.02")


def test_declared_prices_are_handed_over(provider: FakeProvider) -> None:
    prices = {"my-model": {"input": 1, "output": "2.5"}}
    with wflo_nb.execution("own model", budget_usd=1, prices=prices) as run:
        command = [sys.executable, "-c", WORKER, provider.openai_url, "1", "my-model"]
        subprocess.run(command, check=True, capture_output=True)
    assert run.figures().spent_nano > 0


def test_joining_where_the_block_runs_does_no_harm(provider: FakeProvider) -> None:
    with wflo_nb.execution("same", budget_usd=1) as run:
        joined = wflo_nb.join()
        assert joined and joined.account is run.account
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(wflo_nb.join(run.ticket).account))
        thread.start()
        thread.join()
        assert found == [run.account]
        ask(provider.openai_url)
        joined.leave()
        ask(provider.openai_url)
    assert run.figures().calls == 2 and run.figures().spent_nano == provider.spent_nano


def test_join_that_came_with_a_function_still_takes_the_ticket_of_the_present_block(provider: FakeProvider, store: Store) -> None:
    with wflo_nb.execution("first", budget_usd=1, store=store) as first:
        came = pickle.loads(pickle.dumps(wflo_nb.join))  # as in a function of the notebook that cloudpickle sends by value
        ticket = first.ticket
    with wflo_nb.execution("second", budget_usd=1, store=store) as second:
        with came(second.ticket) as joined:
            assert joined.execution_id == second.id
        with came(ticket=ticket, required=True) as joined:
            assert joined.execution_id == first.id
        with came() as joined:
            assert joined.execution_id == first.id
        with pickle.loads(pickle.dumps(came))() as joined:
            assert joined.execution_id == second.id, "sent on, it takes along what is on then"


def test_nothing_to_join_is_said_unless_it_is_expected() -> None:
    with pytest.raises(ConfigurationError, match="nothing to join"):
        wflo_nb.join()
    with wflo_nb.join(required=False) as joined:
        assert not joined and joined.execution_id is None and joined.remaining_usd is None and joined.spent_usd == 0
    for text in ("no ticket", "[]", '{"v": 99}'):
        with pytest.raises(ConfigurationError):
            wflo_nb.join(text)


def test_another_ledger_is_not_mistaken_for_the_blocks_own(tmp_path: Path) -> None:
    with wflo_nb.execution("here", budget_usd=1) as run:
        facts = json.loads(run.ticket)
    with pytest.raises(ConfigurationError, match="does not know the run 'here'"):
        wflo_nb.join(json.dumps({**facts, "id": "exec-other", "store": str(tmp_path / "another.db")}))


def test_embedded_ledger_cannot_be_joined_from_another_machine() -> None:
    with wflo_nb.execution("far", budget_usd=1) as run:
        facts = json.loads(run.ticket)
    with pytest.raises(ConfigurationError, match=r"another machine \(elsewhere\).*WFLO_STORE"):
        wflo_nb.join(json.dumps({**facts, "id": "exec-other", "host": "elsewhere#1234"}))


def test_worker_on_another_machine_spends_the_same_budget_through_the_teams_ledger(
    provider: FakeProvider, postgres_url: str, tmp_path: Path
) -> None:
    provider.behave(tokens=200)
    store, cap = open_store(postgres_url), "0.03"
    with pytest.raises(BudgetExceededError), wflo_nb.execution("spread", budget_usd=cap, wait=0, store=store) as run:
        ticket = json.dumps({**json.loads(run.ticket), "host": "driver#1234"})
        far = {**os.environ, "WFLO_JOIN": ticket, "WFLO_STORE": postgres_url, "WFLO_STATE_DIR": str(tmp_path / "far")}
        command = [sys.executable, "-c", WORKER, provider.openai_url, "100", "gpt-4o"]
        children = [subprocess.Popen(command, env=far, stderr=subprocess.PIPE) for _ in range(2)]
        with contextlib.suppress(BudgetExceededError):
            ask(provider.openai_url, 100)
        ended = [child.communicate(timeout=120)[1] for child in children]
        assert all(b"BudgetExceededError" in said for said in ended), ended
    assert 0 < provider.spent_nano <= nano_from_usd(cap)
    assert spent(store, run.id) == (provider.spent_nano, 0)
    store.close()


def test_environment_names_the_innermost_run_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> str:
        return str(json.loads(os.environ["WFLO_JOIN"])["name"])

    with wflo_nb.execution("outer"):
        assert named() == "outer"
        with wflo_nb.execution("inner"):
            assert named() == "inner"
        assert named() == "outer"
    assert "WFLO_JOIN" not in os.environ
    first, second = wflo_nb.execution("first"), wflo_nb.execution("second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert named() == "second", "runs side by side may end in any order"
    second.__exit__(None, None, None)
    assert "WFLO_JOIN" not in os.environ
    monkeypatch.setenv("WFLO_JOIN", "what the shell had set")
    with wflo_nb.execution("outer"):
        assert named() == "outer"
    assert os.environ["WFLO_JOIN"] == "what the shell had set"


def test_password_of_the_ledger_is_in_no_environment_and_in_a_file_for_this_user_alone(
    provider: FakeProvider, postgres_url: str, state_dir: Path
) -> None:
    place = urlsplit(postgres_url)
    url = urlunsplit(place._replace(netloc=f"{place.username}:hunter2@{place.netloc.rpartition('@')[2]}"))  # the server trusts everybody
    program = f"""
import os, subprocess, sys, wflo_nb
from pathlib import Path
with wflo_nb.execution("secret", budget_usd=1, store={url!r}) as run:
    assert "hunter2" not in os.environ["WFLO_JOIN"]
    out = subprocess.run([sys.executable, "-c", {WORKER!r}, {provider.openai_url!r}, "1", "gpt-4o"], capture_output=True, text=True)
    assert out.stdout.strip() == run.id, out.stderr
    [file] = Path({str(state_dir)!r}, "join").glob("*.json")
    assert "hunter2" in file.read_text()
    print(oct(file.stat().st_mode & 0o777), run.id)
print(run.figures().calls)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == oct(stat.S_IRUSR | stat.S_IWUSR) and done.stdout.split()[2] == "1"
    assert not list((state_dir / "join").glob("*.json")), "the file goes with the process that wrote it"


def test_file_of_a_killed_process_is_taken_away_by_the_next(postgres_url: str, state_dir: Path) -> None:
    folder = state_dir / "join"
    folder.mkdir(parents=True)
    dead = subprocess.run(
        [sys.executable, "-c", "from wflo_nb.store.holder import this_holder; print(this_holder())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    left = folder / "left.json"
    left.write_text(json.dumps({"store": "postgresql://me:secret@host/db", "holder": dead}))
    place = urlsplit(postgres_url)
    url = urlunsplit(place._replace(netloc=f"{place.username}:hunter2@{place.netloc.rpartition('@')[2]}"))
    store = open_store(url)
    with wflo_nb.execution("next", store=store):
        assert not left.exists() and len(list(folder.glob("*.json"))) == 1
    store.close()


TEAM = """
import sys, wflo_nb
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="x")
try:
    with wflo_nb.execution("kernel", budget_usd="0.05", team="research", per="week", tz="Europe/Berlin", wait=0, store=sys.argv[2]):
        for _ in range(100):
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_tokens=200)
except wflo_nb.BudgetExceededError as error:
    print(error.scope)
"""


def test_kernels_that_name_the_same_team_share_its_budget(provider: FakeProvider, store: Store) -> None:
    provider.behave(tokens=200)
    children: list[Any] = [
        subprocess.Popen([sys.executable, "-c", TEAM, provider.openai_url, store.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    answers = [child.communicate(timeout=150) for child in children]
    # The first process may come to its own cap, which is the same, when the others only begin.
    assert sum(b'team "research" (week ' in out for out, _ in answers) >= 3, answers
    cap = nano_from_usd("0.05")
    assert 0.9 * cap < provider.spent_nano <= cap
    row = wflo_nb.shared_budget(team="research", store=store)
    assert row.state().spent_nano == provider.spent_nano and row.state().held_nano == 0
