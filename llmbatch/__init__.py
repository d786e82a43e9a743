"""Run a file of prompts through any LLM API, as fast as the limits allow, and never lose or pay twice for an answer.

import llmbatch

summary = llmbatch.run("prompts.jsonl", model="openai/gpt-4.1-mini", concurrency=10)

async for result in llmbatch.stream(["What is 2 + 2?"], model="sim/demo"):
    print(result.output)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmbatch._version import __version__

if TYPE_CHECKING:
    from llmbatch.api import arun, run, stream
    from llmbatch.errors import LlmbatchError
    from llmbatch.options import RetryLimits, RunOptions, Timeouts
    from llmbatch.records import Failure, Reply, Result, Usage
    from llmbatch.stopping import Stop, StopReason
    from llmbatch.summary import Summary

__all__ = [
    "Failure",
    "LlmbatchError",
    "Reply",
    "Result",
    "RetryLimits",
    "RunOptions",
    "Stop",
    "StopReason",
    "Summary",
    "Timeouts",
    "Usage",
    "__version__",
    "arun",
    "run",
    "stream",
]

# Imported when first asked for: importing aiohttp takes longer than many a command.
_HOME = {
    "arun": "api",
    "run": "api",
    "stream": "api",
    "LlmbatchError": "errors",
    "RetryLimits": "options",
    "RunOptions": "options",
    "Timeouts": "options",
    "Failure": "records",
    "Reply": "records",
    "Result": "records",
    "Usage": "records",
    "Stop": "stopping",
    "StopReason": "stopping",
    "Summary": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llmbatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llmbatch.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
