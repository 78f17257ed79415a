"""litellm 1.106.2, by `BudgetManager` (https://docs.litellm.ai/docs/budget_manager), with `projected_cost` before each call.

The documented loop is: ask the manager, call, `update_cost`. The projection holds the input alone. Processes share
``user_cost.json`` in the folder that they are started in. Streams are recorded from their text, as `update_cost` takes it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import base
import litellm
import litellm_max_budget_peer as plain
from base import Given

USER = "bench"


class Refused(Exception):
    """The manager says that there is no money left."""


class Session(plain.Session):
    refusals = (Refused,)
    manager: Any

    def _ask(self, request: dict[str, Any]) -> None:
        projected = self.manager.projected_cost(model=request["model"], messages=request["messages"], user=USER)
        if projected > self.manager.get_total_budget(USER):
            raise Refused

    def chat(self, **request: Any) -> Any:
        self._ask(request)
        answer = super().chat(**request)
        self.manager.update_cost(completion_obj=answer, user=USER)
        return answer

    async def achat(self, **request: Any) -> Any:
        self._ask(request)
        answer = await super().achat(**request)
        self.manager.update_cost(completion_obj=answer, user=USER)
        return answer

    def stream(self, **request: Any) -> Iterator[Any]:
        self._ask(request)
        said = ""
        answer = litellm.completion(stream=True, **self._with(request))
        try:
            for chunk in answer:
                if chunk.choices:
                    said += chunk.choices[0].delta.content or ""
                yield chunk
        finally:
            answer.completion_stream.close()  # its own wrapper cannot be closed
            asked = "".join(message["content"] for message in request["messages"])
            self.manager.update_cost(model=request["model"], input_text=asked, output_text=said or " ", user=USER)

    def message(self, **request: Any) -> Any:
        self._ask(request)
        answer = super().message(**request)
        self.manager.update_cost(completion_obj=answer, user=USER)
        return answer

    def believed_usd(self) -> float | None:
        return float(self.manager.get_current_cost(USER))

    def flush(self) -> None:
        for thread in threading.enumerate():  # each update is written by a thread of its own
            if "save_data" in thread.name:
                thread.join()


class Enforcer(base.Enforcer):
    can = frozenset({"async", "stream", "raw", "anthropic", "processes"})

    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        session = Session(given)
        session.manager = litellm.BudgetManager(project_name="bench")
        if not session.manager.is_valid_user(USER):
            session.manager.create_budget(total_budget=given.budget_usd, user=USER)
            session.manager.save_data()
        yield session

    def recorded(self, given: Given) -> int | None:
        try:
            spent = json.loads((given.folder / "user_cost.json").read_text())[USER].get("current_cost", 0)
        except (OSError, ValueError):  # it is written in place: who is killed meanwhile leaves half a file
            return 0
        prices = litellm.cost_per_token(model="gpt-4o-mini", prompt_tokens=20, completion_tokens=20)
        return round(spent / sum(prices))  # it keeps a sum; a call of the provider for overhead has 20 tokens each way
