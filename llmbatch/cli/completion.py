"""What the shell offers at TAB for the values of options. Nothing here may fail, be slow, or import the price list."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

# Names with a colon are left out: bash takes it for the end of a word.
_BREAKS_WORDS = ":"
_CACHE = "models.txt"


def models(incomplete: str) -> list[str]:
    """``openai/gpt-…``: the names of the known services, and after the slash the models in their list.

    The list is that of the last ``llmbatch models``; before the first there are only the services.
    """
    from llmbatch.providers.services import SERVICES

    services = [f"{name}/" for name in (*SERVICES, "sim")]
    offered = [name for name in services if name.startswith(incomplete) and "/" not in incomplete]
    if len(offered) > 1:
        return offered
    # With one service its models too: what is offered alone gets a blank behind it.
    return offered + [name for name in _remembered() if name.startswith(incomplete)]


def apis(incomplete: str) -> list[str]:
    """The dialects."""
    from llmbatch.providers.services import APIS

    return [name for name in APIS if name.startswith(incomplete)]


def profiles(incomplete: str) -> list[str]:
    """Those of the file that a run would read here; of one that ``--config`` names they are not known."""
    from llmbatch.cli.settings_file import find, profiles_of
    from llmbatch.errors import OptionsError

    try:
        file = find(os.environ.get("LLMBATCH_CONFIG") or None, os.environ)
    except OptionsError:
        return []
    return [] if file is None else [name for name in profiles_of(file.document) if name.startswith(incomplete)]


def remember_models(names: Iterable[str]) -> None:
    """For the next TAB. A cache that can not be written is none."""
    folder = _cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{_CACHE}.{os.getpid()}"
        fresh.write_text("".join(f"{name}\n" for name in names if _BREAKS_WORDS not in name), encoding="utf-8")
        fresh.replace(folder / _CACHE)


def _remembered() -> list[str]:
    folder = _cache_folder()
    try:
        return [] if folder is None else (folder / _CACHE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _cache_folder() -> Path | None:
    """XDG Base Directory Specification; None for a user without a home."""
    base, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME")
    if Path(base).is_absolute():
        return Path(base) / "llmbatch"
    return Path(home) / ".cache" / "llmbatch" if home else None
