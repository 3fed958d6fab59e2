"""A tokenizer's chat template, rendered as transformers renders it, but guarded: hubs bring templates of anyone's.

transformers lays out what a template is given, and its environment has the filters, functions and tags; the same
template is compiled anew, with ours around them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from jinja2 import Environment, Template

from tunesmith.data.templating.guarded import Guarded
from tunesmith.data.templating.limits import bounded

_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
_LAID_OUT = "{{ [" + ", ".join(_GIVEN) + "] | tojson }}"
"""A chat template that writes what chat templates are given."""


def rendered(tokenizer: Any, turns: Sequence[Any], tools: Sequence[Any] = (), *, open_answer: bool = False) -> str:
    """The text of `turns`, within the limits that hold here. Raises whatever a template can."""
    how = {"tools": list(tools) or None, "tokenize": False, "add_generation_prompt": open_answer}
    if chat_environment() is None or not _is_plain(tokenizer):
        return bounded(str(tokenizer.apply_chat_template(list(turns), **how)), *turns, *tools)
    given = json.loads(tokenizer.apply_chat_template(list(turns), chat_template=_LAID_OUT, **how))
    template = _compiled(tokenizer.get_chat_template(None, how["tools"]))
    return template.render({**tokenizer.special_tokens_map, **dict(zip(_GIVEN, given, strict=True))})


def _is_plain(tokenizer: Any) -> bool:
    """Whether its way to write a conversation is transformers' own; others do not ask for a template."""
    from transformers import PreTrainedTokenizerBase

    own = getattr(type(tokenizer), "apply_chat_template", None)
    return own is PreTrainedTokenizerBase.apply_chat_template


@cache
def chat_environment() -> Guarded | None:
    """transformers' environment for chat templates under guard; None where a version of it keeps that elsewhere."""
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        theirs: Environment = _compile_jinja_template("").environment
    except (ImportError, AttributeError):
        return None
    ours = Guarded(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        keep_trailing_newline=theirs.keep_trailing_newline,
        undefined=theirs.undefined,
        autoescape=theirs.autoescape,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    ours.filters, ours.tests, ours.globals = dict(theirs.filters), dict(theirs.tests), dict(theirs.globals)
    ours.guard()
    return ours


@lru_cache(maxsize=64)
def _compiled(text: str) -> Template:
    environment = chat_environment()
    assert environment is not None
    return environment.from_string(text)
