"""Who holds money: names of processes that tell, later and from another process, whether their owner still lives.

A holder reads ``host|pid|start|random``. `host` also names the machine and its process namespace, so that a pid is only
ever judged where it has a meaning; `start` names the boot and the start time, so that a pid used again is not mistaken.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
import socket
from pathlib import Path

_HAS_PROC = Path("/proc/self/stat").exists()
_mine: tuple[int, str] | None = None


def this_holder() -> str:
    """The name of this process. A forked child has its own."""
    global _mine
    pid = os.getpid()
    if _mine is None or _mine[0] != pid:
        _mine = (pid, f"{_host()}|{pid}|{_start(pid) or '?'}|{secrets.token_hex(4)}")
    return _mine[1]


def is_dead(holder: str) -> bool:
    """True only if the process is known to be over: another machine's processes, and names we cannot read, count as alive."""
    try:
        host, pid_text, start, _ = holder.split("|")
        pid = int(pid_text)
    except ValueError:
        return False
    if host != _host():
        return False
    alive = _start(pid)
    if alive is None:
        return True
    return alive != start and "?" not in (alive, start)


def is_here(holder: str) -> bool:
    """Whether it is a process of this machine, so that `is_dead` can judge it."""
    return holder.partition("|")[0] == _host()


def told(holder: str | None) -> str:
    """A holder in words: ``this process``, ``process 123 on this machine``, ``process 123 on host-a``."""
    if holder is not None and holder == this_holder():
        return "this process"
    try:
        host, pid, _, _ = (holder or "").split("|")
    except ValueError:
        return holder or "an unknown process"
    return f"process {pid} on {'this machine' if host == _host() else host.rpartition('#')[0] or host}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _host() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    machine = hashlib.blake2b(f"{_text('/etc/machine-id')}/{namespace}".encode(), digest_size=4).hexdigest()
    return f"{socket.gethostname().replace('|', '_')}#{machine}"


def _start(pid: int) -> str | None:
    """When a process started, as text that is compared and never computed with; "?" if only its life is known; None if it is over."""
    if _HAS_PROC:
        stat = _text(f"/proc/{pid}/stat")
        if stat:
            # The name in parentheses may hold anything; the fields after it do not.
            fields = stat.rpartition(")")[2].split()
            return None if fields[0] in ("Z", "X") else f"{fields[19]}@{_text('/proc/sys/kernel/random/boot_id')[:8]}"
        return None
    try:
        return str(importlib.import_module("psutil").Process(pid).create_time())
    except ImportError:
        pass
    except Exception:
        return None
    if os.name != "posix":
        return "?"  # os.kill(pid, 0) would end a process on Windows
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "?"
