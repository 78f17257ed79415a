"""Where a store is: what users write (None, a path, a URL) read as one of the two kinds of database."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from wflo_nb.errors import ConfigurationError, StoreUnavailableError

DEFAULT_NAME = "wflo.db"
_POSTGRES = ("postgresql", "postgres", "postgresql+psycopg")
_FILE_ENDINGS = (".db", ".sqlite", ".sqlite3", ".wflo")

#: File systems where SQLite's shared memory (WAL) does not work, because the other side is another machine.
_NETWORK = frozenset(
    name
    for names in ("nfs nfs3 nfs4 cifs smb2 smb3 smbfs 9p lustre ceph afs gpfs", "beegfs glusterfs sshfs s3fs gcsfuse ncpfs")
    for name in names.split()
)


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A SQLite file."""

    path: Path


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """A PostgreSQL server.

    Attributes:
        url: as libpq reads it, with whatever secrets it holds.
    """

    url: str


def place(where: str | os.PathLike[str]) -> FilePlace | ServerPlace:
    """What `where` means.

    A path may be a file or a folder: an existing folder, or a new name without an ending, is a folder that holds ``wflo.db``.

    Raises:
        ConfigurationError: it is neither a path nor a URL of a database that is supported.
        StoreUnavailableError: the folder that should hold the file does not exist.
    """
    text = os.fspath(where).strip() if isinstance(where, str) else os.fspath(where)
    if not text or text == ":memory:":
        raise ConfigurationError(f"store={text!r} is no place to keep anything. Give a file, a folder or a postgresql:// URL.")
    scheme, mark, rest = text.partition("://")
    if not mark:
        return FilePlace(_file(text))
    if scheme in ("sqlite", "file"):
        # sqlite:///relative and sqlite:////absolute, as SQLAlchemy writes them
        return FilePlace(_file(rest.removeprefix("/") if scheme == "sqlite" else rest))
    if scheme in _POSTGRES:
        return _server(f"postgresql://{rest}")
    near = difflib.get_close_matches(scheme, [*_POSTGRES, "sqlite"], n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}://?" if near else ""
    raise ConfigurationError(f"A store cannot be opened at a {scheme}:// address.{hint} Give a path for SQLite or a postgresql:// URL.")


def _server(url: str) -> ServerPlace:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # Without the address: what cannot be parsed cannot be cleared of its password either.
        raise ConfigurationError(
            "The PostgreSQL address cannot be read. Write postgresql://user:password@host:5432/database, with special characters of the "
            "password percent-encoded."
        ) from None
    return ServerPlace(url)


def _file(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    is_folder = path.is_dir() or text.endswith(("/", os.sep)) or (not path.exists() and path.suffix.lower() not in _FILE_ENDINGS)
    if not path.parent.is_dir():
        raise StoreUnavailableError(
            f"No store can be kept at {path}: the folder {path.parent} does not exist. Create it, or choose another place with "
            "WFLO_STORE or `%wflo connect PATH`."
        )
    if not is_folder:
        return path
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder {path} for the store cannot be made ({error.strerror}). Choose another place with WFLO_STORE or "
            "`%wflo connect PATH`."
        ) from None
    return path / DEFAULT_NAME


def shown(url: str) -> str:
    """A database URL without its secrets."""
    try:
        parts = urlsplit(url)
        user = f"{parts.username}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
        if "@" in parts.path:  # a password with a slash that was not encoded: the path holds a part of it
            return "postgresql://…"
        return f"postgresql://{user}{parts.hostname or 'localhost'}{port}{parts.path}"
    except ValueError:
        return "postgresql://…"


def network_filesystem(path: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that holds `path`, None for a local disk (or where the system cannot tell).

    `mounts` is the text of ``/proc/self/mounts``.
    """
    if mounts is None:
        if not sys.platform.startswith("linux"):
            return None
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return None
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        # A later mount on the same point hides an earlier one.
        if len(point) >= best and (path == Path(point) or Path(point) in path.parents):
            best, kind = len(point), fields[2]
    return kind if kind.removeprefix("fuse.") in _NETWORK else None


@functools.cache
def this_boot() -> str:
    """A name of this run of the machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    # Elsewhere the minute in which the machine's clock started; if it moves, a second spool is begun, which is harmless.
    return f"{int((time.time() - time.monotonic()) / 60):x}"
