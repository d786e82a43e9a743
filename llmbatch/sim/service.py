"""The provider itself, without sockets: a request and the time in, a Reply out."""

from __future__ import annotations

import math
from collections import Counter

import orjson

from llmbatch.sim.answers import prompt_hash
from llmbatch.sim.chat_answer import StreamEvents, answer_chat
from llmbatch.sim.chat_request import ChatRequest, parse_chat
from llmbatch.sim.http11 import BadRequest, Headers, HttpRequest
from llmbatch.sim.ledger import Bill, Ledger
from llmbatch.sim.limits import Limiter
from llmbatch.sim.options import SimOptions
from llmbatch.sim.problems import ApiError, invalid_key, model_not_found, overloaded, rate_limited
from llmbatch.sim.replies import JSON, Reply, Work, error_reply, json_reply, timing_of, work_reply
from llmbatch.sim.script import Fate, fate_key, fate_of, scripted_fault

DEFAULT_MODEL = "sim-model"
# The faults that may tell when to come back.
_WAITING_FAULTS = frozenset({"429", "503", "529"})


class Service:
    """One simulated provider. Owned by one event loop; it never waits.

    ``now_s`` is monotonic and drives the limits; ``time_s`` is the Unix time that answers carry.
    """

    def __init__(self, options: SimOptions, ledger: Ledger) -> None:
        self._options = options
        self._ledger = ledger
        self._limiter = Limiter(options.rpm, options.tpm, options.burst_s)
        self._seen: Counter[str] = Counter()
        self._routes = {
            "/chat/completions": ("POST", self._chat),
            "/models": ("GET", self._models),
            "/healthz": ("GET", self._health),
            "/ledger": ("GET", self._show_ledger),
        }

    def reply(self, request: HttpRequest, now_s: float, time_s: float) -> Reply:
        """Decide what happens to a request that has arrived whole."""
        route = self._routes.get(request.path.removeprefix("/v1"))
        if route is None:
            return error_reply(ApiError(404, f"Invalid URL ({request.method} {request.path})"), [], time_s)
        method, handle = route
        if method != request.method:
            error = ApiError(405, f"Not allowed to {request.method} {request.path}; use {method}.")
            return error_reply(error, [("allow", method)], time_s)
        return handle(request, now_s, time_s)

    def refuse(self, problem: BadRequest, time_s: float) -> Reply:
        """The answer to bytes that are no HTTP request."""
        return error_reply(ApiError(problem.status, str(problem)), [("connection", "close")], time_s)

    def _models(self, _request: HttpRequest, _now_s: float, time_s: float) -> Reply:
        names = self._options.models or (DEFAULT_MODEL,)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "llmbatch"} for name in names]
        return json_reply(200, orjson.dumps({"object": "list", "data": models}), [], time_s)

    def _health(self, _request: HttpRequest, _now_s: float, time_s: float) -> Reply:
        return json_reply(200, b'{"status":"ok"}', [], time_s)

    def _show_ledger(self, request: HttpRequest, _now_s: float, time_s: float) -> Reply:
        return json_reply(200, orjson.dumps(self._ledger.snapshot(full=request.query == "full")), [], time_s)

    def _chat(self, request: HttpRequest, now_s: float, time_s: float) -> Reply:
        self._ledger.received += 1
        try:
            reply = work_reply(self._admit(self._readable(request), now_s, time_s))
        except ApiError as error:
            reply = error_reply(error, [*self._headers(now_s), *self._wait_headers(error)], time_s)
        if reply.status is not None and reply.status >= 400:
            self._ledger.rejected[reply.status] += 1
        return reply

    def _readable(self, request: HttpRequest) -> ChatRequest:
        """The request, if its key, its body and its model are in order; ApiError when not."""
        options = self._options
        if options.api_key is not None and request.headers.get("authorization") != f"Bearer {options.api_key}":
            raise invalid_key()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise ApiError(400, "We could not parse your request: its Content-Type must be application/json.")
        chat = parse_chat(request.body)
        if options.models and chat.model not in options.models:
            raise model_not_found(chat.model)
        return chat

    def _admit(self, chat: ChatRequest, now_s: float, time_s: float) -> Work:
        """The work of a request that the load and the limits let in; ApiError when they do not."""
        if self._options.max_inflight is not None and self._ledger.in_flight >= self._options.max_inflight:
            raise overloaded()
        prompt, n = prompt_hash(chat.prompt), self._ledger.received
        seen = self._seen[prompt]
        fate = self._fate(prompt, seen)
        answer = answer_chat(chat, f"chatcmpl-sim{n:08d}", int(time_s), fate.output_tokens)
        if refusal := self._limiter.admit(now_s, answer.total_tokens):
            raise rate_limited(chat.model, refusal)
        # A refused request does not count as seen, so that limits do not change what happens to the others.
        self._seen[prompt] = seen + 1
        fault = scripted_fault(self._options.script, n, chat.prompt, seen) or fate.fault
        if fault is not None:
            self._ledger.faults[fault] += 1
        return Work(
            answer=answer,
            events=StreamEvents(answer, chat.include_usage) if chat.stream else None,
            timing=timing_of(fate.latency_s, fate.first_token_s, answer.tokens, self._options.tokens_per_s),
            fault=fault,
            bill=Bill(self._request_id, prompt, chat.model, *answer.billed_tokens, fault),
            headers=[*self._headers(now_s), *self._fault_headers(fault)],
            time_s=time_s,
        )

    def _fate(self, prompt: str, seen: int) -> Fate:
        options = self._options
        return fate_of(
            fate_key(options.seed, prompt, seen),
            latency=options.latency,
            first_token=options.first_token,
            output_tokens=options.output_tokens,
            faults=options.faults,
        )

    @property
    def _request_id(self) -> str:
        return f"req_{self._ledger.received:016x}"

    def _headers(self, now_s: float) -> Headers:
        limits = self._limiter.headers(now_s) if self._options.headers else []
        return [("x-request-id", self._request_id), *limits]

    def _wait_headers(self, error: ApiError) -> Headers:
        """How an error says when to come back: rounded up, so that who obeys is let in."""
        if error.status == 503:
            return self._fault_headers("503")
        if error.wait_s is None or not self._options.headers:
            return []
        return [
            ("retry-after", f"{max(1, math.ceil(error.wait_s))}"),
            ("retry-after-ms", f"{math.ceil(error.wait_s * 1000)}"),
            ("x-should-retry", "true"),
        ]

    def _fault_headers(self, fault: str | None) -> Headers:
        if fault not in _WAITING_FAULTS or self._options.retry_after is None or not self._options.headers:
            return []
        return [("retry-after", self._options.retry_after)]
