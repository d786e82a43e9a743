"""The provider itself, without sockets: a request and the time in, a Reply out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import orjson

from llmbatch.sim.answer import answer_to
from llmbatch.sim.answers import prompt_hash
from llmbatch.sim.ask import Ask
from llmbatch.sim.changes import Change
from llmbatch.sim.dialect import Dialect, LimitHeaders, Vendor
from llmbatch.sim.dialects import dialect_at, vendor_at
from llmbatch.sim.http11 import BadRequest, Headers, HttpRequest
from llmbatch.sim.ledger import Bill, Ledger
from llmbatch.sim.limit_headers import IMITATIONS
from llmbatch.sim.limits import Limiter
from llmbatch.sim.openai import OPENAI
from llmbatch.sim.options import SimOptions
from llmbatch.sim.problems import FAULTS, ApiError
from llmbatch.sim.prompt_cache import PromptCache
from llmbatch.sim.replies import JSON, Reply, Work, json_reply, timing_of, work_reply
from llmbatch.sim.script import Fate, fate_key, fate_of, scripted_fault
from llmbatch.sim.slots import Slots

DEFAULT_MODEL = "sim-model"
# The faults that may tell when to come back.
_WAITING_FAULTS = frozenset({"429", "503", "529"})
_LIMITS = frozenset({"rpm", "tpm", "input_tpm", "output_tpm", "rpd"})
_VERSIONS = ("/v1beta", "/openai/v1", "/v1")


class Service:
    """One simulated provider. Owned by one event loop, or called under a lock; it never waits.

    ``now_s`` is monotonic and drives the limits; ``time_s`` is the Unix time that answers carry. ``began`` is called
    at the first request to a model. ``slots``, if there are any, are where work is to be done.
    """

    def __init__(self, options: SimOptions, ledger: Ledger, began: Callable[[], None] = lambda: None) -> None:
        self._options = options
        self._ledger = ledger
        self._began = began
        self.slots: Slots | None = None
        self._limiter = Limiter(
            options.rpm, options.tpm, options.burst_s, options.input_tpm, options.output_tpm, options.rpd
        )
        self._cache = PromptCache()
        self._seen: Counter[str] = Counter()
        self._pages = {"/models": self._models, "/healthz": self._health, "/ledger": self._show_ledger}

    def change(self, change: Change) -> None:
        """Another setting from now on."""
        self._options = replace(self._options, **{change.field: change.value})
        if change.field in _LIMITS:
            self._limiter.change(change.field, change.value)

    def reply(self, request: HttpRequest, now_s: float, time_s: float) -> Reply:
        """Decide what happens to a request that has arrived whole."""
        try:
            spoken = dialect_at(request)
        except ApiError as error:
            return self._refused(error, [], vendor_at(request), time_s)
        if spoken is None:
            return self._page(request, time_s)
        dialect, model = spoken
        if request.method != "POST":
            return self._wrong_method(request, "POST", dialect.vendor, time_s)
        return self._answer(dialect, request, model, now_s, time_s)

    def refuse(self, problem: BadRequest, time_s: float) -> Reply:
        """The answer to bytes that are no HTTP request."""
        error = OPENAI.no_such_url(problem.status, str(problem))
        return self._refused(error, [("connection", "close")], OPENAI, time_s)

    def overloaded(self, request: HttpRequest, queued: int, now_s: float, time_s: float) -> Reply | None:
        """The 503 of a request to a model that finds ``queued`` others waiting and the server full; unread."""
        if self._options.max_inflight is None or self._ledger.in_flight + queued < self._options.max_inflight:
            return None
        try:
            spoken = dialect_at(request)
        except ApiError:
            return None
        if spoken is None or request.method != "POST":
            return None
        self._ledger.received += 1
        vendor = spoken[0].vendor
        return self._counted(self._turned_away(vendor.errors["503"], vendor, now_s, time_s), time_s)

    def _refused(self, error: ApiError, headers: Headers, vendor: Vendor, time_s: float) -> Reply:
        return json_reply(error.status, error.body(self._request_id), headers, time_s, vendor.content_type)

    def _wrong_method(self, request: HttpRequest, method: str, vendor: Vendor, time_s: float) -> Reply:
        error = vendor.no_such_url(405, f"Not allowed to {request.method} {request.path}; use {method}.")
        return self._refused(error, [("allow", method)], vendor, time_s)

    def _page(self, request: HttpRequest, time_s: float) -> Reply:
        """What is not a request to a model."""
        vendor, path = vendor_at(request), request.path
        for version in _VERSIONS:
            path = path.removeprefix(version)
        page = self._pages.get(path)
        if page is None:
            error = vendor.no_such_url(404, f"Invalid URL ({request.method} {request.path})")
            return self._refused(error, [], vendor, time_s)
        if request.method != "GET":
            return self._wrong_method(request, "GET", vendor, time_s)
        return json_reply(200, page(request, vendor), [], time_s)

    def _models(self, _request: HttpRequest, vendor: Vendor) -> bytes:
        return vendor.models(self._options.models or (DEFAULT_MODEL,))

    def _health(self, _request: HttpRequest, _vendor: Vendor) -> bytes:
        return b'{"status":"ok"}'

    def _show_ledger(self, request: HttpRequest, _vendor: Vendor) -> bytes:
        asked = request.query.split("&")
        return orjson.dumps(self._ledger.snapshot(full="full" in asked, times="times" in asked))

    def _answer(self, dialect: Dialect, request: HttpRequest, model: str, now_s: float, time_s: float) -> Reply:
        self._ledger.received += 1
        if self._ledger.received == 1:
            self._began()
        vendor = dialect.vendor
        try:
            reply = work_reply(self._admit(dialect, self._readable(dialect, request, model), now_s, time_s))
        except ApiError as error:
            reply = self._turned_away(error, vendor, now_s, time_s)
        return self._counted(reply, time_s)

    def _turned_away(self, error: ApiError, vendor: Vendor, now_s: float, time_s: float) -> Reply:
        headers = [*self._headers(vendor, now_s, time_s), *self._wait_headers(vendor, error)]
        return self._refused(error, headers, vendor, time_s)

    def _counted(self, reply: Reply, time_s: float) -> Reply:
        if reply.status is not None and reply.status >= 400:
            self._ledger.rejected[reply.status] += 1
        if reply.status == 429:
            self._ledger.times.add("refused", time_s)
        return reply

    def _readable(self, dialect: Dialect, request: HttpRequest, model: str) -> Ask:
        """The request, if its key, its headers, its body and its model are in order; ApiError when not."""
        options, vendor = self._options, dialect.vendor
        if options.api_key is not None and vendor.key(request.headers) != options.api_key:
            raise vendor.errors["401"]
        vendor.check_headers(request.headers)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise vendor.bad_request("We could not parse your request: its Content-Type must be application/json.")
        ask = dialect.parse(request, model)
        if options.models and ask.model not in options.models:
            raise vendor.no_such_model(ask.model)
        return ask

    def _admit(self, dialect: Dialect, ask: Ask, now_s: float, time_s: float) -> Work:
        """The work of a request that the load and the limits let in; ApiError when they do not."""
        vendor = dialect.vendor
        if self._options.max_inflight is not None and self._ledger.in_flight >= self._options.max_inflight:
            raise vendor.errors["503"]
        prompt, n = prompt_hash(ask.prompt), self._ledger.received
        seen = self._seen[prompt]
        fate = self._fate(prompt, seen)
        answer = answer_to(ask, n, int(time_s), fate.output_tokens, self._cache.tokens_of(ask.prefixes, now_s))
        if refusal := self._limiter.admit(now_s, ask.prompt_tokens, answer.output_tokens):
            raise vendor.rate_limited(ask.model, refusal)
        # A refused request does not count as seen, so that limits do not change what happens to the others.
        self._seen[prompt] = seen + 1
        timing = timing_of(
            fate.latency_s, fate.first_token_s, answer.tokens + answer.reasoning_tokens, self._options.tokens_per_s
        )
        self._cache.add(ask.prefixes, now_s + timing.first_s)
        fault = scripted_fault(self._options.script, n, ask.prompt, seen) or fate.fault
        if fault is not None:
            self._ledger.faults[fault] += 1
        tokens = (ask.prompt_tokens, answer.output_tokens)
        if fault is None or not FAULTS[fault].error:
            self._ledger.times.add("accepted", time_s)
            self._ledger.times.add("tokens", time_s, sum(tokens))
        return Work(
            dialect=dialect,
            answer=answer,
            stream=dialect.stream(answer) if ask.stream and dialect.stream else None,
            timing=timing,
            fault=fault,
            bill=Bill(self._request_id, dialect.name, prompt, ask.model, *tokens, fault),
            headers=[*self._headers(vendor, now_s, time_s), *self._fault_headers(fault)],
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

    def _headers(self, vendor: Vendor, now_s: float, time_s: float) -> Headers:
        readings = self._limiter.readings(now_s) if self._options.headers else []
        return vendor.id_headers(self._request_id) + self._manners(vendor).limit_headers(readings, time_s)

    def _manners(self, vendor: Vendor) -> LimitHeaders:
        """Who says how limits are told: the vendor itself, or whom it imitates."""
        name = self._options.limit_headers
        return vendor if name is None or vendor is not OPENAI else IMITATIONS[name]

    def _wait_headers(self, vendor: Vendor, error: ApiError) -> Headers:
        """How an error says when to come back: rounded up, so that who obeys is let in."""
        if error.status == 503:
            return self._fault_headers("503")
        if error.wait_s is None or not self._options.headers:
            return []
        return self._manners(vendor).wait_headers(error.wait_s)

    def _fault_headers(self, fault: str | None) -> Headers:
        if fault not in _WAITING_FAULTS or self._options.retry_after is None or not self._options.headers:
            return []
        return [("retry-after", self._options.retry_after)]
