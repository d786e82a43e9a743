"""The dry run as text."""

from __future__ import annotations

from collections.abc import Iterator

from llmbatch.estimate import Estimate
from llmbatch.views.safe import safe
from llmbatch.views.words import count, duration


def render_estimate(found: Estimate) -> str:
    """What a run would do, ending in a newline."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Estimate) -> Iterator[str]:
    yield "Dry run: nothing was sent."
    yield f"{count(found.rows, 'row')}: {found.to_send:,} to send, {found.done:,} done before, {found.bad:,} unusable"
    if found.failed_before:
        yield f"{found.failed_before:,} of them failed before and would be sent again"
    if found.changed:
        yield f"{count(found.changed, 'finished row')} changed: the run would be refused; see --on-change"
    yield ""
    yield f"model     {safe(found.model or 'as each row says')} at {safe(found.endpoint)}"
    yield f"tokens    about {found.input_tokens:,} in (a guess: 4 bytes each); out unknown"
    yield "cost      unknown"
    if found.seconds_at_rpm is not None:
        yield f"time      at least {duration(found.seconds_at_rpm)} at --rpm"
    if found.seconds_at_tpm is not None:
        yield f"time      about {duration(found.seconds_at_tpm)} for the tokens of the prompts alone"
    if found.first_day is not None:
        yield f"a day     {found.first_day:,} by --rpd; then the run stops, and the same command continues"
    yield f"results   {safe(found.output)}"
    if found.bad_examples:
        yield ""
        yield "Rows that can not be sent:"
        yield from (f"  {safe(reason, 200)}" for reason in found.bad_examples)
        if found.bad > len(found.bad_examples):
            yield f"  and {found.bad - len(found.bad_examples):,} more"
    yield from (f"warning: {safe(warning)}" for warning in found.warnings)
