"""The dry run: every row read, rendered and checked, nothing sent. Prices come when there is a price table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from llmbatch.options import RunOptions
from llmbatch.runner import Run

# English text on current tokenisers; a rough guess, and called one.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do. ``done`` rows keep their answers; ``bad`` ones can not be sent; ``failed_before`` ones
    among those to be sent failed in an earlier run.

    ``input_tokens`` is a guess from the bytes of the rows to be sent. ``seconds_at_rpm`` is the shortest time that
    ``--rpm`` allows, None without one; ``seconds_at_tpm`` what ``--tpm`` and ``--input-tpm`` allow for the prompts
    alone, by that guess. ``first_day`` is how many of the rows ``--rpd`` lets go before the run stops, if not all.
    ``cost_usd`` is None while no price is known.
    """

    rows: int
    to_send: int
    done: int
    failed_before: int
    changed: int
    bad: int
    input_tokens: int
    seconds_at_rpm: float | None
    model: str | None
    endpoint: str
    output: str
    bad_examples: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    cost_usd: float | None = None
    seconds_at_tpm: float | None = None
    first_day: int | None = None

    @property
    def exit_code(self) -> int:
        """1 if some rows can not be sent, 2 if the run would be refused, as a run would end."""
        return 2 if self.changed else 1 if self.bad else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--summary-json``."""
        return {**asdict(self), "exit_code": self.exit_code}


async def estimate(options: RunOptions) -> Estimate:
    """Do everything of a run but send. Raises what a run would raise before it sends; needs no key."""
    run = Run(options)
    planned, warnings = await run.rehearse()
    resume = planned.resume
    input_tokens = planned.prompt_bytes // BYTES_PER_TOKEN
    at_tpm = min((limit for limit in (options.tpm, options.input_tpm) if limit is not None), default=None)
    a_day = math.inf if options.rpd is None else options.rpd * options.accounts
    return Estimate(
        rows=planned.rows,
        to_send=planned.to_send,
        done=resume.done,
        failed_before=planned.sent_again,
        changed=resume.refused,
        bad=planned.bad,
        input_tokens=input_tokens,
        seconds_at_rpm=None if options.rpm is None else planned.to_send * 60 / (options.rpm * options.accounts),
        seconds_at_tpm=None if at_tpm is None else input_tokens * 60 / (at_tpm * options.accounts),
        first_day=int(a_day) if planned.to_send > a_day else None,
        model=run.model,
        endpoint=run.endpoint,
        output=options.output_path,
        bad_examples=tuple(planned.bad_examples),
        warnings=tuple(warnings),
    )
