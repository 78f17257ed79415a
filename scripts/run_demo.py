"""Runs notebooks/quickstart.ipynb for real, shows it in the terminal, and proves its numbers.

`make demo` calls this. The judge is not the product: variables are read in the kernel before and after the rollback, tokens come from
the counters of the model's own engine, money is summed from the rows of the ledger with plain SQL, and only then compared with what
the report says. Exits 1 if anything differs.
"""

from __future__ import annotations

import ast
import asyncio
import os
import sqlite3
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
EXECUTED = ROOT / ".cache" / "demo" / "quickstart.ipynb"

# The stand-in price that the notebook declares, in nano-USD per token. Written down a second time: the judge does not ask the notebook.
INPUT, CACHED, OUTPUT = 150, 75, 600

# What the kernel is asked, without a trace in its history; the answers are literals.
VARIABLES = "(orders.to_csv(), basket, shop, basket is shop['basket'])"
SERVED = "tuple(getattr(local.tokens_served, n) for n in ('input_tokens', 'cache_read_tokens', 'output_tokens')) if local else None"
REPORTED = "str(__import__('wflo_nb').report.calls()['cost_usd'].sum())"

GREY, BOLD, RED, GREEN, PLAIN = ("\033[2m", "\033[1m", "\033[31m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("",) * 5


@dataclass
class Seen:
    """What the run of the notebook showed to the judge."""

    variables: dict[str, Any] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    served: tuple[int, int, int] | None = None
    reported: Decimal | None = None


async def ask(client: NotebookClient, expression: str) -> Any:
    """The value of an expression in the kernel, computed silently; a literal."""
    assert client.kc is not None
    reply = await client.kc.execute("", silent=True, user_expressions={"answer": expression}, reply=True, timeout=60)
    answer = reply["content"]["user_expressions"]["answer"]
    if answer["status"] != "ok":
        raise RuntimeError(f"the kernel could not tell {expression}: {answer['ename']}: {answer['evalue']}")
    return ast.literal_eval(answer["data"]["text/plain"])


async def run(state_dir: Path) -> Seen:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=150,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its warnings about transport say nothing to a demo on this machine
    )
    seen = Seen()
    os.environ["WFLO_STATE_DIR"] = str(state_dir)
    os.environ.pop("WFLO_STORE", None)
    try:
        async with client.async_setup_kernel():
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "markdown":
                    show_heading(cell.source)
                elif cell.cell_type == "code":
                    await execute(client, cell, index, seen)
            seen.served = await ask(client, SERVED)
            seen.reported = Decimal(await ask(client, REPORTED))
    finally:
        EXECUTED.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, EXECUTED)
    return seen


async def execute(client: NotebookClient, cell: Any, index: int, seen: Seen) -> None:
    print(f"{GREY}{textwrap.indent(cell.source, '  │ ')}{PLAIN}", flush=True)
    await client.async_execute_cell(cell, index, store_history=True)
    merge_streams(cell)
    for output in cell.outputs:
        if output.output_type == "error":
            seen.refusals.append(output.ename)
        show_output(output)
    print(flush=True)
    if cell.id in ("variables", "spoil", "rollback"):
        seen.variables[cell.id] = await ask(client, VARIABLES)


def merge_streams(cell: Any) -> None:
    """A text printed in many small pieces is one text."""
    merged: list[Any] = []
    for output in cell.outputs:
        if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    cell.outputs = merged


def show_heading(source: str) -> None:
    first = source.splitlines()[0]
    if first.startswith("#"):
        print(f"{BOLD}{first.lstrip('# ')}{PLAIN}")


def show_output(output: Any) -> None:
    if output.output_type == "stream":
        text, colour = output.text, ""
    elif output.output_type == "error":
        text, colour = f"{output.ename}: {output.evalue}", RED
    else:
        text, colour = output.get("data", {}).get("text/plain", ""), ""
    text = text.rstrip("\n")
    if text:
        print(f"{colour}{textwrap.indent(text, '  ')}{PLAIN}", flush=True)


