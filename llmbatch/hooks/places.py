"""Which line of the user's own code is meant, below it the libraries that it calls, above it llmbatch?"""

from __future__ import annotations

import linecache
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType

import llmbatch
from llmbatch.rules.reasons import excerpt

_OURS = str(Path(llmbatch.__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_MESSAGE_CHARS = 300
_LINE_CHARS = 60

Step = tuple[CodeType, int]
"""What ran, and at which line."""


def described(error: BaseException) -> str:
    """``retrieve.py:31 in lookup: KeyError: 'text'``; of a group, its first error."""
    more = 0
    while isinstance(error, BaseExceptionGroup):
        more += len(error.exceptions) - 1
        error = error.exceptions[0]
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration):
        error = error.__cause__  # PEP 479 makes another of it, outside of the user's line
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    shown = excerpt(text, _MESSAGE_CHARS) + (f" (and {more} more)" if more else "")
    return f"{where}: {shown}" if (where := _place_of(error)) else shown


def standing_at(frame: FrameType) -> str:
    """Where a running stack stands: ``retrieve.py:17 (time.sleep(0.4))``."""
    steps = []
    at: FrameType | None = frame
    while at is not None:
        steps.append((at.f_code, at.f_lineno or 0))
        at = at.f_back
    code, line = _innermost_of_users(steps) or steps[0]
    source = linecache.getline(code.co_filename, line).strip()
    said = f" ({excerpt(source, _LINE_CHARS)})" if source else ""
    return f"{Path(code.co_filename).name}:{line}{said}"


def is_ours(filename: str) -> bool:
    """Whether the file is one of llmbatch's."""
    return filename.startswith(_OURS)


def _place_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{Path(error.filename).name}:{error.lineno}"
    steps: list[Step] = []
    trace = error.__traceback__
    while trace is not None:
        steps.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    found = _innermost_of_users(reversed(steps))
    return "" if found is None else f"{Path(found[0].co_filename).name}:{found[1]} in {found[0].co_name}"


def _innermost_of_users(steps: Iterable[Step]) -> Step | None:
    """The first of ``steps``, which go outwards, in a file of the user's; in a library's if there is none."""
    others = [step for step in steps if not step[0].co_filename.startswith("<") and not is_ours(step[0].co_filename)]
    return next((step for step in others if not step[0].co_filename.startswith(_LIBRARIES)), next(iter(others), None))
