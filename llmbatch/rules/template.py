"""Jinja2 templates: what does this row ask for? Sandboxed, and strict about what is missing.

Import this module only where a template is used: Jinja2 takes 80 ms to import. Line ends of the template become
``\\n``, as Jinja2 has it; the last newline is kept. Values are data: ``{{`` inside one is never rendered again.

``{{ image(path) }}`` says where an image stands; rules/images.py finds it again in the text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    Undefined,
    UndefinedError,
    meta,
    nodes,
    pass_context,
    pass_environment,
)
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from llmbatch.errors import OptionsError
from llmbatch.options import MAX_BODY_BYTES
from llmbatch.rules.expansion import TooLarge, check_call, check_join, check_operator
from llmbatch.rules.images import image_marker
from llmbatch.rules.reasons import RowError, excerpt, names

MAX_RENDERED_CHARS = MAX_BODY_BYTES
# Turns of loops and calls for one row: half a second. Counted, not timed: the same row gives the same text anywhere.
MAX_STEPS = 1_000_000
MAX_JSON_INDENT = 100
_COUNTED = "llmbatch counted"
# Names that no template can say.
_IMAGE = "llmbatch image"
_NONCE = "llmbatch nonce"


class RowTemplate:
    """A compiled template. Raises OptionsError, naming ``flag`` and the line, if ``source`` is no template.

    ``image()`` renders to a marker with ``nonce`` in it, which no row may know; without one, images have no place here.
    """

    def __init__(self, source: str, flag: str = "--template", nonce: str = "") -> None:
        self._flag = flag
        self._nonce = nonce
        try:
            self._names = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            self._template: Template = _ENVIRONMENT.from_string(source)
        except TemplateSyntaxError as error:
            raise OptionsError(f"{flag}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise OptionsError(f"{flag}: nested too deeply") from None

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text for a row: each field is a name, ``row`` is all of them.

        Raises RowError for a missing or null field, a forbidden act, a failing expression, a text without end.
        """
        try:
            return self._bounded({**fields, "row": fields, _NONCE: self._nonce})
        except RowError:
            raise
        except UndefinedError as error:
            raise RowError(f"{self._flag}: {self._missing(error, fields)}") from None
        except TooLarge as error:
            raise RowError(f"{self._flag}: {error}") from None
        except SecurityError as error:
            raise RowError(f"{self._flag}: not allowed in a template: {excerpt(str(error))}") from None
        except Exception as error:  # an expression of the user's may raise anything
            raise RowError(f"{self._flag}: {type(error).__name__}: {excerpt(str(error))}") from None

    def _bounded(self, context: dict[str, Any]) -> str:
        pieces: list[str] = []
        chars = 0
        try:
            for piece in self._template.root_render_func(self._template.new_context(context)):
                pieces.append(piece)
                chars += len(piece)
                if chars > MAX_RENDERED_CHARS:
                    raise RowError(f"{self._flag}: renders to more than {MAX_RENDERED_CHARS} characters")
        except _NullValue:
            raise RowError(f"{self._flag}: {self._null(context)}") from None
        return "".join(pieces)

    def _missing(self, error: UndefinedError, fields: Mapping[str, Any]) -> str:
        missing = sorted(name for name in self._names if name not in fields and f"'{name}'" in str(error))
        what = f"field '{missing[0]}' is missing" if missing else excerpt(str(error))
        return f"{what}; the row has: {names(list(map(str, fields)))}"

    def _null(self, context: Mapping[str, Any]) -> str:
        null = sorted(name for name in self._names if name in context and context[name] is None)
        name = null[0] if null else "x"
        what = f"field '{excerpt(name, 40)}'" if null else "a value"
        return f"{what} is null: use {{{{ {name} | default('') }}}}"


class _NullValue(Exception):
    """A null would have been written as the word None."""


class _Context(Context):
    """The names of one rendering, and how much it has done."""

    steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge(f"more than {MAX_STEPS} turns of loops and calls")


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """``a ~ b``: no hook of the sandbox is asked for it."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _ImageCalls(NodeTransformer):
    """``image(x)`` is a filter in truth: the row may have a field ``image``, and a template ``image(image)``."""

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.node, nodes.Name) or node.node.name != "image":
            return node
        if len(node.args) != 1 or node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise TemplateSyntaxError("image() takes one path, or one URL", node.lineno)
        return nodes.Filter(node.args[0], _IMAGE, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    context_class = _Context
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The turns of every loop are counted: each takes what it goes through from a filter."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        own = any(macro.name == "image" for macro in tree.find_all(nodes.Macro))
        return tree if own else _ImageCalls().visit(tree)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Arguments named as Jinja2 names them, so that a macro may have any other name."""
        if isinstance(__context, _Context):
            __context.step()
        method = getattr(__obj, "__wrapped__", __obj)  # str.format is wrapped by the sandbox
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if name == "join" and isinstance(owner, str) and len(args) == 1 and not isinstance(args[0], Undefined):
            args = (list(args[0]),)
            check_join(args[0], owner)
        elif isinstance(owner, str | bytes | int):
            check_call(name, owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def joined(self, parts: Iterable[Any]) -> str:
        """The value of ``a ~ b``."""
        texts = list(map(str, parts))
        check_join(texts)
        return str_join(texts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``row.items`` is the row's field of that name, if it has one, not a method of dict."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _finalize(value: Any) -> Any:
    if value is None:
        raise _NullValue
    if callable(value) and not isinstance(value, Undefined):
        raise RowError(f"a template can not write {excerpt(repr(value), 60)}: are the parentheses missing?")
    return value


def _default(value: Any, instead: Any = "", boolean: bool = False) -> Any:
    """Jinja2's ``default``, for which null counts as missing too."""
    return instead if isinstance(value, Undefined) or value is None or (boolean and not value) else value


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(context, _Context):
            context.step()
        yield value


@pass_context
def _image(context: Context, source: Any) -> str:
    if isinstance(source, Undefined):
        return str(source)  # says which field is missing
    if source is None:
        raise _NullValue
    nonce = str(context[_NONCE])
    if not nonce:
        raise RowError("an image has its place in --template or --task, in the user's message")
    return image_marker(source, nonce)


def _format(pattern: Any, *args: Any, **named: Any) -> str:
    """Jinja2's ``format``: the ``%`` of Python, with values or with names."""
    if args and named:
        raise TypeError("format takes either values or names")
    check_operator("%", str(pattern), named or args)
    return str(pattern) % (named or args)


def _checked(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, once its result is known not to be too large."""
    value_at = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # the environment, or the like, comes first

    @functools.wraps(filter_)
    def checked(*args: Any, **named: Any) -> Any:
        check_call(name, args[value_at], args[value_at + 1 :], named)
        return filter_(*args, **named)

    return checked


@pass_environment
def _join(environment: Environment, values: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    """Jinja2's ``join``, of a list whose size is known."""
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    texts = list(map(str, values))
    check_join(texts, str(d))
    return str(d).join(texts)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Jinja2's own writes ``<`` as ``\\u003c``, for HTML; a model would see that."""
    if indent is not None and indent > MAX_JSON_INDENT:
        raise TooLarge(f"an indent of {indent}")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.finalize = _finalize
    environment.filters.update(default=_default, d=_default, tojson=_tojson, format=_format, join=_join)
    environment.filters[_COUNTED] = _counted
    environment.filters[_IMAGE] = _image
    for name in ("batch", "center", "indent", "replace", "round", "slice", "wordwrap"):
        environment.filters[name] = _checked(name, environment.filters[name])
    # The same row must render to the same request when the command is given again.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


_ENVIRONMENT = _environment()
