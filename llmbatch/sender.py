"""Everything between a feed of jobs and their outcomes: session, layers, scheduler. Files know nothing of it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from llmbatch._version import __version__
from llmbatch.calls.connect import Proxy, proxy_for, tls_context
from llmbatch.calls.deadlines import Watch
from llmbatch.calls.stack import Stack, build
from llmbatch.calls.wire import Wire, open_session
from llmbatch.errors import OptionsError
from llmbatch.events import (
    AttemptFailed,
    Draining,
    Event,
    GateClosed,
    KeysLoaded,
    LimitsLearned,
    Listener,
    Notice,
    Status,
)
from llmbatch.keys import Secret, load_key
from llmbatch.machine import awake_and_asleep_s, raise_descriptors
from llmbatch.options import DEFAULT_CONCURRENCY, RunOptions
from llmbatch.prices import Prices
from llmbatch.providers.target import Target
from llmbatch.records import Failure, Reply, Request, Trace
from llmbatch.rules.fuse import FailureFuse, Fuse, Outage
from llmbatch.rules.limits import in_words
from llmbatch.rules.pace import Pace
from llmbatch.rules.reasons import RowError
from llmbatch.rules.redact import Redactor
from llmbatch.rules.window import window_for
from llmbatch.scheduler import Feed, Finish, Job, Outcome, Scheduler
from llmbatch.stopping import Stop, StopReason

if TYPE_CHECKING:
    from llmbatch.rules.schema import AnswerSchema
    from llmbatch.sim.options import SimOptions

# The exit code when every row would fail for the same reason: key, quota, model.
PROVIDER_STOPPED = 3
# Too many rows failed, or too much may have been paid for nothing; whoever started the run is asked.
LIMIT_REACHED = 4
# Variables that make the process tell more than a process with a key should: who, and what it tells.
_TELLTALES = {
    "SSLKEYLOGFILE": "the keys of its TLS connections are written to a file, and who reads them can read all traffic",
    "PYTHONASYNCIODEBUG": "Python's own messages may show requests",
}
# Importing the price list takes some 150 ms of one processor: not before the first requests are on their way.
PRICES_AFTER_S = 0.05
_NOT_STARTED = Status(0, 0, 0, 0.0, "idle")


class Sender:
    """Sends the jobs of one feed to one target, once. ``stop`` drains it."""

    def __init__(
        self,
        options: RunOptions,
        target: Target,
        listen: Listener,
        stop: Stop,
        admitted: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._target = target
        self._listen = listen
        self._stop = stop
        self._admitted = admitted
        self._fuse = Fuse()
        self._outage = Outage()
        self._illness = Outage()
        self._failures = FailureFuse(options.failure_limit)
        self._too_many_failed: str | None = None
        self._tls = None if options.ca_file is None else tls_context(options.ca_file)
        self._schema = self._answer_schema()
        self._proxy = self._find_proxy()
        self._redactor = Redactor([])
        self._headers = self._fixed_headers()
        self._sim_options = self._simulator_options() if target.simulated else None
        self._prices = Prices(None if target.is_loopback else target.url)
        self._ambiguous_usd = 0.0
        self._stack: Stack | None = None
        self.stopped_because: str | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._scheduler: Scheduler
        self._finish: Finish

    @property
    def in_flight(self) -> int:
        """Requests that were let go and whose answer is not here."""
        return 0 if self._stack is None else self._stack.limiter.in_flight

    def status(self) -> Status:
        """The limiter at this moment."""
        return _NOT_STARTED if self._stack is None else self._stack.limiter.status(self._scheduler.resting)

    async def send(self, feed: Feed, finish: Finish) -> None:
        """Until the feed is at its end and every job was handed to ``finish``, or until stopped and drained."""
        self._finish = finish
        async with AsyncExitStack() as stack:
            target = await self._start_simulator(stack) if self._target.simulated else self._target
            stack.enter_context(_hushed(asyncio.get_running_loop(), self._redactor.text))
            session = await stack.enter_async_context(
                open_session(
                    self._options.timeouts,
                    tls=self._tls,
                    loopback_only=self._target.is_loopback and self._has_key,
                )
            )
            clock = asyncio.get_running_loop().time
            watch = Watch(_shortest_s(self._options), self._stood_still, awake_and_asleep_s)
            watching = asyncio.create_task(watch.run())
            stack.callback(watching.cancel)
            self._scheduler = Scheduler(_WhileFine(feed, self._stopped_by_failures), self._finished)
            timeouts, stream = self._options.timeouts, self._options.stream
            wire = Wire(
                session,
                target,
                self._headers,
                timeouts,
                watch,
                clock,
                stream=stream,
                proxy=self._proxy,
                learned=lambda limits: self._listen(LimitsLearned(in_words(limits))),
            )
            self._stack = self._layers(wire, clock)
            self._stop.when_requested(self._drain)
            self._stop.when_abandoned(self._scheduler.abandon)
            window = self._stack.limiter.window
            loading = asyncio.get_running_loop().call_later(PRICES_AFTER_S, self._load_prices)
            try:
                await self._scheduler.run(self._stack.call, lambda: window.size)
            finally:
                loading.cancel()
                if self._patience is not None:
                    self._patience.cancel()
            if (met_by_all := self._fuse.hopeless()) is not None:
                self._give_up(met_by_all.message)

    def _layers(self, wire: Wire, clock: Callable[[], float]) -> Stack:
        options, ceiling = self._options, raise_descriptors()
        if options.concurrency is not None and options.concurrency > ceiling:
            self._listen(
                Notice(
                    "warning",
                    f"--concurrency {options.concurrency:,} needs more open files than this machine allows; "
                    f"{ceiling:,} are used (see `ulimit -Hn`)",
                )
            )
        return build(
            wire,
            window=window_for(options.concurrency, options.rpm, DEFAULT_CONCURRENCY, ceiling),
            pace=None if options.rpm is None else Pace(options.rpm),
            retry=options.retry,
            rest=self._scheduler.rest,
            clock=clock,
            chance=random.random,
            listen=self._heard,
            row_deadline_s=options.row_deadline_s,
            admitted=self._admitted,
            schema=self._schema,
            schema_retries=options.schema_retries,
        )

    def _heard(self, event: Event) -> None:
        """What the layers tell. A pause longer than anybody wants to wait ends the run; it can go on later."""
        if isinstance(event, AttemptFailed) and event.failure.maybe_billed:
            event = replace(event, at_most_usd=self._prices.at_most_usd(event.failure.bound))
            self._count_ambiguous(event)
        self._listen(event)
        if isinstance(event, AttemptFailed) and event.failure.http_status is not None:
            self._outage.answered()
        elif isinstance(event, GateClosed):
            self._gate_closed(event)

    def _gate_closed(self, event: GateClosed) -> None:
        max_wait_s, why = self._options.retry.max_wait_s, event.failure.message
        now_s = asyncio.get_running_loop().time()
        if event.ill:
            if self._illness.too_long(now_s, 0, max_wait_s - event.for_s):
                self._give_up(
                    f"no good answer for longer than --max-wait allows: {why}. If it is the rows' own fault, "
                    "--max-attempts 1 lets them fail"
                )
        elif event.failure.unreachable:
            if self._outage.too_long(now_s, event.strikes, max_wait_s):
                self._give_up(f"{why}. Is the server running, and --base-url right?")
        elif event.for_s > max_wait_s:
            self._give_up(f"the provider asks to wait {event.for_s:,.0f} s, more than --max-wait allows: {why}")

    def _load_prices(self) -> None:
        """Beside the loop, which goes on; an answer that comes before waits for it, see prices.py."""
        if not self._prices.loaded:
            asyncio.get_running_loop().run_in_executor(None, self._prices.load)

    def _count_ambiguous(self, event: AttemptFailed) -> None:
        """What nobody can bound may be any sum, so it passes every limit."""
        limit_usd = self._options.max_ambiguous_cost_usd
        if limit_usd is None:
            return
        if event.at_most_usd is None:
            why = "what it may have cost is not known (no max_tokens, or a model without a known price)"
        else:
            self._ambiguous_usd += event.at_most_usd
            if self._ambiguous_usd <= limit_usd:
                return
            why = f"up to ${self._ambiguous_usd:.4f} may have been billed without a usable answer"
        self._end(
            f"{event.failure.message}: {why}; --max-ambiguous-cost {limit_usd:g} is reached",
            StopReason("stopped at --max-ambiguous-cost", LIMIT_REACHED),
        )

    def _stood_still(self, seconds: float) -> None:
        self._listen(Notice("info", f"this machine stood still for {seconds:,.0f} s; time limits were moved by that"))

    def _give_up(self, why: str) -> None:
        self._end(why, StopReason("stopped by the provider", PROVIDER_STOPPED))

    def _end(self, why: str, reason: StopReason) -> None:
        if not self._stop.requested:
            self.stopped_because = why
            self._listen(Notice("warning", why))
            self._stop.request(reason)

    def _fixed_headers(self) -> Mapping[str, str]:
        """Of every request. The key among them goes to the target's origin only: no redirect is followed."""
        headers = {"Content-Type": "application/json", "User-Agent": f"llmbatch/{__version__}"}
        key = self._key()
        self._has_key = key is not None
        if key is not None:
            headers.update(self._target.key_headers(key.reveal(), key.source.removeprefix("$")))
        self._guard_secrets(key)
        return headers

    def _guard_secrets(self, key: Secret | None) -> None:
        """From here on nothing that is told may hold them."""
        secrets = [*(() if key is None else [key.reveal()]), *(() if self._proxy is None else self._proxy.secrets)]
        if not secrets:
            return
        self._redactor = Redactor(secrets)
        self._listen(KeysLoaded(self._redactor.text))
        for name, what in _TELLTALES.items():
            if os.environ.get(name):
                self._listen(Notice("warning", f"{name} is set: {what}; unset it"))

    def _find_proxy(self) -> Proxy | None:
        """What the environment says, but never for this very machine, and never with a login from ``~/.netrc``."""
        if self._target.is_loopback:
            return None
        proxy = proxy_for(self._target.base_url, getproxies_environment())
        if proxy is not None:
            self._listen(Notice("info", f"through the proxy {proxy.url}"))
        return proxy

    def _key(self) -> Secret | None:
        target, options = self._target, self._options
        if target.simulated:
            return None
        usual = [name for name in target.key_envs if os.environ.get(name, "").strip()] or [*target.key_envs, ""]
        key = load_key(
            key_env=next(iter(options.key_envs), None),
            key_file=options.key_file,
            default_env=usual[0],
            environment=os.environ,
        )
        if key is None and target.needs_key:
            raise OptionsError(
                f"no key for {target.base_url}: set {' or '.join(target.key_envs)}, or name its variable "
                "with --key-env NAME, or its file with --key-file FILE. To try without a key: -m sim/demo"
            )
        if key is None or target.is_private or options.allow_http:
            return key
        if options.key_env is not None or options.key_file is not None:
            raise OptionsError(f"the key would go unencrypted to {target.origin}; --allow-http sends it all the same")
        self._listen(Notice("info", f"{key.source} is not sent to {target.origin}, which is not https"))
        return None

    def _answer_schema(self) -> AnswerSchema | None:
        """Refused here if this dialect can not say it, before the first row is."""
        if self._options.schema is None:
            return None
        from llmbatch.rules.schema import AnswerSchema  # 0.1 s, for those who have a schema

        checked = AnswerSchema(self._options.schema)
        asked = [{"role": "user", "content": "?"}]
        try:
            self._target.provider.encode(Request(self._target.model or "", asked, schema=checked.schema))
        except RowError as error:
            raise OptionsError(str(error)) from None
        return checked

    def _simulator_options(self) -> SimOptions:
        from llmbatch.sim.options import sim_options_from

        try:
            options = sim_options_from({name: str(value) for name, value in self._options.sim.items()})
        except ValueError as error:
            raise OptionsError(f"--sim {error}") from error
        return replace(options, port=0, drain_s=0.0)  # when it ends, all that is wanted has been answered

    async def _start_simulator(self, stack: AsyncExitStack) -> Target:
        from llmbatch.sim.modes import open_server

        assert self._sim_options is not None, "only a simulated target starts the simulator"
        server = await stack.enter_async_context(open_server(self._sim_options))
        here = urlsplit(server.base_url)
        path = urlsplit(self._target.base_url).path
        return replace(self._target, base_url=f"{here.scheme}://{here.netloc}{path}")

    def _finished(self, job: Job, outcome: Outcome, trace: Trace) -> Awaitable[None] | None:
        if isinstance(outcome, Reply):
            charged = outcome.charged_usd
            trace.cost_usd = self._prices.cost_usd(outcome, job.request.model) if charged is None else charged
        elif outcome is not None and outcome.usage is not None:
            trace.cost_usd = self._prices.cost_usd(Reply(None, None, None, outcome.usage), job.request.model)
        written = self._finish(job, outcome, trace)
        if outcome is None:
            return written
        if isinstance(outcome, Reply):
            self._fuse.good()
            self._outage.answered()
            self._illness.answered()
        elif self._fuse.blows(self._for_all(job, outcome), fresh=not job.failed_before):
            self._give_up(outcome.message)
        self._count(None if isinstance(outcome, Reply) else outcome, fresh=not job.failed_before)
        return written

    def refused(self, failure: Failure) -> None:
        """A row that can not be sent has got its error line."""
        self._count(failure, sent=False)

    def _count(self, failure: Failure | None, *, fresh: bool = True, sent: bool = True) -> None:
        self._too_many_failed = self._too_many_failed or self._failures.ended(failure, fresh=fresh, sent=sent)

    def _stopped_by_failures(self) -> bool:
        """Asked before each row: a run that has none left is complete, however many failed."""
        if self._too_many_failed is None:
            return False
        self._end(self._too_many_failed, StopReason("too many rows failed", LIMIT_REACHED))
        return True

    def _for_all(self, job: Job, failure: Failure) -> Failure:
        """A model that only this row asks for may be unknown without any harm to the others."""
        own_model = self._target.model is not None and job.request.model != self._target.model
        unknown = failure.http_status == 404 or failure.type == "model_not_found"
        return replace(failure, fatal=failure.fatal and not (own_model and unknown))

    def _drain(self) -> None:
        assert self._stack is not None, "draining comes after the start"
        assert self._stop.reason is not None, "draining has a reason"
        self._scheduler.stop()
        self._stack.limiter.close()
        grace_s = self._options.drain_s
        if (in_flight := self._stack.limiter.in_flight) > 0:
            self._listen(Draining(in_flight, grace_s, self._stop.reason.why))
        # Also with nothing in flight: hooks may be at work.
        self._patience = asyncio.get_running_loop().call_later(grace_s, self._stop.abandon)


