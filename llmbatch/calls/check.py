"""Does the answer fit the schema? If not, the model is told what is wrong and asked again, a few times.

Outside retry: an answer that does not fit is a good answer to the layers below, and paid for. What all of a row's
answers used stands in the last Reply, or in the Failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmbatch.events import AttemptFailed, Listener
from llmbatch.providers.neutral import neutral
from llmbatch.records import Call, CallFailed, Failure, Reply, Request, Stopped, Trace
from llmbatch.rules.answer import MISMATCH, Fits, Misfit, added, fitted, follow_up
from llmbatch.rules.reasons import RowError


class Check:
    """``retries`` is how often a row is asked again with what was wrong."""

    def __init__(self, inner: Call, schema: Fits, retries: int, listen: Listener) -> None:
        self._inner = inner
        self._schema = schema
        self._retries = retries
        self._listen = listen

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        if request.input is not None:
            why = "--schema is for rows that ask a chat model; this one has texts to embed in 'input'"
            raise CallFailed(Failure("permanent", "invalid_row", why))
        reply, tries = await self._inner(request, trace), 1
        while True:
            try:
                return replace(reply, output=fitted(reply, self._schema))
            except Misfit as found:
                misfit = found
            failure = _mismatch(reply, misfit, tries, trace)
            again = misfit.again and tries <= self._retries
            self._note(failure, trace, again=again)
            if not again:
                raise CallFailed(failure)
            reply, tries = await self._ask_again(request, reply, misfit.problems, failure, trace), tries + 1

    async def _ask_again(
        self, request: Request, reply: Reply, problems: Sequence[str], failure: Failure, trace: Trace
    ) -> Reply:
        """The next answer, with what all have used so far."""
        try:
            said = neutral(request)
            asked = replace(said, messages=follow_up(said.messages, str(reply.output), problems))
            further = await self._inner(asked, trace)
        except (Stopped, RowError):  # what is here is paid for; its row can be run again, or has no neutral form
            raise CallFailed(failure) from None
        except CallFailed as failed:
            raise CallFailed(_with_paid(failed.failure, reply)) from None
        return replace(
            further,
            usage=added(reply.usage, further.usage),
            charged_usd=None
            if reply.charged_usd is None or further.charged_usd is None
            else reply.charged_usd + further.charged_usd,
        )

    def _note(self, failure: Failure, trace: Trace, *, again: bool) -> None:
        """In the diary and to whoever listens. What it cost is known, so it is none of what may have been billed, and
        takes nothing from the tries that such failures have."""
        noted = replace(failure, kind="permanent", output_so_far=None, usage=None)
        if trace.attempts:
            trace.attempts[-1].failure = noted
        self._listen(AttemptFailed(noted, 0.0 if again else None, "asked again with what is wrong" if again else ""))


def _mismatch(reply: Reply, misfit: Misfit, tries: int, trace: Trace) -> Failure:
    refused = reply.finish_reason == "content_filter"
    asked = f" (asked {tries} times)" if tries > 1 else ""
    return Failure(
        kind="permanent" if refused else "unusable",
        type="content_filter" if refused else MISMATCH,
        message=f"the answer does not fit the schema{asked}: {misfit.problems[0]}",
        http_status=200,
        request_id=trace.attempts[-1].request_id if trace.attempts else None,
        output_so_far=str(reply.output),
        usage=reply.usage,
    )


def _with_paid(failure: Failure, reply: Reply) -> Failure:
    """``failure`` of a further try, with what the tries before it have used and said."""
    return replace(
        failure,
        usage=reply.usage if failure.usage is None else added(reply.usage, failure.usage),
        output_so_far=failure.output_so_far or str(reply.output),
    )
