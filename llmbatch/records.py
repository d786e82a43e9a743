"""The nouns: what travels through llmbatch. Values are frozen; only Trace changes, and one task owns it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FailureClass = Literal["never_sent", "rejected", "ambiguous", "unusable", "permanent"]
"""What is known of a failed attempt (README, "Retries"):

never_sent  the request did not leave this machine, so it cost nothing
rejected    the server said no before doing the work (429, 503, 529, 500)
ambiguous   the server may have done, and billed, the work; its answer did not arrive
unusable    an answer arrived and was probably billed, but it is no valid answer
permanent   asking again cannot help (bad request, bad key, context too long)
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One raw line of the input: its number (from 1), its byte offset, its bytes without the newline.

    ``oversize`` marks a line longer than the reader's cap; ``data`` then holds only its first bytes.
    ``complete`` is False for a last line that has no newline. ``problem`` says why a record of a table is no row.
    """

    number: int
    offset: int
    data: bytes
    complete: bool = True
    oversize: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the user's input. ``index`` counts rows from 1; ``line`` is where it stands in the file.

    ``id`` is the user's own identity for it (kept as given: str, int or float), else None.
    """

    index: int
    line: int
    id: str | int | float | None
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can not be sent. It costs nothing and becomes one error line that says why."""

    index: int
    line: int
    offset: int
    reason: str
    id: str | int | float | None = None
    type: str = "invalid_row"


@dataclass(frozen=True, slots=True)
class Request:
    """What we want from a model, in no provider's dialect.

    ``messages`` are turns as Chat Completions has them, whatever the dialect: roles, text or parts, tool calls.
    ``params`` holds neutral parameters of the row (``temperature``, ``max_tokens``, ``tools``, ...) by the names of
    rules/params.py; ``extra`` those of the command line (``-p``). What is not known by a neutral name goes into the
    body as it is. ``body`` is a whole body (of an OpenAI Batch line) in the dialect ``api``: sent as it is to a server
    that speaks it, translated for another. ``input`` is what an embeddings model is to embed.
    ``schema`` is the JSON Schema that the answer must fit.
    """

    model: str
    messages: Sequence[Mapping[str, Any]] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    api: str = "openai-chat"
    input: str | Sequence[str] | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reported them, None where it did not. Input includes what was read from and written to
    the provider's cache, output reasoning. ``media`` are the tokens among them that are no text, by kind (audio, image,
    video); None if the server does not tell them apart. ``cache_write_1h_tokens`` of those written stay for an hour."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    media: Mapping[str, int] | None = None
    cache_write_1h_tokens: int | None = None


# What may be odd about a good answer; rules/flags.py says when.
EMPTY, MODEL_MISMATCH, CHOICES_MISMATCH = FLAGS = ("empty", "model_mismatch", "choices_mismatch")


@dataclass(frozen=True, slots=True)
class Reply:
    """A good answer: complete, valid, with the protocol's own end marker seen.

    ``finish_reason`` is the normalised word (``stop``, ``length``, ``tool_calls``, ``content_filter``, ``paused``,
    ``context_length``), ``native_finish_reason`` the server's own where it is another. ``tool_calls`` have the shape
    of Chat Completions in every dialect. ``choices`` is how many answers the server gave; only the first is read.
    ``service_tier`` is the one that was charged, where the server says it. ``flags`` are those of FLAGS that hold.
    ``charged_usd`` is the price that the server itself named for the answer.
    """

    output: Any
    finish_reason: str | None
    model: str | None
    usage: Usage
    tool_calls: Sequence[Any] | None = None
    reasoning: str | None = None
    choices: int = 1
    service_tier: str | None = None
    flags: tuple[str, ...] = ()
    native_finish_reason: str | None = None
    charged_usd: float | None = None


@dataclass(frozen=True, slots=True)
class TokenBound:
    """What one request to ``model`` may have used at most, in tokens; None where nothing can be said."""

    model: str | None
    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A bad answer, or none. ``kind`` says what is known of it, ``type`` is the short word users filter on.

    ``body`` is what was received of the answer, as bytes where it is not UTF-8; ``body_bytes`` is its size if that
    is more than was kept. ``output_so_far`` is the text of a stream up to its cut. ``bound`` is set where the
    request may have been billed. ``usage`` are the tokens that the server reported for an answer that is no good.
    """

    kind: FailureClass
    type: str
    message: str
    http_status: int | None = None
    retry_after_s: float | None = None
    retryable: bool = False
    fatal: bool = False
    rate_limited: bool = False
    unreachable: bool = False
    body: str | bytes | None = None
    request_id: str | None = None
    body_bytes: int | None = None
    output_so_far: str | None = None
    bound: TokenBound | None = None
    usage: Usage | None = None

    @property
    def maybe_billed(self) -> bool:
        return self.kind in ("ambiguous", "unusable")

    @property
    def concerns_all(self) -> bool:
        """Every other row would meet the same now, so all wait together: a rate limit, or nobody there."""
        return self.rate_limited or self.unreachable

    @property
    def unknown_model(self) -> bool:
        """The server does not have what was asked for; other models may be there."""
        return self.http_status == 404 or self.type == "model_not_found"