@contextmanager
def _hushed(loop: asyncio.AbstractEventLoop, hide: Callable[[str], str]) -> Iterator[None]:
    """What the loop itself reports meanwhile ("Task exception was never retrieved") shows no key.

    Its report holds the ``repr`` of the exception, and that of aiohttp's holds the headers. A handler that the
    caller has set stays.
    """

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        trace = "" if error is None else "".join(traceback.format_exception(error))
        told = [str(context.get("message")), *(f"{name}: {value!r}" for name, value in context.items()), trace]
        logging.getLogger("asyncio").error("%s", hide("\n".join(told)))

    if loop.get_exception_handler() is not None:
        yield
        return
    loop.set_exception_handler(report)
    try:
        yield
    finally:
        loop.set_exception_handler(None)


class _WhileFine:
    """A feed that ends before its next job once ``stopped`` says so; the job then stays pending."""

    def __init__(self, feed: Feed, stopped: Callable[[], bool]) -> None:
        self._feed = feed
        self._stopped = stopped
        self.refill = feed.refill

    def take(self) -> Job | None:
        job = self._feed.take()
        return None if job is None or self._stopped() else job


def _shortest_s(options: RunOptions) -> float:
    """The shortest limit an attempt may have: how often the watch must look follows from it."""
    times = options.timeouts
    return min(times.total_s, times.idle_s, times.first_token_s, options.row_deadline_s or times.total_s)
