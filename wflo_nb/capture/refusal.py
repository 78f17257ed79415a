"""The courtesy of an exception that SDKs neither retry nor wrap.

An SDK lets its own root error pass. So a refusal is raised as a class that is both ours and theirs, made at that moment from
the SDKs that are loaded. It is only a courtesy: the ledger refuses again, whoever swallows it.
"""

from __future__ import annotations

import sys

from wflo_nb.errors import WfloError

#: Module and root error of the SDKs that pass their own errors through.
_ROOTS = (("openai", "OpenAIError"), ("anthropic", "AnthropicError"))


_made: dict[tuple[type, ...], type[WfloError]] = {}


def _joined(ours: type[WfloError], theirs: tuple[type[Exception], ...]) -> type[WfloError]:
    # One class per combination, so that two refusals are of the same type; the name is ours, because a traceback shows it.
    bases = (ours, *theirs)
    return _made.setdefault(bases, type(ours.__name__, bases, {"__doc__": ours.__doc__, "__module__": ours.__module__}))


def passing(error: WfloError) -> WfloError:
    """The same error, of a class that loaded SDKs let through."""
    roots = (getattr(sys.modules.get(module), name, None) for module, name in _ROOTS)
    theirs = tuple(r for r in roots if isinstance(r, type) and issubclass(r, Exception) and not isinstance(error, r))
    if not theirs:
        return error
    cls = _joined(type(error), theirs)
    try:
        twin = cls.__new__(cls, *error.args)
    except TypeError:  # an SDK changed its root error; ours alone still stops the call
        return error
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin.with_traceback(error.__traceback__)
