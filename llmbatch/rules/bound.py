"""How much one request can have used at most, when no answer says it. Never below the truth, or nothing at all.

A token of any text tokenizer in use stands for at least one byte of what it reads (byte-level BPE and SentencePiece
with byte fallback cut bytes, WordPiece and unigram models cut characters), so the body as it was sent, names, braces
and all, has no fewer bytes than its texts have tokens. Some tokenizers normalise first, which makes few characters
longer: hence the longer of the body and its compatibility decomposition (Unicode, UAX #15).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from llmbatch.records import TokenBound

# Chat formats wrap a message in 3 to 5 tokens (OpenAI Cookbook, "How to count tokens with tiktoken"; ChatML, Llama 3).
TOKENS_PER_MESSAGE = 16
# What a server adds of its own: the reply's opening, the frame around tools and schemas, a date and a system line.
TOKENS_PER_REQUEST = 1024

# What does not make a request dearer than its bytes and its max_tokens say. Searches, predictions, audio and
# whatever is not known here may.
# fmt: off
_HARMLESS = {
    "model", "messages", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "top_k", "min_p", "stop",
    "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs",
    "response_format", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "user", "metadata",
    "store", "stream", "stream_options", "reasoning_effort", "verbosity", "service_tier", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention",
}
_HARMLESS_IN_MESSAGE = {
    "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "reasoning",
    "reasoning_content",
}
# fmt: on
_LIST = (list, tuple)
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}


def token_bound(body: Mapping[str, Any], sent: bytes) -> TokenBound:
    """The bound of one chat request: ``body`` and the ``sent`` bytes of it."""
    model = body.get("model")
    return TokenBound(
        model=model if isinstance(model, str) else None,
        input_tokens=_input_tokens(body, sent),
        output_tokens=_output_tokens(body),
    )


def _input_tokens(body: Mapping[str, Any], sent: bytes) -> int | None:
    messages, tools = body.get("messages"), body.get("tools") or ()
    if not (body.keys() <= _HARMLESS and isinstance(messages, _LIST) and all(map(_is_text, messages))):
        return None
    if not (isinstance(tools, _LIST) and all(map(_is_function, tools))):
        return None
    return _text_bytes(sent) + TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_REQUEST


def _output_tokens(body: Mapping[str, Any]) -> int | None:
    """``max_tokens`` for each of ``n`` answers. Reasoning counts as output, and under the same limit."""
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    n = body.get("n") or 1
    if (
        not limits
        or not body.keys() <= _HARMLESS
        or not all(type(value) is int and value > 0 for value in [*limits, n])
    ):
        return None
    return int(max(limits) * n)


def _text_bytes(sent: bytes) -> int:
    if sent.isascii():
        return len(sent)
    return max(len(sent), len(unicodedata.normalize("NFKD", sent.decode()).encode()))


def _is_text(message: Any) -> bool:
    """Whether a message holds texts and nothing that is counted otherwise (images, audio, files)."""
    if not isinstance(message, Mapping) or not message.keys() <= _HARMLESS_IN_MESSAGE:
        return False
    content = message.get("content")
    if isinstance(content, _LIST):
        return all(map(_is_text_part, content))
    return content is None or isinstance(content, str)


def _is_text_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return isinstance(part, str)
    name = _TEXT_PARTS.get(str(part.get("type")))
    return name is not None and part.keys() <= {"type", name}


def _is_function(tool: Any) -> bool:
    """Tools that the server runs itself (searches, interpreters) have prices, and texts, of their own."""
    return isinstance(tool, Mapping) and tool.get("type") == "function"
