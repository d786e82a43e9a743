"""Everything between a feed of jobs and their outcomes: session, layers, scheduler. Files know nothing of it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from llmbatch._version import __version__
from llmbatch.calls.deadlines import Watch
from llmbatch.calls.stack import Stack, build
from llmbatch.calls.wire import Wire, open_session
from llmbatch.errors import OptionsError
from llmbatch.events import AttemptFailed, Draining, Event, GateClosed, Listener, Notice, Status
from llmbatch.keys import Secret, load_key
from llmbatch.machine import raise_descriptors
from llmbatch.options import DEFAULT_CONCURRENCY, RunOptions
from llmbatch.providers.target import Target
from llmbatch.records import Failure, Reply, Trace
from llmbatch.rules.fuse import Fuse, Outage
from llmbatch.rules.pace import Pace
from llmbatch.rules.window import window_for
from llmbatch.scheduler import Feed, Finish, Job, Scheduler
from llmbatch.stopping import Stop, StopReason

if TYPE_CHECKING:
    from llmbatch.sim.options import SimOptions

# The exit code when every row would fail for the same reason: key, quota, model.
PROVIDER_STOPPED = 3
_NOT_STARTED = Status(0, 0, 0, 0.0, "idle")


class Sender:
    """Sends the jobs of one feed to one target, once. ``stop`` drains it."""

    def __init__(self, options: RunOptions, target: Target, listen: Listener, stop: Stop) -> None:
        self._options = options
        self._target = target
        self._listen = listen
        self._stop = stop
        self._fuse = Fuse()
        self._outage = Outage()
        self._headers = self._fixed_headers()
        self._sim_options = self._simulator_options() if target.simulated else None
        self._stack: Stack | None = None
        self.stopped_because: str | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._scheduler: Scheduler
        self._finish: Finish

    def status(self) -> Status:
        """The limiter at this moment."""
        return _NOT_STARTED if self._stack is None else self._stack.limiter.status(self._scheduler.resting)

    async def send(self, feed: Feed, finish: Finish) -> None:
        """Until the feed is at its end and every job was handed to ``finish``, or until stopped and drained."""
        self._finish = finish
        async with AsyncExitStack() as stack:
            url = await self._start_simulator(stack) if self._target.simulated else self._target.url
            session = await stack.enter_async_context(open_session(self._headers, self._options.timeouts))
            clock = asyncio.get_running_loop().time
            watch = Watch(_shortest_s(self._options))
            watching = asyncio.create_task(watch.run())
            stack.callback(watching.cancel)
            self._scheduler = Scheduler(feed, self._finished)
            timeouts, stream = self._options.timeouts, self._options.stream
            wire = Wire(session, self._target.provider, url, timeouts, watch, clock, stream=stream)
            self._stack = self._layers(wire, clock)
            self._stop.when_requested(self._drain)
            self._stop.when_abandoned(self._scheduler.abandon)
            window = self._stack.limiter.window
            try:
                await self._scheduler.run(self._stack.call, lambda: window.size)
            finally:
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
        )

    def _heard(self, event: Event) -> None:
        """What the layers tell. A pause longer than anybody wants to wait ends the run; it can go on later."""
        self._listen(event)
        if isinstance(event, AttemptFailed) and event.failure.http_status is not None:
            self._outage.answered()
        elif isinstance(event, GateClosed):
            self._gate_closed(event)

    def _gate_closed(self, event: GateClosed) -> None:
        max_wait_s, why = self._options.retry.max_wait_s, event.failure.message
        if event.failure.unreachable:
            if self._outage.too_long(asyncio.get_running_loop().time(), event.strikes, max_wait_s):
                self._give_up(f"{why}. Is the server running, and --base-url right?")
        elif event.for_s > max_wait_s:
            self._give_up(f"the provider asks to wait {event.for_s:,.0f} s, more than --max-wait allows: {why}")

    def _give_up(self, why: str) -> None:
        if not self._stop.requested:
            self.stopped_because = why
            self._listen(Notice("warning", why))
            self._stop.request(StopReason("stopped by the provider", PROVIDER_STOPPED))

    def _fixed_headers(self) -> Mapping[str, str]:
        """Of every request. The key among them goes to the target's origin only: no redirect is followed."""
        headers = {"Content-Type": "application/json", "User-Agent": f"llmbatch/{__version__}"}
        key = self._key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key.reveal()}"
        return headers

    def _key(self) -> Secret | None:
        target, options = self._target, self._options
        if target.simulated:
            return None
        key = load_key(
            key_env=options.key_env, key_file=options.key_file, default_env=target.key_env, environment=os.environ
        )
        if key is None and target.needs_key:
            raise OptionsError(
                f"no key for {target.base_url}: set {target.key_env}, or name its variable with --key-env NAME, "
                "or its file with --key-file FILE. To try without a key: -m sim/demo"
            )
        if key is None or target.is_private or options.allow_http:
            return key
        if options.key_env is not None or options.key_file is not None:
            raise OptionsError(f"the key would go unencrypted to {target.origin}; --allow-http sends it all the same")
        self._listen(Notice("info", f"{key.source} is not sent to {target.origin}, which is not https"))
        return None

    def _simulator_options(self) -> SimOptions:
        from llmbatch.sim.options import sim_options_from

        try:
            options = sim_options_from({name: str(value) for name, value in self._options.sim.items()})
        except ValueError as error:
            raise OptionsError(f"--sim {error}") from error
        return replace(options, port=0, drain_s=0.0)  # when it ends, all that is wanted has been answered

    async def _start_simulator(self, stack: AsyncExitStack) -> str:
        from llmbatch.sim.server import SimServer

        assert self._sim_options is not None, "only a simulated target starts the simulator"
        server = await stack.enter_async_context(SimServer(self._sim_options))
        return server.base_url + self._target.provider.path

    def _finished(self, job: Job, outcome: Reply | Failure, trace: Trace) -> Awaitable[None] | None:
        written = self._finish(job, outcome, trace)
        if isinstance(outcome, Reply):
            self._fuse.good()
            self._outage.answered()
        elif self._fuse.blows(self._for_all(job, outcome), fresh=not job.failed_before):
            self._give_up(outcome.message)
        return written

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
        in_flight = self._stack.limiter.in_flight
        if in_flight == 0:
            return
        self._listen(Draining(in_flight, grace_s, self._stop.reason.why))
        self._patience = asyncio.get_running_loop().call_later(grace_s, self._stop.abandon)


def _shortest_s(options: RunOptions) -> float:
    """The shortest limit an attempt may have: how often the watch must look follows from it."""
    times = options.timeouts
    return min(times.total_s, times.idle_s, times.first_token_s, options.row_deadline_s or times.total_s)
