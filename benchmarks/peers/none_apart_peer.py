"""The bare SDK beside itself in another process: how far two processes of one program lie apart."""

from __future__ import annotations

import base


class Enforcer(base.Enforcer):
    leaves = True
