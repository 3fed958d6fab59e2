"""A template makes nothing much larger than what it is given and takes no longer than it may; within these limits it
writes what transformers writes."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from typing import Any

import oracle_templates
import pytest
import test_template_shapes
import tiny_tokenizers as tiny

from tunesmith.data.formats import convert
from tunesmith.data.render import Renderer
from tunesmith.data.settings import TemplateFormat
from tunesmith.data.templating import chat, limits
from tunesmith.data.templating.chat import ChatTemplate, TemplateFailed
from tunesmith.data.templating.rendering import chat_environment
from tunesmith.data.types import Conversation, Message, Origin
from tunesmith.errors import DataError

ORIGIN = Origin("test", 1)
TURNS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "what is it? <b>'\"é\n\n two  lines "},
    {"role": "assistant", "content": "", "tool_calls": [test_template_shapes.CALL]},
    {"role": "tool", "content": "rain", "name": "weather"},
    {"role": "assistant", "content": "<think>it rains</think>yes", "reasoning_content": "hm"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "the dog"},
]
TOKENIZER = tiny.byte_level()

GROWS = {
    "repeats": "{{ 'a' * 700000000 }}",
    "repeats a list": "{{ ([1] * 10**9) | length }}",
    "repeats parts": "{{ (['a' * 1000000] * 100000) | join }}",
    "doubles by +": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubles by ~": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x % 7 }}",
    "%": "{{ '%800000000d' % 1 }}",
    "% from a value": "{{ '%*d' % (800000000, 1) }}",
    "format filter": "{{ '%800000000d' | format(1) }}",
    "format": "{{ '{:>1100000000}'.format(1) }}",
    "format, nested": "{{ '{:>{w}}'.format(1, w=1100000000) }}",
    "format_map": "{{ '{a:>{w}}'.format_map({'a': 1, 'w': 1100000000}) }}",
    "format, often": "{{ ('{0}' * 1000).format('x' * 16000000) | length }}",
    "center filter": "{{ 'x' | center(900000000) }}",
    "center mapped": "{{ ['x'] | map('center', 900000000) | join }}",
    "center": "{{ 'x'.center(900000000) }}",
    "ljust": "{{ 'x'.ljust(900000000) }}",
    "rjust": "{{ 'x'.rjust(900000000) }}",
    "zfill": "{{ 'x'.zfill(900000000) }}",
    "expandtabs": "{{ ('\\t' * 1000).expandtabs(10**9) }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000) }}",
    "replace filter": "{{ ('x' * 1000000) | replace('x', 'y' * 1000) }}",
    "translate": "{{ ('x' * 1000).translate({120: 'x' * 1000000}) }}",
    "join": "{{ ('x' * 1000000).join(['a'] * 100000) }}",
    "join filter": "{{ range(9999) | join('x' * 1000000) }}",
    "indent": "{{ 'a\\nb' | indent(10**9) }}",
    "tojson": "{{ [1, [2]] | tojson(indent=10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list | length }}",
    "sum": "{{ ([range(100000) | list] * 10000) | sum(start=[]) | length }}",
    "round": "{{ 5.5 | round(10**9, 'ceil') }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') | length }}",
    "lipsum": "{{ lipsum(n=10**8) }}",
    "a list as text": "{{ (['x' * 1000000] * 100000) | string | length }}",
    "keeps all": "{% set n = namespace(x=[]) %}{% for i in range(10000) %}"
    "{% set n.x = n.x + ['a' * 9000000] %}{% endfor %}",
    "keeps slices": "{% set n = namespace(x=[]) %}{% set a = 'a' * 9000000 %}{% for i in range(10000) %}"
    "{% set n.x = n.x + [a[1:]] %}{% endfor %}",
    "writes": "{% for i in range(99999) %}{% for j in range(99999) %}" + "z" * 999 + "{% endfor %}{% endfor %}",
    "constants": "{{ 'x' | center(16000000) }}" * 50,
}
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n + 1) if n < 50 }}{{ f(n + 1) if n < 50 }}{% endmacro %}{{ f(0) }}",
    "lists in lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "loops inside": "{% set x %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    "{% endset %}",
}

# Each writes by something that is guarded.
WITHIN_LIMITS = [
    "{{ messages[1:] | length }}{{ messages[:-1] | length }}{{ messages[::-1][0].content }}{{ 'abc'[-2:] ~ 1 ~ none }}",
    "{% for m in messages[1:] %}{{ loop.index ~ loop.length ~ loop.last }}{{ loop.previtem is defined }}{% endfor %}",
    "{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{{ loop.depth }}{% endfor %}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i % 3 }}{% endfor %}",
    "{% for i in [] %}a{% else %}none{% endfor %}{% for i in range(5) if i is odd %}{{ loop.index0 * i }}{% endfor %}",
    "{% macro f(x, y=2) %}<{{ x * y }}{{ caller() if caller }}>{% endmacro %}{{ f('a') }}{% call f(3) %}c{% endcall %}",
    "{% set x %}a{{ messages[0].content }}{% endset %}{{ x + '!' }}{% filter upper %}abc{{ x }}{% endfilter %}",
    "{% set n = namespace(a='', b=[]) %}"
    "{% for m in messages %}{% set n.a = n.a + m.role %}{% set n.b = n.b + [m.role] %}{% endfor %}"
    "{{ n.a }}{{ n.b }}{{ n.b | join('-') }}{{ messages | map(attribute='role') | join(' ') }}",
    "{{ messages | join('|', attribute='role') }}{{ 'a,b' | replace(',', ';') }}{{ 'aaa' | replace('a', 'b', 2) }}",
    "{{ '%s is %5.1f%%' % ('x', 2.5) }}{{ '%(a)s' % {'a': 1} }}{{ '%05d' | format(7) }}{{ 7 % 4 }}",
    "{{ '{:>5}{a!r}|{:{w}}'.format(1, 'é', a='x', w=4) }}{{ '{a[b]}'.format_map({'a': {'b': 1}}) }}{{ 'x' | center }}",
    "{{ 'ab'.center(6) + 'ab'.ljust(5) + 'a'.zfill(4) + 'a\\tb'.expandtabs(4) + '-'.join(['a', 'b']) }}",
    "{{ 'a b'.replace(' ', '_').split('_')[-1].strip() }}{{ 'aXb'.translate({88: 'yy'}) }}{{ 'x'.encode() }}",
    "{{ tools | tojson }}{{ tools | tojson(indent=2) }}"
    "{{ {'é': '<&>'} | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "{{ [1, 2] | sum }}{{ [[1], [2]] | sum(start=[]) }}"
    "{{ messages | sum(attribute='x', start=0) if false }}{{ 2.567 | round(2) }}",
    "{{ [1, 2, 3] | batch(2, 'f') | list }}{{ [1, 2, 3] | slice(2) | list }}{{ 'a\\nb' | indent(3, true) }}{{ 2**9 }}",
    "{{ messages[1].content | trim | escape }}{{ messages[1].content | wordwrap(9) }}{{ 'see http://a.b' | urlize }}",
    "{{ {'a': [1, none, true]} | pprint }}{{ [1, 2] | string }}{{ 1.50 | string }}"
    "{{ undefined_name }}{{ 'a' * 3 + 'b' * 0 }}",
    "{% autoescape true %}{{ '<b>' ~ messages[1].content ~ '<i>' | safe }}{{ '<' + '>' }}{% endautoescape %}"
    "{{ '<' ~ 1 }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ dict(a=1) }}{{ bos_token ~ eos_token }}",
    "{{ strftime_now('%Y') }}{{ (documents, tools is none, add_generation_prompt) }}{{ joiner(',')() }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[2].tool_calls | tojson }}",
]
THEIRS = {
    **{name: known.jinja for name, known in oracle_templates.KNOWN.items()},
    **{name: text for name, text in vars(tiny).items() if isinstance(text, str) and "{%" in text},
    **{name: text for name, text in vars(test_template_shapes).items() if isinstance(text, str) and "{%" in text},
    **{f"within limits {number}": text for number, text in enumerate(WITHIN_LIMITS)},
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_template_writes_what_transformers_writes_by_it(name):
    assert chat_environment() is not None
    tokenizer = tiny.byte_level(THEIRS[name])
    template = ChatTemplate(tokenizer)
    some = [turn for turn in TURNS if turn["role"] in ("user", "assistant") and turn["content"]]
    for turns in (TURNS, some[1:], some[:1]):
        for tools in ([test_template_shapes.TOOL], []):
            for opens in (True, False):
                ours = _or_error(template.render, turns, tools, open_answer=opens)
                theirs = _or_error(
                    tokenizer.apply_chat_template,
                    turns,
                    tools=tools or None,
                    tokenize=False,
                    add_generation_prompt=opens,
                )
                assert ours == theirs
                assert not (name.startswith("within") and turns is TURNS and ours.startswith("error: "))


def _or_error(write: Any, *given: Any, **how: Any) -> str:
    try:
        return write(*given, **how)
    except Exception as error:
        return f"error: {error}"


def test_a_tokenizer_with_templates_by_name_takes_that_for_tools_where_there_are_tools():
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = {"default": tiny.CHATML, "tool_use": tiny.WITH_TOOLS}
    template, turns = ChatTemplate(tokenizer), TURNS[:2]
    for tools in ([test_template_shapes.TOOL], []):
        theirs = tokenizer.apply_chat_template(turns, tools=tools or None, tokenize=False)
        assert template.render(turns, tools) == theirs


def _of_column(text: str) -> None:
    convert([(ORIGIN, {"a": "x"})], TemplateFormat(prompt=text, answer="{{ a }}"), {})


def _of_chat(text: str) -> None:
    Renderer(tiny.byte_level(text + tiny.CHATML)).render(
        Conversation((Message("user", "q"), Message("assistant", "a")), ORIGIN)
    )


@pytest.mark.parametrize("fill", [_of_column, _of_chat])
@pytest.mark.parametrize("name", GROWS)
def test_what_would_be_too_large_is_refused_before_it_is_made(name, fill):
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"letters|too large"):
            fill(GROWS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    most = limits.MOST_IN_ALL if name.startswith("keeps") or name == "format, often" else 8 * limits.MOST_LETTERS
    assert peak < 1.2 * most


@pytest.mark.parametrize("in_a_thread", [False, True])
@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_is_ended_in_any_thread(name, in_a_thread, monkeypatch):
    monkeypatch.setattr(chat, "limited", lambda *given: limits.limited(*given, seconds=0.3))
    TOKENIZER.chat_template = ENDLESS[name]
    told: list[str] = []

    def render() -> None:
        try:
            ChatTemplate(TOKENIZER).render(TURNS)
        except TemplateFailed as error:
            told.append(str(error))

    if in_a_thread:
        thread = threading.Thread(target=render)
        thread.start()
        thread.join(60)
    else:
        render()
    assert told == ["no end after 0.3 seconds"]


def test_an_alarm_that_python_swallows_comes_again(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda said: told.append(said.exc_type))
    monkeypatch.setattr(limits, "AGAIN_SECONDS", 0.1)

    class Held:
        def __del__(self):  # what is raised in here ends here
            while True:
                pass

    def endless():
        Held()
        while True:
            pass

    with pytest.raises(TimeoutError), limits._alarm(0.1):
        endless()
    assert told == [TimeoutError]


def test_a_row_may_be_as_long_as_it_is():
    long = "a" * (2 * limits.MOST_LETTERS)
    text = "{{ 'x' + a ~ 'y' }}{{ a[:1] | replace('a', 'b') | center(3) }}"
    read = convert([(ORIGIN, {"a": long})], TemplateFormat(prompt=text, answer="b"), {})
    assert read.rows[0].messages[0].content == f"x{long}y b "
