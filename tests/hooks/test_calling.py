"""Hooks are called where they block nobody, and what goes wrong in them is said with its place."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmbatch.hooks import HookError, blocking
from llmbatch.hooks.calling import Hooks

Write = Callable[[str], str]


async def ask(name: str, row: dict[str, Any], notices: list[str] | None = None, processes: int | None = None) -> Any:
    told: list[str] = [] if notices is None else notices
    async with Hooks(name, None, processes, told.append) as hooks:
        given = await hooks.before(row)
        await asyncio.sleep(0)
        return given


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("import threading\ndef f(row): return {'where': threading.current_thread().name}", "llmbatch-hook-1"),
        ("import threading\nasync def f(row): return {'where': threading.current_thread().name}", "MainThread"),
        (
            "import threading\n"
            "async def g(row): return {'where': threading.current_thread().name}\n"
            "def f(row): return g(row)",
            "MainThread",
        ),
    ],
    ids=["plain", "async", "plain, to be awaited"],
)
async def test_where_a_hook_runs(module: Write, source: str, where: str) -> None:
    assert await ask(f"{module(source)}:f", {}) == {"where": where}


async def test_a_hook_gets_a_copy(module: Write) -> None:
    row = {"tags": ["a"]}
    name = module("def f(row):\n    row['tags'].append('b')\n    return row\n")
    assert await ask(f"{name}:f", row) == {"tags": ["a", "b"]}
    assert row == {"tags": ["a"]}


async def test_blocking_hooks_wait_at_the_same_time(module: Write) -> None:
    name = module("""
        import threading
        together = threading.Barrier(5, timeout=20)

        def f(row):
            together.wait()
            return str(row["n"])
    """)
    async with Hooks(f"{name}:f", None) as hooks:
        given = await asyncio.gather(*(hooks.before({"n": number}) for number in range(5)))
    assert given == ["0", "1", "2", "3", "4"]
    assert hooks.spent["before"].calls == 5


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("return row['text']", "KeyError: 'text'"),
        ("raise StopIteration", "StopIteration"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import json; return json.loads('{')", "JSONDecodeError: Expecting property name"),
        ("raise ExceptionGroup('two', [ValueError('a'), ValueError('b')])", "ValueError: a (and 1 more)"),
    ],
)
async def test_an_error_is_told_with_its_line(module: Write, kind: str, line: str, words: str) -> None:
    name = module(f"{kind} f(row):\n    pass\n    {line}\n")
    with pytest.raises(HookError) as caught:
        await ask(f"{name}:f", {})
    place = "" if "Group" in line else f"{name}.py:3 in f: "
    assert str(caught.value).startswith(f"hook {name}:f: {place}{words}")


async def test_the_line_is_the_users_not_the_librarys(module: Write) -> None:
    helper = module("import json\ndef parse(text):\n    return json.loads(text)\n")
    name = module(f"import {helper}\ndef f(row):\n    return {helper}.parse('no')\n")
    with pytest.raises(HookError, match=rf"{helper}\.py:3 in parse: JSONDecodeError"):
        await ask(f"{name}:f", {})


async def test_a_keyboard_interrupt_in_a_thread_is_an_error_of_the_hooks(module: Write) -> None:
    name = module("def f(row):\n    raise KeyboardInterrupt\n")
    with pytest.raises(HookError, match="KeyboardInterrupt"):
        await ask(f"{name}:f", {})


async def test_a_cancelled_row_cancels_its_hook(module: Write) -> None:
    name = module("""
        import asyncio
        seen = []
        async def f(row):
            seen.append("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
    """)
    async with Hooks(f"{name}:f", None) as hooks:
        task = asyncio.create_task(hooks.before({}))
        seen = sys.modules[name].seen
        while not seen:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert seen == ["begun", "cancelled"]


async def test_a_cancellation_that_is_the_hooks_own_is_an_error(module: Write) -> None:
    name = module("""
        import asyncio
        async def f(row):
            waiting = asyncio.create_task(asyncio.sleep(9))
            waiting.cancel()
            await waiting
    """)
    with pytest.raises(HookError, match="CancelledError"):
        await ask(f"{name}:f", {})


async def test_the_end_does_not_wait_for_a_thread_that_hangs(module: Write) -> None:
    name = module("""
        import threading
        begun, go_on = threading.Event(), threading.Event()
        def f(row):
            begun.set()
            go_on.wait(60)
            return row
    """)
    async with Hooks(f"{name}:f", None) as hooks:
        task = asyncio.create_task(hooks.before({}))
        while not sys.modules[name].begun.is_set():
            await asyncio.sleep(0.001)
        hanging = [thread for thread in threading.enumerate() if thread.name == "llmbatch-hook-1"]
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [thread.daemon for thread in hanging] == [True]
    sys.modules[name].go_on.set()
    hanging[0].join(20)
    assert not hanging[0].is_alive()


async def test_spent_counts_every_call(module: Write) -> None:
    name = module(
        "import time\ndef f(row):\n    time.sleep(row['s'])\n    return row\ndef g(result):\n    return result\n"
    )
    async with Hooks(f"{name}:f", f"{name}:g") as hooks:
        await hooks.before({"s": 0.05})
        await hooks.before({"s": 0})
        with pytest.raises(HookError):
            await hooks.before({})
        assert hooks.after_or_none is not None
        await hooks.after({"output": "a"})
    before = hooks.spent["before"]
    assert (before.calls, hooks.spent["after"].calls) == (3, 1)
    assert 0.05 <= before.longest_s <= before.seconds < 20


# Blocking


@pytest.fixture
def until_seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hooks block until the watchdog has looked, however slow the machine is."""
    looked_at: list[str] = []
    seen = blocking.standing_at

    def looked(frame: Any) -> str:
        place = seen(frame)
        threading.Timer(0.05, sys.modules[looked_at[0]].released.set).start()
        return place

    monkeypatch.setattr(blocking, "standing_at", looked)
    return looked_at.append


BLOCKING = """import asyncio, threading
released = threading.Event()
async def child():
    released.wait(20)

async def f(row):
"""


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("    released.wait(20)\n    return row\n", 7),
        ("    await asyncio.sleep(0)\n    released.wait(20)\n    return row\n", 8),
        ("    await asyncio.gather(child())\n    return row\n", 4),
        ("    async with asyncio.TaskGroup() as group:\n        group.create_task(child())\n    return row\n", 4),
    ],
    ids=["at once", "later", "in a task", "in a group"],
)
async def test_a_hook_that_blocks_the_loop_is_named_once_with_its_line(
    module: Write, until_seen: Callable[[str], None], body: str, line: int
) -> None:
    name = module(BLOCKING + body)
    until_seen(name)
    notices: list[str] = []
    async with Hooks(f"{name}:f", None, notice=notices.append) as hooks:
        await hooks.before({})
        sys.modules[name].released.clear()
        await hooks.before({})
    assert len(notices) == 1, notices
    assert notices[0].startswith(f"hook {name}:f blocked the event loop for ")
    assert f"at {name}.py:{line} (released.wait(20)): make it a plain function" in notices[0]


