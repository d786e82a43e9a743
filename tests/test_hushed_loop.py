"""In a library the loop is the caller's: its reports are cleaned of the key while a run is on, and nothing else."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from llmbatch import arun
from llmbatch.rules.redact import Redactor
from llmbatch.sender import _hushed

KEY = "sk-canary/0123+456789=="


class Spoken(Exception):
    def __repr__(self) -> str:
        return f"Spoken('Authorization: Bearer {KEY}')"


async def leave_a_failed_task() -> None:
    async def fails() -> None:
        raise Spoken(f"of {KEY}")

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    del task
    gc.collect()


async def test_a_task_that_nobody_awaited_shows_no_key(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    with _hushed(loop, Redactor([KEY]).text):
        await leave_a_failed_task()
    assert "never retrieved" in caplog.text and "Bearer [key]" in caplog.text and "canary" not in caplog.text
    assert loop.get_exception_handler() is None
    await leave_a_failed_task()
    assert "canary" in caplog.text  # what the handler is there for


async def test_a_handler_of_the_caller_stays() -> None:
    loop, heard = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda loop, context: heard.append(context))
    with _hushed(loop, Redactor([KEY]).text):
        await leave_a_failed_task()
    assert len(heard) == 1 and isinstance(heard[0]["exception"], Spoken)


async def test_a_run_hushes_its_loop(tmp_path: Any) -> None:
    seen: list[bool] = []
    loop = asyncio.get_running_loop()
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    await arun(
        str(tmp_path / "in.jsonl"),
        model="sim/x",
        listen=lambda event: seen.append(loop.get_exception_handler() is not None),
    )
    assert any(seen) and loop.get_exception_handler() is None
