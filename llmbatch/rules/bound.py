"""How much one request can have used at most, when no answer says it. Never below the truth, or nothing at all.

A token of any text tokenizer in use stands for at least one byte of what it reads (byte-level BPE and SentencePiece
with byte fallback cut bytes, WordPiece and unigram models cut characters), so the body as it was sent, names, braces
and all, has no fewer bytes than its texts have tokens. Some tokenizers normalise first, which makes few characters
longer: hence the longer of the body and its compatibility decomposition (Unicode, UAX #15).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
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
_HARMLESS_RESPONSES = {
    "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "text", "reasoning",
    "tools", "tool_choice", "parallel_tool_calls", "user", "metadata", "store", "stream", "stream_options",
    "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "truncation",
}
_HARMLESS_ANTHROPIC = {
    "model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stop_sequences", "stream",
    "metadata", "tools", "tool_choice", "thinking", "output_config", "service_tier", "cache_control",
}
_HARMLESS_GEMINI = {
    "contents", "systemInstruction", "generationConfig", "safetySettings", "tools", "toolConfig", "serviceTier",
    "store", "labels",
}
_HARMLESS_IN_MESSAGE = {
    "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "reasoning",
    "reasoning_content",
}
# fmt: on
_LIST = (list, tuple)
_ANTHROPIC_BLOCKS = ("text", "tool_use", "tool_result")
_TEXT_PARTS = {"text": "text", "refusal": "refusal"}


def token_bound(api: str, model: str, body: Mapping[str, Any], sent: bytes) -> TokenBound:
    """The bound of one request to ``model`` in the dialect ``api``: its ``body``, and the ``sent`` bytes of it."""
    turns, output_tokens = _READERS[api](body) if api in _READERS else (None, None)
    return TokenBound(
        model=model or None,
        input_tokens=None if turns is None else _text_bytes(sent) + TOKENS_PER_MESSAGE * turns + TOKENS_PER_REQUEST,
        output_tokens=output_tokens,
    )


Bounds = tuple[int | None, int | None]
"""The turns of a conversation that is text and nothing else, and the most tokens of the answer; None if unknown."""


def _of_chat(body: Mapping[str, Any]) -> Bounds:
    """``max_tokens`` for each of ``n`` answers. Reasoning counts as output, and under the same limit."""
    if not body.keys() <= _HARMLESS:
        return None, None
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    most = _most(*limits)
    return _turns(body.get("messages"), _is_text, body.get("tools"), _is_function), _times(most, body.get("n"))


def _of_responses(body: Mapping[str, Any]) -> Bounds:
    if not body.keys() <= _HARMLESS_RESPONSES:
        return None, None
    items = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    return _turns(items, _is_text_item, body.get("tools"), _is_function), _most(body.get("max_output_tokens"))


def _of_anthropic(body: Mapping[str, Any]) -> Bounds:
    """Thinking counts as output, under ``max_tokens``."""
    if not body.keys() <= _HARMLESS_ANTHROPIC or not _is_text_content(body.get("system"), _ANTHROPIC_BLOCKS):
        return None, None
    return _turns(body.get("messages"), _is_anthropic_turn, body.get("tools"), _is_own_tool), _most(
        body.get("max_tokens")
    )


def _of_gemini(body: Mapping[str, Any]) -> Bounds:
    """Thoughts count as output, under ``maxOutputTokens``."""
    config = body.get("generationConfig") or {}
    if not body.keys() <= _HARMLESS_GEMINI or not isinstance(config, Mapping):
        return None, None
    contents = body.get("contents")
    turns = _turns(contents, _is_gemini_turn, body.get("tools"), _is_declaration)
    if body.get("systemInstruction") is not None and not _is_gemini_turn(body["systemInstruction"]):
        turns = None
    return turns, _times(_most(config.get("maxOutputTokens")), config.get("candidateCount"))


def _of_embeddings(body: Mapping[str, Any]) -> Bounds:
    texts = body.get("input")
    many = [texts] if isinstance(texts, str) else texts
    return _turns(many, lambda text: isinstance(text, str), None, _is_function), 0


def _of_gemini_embeddings(body: Mapping[str, Any]) -> Bounds:
    requests = body.get("requests")
    return _turns(
        requests, lambda one: isinstance(one, Mapping) and _is_gemini_turn(one.get("content")), None, _is_function
    ), 0


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Bounds]] = {
    "openai-chat": _of_chat,
    "openai-responses": _of_responses,
    "openai-embeddings": _of_embeddings,
    "anthropic": _of_anthropic,
    "gemini": _of_gemini,
    "gemini-embeddings": _of_gemini_embeddings,
}


def _turns(turns: Any, is_text: Callable[[Any], bool], tools: Any, is_tool: Callable[[Any], bool]) -> int | None:
    tools = tools or ()
    whole = isinstance(turns, _LIST) and all(map(is_text, turns))
    return len(turns) if whole and isinstance(tools, _LIST) and all(map(is_tool, tools)) else None


def _most(*limits: Any) -> int | None:
    good = bool(limits) and all(type(value) is int and value > 0 for value in limits)
    return max(limits) if good else None


def _times(most: int | None, answers: Any) -> int | None:
    count = answers or 1
    return most * count if most is not None and type(count) is int and count > 0 else None


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


def _is_text_item(item: Any) -> bool:
    """An item of a Responses input: a message, or the call of a function and what it gave."""
    if not isinstance(item, Mapping):
        return isinstance(item, str)
    if item.get("type") in ("function_call", "function_call_output"):
        return item.keys() <= {"type", "id", "call_id", "name", "arguments", "output", "status"}
    if item.get("type", "message") != "message" or not item.keys() <= {"type", "role", "content", "id", "status"}:
        return False
    return _is_text_content(item.get("content"), ("input_text", "output_text"))


def _is_anthropic_turn(message: Any) -> bool:
    if not isinstance(message, Mapping) or not message.keys() <= {"role", "content"}:
        return False
    return _is_text_content(message.get("content"), _ANTHROPIC_BLOCKS)


def _is_text_content(content: Any, kinds: tuple[str, ...]) -> bool:
    if not isinstance(content, _LIST):
        return content is None or isinstance(content, str)
    return all(isinstance(part, Mapping) and _is_plain(part, kinds) for part in content)


def _is_plain(part: Mapping[str, Any], kinds: tuple[str, ...]) -> bool:
    """Whether a part is text, a call, or what a call gave: all of it stands in the bytes."""
    if part.get("type") not in kinds:
        return False
    return part.get("type") != "tool_result" or _is_text_content(part.get("content"), ("text",))


def _is_gemini_turn(turn: Any) -> bool:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("parts"), _LIST):
        return False
    return all(
        isinstance(part, Mapping) and part.keys() <= {"text", "functionCall", "functionResponse"}
        for part in turn["parts"]
    )


def _is_own_tool(tool: Any) -> bool:
    return isinstance(tool, Mapping) and tool.get("type") in (None, "custom") and "input_schema" in tool


def _is_declaration(tool: Any) -> bool:
    return isinstance(tool, Mapping) and tool.keys() == {"functionDeclarations"}
