"""Which async hook holds up the event loop, and where?

Every step of a hook's coroutine, from one suspension to the next, is timed; so are those of the tasks that it starts. A
step that takes long is a call that blocks: meanwhile nothing else of the run happens. A watchdog thread looks where it
stands, which only another thread can. (asyncio's debug mode times steps as well, names no line, and slows the whole
loop down.)
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

from llmbatch.hooks.places import standing_at

# Long against a step that only computes, short against the first byte of an answer.
LIMIT_S = 0.1
LOOK_EVERY_S = 0.03

_NOTICE = (
    "hook {} blocked the event loop for {:.2f} s{}: make it a plain function (it then runs in a thread) "
    "or await something"
)


class _Step:
    """One step of a hook: ``place`` is where it stood when it was overdue."""

    __slots__ = ("began_s", "hook", "place")

    def __init__(self, hook: str, began_s: float) -> None:
        self.hook = hook
        self.began_s = began_s
        self.place = ""


class LoopWatch:
    """Awaits what async hooks give, and says once for each hook and place that it blocked. Owned by the run's loop.

    Its thread starts with the first hook that is awaited, and sleeps while none is.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._noticed: set[tuple[str, str]] = set()
        self._awaited = 0
        self._step: _Step | None = None
        self._busy = threading.Event()
        self._closed = False
        self._loop_thread = 0

    async def awaited(self, hook: str, awaitable: Awaitable[Any]) -> Any:
        """What ``awaitable`` gives; its steps are timed."""
        if not self._loop_thread:
            self._loop_thread = threading.get_ident()
            threading.Thread(target=self._look, name="llmbatch-hook-watch", daemon=True).start()
        self._awaited += 1
        self._busy.set()
        try:
            return await _Timed(_coroutine(awaitable), hook, self, asyncio.get_running_loop())
        finally:
            self._awaited -= 1
            if not self._awaited:
                self._busy.clear()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._busy.set()

    def begin(self, hook: str) -> _Step | None:
        """A step begins; the one around it, if there is one, goes on at its end."""
        around, self._step = self._step, _Step(hook, time.perf_counter())
        return around

    def end(self, around: _Step | None) -> None:
        step, self._step = self._step, around
        assert step is not None, "what ends has begun"
        took_s = time.perf_counter() - step.began_s
        if took_s > LIMIT_S and (step.hook, step.place) not in self._noticed:
            self._noticed.add((step.hook, step.place))
            self._notice(_NOTICE.format(step.hook, took_s, f" at {step.place}" if step.place else ""))

    def _look(self) -> None:
        while self._busy.wait() and not self._closed:
            step = self._step
            if step is not None and not step.place and time.perf_counter() - step.began_s > LIMIT_S:
                frame = sys._current_frames().get(self._loop_thread)
                place = "" if frame is None else standing_at(frame)
                if self._step is step:  # else it has ended meanwhile, and the frame is another's
                    step.place = place
            time.sleep(LOOK_EVERY_S)


class _Timed(Coroutine[Any, Any, Any], Iterator[Any]):
    """A coroutine, each step of which is timed, and so is each task started in one of them.

    It is one itself, not a generator around one: a task that is cancelled before its first step tells the inner one.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], hook: str, watch: LoopWatch, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._coroutine = coroutine
        self._hook = hook
        self._watch = watch
        self._loop = loop

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()

    def __next__(self) -> Any:
        return self.send(None)

    def __await__(self) -> Generator[Any, None, Any]:
        return self  # type: ignore[return-value]  # an iterator with the methods of a generator is enough

    def _step(self, go_on: Callable[..., Any], *given: Any) -> Any:
        around = self._watch.begin(self._hook)
        before = self._loop.get_task_factory()
        self._loop.set_task_factory(self._start)
        try:
            return go_on(*given)
        finally:
            self._loop.set_task_factory(before)
            self._watch.end(around)

    def _start(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        """The task factory of the loop during a step."""
        return asyncio.Task(_Timed(coroutine, self._hook, self._watch, loop), loop=loop, **named)


def _coroutine(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    return awaitable if inspect.iscoroutine(awaitable) else _wait_for(awaitable)


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
