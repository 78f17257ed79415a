"""The capture matrix: every SDK and framework, by every form of a call that it has, beside a provider that counts for itself.

    python benchmarks/matrix.py [--only "openai 3,LangGraph"] [--quick] [--json FILE] [--markdown FILE]

Each row runs in a process of its own, in the environment of its SDK, over real sockets, against the stand-in provider of
`wflo_nb.testing`, which keeps the true bill. Rows that speak OpenAI's or Anthropic's format run against the small model of the demo
too: there a server between the two reads the usage that the model's server answered, and the model's engine counts a second time. The
ledger is read from its file with plain SQL. For every form six things are looked at:

1. calls counted = calls recorded, and (beside the stand-in, whose answers do not differ) as many as without us
2. tokens equal: input, output, read from a cache, written to one, reasoning, for each call
3. cost equal, to the nano-dollar, by the prices that the counting side has
4. under a spent budget the scope ends in BudgetExceededError, and nothing reaches the provider; nor after the first call, if that
   spends the budget of a form that makes several
5. if the program swallows that refusal and goes on, it is refused again, nothing is sent, and the scope ends in it all the same
6. nothing hangs: no thread or task is left that the library does not keep by itself, nothing is sent later, and the process ends by itself

A field of the table is the number of calls that the form makes, when all six hold. A form that an SDK does not have is a dash, with the
reason below the table. The exit code is 1 if there is a hole anywhere, and also if an environment is missing; `--quick` leaves out those
and the small model. How to add a row: ``benchmarks/capture/__init__.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.capture import table
from benchmarks.capture.cells import Row
from benchmarks.capture.counters import small_model, stand_in
from benchmarks.capture.environments import ENVIRONMENTS, Environment
from benchmarks.capture.run import Result, measure
from wflo_nb.demo import LocalModel, local_model
from wflo_nb.errors import WfloError

Chosen = tuple[Environment, str, Row]


def chosen(words: str) -> list[Chosen]:
    """The rows whose name, or environment, begins with one of the words; leaves the program if there are none for a word."""
    rows = [(place, module, row) for place in ENVIRONMENTS for module, row in place.rows()]
    wanted = [word.strip().lower() for word in words.split(",") if word.strip()]

    def meant(word: str, one: Chosen) -> bool:
        return one[0].key == word or one[2].name.lower().startswith(word)

    for word in wanted:
        if not any(meant(word, one) for one in rows):
            names = ", ".join(dict.fromkeys([*(place.key for place in ENVIRONMENTS), *(row.name for _, _, row in rows)]))
            sys.exit(f"No such row: {word}. There are: {names}.")
    return [one for one in rows if not wanted or any(meant(word, one) for word in wanted)]


@contextlib.contextmanager
def model_for(rows: list[Chosen], quick: bool) -> Iterator[LocalModel | None]:
    """The small model, if any row wants it."""
    if quick or not any(row.local for _, _, row in rows):
        yield None
        return
    with local_model() as model:
        yield model


def run(rows: list[Chosen], model: LocalModel | None, quick: bool) -> Iterator[Result]:
    """All rows, one after another."""
    for place, module, row in rows:
        if not place.present:
            told = f"{place.folder} is not installed; this makes it: {place.make}"
            if quick:
                print(f"{row.name}: left out, {told}", file=sys.stderr, flush=True)
            else:
                yield Result(row.name, place.key, failure=told)
            continue
        with stand_in(row) as counter:
            yield measure(place.python, module, row, counter, place.key)
        if model is not None and row.local:
            with small_model(model) as passing:
                yield measure(place.python, module, row, passing, place.key)


def progress(result: Result, seconds: float) -> None:
    """One line, and what is wrong."""
    said = "whole" if result.whole else "HOLES"
    print(f"{table.title(result)}: {len(result.cells)} forms, {said}, {seconds:.0f} s", file=sys.stderr, flush=True)
    for line in table.holes(result):
        print(f"    {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="how names of rows begin, or environments, with commas between")
    parser.add_argument("--quick", action="store_true", help="only environments that are there, and not the small model")
    parser.add_argument("--json", type=Path, help="write all that was found, too, as lines of JSON")
    parser.add_argument("--markdown", type=Path, help="write the table, too: a file, or a document with marks for it")
    options = parser.parse_args()
    rows, results, began = chosen(options.only), [], time.monotonic()
    try:
        with model_for(rows, options.quick) as model:
            before = began
            for result in run(rows, model, options.quick):
                results.append(result)
                now = time.monotonic()
                progress(result, now - before)
                before = now
    except WfloError as error:  # the small model is not there, or does not start
        sys.exit(f"{error} (make demo installs it; --quick leaves it out)")
    text = table.markdown(results)
    print(f"\n{text}\n")
    if options.markdown:
        table.write(options.markdown, text)
    if options.json:
        options.json.write_text("".join(f"{json.dumps(table.record(result))}\n" for result in results))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(0 if results and all(result.whole for result in results) else 1)


if __name__ == "__main__":
    main()
