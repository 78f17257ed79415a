"""What is asked where overheads are measured: the smallest call there is, and one as an agent makes it in the middle of its work."""

from __future__ import annotations

import json
from typing import Any

_SYSTEM = "You look after a shop. Answer from what the tools say and from nothing else; name prices with their currency. " * 6
_LOOKED_UP = json.dumps([{"id": i, "name": f"tea number {i}", "price": 3.5 + i, "currency": "EUR", "in_stock": True} for i in range(8)])
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"To {name.replace('_', ' ')}. Use it whenever the customer asks for that, and never guess what it may say.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what is looked for, in words"},
                    "limit": {"type": "integer", "description": "how many at most", "minimum": 1},
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("search_the_catalogue", "look_up_an_order", "look_up_a_customer", "reserve_an_item")
]


def call(number: int) -> dict[str, Any]:
    """One short question, of which no two are alike."""
    return {"messages": [{"role": "user", "content": f"question {number} of a few words"}]}


def step(number: int) -> dict[str, Any]:
    """An agent's step: a system prompt, four tools, and a conversation that has three of their answers in it; no two are alike."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": f"{_SYSTEM}This is conversation {number}."}]
    for turn in range(3):
        asked = {"name": "search_the_catalogue", "arguments": json.dumps({"query": f"tea {turn} of {number}", "limit": 8})}
        messages += [
            {"role": "user", "content": f"What is there like number {number + turn}, what does it cost, when could it be here? " * 2},
            {"role": "assistant", "content": "", "tool_calls": [{"id": f"call_{turn}", "type": "function", "function": asked}]},
            {"role": "tool", "tool_call_id": f"call_{turn}", "content": _LOOKED_UP},
        ]
    return {"messages": messages, "tools": _TOOLS}
