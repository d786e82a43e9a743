"""Why an answer of Chat Completions ended, in one set of words.

Sources: OpenAI API reference; the clients of Mistral (``model_length``, ``error``) and OpenRouter; SGLang (``abort``),
TGI (``eos_token``, ``stop_sequence``), DeepSeek (``insufficient_system_resource``).
"""

from __future__ import annotations

_NORMAL = {
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_length": "context_length",
    "abort": "error",
    "insufficient_system_resource": "error",
}
# The model broke off: no answer, whatever has come of it.
BROKEN_OFF = "error"


def normalised(reason: str | None, *, calls_tools: bool, refuses: bool) -> str | None:
    """The normalised word; one that is not known passes as it is.

    Small servers say ``stop`` with tool calls; OpenAI says it of a refusal.
    """
    word = None if reason is None else _NORMAL.get(reason, reason)
    if word == "stop" and calls_tools:
        return "tool_calls"
    return "content_filter" if word == "stop" and refuses else word


def native(normal: str | None, reason: str | None, upstream: object = None) -> str | None:
    """The server's own word where it is another; OpenRouter tells the ``upstream`` one beside its own."""
    own = upstream if isinstance(upstream, str) and upstream else reason
    return None if own == normal else own
