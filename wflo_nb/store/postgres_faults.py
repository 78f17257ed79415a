"""What a PostgreSQL server and its driver say, in words that tell the user what to do and hold no password.

Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import contextlib
from urllib.parse import unquote, urlsplit

from wflo_nb.errors import SchemaVersionError, StoreError, StoreUnavailableError, WfloError

#: Classes of faults of what is written (data, constraints), not of the place: the next row may be kept.
_OF_A_ROW = ("22", "23")
#: The server is not there, goes away, or asks to try again.
_LOST = ("08", "57", "40")


def explain(error: BaseException, location: str, url: str) -> WfloError | None:
    """The error to raise instead of a fault of the server at `url`; None if it is not one."""
    import psycopg  # an extra; who comes here has it

    if not isinstance(error, psycopg.Error):
        return None
    where, state = f"The PostgreSQL store at {location}", error.sqlstate or ""
    if isinstance(error, psycopg.ProgrammingError) and not state:
        return StoreUnavailableError(
            f"{where} has an address that cannot be read. Write postgresql://user:password@host:5432/database, with special characters "
            "of the password percent-encoded."
        )
    lines = (" ".join(line.split()) for line in _without_secrets(str(error), url).splitlines())
    said = ". ".join(line for line in lines if line).rstrip(".?")
    if state.startswith(_OF_A_ROW):
        return StoreError(f"{where} cannot keep this: {said}.")
    if state in ("42P01", "42703"):
        return SchemaVersionError(f"{where} does not have the tables this wflo_nb expects: {said}. Were they changed by hand?")
    if (state and not state.startswith((*_LOST, "28"))) or state in _WORDS:
        return StoreUnavailableError(f"{where} {_WORDS.get(state, 'could not do this: {said}.').format(said=said)}")
    if state.startswith("28") or "password authentication failed" in said or "no password supplied" in said:
        return StoreUnavailableError(f"{where} refused the login: {said}. Check the user and the password of the address.")
    lost = StoreUnavailableError(
        f"{where} cannot be reached: {said}. Check the address and the network; `%wflo connect default` goes back to the store on "
        "this machine."
    )
    lost.unreachable = True
    return lost


_FULL = "is out of space or memory: {said}. What was recorded before is safe."
_SLOW = "gave up on a statement (a time-out of the server): {said}. Nothing was changed; try again."
_WORDS = {
    "42501": "does not allow this user to create or write its tables: {said}. Ask for CREATE on its schema.",
    "25006": "is read-only (a standby?): {said}. Connect to the primary server.",
    "53100": _FULL,
    "53200": _FULL,
    "57014": _SLOW,
    "55P03": _SLOW,
    "25P03": _SLOW,
}


def _without_secrets(text: str, url: str) -> str:
    secrets: set[str] = set()
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.password:
            secrets |= {parts.password, unquote(parts.password)}
        secrets |= {unquote(v) for pair in parts.query.split("&") for k, _, v in [pair.partition("=")] if "pass" in k and v}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