async def test_the_watchdog_is_there_for_async_hooks_only_and_ends_with_them(module: Write) -> None:
    def watching() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "llmbatch-hook-watch"]

    earlier = watching()
    name = module("async def f(row):\n    return row\ndef g(result):\n    return result\n")
    async with Hooks(f"{name}:f", f"{name}:g") as hooks:
        await hooks.after({})
        assert set(watching()) <= set(earlier)
        await hooks.before({})
        [watchdog] = set(watching()) - set(earlier)
    watchdog.join(20)
    assert not watchdog.is_alive()


async def test_a_hook_that_awaits_or_runs_in_a_thread_blocks_nobody(module: Write) -> None:
    name = module("""
        import asyncio, time
        async def f(row):
            await asyncio.sleep(0.12)
            return row
        def g(result):
            time.sleep(0.12)
            return result
    """)
    notices: list[str] = []
    async with Hooks(f"{name}:f", f"{name}:g", notice=notices.append) as hooks:
        await asyncio.gather(hooks.before({}), hooks.after({}))
    assert not [notice for notice in notices if "blocked" in notice]


async def test_tasks_of_the_run_are_not_the_hooks(module: Write) -> None:
    name = module("import asyncio\nasync def f(row):\n    await asyncio.sleep(0.01)\n    return row\n")
    notices: list[str] = []

    async def ours() -> None:
        time.sleep(0.12)

    async with Hooks(f"{name}:f", None, notice=notices.append) as hooks:
        await asyncio.gather(hooks.before({}), ours())
    assert asyncio.get_running_loop().get_task_factory() is None
    assert notices == []


