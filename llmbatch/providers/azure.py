"""Azure OpenAI's two surfaces: ``v1``, which is OpenAI's, and the dated one with the deployment in the path.

Source: Azure OpenAI REST API reference and "API version lifecycle"; the OpenAI client's ``lib/azure.py``.
"""

from __future__ import annotations

import re
from dataclasses import replace

from llmbatch.errors import OptionsError
from llmbatch.providers.services import CHAT, EMBEDDINGS, RESPONSES, Service

V1 = "/openai/v1"

_DATE = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}(?:-preview)?", re.ASCII)
# What people have copied behind their endpoint.
_ROUTE = re.compile(r"/openai(?:/v1|/deployments/[^/]+)?$")


def on_surface(service: Service, endpoint: str, api_version: str | None) -> Service:
    """Azure at ``endpoint`` (``https://RESOURCE.openai.azure.com``, with or without a route): the dated surface of
    ``api_version`` if there is one. Raises OptionsError for a version that is no date."""
    root = _ROUTE.sub("", endpoint.rstrip("/"))
    if api_version is None or api_version == "v1":
        return replace(service, base_url=root + V1)
    if _DATE.fullmatch(api_version) is None:
        raise OptionsError(f"--api-version {api_version!r} is none of Azure's; an example: 2024-10-21, or v1")
    query = f"?api-version={api_version}"
    paths = {
        CHAT: "/openai/deployments/{model}/chat/completions" + query,
        EMBEDDINGS: "/openai/deployments/{model}/embeddings" + query,
        RESPONSES: "/openai/responses" + query,
    }
    return replace(service, base_url=root, paths=paths)
