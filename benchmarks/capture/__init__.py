"""The capture matrix: every SDK and framework, by every form of a call that it has, beside a provider that counts for itself.

How a row is added
------------------

A row is data in a *table*, a module of this folder that holds ``ROWS``. A table belongs to one environment (``environments.py``), whose
interpreter runs it; the parent reads it too, with no SDK at hand, so a row imports its SDK inside its functions::

    from benchmarks.capture.cells import ASYNC, ASYNC_STREAM, STREAM, SYNC, TOOLS, Absent, Place, Row

    def ask(place: Place) -> object:                     # a plain function, or `async def` for the asynchronous forms
        from some_sdk import Client

        client = Client(base_url=place.openai_url, api_key="test")
        return client.chat(place.model("gpt-4o-mini"), place.prompt, max_tokens=place.cap)

    ROWS = [
        Row(
            "some_sdk chat",
            packages=("some-sdk",),                      # whose versions are shown
            forms={
                SYNC: ask,
                ASYNC: ask_in_loop,
                STREAM: Absent("the SDK has no streams"),    # a form that does not exist says why
                ASYNC_STREAM: Absent("the SDK has no streams"),
                TOOLS: ask_with_a_tool,
            },
        )
    ]

Each form makes one or more calls and reads their answers to the end; what it returns is not looked at. It is run again and again
(``phases.py``): bare, under a budget that pays for it, under a spent budget, twice under a spent budget with the refusal swallowed, and, if
it makes several calls, under a budget that the first one spends; all of that in one process, which must end by itself. So it makes its
clients anew each time, leaves retries and time-outs at the defaults of the SDK, and does not catch errors: how they come out is what is
looked at.

For ``TOOLS`` the provider calls the tools of ``Row.tools`` one after another, in a conversation that holds so many results, if the request
offers them (``"*"``: the first that is offered). The form must let the SDK, or the framework, run the tool and ask again.

`Row.owner` is who sells the models, where that is not told by the path (``WFLO_GATEWAYS``); `Row.behave` are fields of
`wflo_nb.testing.Behaviour`; `Row.local` says that the row speaks OpenAI's or Anthropic's format, so that it is run against the small
model of the demo as well, whose name `place.model` then gives. To look at one row: ``python benchmarks/matrix.py --only "some_sdk chat"``.
"""
