"""What is odd about a good answer: it is kept and paid for, and the user should know."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from llmbatch.records import CHOICES_MISMATCH, EMPTY, MODEL_MISMATCH, Reply

# How a dated or numbered version is written after the model's name: gpt-4.1-mini-2025-04-14, gpt-4-0613,
# claude-3-haiku-20240307, gemini-2.0-flash-001, gemini-2.5-flash-preview-05-20.
_VERSION = re.compile(r"[-@](?:(?:preview|exp)-)?(?:20\d\d-?\d\d-?\d\d|\d\d-\d\d|\d{3,4})")
# What vendors add to a name: a folder before it, a variant or file behind it (``:free``, ``.gguf``).
_FOLDER = re.compile(r".*[/\\]")
_SUFFIX = re.compile(r":.*|\.gguf", re.DOTALL)


def flags_of(reply: Reply, asked_model: Any) -> tuple[str, ...]:
    """The words that fit ``reply``, the answer to a request that named ``asked_model`` and wanted one choice."""
    flags: tuple[str, ...] = ()
    if reply.output == "" and not reply.tool_calls:
        flags += (EMPTY,)
    if reply.choices != 1:
        flags += (CHOICES_MISMATCH,)
    answered = reply.model
    if answered != asked_model and answered and isinstance(asked_model, str) and not same_model(asked_model, answered):
        flags += (MODEL_MISMATCH,)
    return flags


@lru_cache(maxsize=256)
def same_model(asked: str, answered: str) -> bool:
    """Whether ``answered`` is the model ``asked`` for, or a dated version of it. Folders and variants do not count."""
    asked_name, answered_name = _bare(asked), _bare(answered)
    if asked_name in ("", answered_name) or answered_name == "":
        return True
    if asked_name.endswith("-latest"):
        asked_name = asked_name.removesuffix("-latest")
    if answered_name == asked_name:
        return True
    rest = answered_name.removeprefix(asked_name)
    return rest != answered_name and _VERSION.fullmatch(rest) is not None


def _bare(model: str) -> str:
    if model.startswith("ft:"):  # ft:BASE:ORGANISATION:...: another model than its base
        return model.lower()
    return _SUFFIX.sub("", _FOLDER.sub("", model, count=1), count=1).lower()