class CallFailed(Exception):
    """How the call layers tell each other of a Failure; never leaves a run."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.type)
        self.failure = failure


@dataclass(slots=True)
class Attempt:
    """One try at one request, as measured by the wire. ``limits`` (rules/limits.py) are those that the answer told."""

    sent_s: float
    latency_s: float = 0.0
    first_token_s: float | None = None
    request_id: str | None = None
    failure: Failure | None = None
    limits: Any = None


@dataclass(slots=True)
class Trace:
    """The diary of one row's tries. The one mutable noun; owned by the task that runs the row.

    ``deadline_s`` (run clock) bounds all tries together; ``limited_since_s`` is when the first rate-limit answer came.
    ``failed_before``: an earlier run saw this row fail, so it says nothing of the server's health.
    ``retry_costs`` are the tokens that its retries took from the quota (rules/quota.py), ``unpaid`` counts the failures
    that found it empty, ``others_answered`` is how many good answers the run had at the last failure.
    ``cost_usd`` is the price of the answer, None if there is none or its price is unknown; ``cache_saved_usd`` is how
    much more it would be without the provider's cache. ``hedged``: another request asks the same (``--hedge``), so what
    is in flight may have been paid for twice. ``began`` is called when the answer begins, if that is seen.
    """

    attempts: list[Attempt] = field(default_factory=list)
    deadline_s: float | None = None
    limited_since_s: float | None = None
    failed_before: bool = False
    retry_costs: tuple[int, ...] = ()
    unpaid: int = 0
    others_answered: int | None = None
    cost_usd: float | None = None
    hedged: bool = False
    cache_saved_usd: float | None = None
    began: Callable[[], None] | None = None

    @property
    def ambiguous(self) -> int:
        """How many tries may have been billed without giving an answer."""
        return sum(1 for attempt in self.attempts if attempt.failure is not None and attempt.failure.maybe_billed)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of output: exactly one of ``reply`` and ``failure`` is set, and neither if a hook ``skipped`` the row.

    ``key`` is the fingerprint of the rendered request (``fp1:`` and 32 hex digits), None if it never rendered.
    ``request_ids`` are those of all tries, in order; ``request_id`` is the last try's. ``latency_s`` is that of
    the last try, if it was asked twice (``--hedge``) from the first sending to the answer that won. ``tasks`` are the
    lines of the row's tasks if it has any, ``partial_output`` the good answers among them where others failed,
    ``parts`` the results of those that were asked in this run. ``cache_saved_usd`` is as in Trace, and does not stand
    in the output.
    """

    row: int
    id: str | int | float | None
    key: str | None
    reply: Reply | None
    failure: Failure | None
    attempts: int
    latency_s: float | None
    first_token_s: float | None
    request_id: str | None
    ambiguous: int = 0
    cost_usd: float | None = None
    input: Any = None
    request_ids: tuple[str, ...] = ()
    tasks: Mapping[str, Mapping[str, Any]] | None = None
    partial_output: Mapping[str, Any] | None = None
    parts: tuple[Result, ...] | None = None
    skipped: bool = False
    cache_saved_usd: float | None = None

    @property
    def ok(self) -> bool:
        return self.reply is not None

    @property
    def output(self) -> Any:
        """The answer; None if there is none."""
        return None if self.reply is None else self.reply.output


class Stopped(Exception):
    """The run is draining and this row was not sent, or not again; it stays pending."""


class Skipped(Exception):
    """A hook said that this row is not to be sent."""


class Call(Protocol):
    """Every layer around the wire has this shape; it raises CallFailed when there is no Reply."""

    async def __call__(self, request: Request, trace: Trace, /) -> Reply: ...
