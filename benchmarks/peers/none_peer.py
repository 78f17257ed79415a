"""The bare SDK: what happens when nobody enforces anything."""

from __future__ import annotations

import base
import openai  # noqa: F401 - imported once, before the forks


class Enforcer(base.Enforcer):
    pass
