"""Reading the money in a real kernel: the tree of budgets, why a call was refused, and settling what is in doubt."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.kernel.conftest import Kernel, Ran, start
from tests.kernel.test_money import ASK, final
from wflo_nb.testing import FakeProvider

SECRET = "the-password-is-hunter2"


@pytest.fixture
def notebook(tmp_path: Path) -> str:
    """The name a server gives the notebook: the same after a restart."""
    return str(tmp_path / "work.ipynb")


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture
def own(tmp_path: Path, provider: FakeProvider, notebook: str) -> Iterator[Kernel]:
    running = loaded(tmp_path, provider, notebook)
    yield running
    running.close()


def loaded(folder: Path, provider: FakeProvider, notebook: str) -> Kernel:
    kernel = start(folder / "kernel", provider, JPY_SESSION_NAME=notebook)
    kernel.run("%load_ext wflo_nb")
    assert kernel.run(ASK).status == "ok"
    return kernel


def page(ran: Ran) -> str:
    return next(o.data["text/html"] for o in ran.outputs if o.kind == "execute_result")


def words(text: str) -> list[str]:
    """What is said, without marks of drawing: the same in the text and on the page."""
    plain = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<span style=\"position:absolute[^>]*>[^<]*</span>", "", text)))
    return sorted(re.sub(r"[└:]", " ", plain).split())


def usd(text: str) -> Decimal:
    return Decimal(text.removeprefix("$"))


def rows(ran: Ran) -> dict[str, list[str]]:
    """First table of a text: name → the other cells."""
    found = {}
    for line in str(ran.result).split("\n\n")[0].splitlines()[1:]:
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) > 5:  # not a note
            found[cells[0]] = cells[1:]
    return found


def test_the_tree_tells_cap_spent_held_left_and_who_holds_what(own: Kernel, provider: FakeProvider) -> None:
    own.run("%wflo budget 5")
    own.run("%%wflo budget=1 name=quick\nask()")
    own.run("%%wflo budget=1 name=nothing\n1")
    provider.next(delay=2.5)
    own.run("%%wflo budget=2 name=slow\nt = threading.Thread(target=ask, kwargs={'max_tokens': 100}); t.start(); time.sleep(.7)")
    ran = own.run("tree = %wflo budget\ntree")
    text, seen = str(ran.result), rows(ran)
    assert list(seen) == ["notebook", "└ quick", "└ slow"], "a cell that is over and cost nothing is left out"
    assert seen["notebook"][0] == "$5.00" and seen["└ slow"][0] == "$2.00" and seen["└ slow"][-1] == "done, 1 in flight"
    held = seen["└ slow"][2]
    assert usd(held) > 0 and seen["notebook"][2] == held and seen["notebook"][-1] == "1 in flight"
    cap, spent, hold, _, left = map(usd, seen["notebook"][:5])
    assert cap - spent - hold == left and spent == Decimal(provider.bill[0].nano_usd).scaleb(-9)
    flight = text.split("Calls in flight\n")[1].splitlines()[1]
    assert re.match(rf"\{held}  gpt-4o-mini +\d\.\d s +slow +In \[\d+\] +this process  call-[0-9a-f]+$", flight), flight
    shown = page(ran)
    assert words(shown) == words(text)
    assert '<th scope="col"' in shown and '<th scope="row"' in shown and "<caption" in shown and ", inside notebook" in shown
    assert "color:#" not in shown and "background" not in shown, "nothing is said by colour alone"
    assert (
        own.run("[type(s).__name__ for s in tree], tree[2].held_nano > 0").result == "(['BudgetState', 'BudgetState', 'BudgetState'], True)"
    )
    own.run("t.join()")
    assert "└ nothing" in rows(own.run("%wflo budget --all")) and "└ nothing" not in rows(own.run("%wflo budget"))
    assert "Calls in flight" not in str(own.run("%wflo budget").result)


def test_a_blocks_budget_lies_in_its_cells(own: Kernel) -> None:
    own.run("import wflo_nb")
    block = "with wflo_nb.execution('inner', budget_usd=0.5):\n    ask()\n    seen = get_ipython().run_line_magic('wflo', 'budget')"
    ran = own.run(f"%%wflo budget=1 name=outer\n{block}\nseen")
    assert list(rows(ran)) == ["notebook", "└ outer", "└ inner"]
    assert "\n  └ inner" in str(ran.result) and rows(ran)["└ inner"][-1] == "running"


def test_a_shared_budget_is_set_shown_and_stands_around_the_notebook(own: Kernel) -> None:
    made = own.run("%wflo budget 500 team=research per=month tz=Europe/Berlin")
    assert 'team "research" (' in str(made.result) and "$500.00" in str(made.result)
    ran = own.run("%%wflo budget=0.5 team=research\nask()\nseen = get_ipython().run_line_magic('wflo', 'budget')\nseen")
    first = next(iter(rows(ran)))
    assert first.startswith('team "research" (') and usd(rows(ran)[first][1]) > 0, "the outermost first"
    alone = rows(own.run("%wflo budget team=research"))
    assert list(alone) == [first] and alone[first] == rows(ran)[first]
    every = rows(own.run("%wflo budget --all"))
    assert every['team "research", per month'][:2] == ["$500.00", "–"], "the defining row only has a cap"
    assert "There is no budget of team" in own.run("%wflo budget team=nobody").text


def test_a_refusal_is_explained_number_by_number(own: Kernel, provider: FakeProvider) -> None:
    own.run("%wflo budget 5")
    own.run("%%wflo budget=0.001 name=summarise\nask(max_tokens=50)\nask('" + SECRET + " ' * 30, max_tokens=1000)")
    ran = own.run("w = %wflo why\nw")
    text = str(ran.result)
    refused = own.value("w.value.call.meta['refused']")
    bound = own.value("w.value.call.meta['bound']")
    assert words(page(ran)) == words(text)
    assert refused["requested_nano"] == bound["total_nano"], "with a cap of the caller's, there is one bound"
    assert f"the cell budget of $0.001 had {_money(refused['levels'][-1]['left_nano'])} left" in text
    level = refused["levels"][-1]
    assert level["cap_nano"] - level["spent_nano"] - level["held_nano"] == level["left_nano"]
    assert level["spent_nano"] == provider.spent_nano
    parts = re.search(r"input tokens at most.*?(\$\S+)\n.*?output tokens at most.*?(\$\S+)\nat most +– +– +(\$\S+)", text, re.S)
    assert parts is not None, text
    assert usd(parts[1]) + usd(parts[2]) == usd(parts[3]) == Decimal(bound["total_nano"]).scaleb(-9)
    assert bound["price_source"] in text and bound["price_date"] in text
    fits = re.search(r"at most ([\d,]+) tokens it would have fitted", text)
    assert fits is not None
    asked = provider.requests
    run = f"%%wflo budget=0.001\nask(max_tokens=50)\nask('{SECRET} ' * 30, max_tokens={{}})"
    assert own.run(run.format(fits[1].replace(",", ""))).status == "ok" and provider.requests == asked + 2
    assert own.run(run.format(int(fits[1].replace(",", "")) + 2)).status == "error"
    budget = re.search(r"%%wflo budget=(\S+) +makes room", text)
    assert budget is not None
    line = f"%%wflo budget={budget[1]}\nask(max_tokens=50)\nask('{SECRET} ' * 30, max_tokens=1000)"
    assert own.run(line).status == "ok", "the budget that is offered is enough"
    for told in (text, page(ran), own.value("repr(w.value)")):
        assert SECRET not in told and "test-key" not in told


def _money(nano: int) -> str:
    text = f"{Decimal(nano).scaleb(-9):.9f}".rstrip("0")
    whole, _, decimals = text.partition(".")
    return f"${whole}.{decimals:0<2}"


def test_who_held_the_money_is_told(own: Kernel, provider: FakeProvider) -> None:
    provider.next(delay=3)
    own.run(
        "%%wflo budget=0.001 name=both wait=0\nt = threading.Thread(target=ask, kwargs={'max_tokens': 600}); t.start(); time.sleep(.7)\n"
        "try: ask(max_tokens=700)\nexcept Exception as error: refused = error"
    )
    text = str(own.run("%wflo why").result)
    assert "Who held money at that moment" in text and "this process" in text and "%wflo budget " in text
    call = own.value("refused.call_id")
    assert str(own.run(f"%wflo why {call}").result) == text


def test_the_last_refusal_is_explained_also_after_the_kernel_was_restarted(tmp_path: Path, provider: FakeProvider, notebook: str) -> None:
    first = loaded(tmp_path, provider, notebook)
    first.run("%%wflo budget=0.0001\nfor i in range(9):\n    try: ask(max_tokens=5000)\n    except Exception: pass")
    told = str(first.run("%wflo why").result)
    first.close()
    again = loaded(tmp_path, provider, notebook)
    try:
        assert str(again.run("%wflo why").result) == told
        assert "an earlier call of the same run" in told and " 5000 " in told
    finally:
        again.close()


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("client.chat.completions.create(model='nobody-knows', messages=[])", "%wflo price nobody-knows input=… output=…"),
        (
            "far = openai.OpenAI(base_url='https://api.openai.com/v1')\n"
            "far.post('/videos', body={'model': 'sora-2', 'prompt': 'x'}, cast_to=object)",
            "not for lack of money",
        ),
    ],
)
def test_refusals_that_are_not_about_money_say_how_to_go_on(own: Kernel, cell: str, says: str) -> None:
    own.run(f"%%wflo budget=1\n{cell}")
    assert says in str(own.run("%wflo why").result)


def test_a_ledger_that_cannot_be_used_is_the_last_refusal(own: Kernel) -> None:
    own.run("from wflo_nb import store as stores; broken = stores.current(); broken.close()")
    own.run("%%wflo budget=1\nask()")
    text = str(own.run("%wflo why").result)
    assert "the ledger could not be used" in text and "%wflo connect default" in text


def test_what_was_never_confirmed_is_seen_and_settled(own: Kernel, provider: FakeProvider) -> None:
    provider.next(cut_after=0, billed=True)
    own.run("client = openai.OpenAI(max_retries=0)")
    ran = own.run("%%wflo budget=1 name=cut\ntry: ask(max_tokens=100)\nexcept openai.OpenAIError: pass")
    assert re.search(r"^wflo · cut: (\$\S+) of \$1.00 spent \(\1 of it unconfirmed\), 1 call,", final(ran)), final(ran)
    listed = own.run("doubt = %wflo reconcile\ndoubt")
    assert "1 unconfirmed call: $" in str(listed.result) and "gpt-4o-mini" in str(listed.result)
    assert words(page(listed)) == words(str(listed.result))
    assert "never confirmed by a provider" in str(own.run("%wflo budget").result)
    (call,) = own.value("[c.id for c in doubt]")
    told = own.run(f"%wflo reconcile {call} cost=0.0000123")
    assert "less counts as spent" in str(told.result) and "cannot be undone" in str(told.result)
    assert rows(own.run("%wflo budget"))["└ cut"][1:4] == ["$0.0000123", "$0.00", "$0.00"]
    assert own.run("r = %wflo report\nstr(r.cost_usd.sum())").result == "'0.000012300'"
    assert "is not in doubt" in own.run(f"%wflo reconcile {call} free").text
    assert "No call is unconfirmed" in str(own.run("%wflo reconcile").result)


def test_many_are_settled_after_a_second_yes(own: Kernel, provider: FakeProvider) -> None:
    own.run("client = openai.OpenAI(max_retries=0)")
    for _ in range(3):
        provider.next(cut_after=0)
    own.run("for i in range(3):\n    try: ask(max_tokens=100)\n    except openai.OpenAIError: pass")
    asked = own.run("%wflo reconcile all model=gpt-4o-mini free")
    assert "Nothing has changed yet. 3 calls would be not billed" in str(asked.result)
    line = re.search(r"To do it: (%wflo .*--yes)\.", str(asked.result))
    assert line is not None
    assert "3 unconfirmed calls" in str(own.run("%wflo reconcile").result)
    done = own.run(line[1])
    assert "3 calls: not billed" in str(done.result) and "Nothing is unconfirmed any more" in str(done.result)
    assert rows(own.run("%wflo budget"))["notebook"][1] == "$0.00"


def test_money_that_came_back_may_be_spent_between_cells(own: Kernel, provider: FakeProvider) -> None:
    own.run("client = openai.OpenAI(max_retries=0)\n%wflo budget 0.001")
    provider.next(cut_after=0)
    own.run("try: ask(max_tokens=800)\nexcept openai.OpenAIError: pass")
    assert own.run("ask(max_tokens=800)").status == "error"
    own.run("%wflo reconcile all free --yes")
    assert own.run("ask(max_tokens=800)").status == "ok"


def test_limits_and_absurd_prices_can_be_declared(own: Kernel) -> None:
    made = own.run(
        "p = %wflo price mine input=1 output=2 max_input=32_000 max_output=4000\n(p[0].max_input_tokens, p[0].max_output_tokens)"
    )
    assert made.result == "(32000, 4000)"
    assert own.run("p = %wflo price mine input=99999 output=1 allow_absurd=True\nfloat(p[0].per_million()['input'])").result == "99999.0"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("x = %wflo re", ["report", "reconcile"]),
        ("a, b = %wflo bud", ["budget"]),
        ("%wflo w", ["why"]),
        ("%wflo budget per=", ["day", "week", "month", "year"]),
        ("x = %wflo budget --", ["--all"]),
        ("%wflo reconcile call-1 us", ["usage"]),
        ("x = %wflo met", ["metrics"]),
        ("%wflo trace o", ["on", "off"]),
    ],
)
def test_subcommands_are_completed_also_behind_a_name(own: Kernel, typed: str, offered: list[str]) -> None:
    own.client.complete(typed, len(typed))
    found = own.client.get_shell_msg(timeout=30)["content"]["matches"]
    assert set(offered) <= set(found) and len(found) <= len(offered) + 1, found


def test_calls_in_doubt_are_offered_to_reconcile(own: Kernel, provider: FakeProvider) -> None:
    own.run("client = openai.OpenAI(max_retries=0)")
    provider.next(cut_after=0)
    own.run("try: ask(max_tokens=100)\nexcept openai.OpenAIError: pass")
    (call,) = own.value(
        "[e.call.id for e in __import__('wflo_nb.budget.reconcile').budget.reconcile.unconfirmed(__import__('wflo_nb').store.current())]"
    )
    typed = "%wflo reconcile ca"
    own.client.complete(typed, len(typed))
    assert own.client.get_shell_msg(timeout=30)["content"]["matches"] == [call]


def test_a_run_stopped_by_the_user_says_so(own: Kernel) -> None:
    own.run("import wflo_nb\nwith wflo_nb.execution('x', budget_usd=1) as run:\n    run.stop()\n    try: ask()\n    except Exception: pass")
    assert "you stopped the run" in str(own.run("%wflo why").result)
