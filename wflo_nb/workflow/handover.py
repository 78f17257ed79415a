"""What a process that was started by a tracked run needs to charge it: one environment variable, ``WFLO_JOIN``.

It names the execution, the budgets around it and where the ledger is; never a password: an address that holds one is written to a
file that only this user can read, and the variable names the file. It is set while a run is entered. The environment belongs
to the process and not to a thread, so among runs side by side it names the one that was entered last.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wflo_nb import config, telemetry
from wflo_nb import store as stores
from wflo_nb.budget.account import Account
from wflo_nb.budget.shared import Shared
from wflo_nb.store import Store
from wflo_nb.store.holder import is_dead, this_holder

_log = logging.getLogger(__name__)

VARIABLE = "WFLO_JOIN"
VERSION = 1
#: Characters of declared prices beyond which they go into the file: the system limits the size of an environment.
_MOST_INLINE = 4_000
#: Seconds after which a mark that nobody took away is litter.
_OLD = 7 * 86_400.0

_compact = json.JSONEncoder(separators=(",", ":")).encode

_lock = threading.RLock()
_offers: list[tuple[object, str]] = []
_before: str | None = None
_files: dict[tuple[str, str], Path] = {}
_forks = 0


def ticket(account: Account) -> str:
    """What `wflo_nb.join` needs to charge the calls of another process to this account, as text.

    Raises:
        OSError: the address of its store holds a password, and the file for it cannot be written.
    """
    execution, innermost = account.execution, account.innermost
    chain = innermost.chain if innermost else ()
    public: dict[str, Any] = {
        "v": VERSION,
        "id": execution.id,
        "name": execution.workflow,
        "at": execution.created_at.isoformat(),
        "parent": execution.parent_id,
        "notebook": execution.notebook_id,
        "kernel": execution.kernel_id,
        "cell": execution.cell,
        "cell_id": execution.cell_id,
        "begun": account.begun,
        "own": account.budget is not None,
        "chain": [[b.id, b.scope, b.cap_nano] for b in chain if not b.shared],
        "shared": [[b.kind, b.name] for b in chain if isinstance(b, Shared)],
        "unknown": "refuse" if account.refuses_unknown else account.unknown_models,
        "wait": account.wait,
        "host": host(),
    }
    # A notebook opens its store with the first call; until then the environment tells where it will be, here as there.
    store: Store | None = getattr(account.store, "opened", account.store) or stores.opened()
    private: dict[str, Any] = {}
    if store is not None:
        public.update(store=store.location, team=store.team)
        if store.address != store.location:
            private["store"] = store.address
        if account.begun:
            public["marks"] = [_mark(one) for one in account.lineage]
    trace = telemetry.traceparent(account.id)
    if trace is not None:
        public["trace"] = trace
    # What is cheaper than by the book of a cap around it is not handed over: there, too, the table's price counts.
    found = [account.price(p.provider or None, p.model) for p in account.book.declared()]
    prices = [_price(p) for p in found if p.source == "declared"]
    if prices:
        (private if len(json.dumps(prices)) > _MOST_INLINE else public)["prices"] = prices
    if private:
        public["ticket"] = str(_written(private))
    return _compact(public)


def _price(price: Any) -> dict[str, Any]:
    rates = {name: str(rate) for name, rate in price.per_million().items()}
    limits = {"max_input_tokens": price.max_input_tokens, "max_output_tokens": price.max_output_tokens}
    return {"model": price.model, "provider": price.provider or None, **rates, **limits}


def host() -> str:
    """The machine, and on it the space in which process ids count, as holders name it."""
    return this_holder().partition("|")[0]


# -- the environment ---------------------------------------------------------------------------------------------------------


def offer(account: Account) -> Callable[[], None]:
    """Let processes that are started from here on join `account`, until the returned undo is called."""
    try:
        text = ticket(account)
    except Exception:  # whoever then asks to join is told that there is nothing to join
        _log.warning("processes started by %s cannot join it", account.execution.workflow, exc_info=True)
        text = ""
    return put(account, text)


def put(who: object, text: str) -> Callable[[], None]:
    """Set the variable; the returned undo brings back the one before, also when runs end in another order than they began."""
    global _before
    entry = (who, text)
    with _lock:
        if not _offers and _before is None:
            _before = os.environ.get(VARIABLE) or None
        _offers.append(entry)
        os.environ[VARIABLE] = text

    def take_back() -> None:
        with _lock:
            if any(one is entry for one in _offers):
                _offers[:] = [one for one in _offers if one is not entry]
                # Empty rather than gone: between the cells of a notebook, a variable that comes and goes would move the others
                # about, under the eyes of whatever native thread reads them.
                os.environ[VARIABLE] = _offers[-1][1] if _offers else _before or ""

    return take_back


def offered(who: object) -> str:
    """What the variable was set to for it; nothing if that is over, or never was."""
    with _lock:
        return next((text for one, text in reversed(_offers) if one is who), "")


def withdraw() -> None:
    """Nothing is tracked any more: leave the environment as it was found."""
    global _before
    with _lock:
        if not _offers:
            if _before is None and os.environ.get(VARIABLE) == "":
                del os.environ[VARIABLE]
            _before = None


# -- files -------------------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    return config.state_dir(config.load()) / "join"


def _mark(account: Account) -> str:
    """An empty file that says that a process joined. Beside an embedded store, so that no other folder is made for its sake."""
    return os.path.join(f"{account.store.location}.join" if account.store.local else _folder(), account.id)  # noqa: PTH118 - for every cell


def mark(paths: list[str]) -> None:
    """Tell the run that was joined, and those around it, to look into the ledger for what we did, when they end. They may have ended, or be
    far away.
    """
    with contextlib.suppress(OSError):
        for place in map(Path, paths):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            _tidy(place.parent)
            place.touch(0o600)


def joined(account: Account, forks: int) -> bool:
    """Whether other processes may have charged `account`: one joined it, or this process was forked since it counted `forks`."""
    if _forks != forks:
        return True
    try:
        os.unlink(_mark(account))  # noqa: PTH108 - for every cell
    except OSError:
        return False
    return True


def _written(private: dict[str, Any]) -> Path:
    """A file with what must not be seen. One per content and process; it goes when the process does, since a process that was
    started last may read it late.
    """
    folder, text = _folder(), json.dumps(private)
    with _lock:
        known = _files.get((str(folder), text))
        if known is not None and known.exists():
            return known
        folder.mkdir(mode=0o700, exist_ok=True)
        _tidy(folder)
        path = folder / f"{secrets.token_hex(10)}.json"
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            json.dump({**private, "holder": this_holder()}, file)
        _files[str(folder), text] = path
        return path


def _tidy(folder: Path) -> None:
    """Take away what processes that were killed left behind."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError, ValueError):
            if path.suffix == ".json":
                stale = is_dead(str(json.loads(path.read_text(encoding="utf-8"))["holder"]))
            else:
                stale = path.stat().st_mtime < time.time() - _OLD
            if stale:
                path.unlink()


@atexit.register
def _remove() -> None:
    for path in _files.values():
        with contextlib.suppress(OSError):
            path.unlink()


def forks() -> int:
    """How often this process was forked so far."""
    return _forks


def _forked() -> None:
    global _forks
    _forks += 1


def _born() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that held it was left behind
    _files.clear()  # the parent's to remove


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_forked, after_in_child=_born)
