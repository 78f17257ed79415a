"""litellm 1.106.2, by `litellm.completion` in place of the SDK that it stands on, and nothing else: no budget, no record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import base
import litellm_max_budget_peer as plain
from base import Given


class Enforcer(base.Enforcer):
    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        yield plain.Session(given)
