"""The hooks of one run: async ones on its loop, plain ones in threads or processes, none in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import warnings
from collections.abc import Awaitable, Callable
from copy import deepcopy
from typing import Any

from llmbatch.hooks import HookError
from llmbatch.hooks.blocking import LoopWatch
from llmbatch.hooks.given import checked
from llmbatch.hooks.loading import Hook, load_hook
from llmbatch.hooks.places import described, is_ours
from llmbatch.hooks.processes import Processes, process_error
from llmbatch.hooks.threads import DaemonThreads
from llmbatch.rules.reasons import excerpt
from llmbatch.summary import HookTime

# Hooks that block mostly wait (for a database, for HTTP), so more than there are cores.
THREADS = 64

Notice = Callable[[str], None]


class Hooks:
    """The functions named ``before`` and ``after``, as ``module:function``; to be entered before the first call.

    Plain functions run in threads, or in ``processes`` processes. A hook gets a copy: what it changes of that is its
    own. ``notice`` is called on the loop with what the user should know of a hook that works, but not well: it blocks
    the loop, or forgets an await. ``spent`` is by "before" and "after".

    Raises OptionsError for what is no hook.
    """

    def __init__(
        self, before: str | None, after: str | None, processes: int | None = None, notice: Notice = lambda text: None
    ) -> None:
        self._before = None if before is None else load_hook(before, "--before")
        self._after = None if after is None else load_hook(after, "--after")
        self.spent = {
            hook.flag.removeprefix("--"): HookTime(0, 0.0, 0.0)
            for hook in (self._before, self._after)
            if hook is not None
        }
        self._notice = notice
        self._watch = LoopWatch(notice)
        self._threads = DaemonThreads(THREADS, "llmbatch-hook")
        self._processes = None if processes is None else Processes(processes)
        self._unawaited: _Unawaited

    async def __aenter__(self) -> Hooks:
        self._unawaited = _Unawaited(asyncio.get_running_loop(), self._notice)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Does not wait for calls under way."""
        self._unawaited.close()
        self._watch.close()
        self._threads.close()
        if self._processes is not None:
            self._processes.close()

    async def before(self, row: dict[str, Any]) -> dict[str, Any] | list[Any] | str | None:
        """What is to be sent for the row; None leaves it out. Raises HookError."""
        assert self._before is not None, "asked for only with --before"
        return await self._call(self._before, row)  # type: ignore[no-any-return]  # checked saw to it

    async def after(self, result: dict[str, Any]) -> dict[str, Any]:
        """What is to be written for the result. Raises HookError."""
        assert self._after is not None, "asked for only with --after"
        return await self._call(self._after, result)  # type: ignore[no-any-return]  # checked saw to it

    @property
    def after_or_none(self) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] | None:
        """``after``, if there is such a hook."""
        return None if self._after is None else self.after

    async def _call(self, hook: Hook, given: Any) -> Any:
        began_s = time.perf_counter()
        try:
            return await self._given_by(hook, deepcopy(given))
        finally:
            self._spend(hook.flag.removeprefix("--"), time.perf_counter() - began_s)

    def _spend(self, name: str, seconds: float) -> None:
        """Waiting for a free thread or process included."""
        before = self.spent[name]
        self.spent[name] = HookTime(before.calls + 1, before.seconds + seconds, max(before.longest_s, seconds))

    async def _given_by(self, hook: Hook, given: Any) -> Any:
        if self._processes is not None and not hook.is_async:
            return await self._in_process(self._processes, hook, given)
        if hook.is_async:
            value = await self._awaited(hook, _later(hook.function, given))
        else:
            value = await asyncio.wrap_future(self._threads.submit(lambda: _guarded(hook, given)))
            if inspect.isawaitable(value):
                value = await self._awaited(hook, value)
        return checked(value, hook.name, hook.flag)

    async def _in_process(self, processes: Processes, hook: Hook, given: Any) -> Any:
        try:
            return await asyncio.wrap_future(processes.submit(hook, given))
        except HookError:
            raise
        except Exception as error:
            raise process_error(hook, error) from None

    async def _awaited(self, hook: Hook, awaitable: Awaitable[Any]) -> Any:
        """A KeyboardInterrupt on the loop's thread is the user's Ctrl-C, and passes."""
        try:
            return await self._watch.awaited(hook.name, awaitable)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _failed(hook, error) from None  # of something the hook waited for: nobody has cancelled the row
        except (Exception, SystemExit) as error:
            raise _failed(hook, error) from None


async def _later(function: Callable[[Any], Any], given: Any) -> Any:
    """The call itself is a timed step, too: an object with an async call may do anything before its first await."""
    return await function(given)


def _guarded(hook: Hook, given: Any) -> Any:
    """In a thread: no exception of the hook's leaves it as it is. (asyncio can not even hand on StopIteration.)"""
    try:
        return hook.function(given)
    except BaseException as error:
        raise _failed(hook, error) from None


def _failed(hook: Hook, error: BaseException) -> HookError:
    return HookError(f"hook {hook.name}: {described(error)}")


class _Unawaited:
    """While it is open, Python's warning of a coroutine that nobody awaited becomes a notice.

    ``warnings.showwarning`` is global, and documented as the place to do this. The warning comes from any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, notice: Notice) -> None:
        self._loop = loop
        self._notice = notice
        self._others = warnings.showwarning
        warnings.showwarning = self._shown

    def close(self) -> None:
        if warnings.showwarning == self._shown:
            warnings.showwarning = self._others

    def _shown(
        self, message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if not (issubclass(category, RuntimeWarning) and "was never awaited" in str(message)) or is_ours(filename):
            self._others(message, category, filename, lineno, file, line)
            return
        where = filename.rpartition("/")[2]
        text = f"a hook forgot an await: {excerpt(str(message))} ({where}:{lineno})"
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(self._notice, text)
