"""Everything between a feed of jobs and their outcomes: session, layers, scheduler. Files know nothing of it."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmbatch.calls.connect import tls_context
from llmbatch.calls.deadlines import Watch
from llmbatch.calls.lane import Account
from llmbatch.calls.limit import Limiter
from llmbatch.calls.stack import Stack, build
from llmbatch.calls.wire import Session, Wire, open_session
from llmbatch.endpoints import Endpoint, endpoints_of
from llmbatch.errors import OptionsError
from llmbatch.events import (
    AttemptFailed,
    Binding,
    DayUsedUp,
    Draining,
    Event,
    GateClosed,
    KeysLoaded,
    LimitsLearned,
    Listener,
    Notice,
    Status,
)
from llmbatch.files.daily_count import DailyCount
from llmbatch.files.limit_group import LimitGroup
from llmbatch.files.spill import state_directory
from llmbatch.lineup import Lineup
from llmbatch.machine import awake_and_asleep_s, raise_descriptors
from llmbatch.options import RunOptions
from llmbatch.prices import Prices
from llmbatch.providers.cache_marks import wants_marks
from llmbatch.providers.target import Target
from llmbatch.records import Failure, Reply, Request, Trace
from llmbatch.rules.bottleneck import Moment, WindowKind, window_kind
from llmbatch.rules.control import LIMITS
from llmbatch.rules.daily import YEAR_S, next_midnight, reset_words
from llmbatch.rules.fuse import FailureFuse, Fuse, Outage
from llmbatch.rules.hedge import Hedging
from llmbatch.rules.limits import in_words
from llmbatch.rules.pace import KINDS, MINUTE_S, Kind, Meter, Meters, pace_for
from llmbatch.rules.reasons import RowError
from llmbatch.rules.redact import Redactor
from llmbatch.rules.window import Window, window_for
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
_CACHES_ALONE = (
    "--cache-prompt: nothing is marked, as servers of this dialect cache the beginnings of prompts on their own"
)
_NOT_STARTED = Status(0, 0, 0, 0.0, "idle")
# The limits of requests and tokens, by the names of their flags.
_KIND_OF: dict[str, Kind] = {
    "rpm": "requests",
    "tpm": "tokens",
    "input-tpm": "input_tokens",
    "output-tpm": "output_tokens",
}


class Sender:
    """Sends the jobs of one feed to the targets, once. ``stop`` drains it."""

    def __init__(
        self,
        options: RunOptions,
        targets: Sequence[Target],
        listen: Listener,
        stop: Stop,
        admitted: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._target = targets[0]
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
        self._redactor = Redactor([])
        self._endpoints = endpoints_of(
            options, targets, os.environ, getproxies_environment(), lambda text: listen(Notice("info", text))
        )
        self._guard_secrets()
        self._sim_options = self._simulator_options() if self._target.simulated else None
        self._prices = Prices(None if self._target.is_loopback else self._target.url)
        self._ambiguous_usd = 0.0
        self._stack: Stack | None = None
        self.paused = False
        self.stopped_because: str | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._scheduler: Scheduler
        self._ceiling: int
        self._group: LimitGroup | None = None
        self._lineup: Lineup
        self._finish: Finish

    @property
    def in_flight(self) -> int:
        """Requests that were let go and whose answer is not here."""
        return 0 if self._stack is None else self._stack.limiter.in_flight

    def status(self, binding: Binding) -> Status:
        """The limiter at this moment; ``binding`` is what holds up the run."""
        if self._stack is None:
            return replace(_NOT_STARTED, paused=self.paused)
        return replace(self._stack.limiter.status(self._scheduler.resting, binding), at_hand=self._lineup.at_hand)

    def lanes(self) -> Mapping[str, Status]:
        """The same for each endpoint and key, and model where there are several, by a name for people."""
        if self._stack is None:
            return {self._target.url: replace(_NOT_STARTED, paused=self.paused)}
        return self._stack.limiter.lane_statuses()

    def moment(self) -> Moment:
        """Where rows wait now, as far as the sender knows: it does not see the output, nor who prepares a row."""
        if self._stack is None:
            return Moment()
        scheduler, limiter, lineup = self._scheduler, self._stack.limiter, self._lineup
        waiting = limiter.waiting()
        return replace(
            waiting,
            waits_for=waiting.waits_for or ("tenant" if scheduler.reading and lineup.limited else None),
            window=self._window_kind(limiter),
            loading=scheduler.preparing,
            resting=scheduler.resting,
            waits_for_input=scheduler.reading and not lineup.at_hand,
            exhausted=not scheduler.taking,
        )

    def paced_by(self) -> dict[Kind, tuple[float, bool]]:
        """What requests are paced by, per minute, and whether it is the user's own; only what holds for all lanes."""
        lanes = [] if self._stack is None else list(self._stack.limiter.lanes)
        now_s = asyncio.get_running_loop().time()
        found = {kind: {lane.limit(kind, now_s) for lane in lanes} for kind in KINDS}
        return {
            kind: limit
            for kind, limits in found.items()
            if len(limits) == 1 and (limit := next(iter(limits))) is not None
        }

    def _window_kind(self, limiter: Limiter) -> WindowKind:
        busiest = max(limiter.lanes, key=lambda lane: lane.in_flight, default=None)
        return window_kind(
            concurrency=self._options.concurrency,
            max_concurrency=self._options.max_concurrency,
            descriptors=self._ceiling,
            size=max(limiter.in_flight, 0 if busiest is None else busiest.window.size),
            grows=busiest is None or busiest.window.grows,
        )

    def limits(self) -> Mapping[str, float | None]:
        """Those in force, by the names of rules/control.py; None is no limit, or of the concurrency auto."""
        return {name: getattr(self._options, name.replace("-", "_")) for name in LIMITS}

    def set_limit(self, name: str, value: float | None) -> tuple[float | None, float | None]:
        """Change one of ``limits``, from the next request on; what it was, and what it is now."""
        old = self.limits()[name]
        changed: dict[str, Any] = {name.replace("-", "_"): value}
        self._options = replace(self._options, **changed)
        if self._stack is not None:
            now_s = asyncio.get_running_loop().time()
            if (kind := _KIND_OF.get(name)) is not None:
                for account in self._stack.limiter.accounts:
                    account.meters.put(kind, self._meter(account.id, kind, value, now_s))
            self._stack.limiter.set_window(self._window, self._most)
            self._scheduler.grow()
        return old, value

    def pause(self) -> None:
        """Send no new request until ``resume``. What is in flight goes on."""
        self.paused = True
        if self._stack is not None:
            self._stack.limiter.pause()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        if self._stack is not None:
            self._stack.limiter.resume()

    async def send(self, feed: Feed, finish: Finish) -> None:
        """Until the feed is at its end and every job was handed to ``finish``, or until stopped and drained."""
        self._finish = finish
        async with AsyncExitStack() as stack:
            if self._target.simulated:
                self._endpoints = [replace(self._endpoints[0], target=await self._start_simulator(stack))]
            stack.enter_context(_hushed(asyncio.get_running_loop(), self._redactor.text))
            if self._options.cache_prompt and not wants_marks(self._target.provider.name):
                self._listen(Notice("info", _CACHES_ALONE))
            watch = Watch(_shortest_s(self._options), self._stood_still, awake_and_asleep_s)
            watching = asyncio.create_task(watch.run())
            stack.callback(watching.cancel)
            lineup = Lineup(
                feed, self._options.tenant_rpm, self._options.tenant_concurrency, asyncio.get_running_loop().time
            )
            self._lineup = await stack.enter_async_context(lineup)
            self._scheduler = Scheduler(_WhileFine(lineup, self._stopped_by_failures), lineup.watching(self._finished))
            self._stack = self._layers(await self._accounts(stack, watch))
            if self.paused:
                self._stack.limiter.pause()
            self._stop.when_requested(self._drain)
            self._stop.when_requested(lineup.stop)
            self._stop.when_abandoned(self._scheduler.abandon)
            loading = asyncio.get_running_loop().call_later(PRICES_AFTER_S, self._load_prices)
            try:
                await self._scheduler.run(self._stack.call, self._stack.capacity)
            finally:
                loading.cancel()
                if self._patience is not None:
                    self._patience.cancel()
                await self._stack.settled()
            if (met_by_all := self._fuse.hopeless()) is not None:
                self._give_up(_with_return(met_by_all))

    async def _accounts(self, stack: AsyncExitStack, watch: Watch) -> list[Account]:
        """Each endpoint with its wire. All share one session; a key that may not leave this machine has its own."""
        if self._options.limit_group is not None:
            self._group = LimitGroup.open(self._options.limit_group, state_directory(os.environ), self._warn)
            stack.callback(self._group.close)
        sessions: dict[bool, Session] = {}
        accounts = []
        for endpoint in self._endpoints:
            local = endpoint.loopback_only
            if local not in sessions:
                session = open_session(self._options.timeouts, tls=self._tls, loopback_only=local)
                sessions[local] = await stack.enter_async_context(session)
            wire = Wire(
                sessions[local],
                endpoint.target,
                endpoint.headers,
                self._options.timeouts,
                watch,
                asyncio.get_running_loop().time,
                stream=self._options.stream,
                cache_prompt=self._options.cache_prompt,
                proxy=endpoint.proxy,
                learned=lambda limits: self._listen(LimitsLearned(in_words(limits))),
            )
            accounts.append(self._account(stack, endpoint, wire))
        return accounts

    def _account(self, stack: AsyncExitStack, endpoint: Endpoint, wire: Wire) -> Account:
        """The limits that the user names hold for each endpoint and key."""
        options, daily = self._options, None
        if options.rpd is not None:
            daily = DailyCount.open(
                endpoint.account, options.rpd, state_directory(os.environ), self._warn, options.limit_group
            )
            stack.callback(daily.close)
        said = {kind: getattr(options, name.replace("-", "_")) for name, kind in _KIND_OF.items()}
        meters = {
            kind: meter
            for kind, limit in said.items()
            if (meter := self._meter(endpoint.account, kind, limit)) is not None
        }
        return Account(endpoint.name, wire, Meters(meters), daily, endpoint.account)

    def _meter(self, account: str, kind: Kind, per_minute: float | None, since_s: float | None = None) -> Meter | None:
        """``since_s``: the limit is a new one, and what was sent before that time is not in it."""
        if per_minute is None:
            return None
        if self._group is not None:
            return self._group.meter(account, kind, per_minute)
        pace = pace_for(kind, per_minute)
        if since_s is not None:
            pace.take(since_s)
        return pace

    @property
    def _most(self) -> int:
        """How many may be in flight in all."""
        options = self._options
        said = (options.concurrency, options.max_concurrency, self._ceiling)
        return min(most for most in said if most is not None)

    def _window(self) -> Window:
        rpm = self._options.rpm
        return window_for(self._options.concurrency, None if rpm is None else rpm / MINUTE_S, self._most)

    def _warn(self, text: str) -> None:
        self._listen(Notice("warning", text))

    def _layers(self, accounts: Sequence[Account]) -> Stack:
        options, ceiling = self._options, raise_descriptors()
        self._ceiling = ceiling
        if options.concurrency is not None and options.concurrency > ceiling:
            self._listen(
                Notice(
                    "warning",
                    f"--concurrency {options.concurrency:,} needs more open files than this machine allows; "
                    f"{ceiling:,} are used (see `ulimit -Hn`)",
                )
            )
        return build(
            accounts,
            window=self._window,
            most=self._most,
            retry=options.retry,
            rest=self._scheduler.rest,
            clock=asyncio.get_running_loop().time,
            chance=random.random,
            listen=self._heard,
            row_deadline_s=options.row_deadline_s,
            admitted=self._admitted,
            schema=self._schema,
            schema_retries=options.schema_retries,
            hedging=None if options.hedge is None else Hedging(None if options.hedge == "p95" else options.hedge),
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
        elif isinstance(event, DayUsedUp):
            used = f"the {self._options.rpd:,} requests of --rpd are used up"
            self._give_up(f"{used}; the next may go {_when(event.returns_unix_s)}")

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
            until = _when(time.time() + event.for_s)
            self._give_up(
                f"the provider asks to wait {event.for_s:,.0f} s, more than --max-wait allows; it may be asked again "
                f"{until}: {why}"
            )

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

    def _guard_secrets(self) -> None:
        """From here on nothing that is told may hold them."""
        secrets = [secret for endpoint in self._endpoints for secret in endpoint.secrets]
        if not secrets:
            return
        self._redactor = Redactor(secrets)
        self._listen(KeysLoaded(self._redactor.text))
        for name, what in _TELLTALES.items():
            if os.environ.get(name):
                self._listen(Notice("warning", f"{name} is set: {what}; unset it"))

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
        if (paid := _paid(outcome)) is not None:
            charged = paid.charged_usd
            trace.cost_usd = self._prices.cost_usd(paid, job.request.model) if charged is None else charged
            trace.cache_saved_usd = self._prices.cache_saved_usd(paid, job.request.model)
        written = self._finish(job, outcome, trace)
        if outcome is None:
            return written
        if isinstance(outcome, Reply):
            self._fuse.good()
            self._outage.answered()
            self._illness.answered()
        elif self._fuse.blows(self._for_all(job, outcome), fresh=not job.failed_before):
            self._give_up(_with_return(outcome))
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
        """A model that only this row asks for may be unknown, or used up, without any harm to the others."""
        own_model = self._target.model is not None and job.request.model != self._target.model
        return replace(failure, fatal=failure.fatal and not (own_model and failure.of_model))

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


def _paid(outcome: Outcome) -> Reply | None:
    """What was answered and is paid for, though it may be no good."""
    if isinstance(outcome, Failure):
        return None if outcome.usage is None else Reply(None, None, None, outcome.usage)
    return outcome


def _when(at_unix_s: float) -> str:
    """At what time a request may go again, as people's clocks here have it, in summer or in winter."""
    now_unix_s = time.time()
    zone = datetime.fromtimestamp(min(at_unix_s, now_unix_s + YEAR_S)).astimezone().tzinfo
    assert zone is not None, "a local time has a zone"
    return reset_words(at_unix_s, now_unix_s, zone)


def _with_return(failure: Failure) -> str:
    """What ended the run; of a quota of Gemini's also when it returns.

    Source: Gemini API, "Rate limits": requests per day are counted anew from midnight Pacific time.
    """
    if failure.type != "daily_quota_exceeded":
        return failure.message
    try:
        when = _when(next_midnight(time.time(), ZoneInfo("America/Los_Angeles")))
    except ZoneInfoNotFoundError:  # a machine without a table of time zones
        when = "at midnight Pacific time"
    return f"{failure.message.rstrip('.')}. That is the quota of a day: it returns {when}"


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