async def test_a_task_cancelled_before_it_began_is_no_forgotten_await(module: Write) -> None:
    name = module("""
        import asyncio
        async def f(row):
            waiting = asyncio.create_task(asyncio.sleep(9))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            return row
    """)
    notices: list[str] = []
    assert await ask(f"{name}:f", {"a": 1}, notices) == {"a": 1}
    gc.collect()
    assert notices == []


# A forgotten await


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_coroutine_that_nobody_awaits_becomes_a_notice(module: Write, kind: str) -> None:
    name = module(f"async def fetch():\n    pass\n\n{kind} f(row):\n    fetch()\n    return row\n")
    notices: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        await ask(f"{name}:f", {}, notices)
        gc.collect()
    assert notices == [f"a hook forgot an await: coroutine 'fetch' was never awaited ({name}.py:5)"]


async def test_other_warnings_go_where_they_went(module: Write) -> None:
    shown = []
    name = module("import warnings\ndef f(row):\n    warnings.warn('old')\n    return row\n")
    notices: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *args: shown.append(str(args[0]))  # type: ignore[assignment]
        await ask(f"{name}:f", {}, notices)
        assert warnings.showwarning.__name__ == "<lambda>"
    assert (shown, notices) == (["old"], [])


# Processes


async def test_plain_hooks_run_in_processes(module: Write) -> None:
    name = module("""
        import os, signal
        def f(row):
            print("not for standard output")
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            return {"pid": os.getpid(), "ignored": ignored}
        def g(result):
            return {"a": object()}
        def h(row):
            return row["text"]
        def dies(row):
            if row:
                os._exit(9)
            return "alive"
        async def later(row):
            return {}
        def gives_later(row):
            return later(row)
        def odd(row):
            return {"a": lambda: 0}
    """)
    async with Hooks(f"{name}:f", f"{name}:g", 1) as hooks:
        given = await hooks.before({})
        assert isinstance(given, dict)
        assert given["pid"] != os.getpid()
        assert given["ignored"]
        with pytest.raises(HookError, match=r"what JSON can not hold: .* in 'a'"):
            await hooks.after({})
    async with Hooks(f"{name}:h", None, 1) as hooks:
        with pytest.raises(HookError, match=rf"{name}\.py:10 in h: KeyError: 'text'"):
            await hooks.before({})
    for hook, words in [("gives_later", "make it 'async def'"), ("odd", "can not leave its process")]:
        with pytest.raises(HookError, match=words):
            await ask(f"{name}:{hook}", {}, processes=1)


async def test_a_process_that_dies_fails_its_row_and_the_next_gets_another(module: Write) -> None:
    name = module("import os\ndef f(row):\n    if row:\n        os._exit(9)\n    return 'alive'\n")
    async with Hooks(f"{name}:f", None, 1) as hooks:
        with pytest.raises(HookError, match="its process ended in the middle of a call"):
            await hooks.before({"a": 1})
        assert await hooks.before({}) == "alive"


async def test_the_end_does_not_wait_for_a_process_that_hangs(module: Write, tmp_path: Path) -> None:
    name = module("""
        import os, time
        from pathlib import Path
        def f(row):
            Path(row["file"]).write_text(str(os.getpid()))
            time.sleep(60)
    """)
    began_s = time.monotonic()
    begun = tmp_path / "begun"
    async with Hooks(f"{name}:f", None, 1) as hooks:
        task = asyncio.create_task(hooks.before({"file": str(begun)}))
        while not (begun.exists() and begun.read_text()):
            await asyncio.sleep(0.02)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int(begun.read_text())
    while _lives(pid):
        await asyncio.sleep(0.02)
    assert time.monotonic() - began_s < 50


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
