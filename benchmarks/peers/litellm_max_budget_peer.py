"""litellm 1.106.2, by `litellm.max_budget` (https://docs.litellm.ai/docs/budget_manager, "litellm.max_budget")."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import base
import litellm
from base import Given


class Session(base.Session):
    refusals = (litellm.BudgetExceededError,)

    def _with(self, request: dict[str, Any], path: str = "/v1", family: str = "openai") -> dict[str, Any]:
        options = {**self.given.client}
        if "max_retries" in options:
            options["num_retries"] = options.pop("max_retries")
        where = {"api_base": f"{self.given.url}{path}", "api_key": "none"}
        return {**request, "model": f"{family}/{request['model']}", **where, **options}

    def chat(self, **request: Any) -> Any:
        return litellm.completion(**self._with(request))

    def stream(self, **request: Any) -> Iterator[Any]:
        answer = litellm.completion(stream=True, **self._with(request))
        try:
            yield from answer
        finally:
            answer.completion_stream.close()  # its own wrapper cannot be closed

    async def achat(self, **request: Any) -> Any:
        return await litellm.acompletion(**self._with(request))

    def message(self, **request: Any) -> Any:
        system = request.pop("system")
        request["messages"] = [{"role": "system", "content": system}, *request["messages"]]
        return litellm.completion(**self._with(request, "", "anthropic"))

    def believed_usd(self) -> float | None:
        return float(litellm._current_cost)


class Enforcer(base.Enforcer):
    @contextmanager
    def session(self, given: Given) -> Iterator[base.Session]:
        litellm.max_budget = given.budget_usd
        yield Session(given)
