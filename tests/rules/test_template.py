"""Templates: strict about what is missing, deaf to what the data says, deterministic, and contained."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.rules import template as template_module
from llmbatch.rules.reasons import RowError
from llmbatch.rules.template import RowTemplate


@pytest.mark.parametrize(
    ("source", "fields", "text"),
    [
        ("Say {{ word }}.", {"word": "hi"}, "Say hi."),
        ("{{ row['first name'] }}", {"first name": "Ann"}, "Ann"),
        ("{{ row.items }} {{ row.x }}", {"items": "a", "x": 1}, "a 1"),
        ("{{ user.keys }}", {"user": {"keys": 3}}, "3"),
        ("{% for k, v in row.items() %}{{ k }}={{ v }};{% endfor %}", {"a": 1, "b": 2}, "a=1;b=2;"),
        ("{{ x | default('none') }} {{ y | d('gone') }}", {"x": None}, "none gone"),
        ("{{ a.b | default('-') }}", {"a": {}}, "-"),
        ("{{ x | default('e', true) }}", {"x": ""}, "e"),
        ("{% if x is defined %}a{% else %}b{% endif %}", {}, "b"),
        ("{% if x %}a{% else %}b{% endif %}", {"x": None}, "b"),
        ("{{ html }}", {"html": "<b>&\"'"}, "<b>&\"'"),
        ("{{ row | tojson }}", {"a": "<é>"}, '{"a": "<é>"}'),
        ("{{ text }}", {"text": "{{ 1/0 }} {% raw %}"}, "{{ 1/0 }} {% raw %}"),
        ("{{ '{{ text }}' }}", {"text": "a"}, "{{ text }}"),
        ("a\r\nb\n", {}, "a\nb\n"),
        ("{{ n }} {{ f }} {{ b }}", {"n": 10**25, "f": 0.1, "b": True}, f"{10**25} 0.1 True"),
        ("{{ row.row }}", {"row": "own"}, "own"),
        ("{# note #}x", {}, "x"),
    ],
)
def test_fields_are_rendered(source: str, fields: dict[str, Any], text: str) -> None:
    assert RowTemplate(source).render(fields) == text


@pytest.mark.parametrize(
    ("source", "fields", "words"),
    [
        ("{{ text }}", {"txt": 1, "id": 2}, ["--template", "'text' is missing", "txt, id"]),
        ("{{ text }}", {}, ["the row has: none"]),
        ("{% if text %}a{% endif %}", {}, ["'text' is missing"]),
        ("{{ a.b }}", {"a": {}}, ["'b'", "the row has: a"]),
        ("{{ text }}", {"a\x1b[2J": 1}, ["a\\x1b[2J"]),
        ("{{ text }}", {f"field{number}": 1 for number in range(1000)}, ["and 980 more"]),
        ("{{ text }}", {"text": None}, ["'text' is null", "{{ text | default('') }}"]),
        ("{{ row.text }}", {"text": None}, ["a value is null"]),
        ("{{ none }}", {}, ["a value is null"]),
        ("{{ text.upper }}", {"text": "a"}, ["parentheses"]),
        ("{{ 1 / n }}", {"n": 0}, ["ZeroDivisionError"]),
        ("{{ n + 1 }}", {"n": "a"}, ["TypeError"]),
        ("{{ ''.__class__.__mro__ }}", {}, ["not allowed", "__class__"]),
        ("{{ text.__init__.__globals__ }}", {"text": "a"}, ["not allowed"]),
        ("{{ items.append(1) }}", {"items": []}, ["not allowed"]),
        ("{% include 'x' %}", {}, ["no loader"]),
        ("{{ range(10**9) | list }}", {}, ["Range too big"]),
        ("{{ f(1) }}", {"f": "text"}, ["TypeError"]),
    ],
)
def test_what_can_not_be_rendered_is_a_row_error_that_names_it(
    source: str, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RowError) as error:
        RowTemplate(source).render(fields)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a\nb {{ text", "--template, line 2: "),
        ("{% if x %}", "line 1"),
        ("{{ x | nope }}", "nope"),
        ("{{ x | random }}", "random"),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "--template"),
    ],
)
def test_a_template_that_does_not_compile_is_an_options_error_with_its_line(source: str, words: str) -> None:
    with pytest.raises(OptionsError, match=words):
        RowTemplate(source)


def test_a_text_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_RENDERED_CHARS", 1000)
    template = RowTemplate("{% for i in range(100000) %}{% for j in range(100000) %}xx{% endfor %}{% endfor %}")
    with pytest.raises(RowError, match="more than 1000 characters"):
        template.render({})


BIG = 10**9


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * n }}",
        "{{ n * 'a' }}",
        "{{ [0] * n }}",
        "{{ 'a' * 500000000 }}",
        "{{ 7 ** n }}",
        "{{ (10 ** 9999) * (10 ** 29999) * (10 ** 9999) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%.1000000000f' % 1 }}",
        "{{ '%*d' % (n, 1) }}",
        "{{ fmt % 1 }}",
        "{{ fmt | format(1) }}",
        "{{ '%(a)*d' | format(a=n) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, n) }}",
        "{{ '{a:>{w}}'.format_map({'a': 1, 'w': n}) }}",
        "{{ brace.format(x) }}",
        "{{ x.ljust(n) }}",
        "{{ x.rjust(width=n) if false else x.rjust(n) }}",
        "{{ x.center(n) }}",
        "{{ x | center(n) }}",
        "{{ x | center(width=n) }}",
        "{{ x.zfill(n) }}",
        "{{ '\t'.expandtabs(n) }}",
        "{{ ('\t' * 1000000).expandtabs(1000000) }}",
        "{{ (1).to_bytes(n, 'big') }}",
        "{{ ('\n' * 1000000) | indent(1000000) }}",
        "{{ ('\n' * 1000000) | indent('x' * 1000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
        "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
        "{{ ('b' * 1000000).join(range(99999) | map('string')) }}",
        "{{ range(99999) | join('b' * 1000000) }}",
        "{{ ('a b ' * 1000000) | wordwrap(2, wrapstring='x' * 1000000) }}",
        "{{ [1] | batch(n, 'x') | list }}",
        "{{ [1] | slice(n) | list }}",
        "{{ 1.5 | round(n, 'ceil') }}",
        "{{ [[1]] | tojson(indent=n) }}",
        "{% set a = 'a' * 60000000 %}{{ a ~ a }}",
        "{% set a = 'a' * 60000000 %}{{ a + a }}",
        "{% set m = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set m.x = m.x ~ m.x %}{% endfor %}",
        "{% set m = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set m.x = m.x + m.x %}{% endfor %}",
        "{% set m = namespace(x=[1]) %}{% for i in range(99) %}{% set m.x = m.x + m.x %}{% endfor %}",
    ],
)
def test_an_expression_that_blows_up_is_stopped_before_it_does(source: str) -> None:
    fields = {"n": BIG, "x": "x", "fmt": "%1000000000d", "brace": "{:>1000000000}"}
    template = RowTemplate(source)
    began_s = time.perf_counter()
    with pytest.raises(RowError, match=r"--template: .*(more than|indent)"):
        template.render(fields)
    assert time.perf_counter() - began_s < 2.0


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_loops_without_end_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_STEPS", 10_000)
    with pytest.raises(RowError, match=r"turns of loops and calls|RecursionError"):
        RowTemplate(source).render({})


def test_steps_are_counted_for_each_row_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_STEPS", 100)
    template = RowTemplate("{% for i in range(60) %}x{% endfor %}")
    assert [template.render({}) for _ in range(3)] == ["x" * 60] * 3


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '-' * 20 }}", "-" * 20),
        ("{{ 2 ** 64 * 3 }}", str(2**64 * 3)),
        ("{{ 'a' + 'b' }}{{ 1 + 2 }}{{ [1] + [2] }}", "ab3[1, 2]"),
        ("{{ 'a' ~ 1 ~ true }}", "a1True"),
        ("{{ '%05.2f %s' % (1.5, 'x') }}", "01.50 x"),
        ("{{ '%(a)s' % {'a': 7} }}", "7"),
        ("{{ '%s-%s' | format(1, 2) }}", "1-2"),
        ("{{ '%(a)s' | format(a=3) }}", "3"),
        ("{{ '{:,}'.format(1234567890123) }}", "1,234,567,890,123"),
        ("{{ '{:>{}}'.format(1, 5) }}", "    1"),
        ("{{ 'a'.ljust(3) }}|{{ 'a' | center(5) }}|", "a  |  a  |"),
        ("{{ ', '.join(['a', 'b']) }} {{ [1, 2] | join('-') }}", "a, b 1-2"),
        ("{{ [{'n': 1}, {'n': 2}] | join(', ', attribute='n') }}", "1, 2"),
        ("{{ 'aXb' | replace('X', '--') }}{{ 'aXb'.replace('X', '') }}", "a--bab"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ [1, 2, 3] | batch(2, 0) | list }}", "[[1, 2], [3, 0]]"),
        ("{{ 1.25 | round(1) }}", "1.2"),
        ("{{ 1700000000 % 7 }}", str(1700000000 % 7)),
        ("{% for i in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}", "a1"),
        ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% for i in range(6) if i % 2 %}{{ i }}{% endfor %}", "135"),
        ("{% macro m(name) %}<{{ name }}>{% endmacro %}{{ m(name='a') }}", "<a>"),
    ],
)  # fmt: skip
def test_what_stays_within_bounds_renders_as_ever(source: str, text: str) -> None:
    assert RowTemplate(source).render({}) == text


def test_the_flag_is_named() -> None:
    with pytest.raises(OptionsError, match="--system, line 1"):
        RowTemplate("{{", "--system")


def test_jinja_is_imported_only_for_a_template() -> None:
    script = (
        "import sys\n"
        "from llmbatch.rules.request import RequestBuilder\n"
        "RequestBuilder(model='m', system='plain', template='plain')\n"
        "assert 'jinja2' not in sys.modules\n"
        "RequestBuilder(model='m', template='{{ x }}')\n"
        "assert 'jinja2' in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