# ── the judge ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Verdict:
    """Claims, each printed with what was found; `held` is whether all of them were true."""

    def __init__(self) -> None:
        self.held = True

    def claim(self, true: bool, text: str) -> None:
        self.held = self.held and true
        print(f"  {GREEN + 'proved' if true else RED + 'FAILED'}{PLAIN}  {text}")


def usd(nano: int) -> str:
    return f"${Decimal(nano).scaleb(-9):f}"


def judge(seen: Seen, state_dir: Path) -> bool:
    calls = ledger(state_dir)
    settled = [call for call in calls if call["state"] == "SETTLED" and call["output_tokens"]]
    refused = [call for call in calls if call["state"] == "REFUSED"]
    other = [call for call in calls if call["state"] not in ("SETTLED", "REFUSED")]
    paid = sum(call["cost_nano"] or 0 for call in calls)
    verdict = Verdict()

    print(f"\n{BOLD}What this run proves{PLAIN}")
    model = ", ".join(sorted({call["answered_model"] or call["model"] for call in settled}))
    verdict.claim(len(settled) >= 5 and not other, f"{len(settled)} generations by {model}, each settled by the usage it reported")
    verdict.claim(
        len(refused) == 1 and seen.refusals == ["BudgetExceededError"] and refused[0]["cost_nano"] == 0,
        f"{len(refused)} call refused before it was sent; the cell ended in {', '.join(seen.refusals) or 'no error'}",
    )
    capped = [budget for budget in budgets(state_dir) if budget["cap_nano"] is not None]
    over = [budget for budget in capped if budget["spent_nano"] + budget["held_nano"] > budget["cap_nano"]]
    verdict.claim(bool(capped) and not over, f"{len(capped)} budgets, {len(over)} of them overspent")
    judge_rollback(seen, verdict)
    reported = int(seen.reported.scaleb(9)) if seen.reported is not None else -1
    verdict.claim(reported == paid, f"the report's total is the ledger's sum to the nano-dollar: {usd(reported)}")
    judge_tokens(seen, verdict, reported)
    return verdict.held


def judge_rollback(seen: Seen, verdict: Verdict) -> None:
    before, spoilt, after = (seen.variables.get(name) for name in ("variables", "spoil", "rollback"))
    changed = before is not None and spoilt is not None and before[0] != spoilt[0] and before[1] != spoilt[1]
    aliased = after is not None and after[3] is True
    verdict.claim(
        changed and after == before and aliased,
        "one rollback brought back a changed DataFrame and a list that is still one under two names",
    )


def judge_tokens(seen: Seen, verdict: Verdict, reported: int) -> None:
    if seen.served is None:
        print("  tokens × price is proved against the local model only, whose own counters can be read: run this without OPENAI_API_KEY")
        return
    inputs, cached, outputs = seen.served
    due = (inputs - cached) * INPUT + cached * CACHED + outputs * OUTPUT
    counted = f"{inputs - cached} × {INPUT} + {cached} × {CACHED} + {outputs} × {OUTPUT} nano-USD"
    verdict.claim(reported == due, f"it is what the model's engine counted × the declared price: {counted} = {usd(due)}")


def ledger(state_dir: Path) -> list[dict[str, Any]]:
    return rows(state_dir, "SELECT * FROM llm_calls")


def budgets(state_dir: Path) -> list[dict[str, Any]]:
    return rows(state_dir, "SELECT * FROM budgets")


def rows(state_dir: Path, query: str) -> list[dict[str, Any]]:
    (file,) = [path for path in state_dir.rglob("*") if path.is_file() and head(path) == b"SQLite format 3"]
    connection = sqlite3.connect(file)
    try:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]
    finally:
        connection.close()


def head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(15)


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wflo-demo-") as folder:
        state_dir = Path(folder)
        try:
            seen = asyncio.run(run(state_dir))
        except CellExecutionError as error:
            print(f"{RED}The notebook failed: {error.ename}: {error.evalue}{PLAIN}", file=sys.stderr)
            return 1
        held = judge(seen, state_dir)
    seconds = time.monotonic() - started
    print(f"\n{'All of it held' if held else 'NOT all of it held'}, in {seconds:.0f} s. Executed notebook: {EXECUTED.relative_to(ROOT)}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
