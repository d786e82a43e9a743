"""What does this row ask for? A Row and the run's settings become a Request, or an error row that says why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.errors import OptionsError
from llmbatch.records import BadRow, Request, Row
from llmbatch.rules.batch_lines import ANTHROPIC, anthropic_body, batch_body, is_anthropic_line, is_batch_line
from llmbatch.rules.messages import check_messages, has_system, normalised, prompt_message, rendered_message
from llmbatch.rules.params import KNOWN, checked, forbidden, is_forbidden, meant, not_json, without_overridden
from llmbatch.rules.reasons import RowError, excerpt, kind_of, names

_STRUCTURE = frozenset({"id", "custom_id", "prompt", "messages", "input", "system", "params", "tasks"})
_READS_ROW = re.compile(r"\{[{%][^}]*\brow\b")
# Field names remembered as harmless; rows with ever new names must not fill the memory.
_MAX_PLAIN_NAMES = 10_000
_NOTHING: Mapping[str, Any] = {}

Render = Callable[[Mapping[str, Any]], str]


class RequestBuilder:
    """Builds every row's Request for one run. One task uses it.

    ``params`` are the command line's raw fields (``-p``): they go to ``Request.extra``, without those that the row
    sets itself; the row's go to ``Request.params``. Without a template the row says ``prompt``, ``messages``, a whole
    body (a line of OpenAI's or Anthropic's batch API), or ``input`` for embeddings, and may set ``system`` and the
    known parameters, at the top level or under ``params`` (which wins). With a template every field of the row is
    data for it, whatever its name, and only ``params`` sets parameters. ``system`` may be a template too; it gives
    way to a row's own system message. Every answer must fit ``schema``. ``tasks`` are templates by their names, each
    of which asks something else of the same row. Templates can show images if there is a ``nonce``, a word that no row
    can know.

    ``warnings`` collects what is worth saying once. Raises OptionsError for a bad template or parameter.
    """

    def __init__(
        self,
        *,
        model: str | None,
        template: str | None = None,
        system: str | None = None,
        params: Mapping[str, Any] = _NOTHING,
        schema: Mapping[str, Any] | None = None,
        tasks: Mapping[str, str] = _NOTHING,
        nonce: str = "",
    ) -> None:
        self.warnings: set[str] = set()
        self._schema = schema
        self._model = model
        self._nonce = nonce
        self._template = _compiled(template, "--template", nonce) if template is not None else None
        self._tasks = {name: _compiled(text, f"--task {name}", nonce) for name, text in tasks.items()}
        self._system = _compiled(system, "--system") if system else None
        self._params = _run_params(params)
        self._plain: set[str] = set(_STRUCTURE)
        texts = [text for text in (template, *tasks.values()) if text is not None]
        self._unused = _unused_names("\0".join(texts), system or "") if texts else set()
        self._data: list[str] = []

    def parts(self, row: Row, offset: int = 0) -> dict[str, Request | BadRow] | None:
        """What each task asks about this row, by its name; None for a row without tasks.

        Tasks are templates of the run; without them and without a template, a row may have its own under ``tasks``: a
        text, or what a row may say.
        """
        if self._tasks:
            return {name: self._attempt(row, offset, self._templated, render) for name, render in self._tasks.items()}
        own = self._own_tasks(row)
        if own is None:
            return None
        if not _are_named(own):
            return {"tasks": self._bad(row, offset, RowError("'tasks' must be an object with a prompt for each name"))}
        shared = {name: row.fields[name] for name in row.fields.keys() - {"id", "custom_id", "tasks"}}
        return {name: self._attempt(row, offset, self._own_task, (shared, task)) for name, task in own.items()}

    def build(self, row: Row, offset: int = 0) -> Request | BadRow:
        """The row's Request, or its error row; ``offset`` is the byte offset of its line, for that error row."""
        if self._template is not None:
            return self._attempt(row, offset, self._templated, self._template)
        return self._attempt(row, offset, self._request)

    def build_said(self, row: Row) -> Request | BadRow:
        """The same without the template: ``row`` says its prompt or its messages."""
        return self._attempt(row, 0, self._request)

    def names(self, row: Row) -> tuple[str, ...]:
        """Of the tasks of ``row``: none if it has none, or no good ones."""
        own = self._tasks or self._own_tasks(row)
        return tuple(own) if _are_named(own) else ()

    def _own_tasks(self, row: Row) -> Any:
        return row.fields.get("tasks") if self._template is None else None

    def _attempt(self, row: Row, offset: int, make: Callable[..., Request], *what: Any) -> Request | BadRow:
        try:
            return make(row, *what)
        except RowError as error:
            return self._bad(row, offset, error)

    def _bad(self, row: Row, offset: int, error: RowError) -> BadRow:
        return BadRow(row.index, row.line, offset, f"line {row.line}: {error}", row.id)

    def _templated(self, row: Row, template: Render) -> Request:
        """The fields are data for the template."""
        message = rendered_message(template(row.fields), self._nonce)
        if not self._unused.isdisjoint(row.fields):
            self._notice_data(row.fields)
        return self._chat(row, [message], self._params_of(row.fields, _NOTHING), own_system=None)

    def _own_task(self, row: Row, given: tuple[Mapping[str, Any], Any]) -> Request:
        """A task is a row of its own, with what the whole row says beside it."""
        shared, task = given
        if type(task) is str:
            task = {"prompt": task}
        elif type(task) is not dict:
            raise RowError(f"a task must be a prompt or an object, not {kind_of(task)}")
        return self._request(replace(row, fields={**shared, **task}))

    def _request(self, row: Row) -> Request:
        fields = row.fields
        if is_batch_line(fields):
            self._notice_stream_of(fields["body"])
            return self._whole(fields, *batch_body(fields, self._model, self._params))
        if is_anthropic_line(fields):
            self._notice_stream_of(fields["params"])
            return self._whole(fields, ANTHROPIC, anthropic_body(fields, self._model, self._params))
        if "input" in fields and not fields.keys() & {"prompt", "messages"}:
            return self._to_embed(row)
        params = self._params_of(fields, self._top_level(fields))
        return self._chat(row, self._messages(fields), params, own_system=fields.get("system"))

    def _chat(self, row: Row, messages: list[dict[str, Any]], params: Mapping[str, Any], *, own_system: Any) -> Request:
        model, params = self._model_of(params)
        messages = self._with_system(row, messages, own_system)
        extra = without_overridden(self._params, params)
        return Request(model, messages, params, extra, schema=self._schema)

    def _model_of(self, params: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The model to ask, and the parameters without it."""
        model = self._model
        if params and "model" in params:
            model = self._own_model(params["model"])
            params = {name: value for name, value in params.items() if name != "model"}
        if model is None:
            raise _no_model()
        return model, params

    def _whole(self, fields: Mapping[str, Any], api: str, body: Mapping[str, Any]) -> Request:
        """A row that says its whole request."""
        for name in fields:
            if name != "url" and is_forbidden(name):
                raise forbidden(name)
        if body["model"] is None:
            raise _no_model()
        return Request(self._own_model(body["model"]), body=body, api=api, schema=self._schema)

    def _to_embed(self, row: Row) -> Request:
        """Text, or a list of texts, for an embeddings model."""
        given = row.fields["input"]
        texts = given if type(given) is list else [given]
        if not texts or any(type(text) is not str or not text for text in texts):
            raise RowError("'input' must be a text, or a list of texts, none of them empty")
        params = self._params_of(row.fields, self._top_level(row.fields))
        model, params = self._model_of(params)
        return Request(model, params=params, extra=without_overridden(self._params, params), input=given)

    def _messages(self, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
        prompt, messages = fields.get("prompt"), fields.get("messages")
        if messages is None:
            if prompt is None:
                raise RowError(_no_prompt(fields))
            return [prompt_message(prompt)]
        if prompt is not None:
            raise RowError("the row has both 'prompt' and 'messages': which one is meant?")
        check_messages(messages)
        return normalised(messages)

    def _with_system(self, row: Row, messages: list[dict[str, Any]], own: Any) -> list[dict[str, Any]]:
        if own is not None and type(own) is not str:
            raise RowError(f"'system' must be a string, not {kind_of(own)}")
        text = own
        if text is None and self._system is not None and not has_system(messages):
            text = self._system(row.fields)
        return [{"role": "system", "content": text}, *messages] if text else messages

    def _top_level(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The known parameters among the fields; new names are looked at once."""
        telling = fields.keys() - self._plain
        if not telling:
            return _NOTHING
        for name in telling - KNOWN:
            self._look_at(name)
        return {name: value for name, value in fields.items() if name in KNOWN}

    def _look_at(self, name: str) -> None:
        if is_forbidden(name):
            raise forbidden(name)
        if isinstance(name, str) and (known := meant(name)):  # rows from Python may have names of any type
            self.warnings.add(f"the field '{excerpt(name, 40)}' is not sent: was '{known}' meant?")
        if len(self._plain) < _MAX_PLAIN_NAMES:
            self._plain.add(name)

    def _params_of(self, fields: Mapping[str, Any], top_level: Mapping[str, Any]) -> Mapping[str, Any]:
        own = fields.get("params")
        if own is None:
            own = _NOTHING
        elif type(own) is not dict:
            if self._template is None:
                raise RowError(f"'params' must be an object, not {kind_of(own)}")
            own = _NOTHING
        elif "messages" in own:
            raise RowError("'params' may not hold 'messages' beside a prompt: which one is meant?")
        if not own and not top_level:
            return _NOTHING
        given = {**top_level, **own}
        self._notice_stream(given)
        return checked(given)

    def _own_model(self, model: str) -> str:
        if self._model is not None and model != self._model:
            self.warnings.add("some rows name a model of their own, which wins over -m")
        return model

    def _notice_data(self, fields: Mapping[str, Any]) -> None:
        """Known parameters at the top level of a row that is data, and that no template reads: were they meant?"""
        found = self._unused & fields.keys()
        self._unused -= found
        if "system" in found:
            self.warnings.add(_SYSTEM_IS_DATA)
        if found := found - {"system"}:
            self.warnings.discard(_are_data(self._data))
            self._data = sorted([*self._data, *found])
            self.warnings.add(_are_data(self._data))

    def _notice_stream_of(self, body: Any) -> None:
        if isinstance(body, dict):
            self._notice_stream(body)

    def _notice_stream(self, params: Mapping[str, Any]) -> None:
        if params.get("stream"):
            self.warnings.add("'stream' in a row is ignored: --stream says it for the run")


def _are_named(tasks: Any) -> bool:
    return type(tasks) is dict and bool(tasks) and all(type(name) is str and name for name in tasks)


def _compiled(text: str, flag: str, nonce: str = "") -> Render:
    """A text without template marks needs no Jinja2, which is slow to import."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionsError(f"{flag} is not UTF-8 text") from None
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return lambda fields: text
    from llmbatch.rules.template import RowTemplate

    return RowTemplate(text, flag, nonce).render


def _run_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in params.items():
        if type(name) is not str or not_json(name):
            raise OptionsError(f"-p: the name {name!r} is not UTF-8 text")
        if name in _RESERVED:
            raise OptionsError(f"-p {name}: {_RESERVED[name]}")
        if is_forbidden(name):
            raise OptionsError(f"-p can not set {name}: use --base-url, --key-env or --key-file")
        if name == "n" and value != 1:
            raise OptionsError("-p n: several answers to one row are not supported yet")
        if reason := not_json(value):
            raise OptionsError(f"-p {name}: {reason}")
    return dict(params)


_RESERVED = {
    "model": "use -m",
    "messages": "the rows say them",
    "stream": "use --stream",
    "stream_options": "use --stream",
}


_SYSTEM_IS_DATA = (
    "with --template the field 'system' is data for it; --system '{{ system }}' makes it the system message"
)


def _unused_names(template: str, system: str) -> set[str]:
    """The parameters that neither text reads; none if one of them reads ``row``, which is all fields."""
    texts = f"{template}\0{system}"
    if _READS_ROW.search(texts):
        return set()
    return {name for name in KNOWN | {"system"} if name not in texts}


def _are_data(names: list[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    if len(names) == 1:
        return f"with --template the field {listed} is data for it; put it under 'params' to send it"
    return f"with --template the fields {listed} are data for it; put them under 'params' to send them"


def _no_model() -> RowError:
    return RowError("no model: add -m PROVIDER/MODEL, or a 'model' to the row")


def _no_prompt(fields: Mapping[str, Any]) -> str:
    has = names(list(map(str, fields)))
    return f"no 'prompt' or 'messages'; the row has: {has}; --template 'text {{{{ field }}}}' uses them"
