"""Where an option's value comes from: flag, else ``LLMBATCH_NAME``, else the profile, else the file, else the default.

What is said at a higher level also takes back what can not stand beside it at a lower one, such as a template beside
tasks. An address and its key belong together: a key that was named for one address is not sent to another, and an
address from a file gets the key of the environment only if it is named beside it (``_settle_keys``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmbatch.cli import settings_file
from llmbatch.cli.env_file import load_env_file
from llmbatch.cli.options_table import Option
from llmbatch.cli.settings_file import KEY_PLACES, OF_ONE_RUN, SettingsFile
from llmbatch.errors import OptionsError

PREFIX = "LLMBATCH_"
# Where settings come from, itself said by a flag or a variable.
SOURCES = ("config", "profile", "env_file")

# Pairs by name: each name is looked for on its own. Tasks are not among them: they are one set of questions.
BY_NAME = ("param", "sim")
# Who says one of these takes back the others of lower levels.
_EXCLUSIVE = (("template", "task"), ("key_env", "key_file"), ("quiet", "verbose"))
_KEYS = ("key_env", "key_file")


@dataclass
class Level:
    """What is said in one place. ``places`` has the name of that place for each option; owned by ``resolve``."""

    place: str
    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    file: SettingsFile | None = None

    def where(self, name: str) -> str:
        return self.places.get(name, self.place)

    def drop(self, *names: str) -> None:
        for name in names:
            self.values.pop(name, None)


@dataclass(frozen=True)
class Settled:
    """What holds below the command line: values by option, and a line about each place they come from."""

    values: Mapping[str, Any]
    told: Sequence[str]


def resolve(options: Mapping[str, Option], given: Mapping[str, Any]) -> Settled:
    """The settings of all places below the command line, where ``given`` stands. Raises OptionsError.

    Loads the file of ``--env-file`` into the environment before that is read.
    """
    env_file = given.get("env_file") or os.environ.get(f"{PREFIX}ENV_FILE")
    if env_file:
        load_env_file(Path(env_file), os.environ)
    flags = Level("the command line", dict(given))
    environment = environment_level(options, os.environ)
    config, profile = (given.get(name) or os.environ.get(PREFIX + name.upper()) or None for name in SOURCES[:2])
    file = settings_file.find(config, os.environ)
    if profile and file is None:
        raise OptionsError(f"--profile {profile}: there is no {settings_file.NAME} here; name it with --config FILE")
    levels = [flags, environment, *(file_levels(file, options, profile) if file else ())]
    settle(levels, os.environ)
    below = levels[1:]
    return Settled(merged(below, given), list(_told(below, given)))


def environment_level(options: Mapping[str, Option], environment: Mapping[str, str]) -> Level:
    """What ``LLMBATCH_*`` variables say; an empty one says nothing. Raises OptionsError for one that is no setting."""
    level = Level("the environment", {})
    settable = {PREFIX + name.upper(): option for name, option in options.items() if name not in OF_ONE_RUN}
    sources = {PREFIX + name.upper() for name in SOURCES}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in sources or not text:
            continue
        option = settable.get(variable)
        if option is None:
            raise OptionsError(f"{variable} {_why_not(variable, [*settable, *sources])}")
        level.values[option.name] = option.from_text(text, variable)
        level.places[option.name] = variable
    return level


def file_levels(file: SettingsFile, options: Mapping[str, Option], profile: str | None) -> list[Level]:
    """What the file says, its profile first. Raises OptionsError."""
    found = settings_file.settings_of(file, options, profile)
    places = [file.label] if profile is None else [f"{file.label}, profile {profile}", file.label]
    return [Level(place, values, file=file) for place, values in zip(places, found, strict=True)]


def settle(levels: Sequence[Level], environment: Mapping[str, str]) -> None:
    """Take back, from the highest level down, what can not stand beside what is said above. Raises OptionsError."""
    for rank, level in enumerate(levels):
        lower = levels[rank + 1 :]
        for group in _EXCLUSIVE:
            if any(level.values.get(name) for name in group):
                for one in lower:
                    one.drop(*group)
        if _simulates(level.values.get("model")) and "base_url" not in level.values:
            for one in lower:
                one.drop("base_url")
    if not _simulates(_first(levels, "model")):
        for level in levels[1:]:
            level.drop("sim")  # it is for the runs that simulate
    _settle_keys(levels, environment)


def merged(levels: Sequence[Level], given: Mapping[str, Any]) -> dict[str, Any]:
    """The highest level's word for each option; of pairs, for each of their names that is not ``given``."""
    values: dict[str, Any] = {}
    for level in reversed(levels):
        values |= level.values
    for option in BY_NAME:
        pairs: list[str] = []
        named = {_name(pair) for pair in given.get(option, ())}
        for level in levels:
            here = [pair for pair in level.values.get(option, ()) if _name(pair) not in named]
            named |= {_name(pair) for pair in here}
            pairs += here
        if pairs:
            values[option] = pairs
        else:
            values.pop(option, None)
    return values


