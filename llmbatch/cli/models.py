"""``llmbatch models``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llmbatch.cli.ending import Ending, answer, complain

if TYPE_CHECKING:
    from llmbatch.prices import ListedModel
    from llmbatch.providers.services import Service
    from llmbatch.views.models import KnownModel

EPILOG = """Exit codes: 0 there are some; 1 none matches; 2 bad usage; 5 standard output can not be written.
"""
NO_MATCH = 1
# Speech, images, calls and batches, which are asked for otherwise; and what stands in the list for many tuned models.
_NO_CHAT = re.compile(r"(?:^|-)(?:image|tts|realtime|transcribe|live)(?:$|-)|^ft:|:batch$|-$")


def models(
    filter_: Annotated[str, typer.Argument(metavar="[FILTER]", help="Only names with this in them.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the known models, as -m takes them, with their context window and their price. Needs no network.

    Other models of these providers work too; what they cost is then unknown.

    Example: llmbatch models gpt-4.1
    """
    with Ending() as ending:
        from shutil import get_terminal_size

        from llmbatch.cli.completion import remember_models
        from llmbatch.files.results import dump_line
        from llmbatch.prices import price_list_version
        from llmbatch.views.models import models_json, render_models

        known = list(known_models())
        remember_models(one.model for one in known)
        found = [one for one in known if filter_.lower() in one.model.lower()]
        if json:
            answer(dump_line(models_json(found, price_list_version())))
        elif found:
            answer(render_models(found, price_list_version(), get_terminal_size().columns))
        if not found:
            complain(f"no known model has {filter_!r} in its name{_instead(filter_, known)}")
            ending.code = NO_MATCH


def known_models() -> Iterator[KnownModel]:
    """The models in the price list of every service that is known by name, in the order of the services."""
    from llmbatch.providers.services import GEMINI, SERVICES
    from llmbatch.views.models import KnownModel

    for service in SERVICES.values():
        for listed in _priced(service):
            api = service.api_of(listed.name)
            # The list's Google is Vertex AI too, which sells Claude; the address of Gemini does not.
            elsewhere = service.name == GEMINI and listed.name.startswith("claude-")
            answers = listed.output_usd is not None or api == service.embeddings
            if answers and not elsewhere and not _NO_CHAT.search(listed.name):
                yield KnownModel(f"{service.name}/{listed.name}", api, listed)


def _priced(service: Service) -> list[ListedModel]:
    """The list of the first of its addresses that has one."""
    from llmbatch.prices import price_list

    addresses = [service.base_url, *(f"https://{host}" for host in (service.host, *service.other_hosts) if host)]
    return next((found for address in addresses if address and (found := price_list(address))), [])


def _instead(wanted: str, known: list[KnownModel]) -> str:
    from difflib import get_close_matches

    names = {name.lower(): one.model for one in known for name in (one.model.partition("/")[2], one.model)}
    close = dict.fromkeys(names[name] for name in get_close_matches(wanted.lower(), names, n=3, cutoff=0.5))
    return f"; close to it: {', '.join(close)}" if close else "; without a filter all are listed"


models.__doc__ = inspect.cleandoc(cast(Any, models.__doc__)) + "\n\n" + EPILOG
