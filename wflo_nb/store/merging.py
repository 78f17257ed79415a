"""What this machine has and what the server has, as one table."""

from __future__ import annotations

from wflo_nb.store.records import Columns


def summed(found: Columns, more: Columns) -> Columns:
    """Groups of calls under way, which cost nothing yet, added to those of the server."""
    if not more["calls"]:
        return found
    keys = list(found)[: list(found).index("calls")]
    rows_there = {tuple(found[k][i] for k in keys): i for i in range(len(found["calls"]))}
    for j in range(len(more["calls"])):
        i = rows_there.get(tuple(more[k][j] for k in keys))
        for name, values in found.items():
            if i is None:
                values.append(more[name][j])
            elif name in ("calls", "refused", "unpriced"):
                values[i] += more[name][j]
    return found


def joined(found: Columns, more: Columns) -> Columns:
    """Rows of calls that only this machine has, put among those of the server in the order of a table of calls."""
    if not more["id"]:
        return found
    seen = set(found["id"])
    extra = [i for i, id in enumerate(more["id"]) if id not in seen]
    both = {name: values + [more[name][i] for i in extra] for name, values in found.items()}
    order = sorted(range(len(both["id"])), key=lambda i: (both["created_at"][i], both["id"][i]))
    return {name: [values[i] for i in order] for name, values in both.items()}