def _settle_keys(levels: Sequence[Level], environment: Mapping[str, str]) -> None:
    """A key that a lower level names for another address than the one that holds is not used.

    An address that stands in a file gets a key only if a flag or a file names the key; one in a file that nobody
    named, only if a flag does. This machine itself, and the providers' own hosts, may have their usual key.
    """
    address = _address(levels)
    for rank, level in enumerate(levels):
        if any(name in level.values for name in _KEYS) and _address(levels[rank:]) not in (None, address):
            level.drop(*_KEYS)
    at = next((level for level in levels if level.values.get("base_url")), None)
    if at is None or at.file is None:
        return
    key_at = next((level for level in levels if any(level.values.get(name) for name in _KEYS)), None)
    if key_at is not None and (key_at is levels[0] or not at.file.is_strange):
        return
    for url in _urls(at.values["base_url"]):
        variables = _usual_keys(url, levels, environment)
        if key_at is None and not variables:
            continue
        if not _is_known(url):
            _refuse_key(at, at.file, url, variables)


def _refuse_key(at: Level, file: SettingsFile, url: str, variables: Sequence[str]) -> None:
    if file.is_strange:
        raise OptionsError(
            f"{at.place} was only found here, and its base_url = {_shown_url(url)} would get a key of yours; "
            f"if you trust it, name the key (--key-env NAME), or the file, with a key_env in it: --config {file.path}"
        )
    raise OptionsError(
        f"{at.place}: base_url = {_shown_url(url)} would get the key in ${variables[0]}, which was not named for it; "
        f"beside it {KEY_PLACES}, or unset {variables[0]}"
    )


def _usual_keys(url: str, levels: Sequence[Level], environment: Mapping[str, str]) -> list[str]:
    """The variables whose key would be sent to ``url`` if nothing is said of keys. Raises OptionsError."""
    from llmbatch.providers.target import resolve as resolve_target

    target = resolve_target(
        _first(levels, "model"), url, api=_first(levels, "api"), api_version=_first(levels, "api_version")
    )
    if not target.is_private and not _first(levels, "allow_http"):
        return []
    return target.key_envs_set(environment)


def _is_known(url: str) -> bool:
    """This machine, or the very host of a provider; a subdomain may belong to anybody who pays for one."""
    from llmbatch.providers.services import SERVICES
    from llmbatch.providers.target import is_loopback

    parts = urlsplit(url)
    host = parts.hostname or ""
    own = {urlsplit(service.base_url).hostname for service in SERVICES.values() if service.base_url}
    return is_loopback(host) or (parts.scheme == "https" and host in own)


def _address(levels: Sequence[Level]) -> str | None:
    """Where requests would go by what these levels say, None if they do not say it."""
    from llmbatch.providers.services import known_service, service_named

    urls, model = _first(levels, "base_url"), _first(levels, "model")
    if urls:
        return " ".join(_urls(urls))
    if not model:
        return None
    prefix, slash, _ = model.partition("/")
    service = service_named(prefix) if slash else known_service(model)
    return prefix if service is None else service.base_url or service.name


def _first(levels: Sequence[Level], name: str) -> Any:
    return next((level.values[name] for level in levels if level.values.get(name)), None)


def _simulates(model: Any) -> bool:
    return isinstance(model, str) and model.startswith("sim/")


def _urls(value: Any) -> list[str]:
    return [str(one).rstrip("/") for one in (value if isinstance(value, list | tuple) else [value])]


def _name(pair: str) -> str:
    return pair.partition("=")[0].strip()


def _why_not(variable: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    name = variable.removeprefix(PREFIX).lower()
    if name in OF_ONE_RUN:
        return f"is of one run, not of all: give --{name.replace('_', '-')} on the command line"
    if name.endswith(("key", "token", "secret", "password")):
        return f"is no setting: set the provider's own variable (OPENAI_API_KEY, …), or name yours in {PREFIX}KEY_ENV"
    close = get_close_matches(name, [one.removeprefix(PREFIX).lower() for one in known], n=1, cutoff=0.6)
    if close:
        return f"is no setting; did you mean {PREFIX}{close[0].upper()}?"
    return "is no setting; llmbatch run --help lists them"


def _told(levels: Sequence[Level], given: Mapping[str, Any]) -> Iterator[str]:
    """A line for each place that has a say, the address first and whole: it is where prompts go."""
    said = set(given) - set(BY_NAME)
    for level in levels:
        here = [name for name in level.values if name not in said]
        said |= {name for name in here if name not in BY_NAME}
        if not here:
            continue
        words = [level.where(name) if level.places else name for name in here if name != "base_url"]
        if "base_url" in here:
            shown = ", ".join(map(_shown_url, _urls(level.values["base_url"])))
            words.insert(0, f"{level.where('base_url') if level.places else 'base_url'} = {shown}")
        yield f"settings from {level.place}: {', '.join(words)}"


def _shown_url(url: str) -> str:
    return "(not shown: it has a password in it)" if "@" in url else url
