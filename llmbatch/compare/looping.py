"""The driver that does not block: every request on one event loop, through the session and the wire of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from llmbatch.calls.deadlines import Watch
from llmbatch.calls.wire import Wire, open_session
from llmbatch.compare.blocking import Item, Send
from llmbatch.compare.job import Endpoint, Job, Outcome, built, outcome_of
from llmbatch.hooks.calling import Hooks
from llmbatch.identity import target_of
from llmbatch.machine import awake_and_asleep_s, fast_loop, patient_collector
from llmbatch.prepare import builder_of
from llmbatch.records import Call, CallFailed, Failure, Reply, Request, Row, Trace
from llmbatch.rules.comparison import BLOCKING_CALL_S, TASKS, Case

# All at once, 10,000 workers would open every connection before the first request is written.
START_STEP = 50
Ask = Callable[[Request], Awaitable[Reply | Failure]]


@contextmanager
def loop(job: Job, endpoint: Endpoint) -> Iterator[Send]:
    """``size`` requests at a time, one thread."""
    with patient_collector(), asyncio.Runner(loop_factory=fast_loop()) as runner:
        stack = AsyncExitStack()
        ask = runner.run(_opened(stack, job, endpoint))
        hooks = runner.run(_hooks(stack, job))
        yield lambda items: runner.run(_Rows(job, ask, hooks).all(items))
        runner.run(stack.aclose())


async def _opened(stack: AsyncExitStack, job: Job, endpoint: Endpoint) -> Ask:
    watch = Watch(endpoint.timeouts.total_s, lambda seconds: None, awake_and_asleep_s)
    watching = asyncio.create_task(watch.run())
    stack.callback(watching.cancel)

    @asynccontextmanager
    async def wired() -> AsyncIterator[Call]:
        async with open_session(endpoint.timeouts, tls=endpoint.tls) as session:
            clock = asyncio.get_running_loop().time
            yield Wire(session, endpoint.target, endpoint.headers, endpoint.timeouts, watch, clock, stream=False)

    async def ask_anew(request: Request) -> Reply | Failure:
        async with wired() as call:
            return await _asked(call, request)

    if job.case.variant == "new session":
        return ask_anew
    call = await stack.enter_async_context(wired())
    return lambda request: _asked(call, request)


async def _asked(call: Call, request: Request) -> Reply | Failure:
    try:
        return await call(request, Trace())
    except CallFailed as failed:
        return failed.failure


async def _hooks(stack: AsyncExitStack, job: Job) -> Hooks | None:
    """As a run has them: plain functions in threads, or in as many processes as there are cores."""
    if job.work is None:
        return None
    in_processes = job.hook_processes if job.case.variant == "hook in processes" else None
    return await stack.enter_async_context(Hooks(job.work, None, in_processes))


class _Rows:
    """The rows of one job on their way."""

    def __init__(self, job: Job, ask: Ask, hooks: Hooks | None) -> None:
        self._case: Case = job.case
        self._ask = ask
        self._hooks = hooks
        self._builder = builder_of(job.options, target_of(job.options))
        self._outcomes: list[Outcome] = []

    async def all(self, items: Sequence[Item]) -> list[Outcome]:
        """Workers share the rows; each takes the next when it is done with one."""
        rest = iter(items)
        async with asyncio.TaskGroup() as workers:
            if self._case.variant.startswith("blocked"):
                workers.create_task(self._block())
            for number in range(min(self._case.driver.size, len(items))):
                workers.create_task(self._work(rest))
                if number % START_STEP == 0:
                    await asyncio.sleep(0)
        return self._outcomes

    async def _work(self, rest: Iterator[Item]) -> None:
        for number, asked in rest:
            request = asked if isinstance(asked, Request) else await self._prepared(asked)
            began_s = time.perf_counter()
            given = await self._answered(request)
            self._outcomes.append(outcome_of(number, time.perf_counter() - began_s, given))

    async def _prepared(self, row: Row) -> Request:
        assert self._hooks is not None, "rows come with the work to be done on them"
        return built(self._builder, row, await self._hooks.before(dict(row.fields)))

    async def _answered(self, request: Request) -> Reply | Failure:
        """Of a row with tasks the last answer, or the failure among them."""
        if self._case.variant == "tasks together":
            given = await asyncio.gather(*(self._ask(request) for _ in range(TASKS)))
        elif self._case.variant == "tasks in turn":
            given = [await self._ask(request) for _ in range(TASKS)]
        else:
            return await self._ask(request)
        return next((one for one in given if isinstance(one, Failure)), given[-1])

    async def _block(self) -> None:
        """While the first requests wait for their answers, one call that blocks."""
        await asyncio.sleep((self._case.server.latency_s or 0.0) / 2)
        if self._case.variant == "blocked thread":
            await asyncio.to_thread(time.sleep, BLOCKING_CALL_S)
        else:
            time.sleep(BLOCKING_CALL_S)  # noqa: ASYNC251  # this is the trap
