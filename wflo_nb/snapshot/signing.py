"""The key that says which snapshots are ours. It lives outside the database, so who can write the database cannot sign."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from wflo_nb import config
from wflo_nb.errors import ConfigurationError, SignatureError

KEY_FILE = "snapshot.key"
_DOMAIN = b"wflo_nb snapshot 1\0"
_LEAST = 16


class Signer:
    """Signs manifests with one key and verifies them with every key that this user holds."""

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < _LEAST:
            raise ConfigurationError(f"The snapshot key has {len(key)} bytes; at least {_LEAST} are needed.")
        self._given = key
        self._keys: list[bytes] | None = None

    def keys(self) -> list[bytes]:
        """The key to sign with, then others to trust: argument, ``WFLO_SNAPSHOT_KEY``, the file in the state folder (made when needed)."""
        if self._keys is None:
            environment = _from_environment()
            found = [key for key in (self._given, environment) if key is not None]
            path = config.state_dir(config.load()) / KEY_FILE
            if not found or path.exists():
                found.append(_from_file(path))
            self._keys = found
        return self._keys

    def sign(self, manifest: bytes) -> bytes:
        """The signature of a manifest."""
        return _mac(self.keys()[0], manifest)

    def trusts(self, manifest: bytes, signature: bytes) -> bool:
        """Was it signed with a key of this user?"""
        return any(hmac.compare_digest(_mac(key, manifest), signature) for key in self.keys())

    def verify(self, manifest: bytes, signature: bytes, what: str) -> None:
        """Refuse what was not signed with a key of this user.

        Raises:
            SignatureError: before anything of it was loaded.
        """
        if not self.trusts(manifest, signature):
            how = "carries no signature" if not signature else "was signed with another key, or changed after it was signed"
            raise SignatureError(
                f"Checkpoint {what} {how}, so none of it was loaded: loading a checkpoint runs code of its author. If you trust "
                "the author, set WFLO_SNAPSHOT_KEY to the key that both of you share and start again. Checkpoints of your own are "
                f"signed with {KEY_FILE} in the state folder."
            )


def _mac(key: bytes, manifest: bytes) -> bytes:
    return hmac.new(key, _DOMAIN + manifest, hashlib.sha256).digest()


def _from_environment() -> bytes | None:
    text = os.environ.get("WFLO_SNAPSHOT_KEY")
    if not text:
        return None
    if len(text.encode()) < _LEAST:
        raise ConfigurationError(
            f"WFLO_SNAPSHOT_KEY has {len(text.encode())} bytes; at least {_LEAST} are needed. Make one with: openssl rand -hex 32"
        )
    return text.encode()


def _from_file(path: Path) -> bytes:
    """The key of this user, made by whichever process comes first."""
    for _ in range(2):
        try:
            text = path.read_text("ascii").strip()
        except FileNotFoundError:
            _make(path)
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"The snapshot key {path} cannot be read ({error}). Repair it, or set WFLO_SNAPSHOT_KEY.") from error
        if len(text) < 2 * _LEAST:
            raise ConfigurationError(
                f"The snapshot key {path} is damaged. Put the old one back to open old checkpoints, or delete it for a new one."
            )
        if os.name == "posix" and path.stat().st_mode & 0o077:
            with contextlib.suppress(OSError):
                path.chmod(0o600)
        return text.encode()
    raise ConfigurationError(f"The snapshot key {path} vanishes while it is being made. Set WFLO_SNAPSHOT_KEY instead.")


def _make(path: Path) -> None:
    """Written aside, then linked into place: nobody ever reads half a key, and the first one wins."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links: rename may replace a key made in the same instant, which nobody has used yet
            if not path.exists():
                draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
