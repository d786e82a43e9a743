"""A JSON Schema in the form that each provider's constrained decoding takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def openai_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``{"name", "schema", "strict"}``: the inner object of Chat Completions, and flat in Responses."""
    return {"name": "answer", "schema": schema, "strict": True}


def anthropic_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What ``output_config.format.schema`` takes."""
    return dict(schema)


def gemini_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What ``generationConfig.responseJsonSchema`` takes."""
    return dict(schema)
