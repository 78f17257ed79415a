"""Which notebook and which kernel is this?"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Any


def kernel_id(shell: Any) -> str:
    """The kernel as the server knows it: the same after a restart. A random name in a terminal."""
    app = getattr(getattr(shell, "kernel", None), "parent", None)
    file = getattr(app, "connection_file", None)
    if file:
        return Path(str(file)).stem.removeprefix("kernel-")
    return f"terminal-{os.getpid()}"


def session_id(shell: Any) -> str:
    """The kernel's present run: a restart makes a new one, and with it a new notebook budget."""
    kernel = getattr(shell, "kernel", None)
    own = getattr(getattr(kernel, "session", None), "session", None)
    return str(own) if own else f"terminal-{secrets.token_hex(8)}"


def notebook_id(shell: Any) -> str:
    """The notebook, the same after a kernel restart when its path is known; else the kernel.

    Servers tell the path in an environment variable. It is hashed: paths say more than a ledger need know.
    """
    path = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    if path:
        return "nb-" + hashlib.blake2b(str(path).encode(), digest_size=10).hexdigest()
    return f"kernel-{kernel_id(shell)}"
