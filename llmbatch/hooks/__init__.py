"""The user's own functions between a row and its request, and between an answer and its line."""

from __future__ import annotations


class HookError(Exception):
    """A hook failed, or gave what can not be used. The text says which, where and why."""
