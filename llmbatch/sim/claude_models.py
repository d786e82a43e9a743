"""What single Claude models refuse (Anthropic's model pages and the migration guide to version 2026-10-21)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmbatch.sim.anthropic import invalid

# Behind the generation there may be a date of eight digits.
_NAME = re.compile(r"claude-(opus|sonnet|haiku|fable|mythos)-(\d{1,2})(?:-(\d{1,2}))?(?!\d)")
_SAMPLING = ("temperature", "top_p", "top_k")
_NEW_VERSION = "2026-10-21"
_ABOVE_HIGH = ("xhigh", "max")


def check_model(fields: Mapping[str, Any], version: str) -> None:
    """ApiError 400 for what this version, or the model, does not take. Models that are no Claude take everything."""
    family, generation = _generation(fields["model"])
    is_new = family in ("fable", "mythos") or generation > (4, 6)
    _check_sampling(fields, version, family is not None and is_new)
    choice = (fields.get("tool_choice") or {}).get("type")
    if choice in ("any", "tool") and (family, generation) in {("opus", (5, 5)), ("sonnet", (5, 5)), ("fable", (5, 1))}:
        raise invalid(f"tool_choice: '{choice}' is not supported by {fields['model']}")
    _check_thinking(fields, family, generation, is_new)


def _generation(model: str) -> tuple[str | None, tuple[int, int]]:
    match = _NAME.match(model)
    return (match[1], (int(match[2]), int(match[3] or 0))) if match else (None, (0, 0))


def _check_sampling(fields: Mapping[str, Any], version: str, is_new: bool) -> None:
    for name in _SAMPLING:
        if fields.get(name) is None:
            continue
        if version == _NEW_VERSION:
            raise invalid(f"{name}: Extra inputs are not permitted")
        if is_new:
            raise invalid(f"{name}: sampling parameters are not supported by {fields['model']}")


def _check_thinking(fields: Mapping[str, Any], family: str | None, generation: tuple[int, int], is_new: bool) -> None:
    kind = (fields.get("thinking") or {}).get("type")
    effort = (fields.get("output_config") or {}).get("effort")
    if family is None or kind is None:
        return
    where = f"thinking.type: '{kind}' is not supported by {fields['model']}"
    never_off = family == "fable" or (family in ("opus", "sonnet") and generation == (5, 5))
    if (kind == "enabled" and is_new) or (kind == "disabled" and never_off):
        raise invalid(where)
    low_only = (kind, family, generation) in {("disabled", "opus", (5, 0)), ("between_tools", "sonnet", (5, 5))}
    if low_only and effort in _ABOVE_HIGH:
        raise invalid(f"{where} with effort '{effort}'")
