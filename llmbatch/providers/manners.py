"""How the Chat Completions of one server differ from what most servers take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SchemaMode = Literal["json_schema", "json_object", "none"]
"""How far a server holds the model to a schema: to all of it, to JSON, or not at all."""

MaxTokens = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True, slots=True)
class Manners:
    """The defaults are those of a server that nothing is known of.

    ``max_tokens`` is the only name under which the server takes the limit of an answer, None if the row's word goes.
    ``seed`` is its name for the seed. ``developer_role``: it knows the role; others get ``system`` in its place.
    ``schema_mode`` says how far it holds the model to a schema. ``stream_options``: it takes the field, and gives usage
    in a stream only if asked. ``requests_window_s`` is the window of the limit in its ``x-ratelimit-limit-requests``.
    ``names_cost``: ``usage.cost`` of an answer is its price in US dollars.
    """

    max_tokens: MaxTokens | None = None
    seed: str = "seed"
    developer_role: bool = False
    schema_mode: SchemaMode = "json_schema"
    stream_options: bool = True
    requests_window_s: float = 60.0
    names_cost: bool = False


PLAIN = Manners()
