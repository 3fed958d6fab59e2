"""Chat templates for models that come without one: by name, from a file, or written in the recipe.

A template is Jinja in the form that transformers stores beside a tokenizer, so that whoever serves the adapter later
renders the same text. Where the tokenizer begins its texts with BOS, so does the template.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunesmith.data.problems import listed, shown
from tunesmith.data.templating.limits import TEMPLATE_ERRORS, limited
from tunesmith.data.templating.rendering import rendered
from tunesmith.errors import DataError


@dataclass(frozen=True)
class NamedTemplate:
    """`tokens` must be single tokens of the tokenizer, or the model would learn to spell them."""

    text: str
    tokens: tuple[str, ...] = ()


_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

_LLAMA3 = """\
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

_MISTRAL = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'assistant' -%}
{{ ' ' + message['content'] | trim + eos_token }}
{%- else -%}
{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- endif -%}
{%- endfor -%}"""

_GEMMA = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{{- message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"""

_PHI3 = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"""

# Stanford Alpaca's words; a system turn replaces the opening sentence.
_ALPACA = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] + '\\n\\n' }}{%- set turns = messages[1:] -%}
{%- else -%}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n' }}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'assistant' -%}
{{ '### Response:\\n' + message['content'] + eos_token + ('' if loop.last else '\\n\\n') }}
{%- else -%}
{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""

_VICUNA = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] + ' ' }}{%- set turns = messages[1:] -%}
{%- else -%}
{{ "A chat between a curious user and an artificial intelligence assistant. " }}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " }}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'assistant' -%}
{{ 'ASSISTANT: ' + message['content'] | trim + eos_token }}
{%- else -%}
{{ 'USER: ' + message['content'] | trim + ' ' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""

_PLAIN = """\
{%- for message in messages -%}
{{ message['content'] + (eos_token if message['role'] == 'assistant' else '') }}
{%- endfor -%}"""

NAMED: dict[str, NamedTemplate] = {
    "chatml": NamedTemplate(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": NamedTemplate(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": NamedTemplate(_MISTRAL),
    "gemma": NamedTemplate(_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "zephyr": NamedTemplate(_ZEPHYR),
    "phi3": NamedTemplate(_PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "alpaca": NamedTemplate(_ALPACA),
    "vicuna": NamedTemplate(_VICUNA),
    "plain": NamedTemplate(_PLAIN),
}


def resolve(template: str, tokenizer: Any) -> str:
    """Jinja text for `template`: a name of `NAMED`, a file, or Jinja itself."""
    if template in NAMED:
        named = NAMED[template]
        _refuse_unknown_tokens(template, named, tokenizer)
        return ("{{- bos_token -}}\n" if begins_with_bos(tokenizer) else "") + named.text
    text = template
    if not any(mark in template for mark in ("{{", "{%")):
        path = Path(template).expanduser()
        if not path.is_file():
            raise DataError(
                "no chat template of this name, and no such file",
                where="model.template",
                found=shown(template),
                expected=f"{listed(NAMED)}; a file; or Jinja text",
                fix="check the spelling; a file is looked for from where you are",
            )
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the chat template cannot be read: {error}",
                where=f"model.template: {path}",
                fix="give a file of UTF-8 text that you may read",
            ) from None
    _refuse_syntax_errors(text)
    return text


_SAMPLE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def install(
    template: str, tokenizer: Any, what: str = "model.template replaces the tokenizer's own chat template"
) -> str | None:
    """Give `tokenizer` this chat template. What a person should know where it had one that writes otherwise; `what`
    begins that."""
    before = _tried(tokenizer) if tokenizer.chat_template else None
    tokenizer.chat_template = resolve(template, tokenizer)
    if before is None or before == _tried(tokenizer):
        return None
    return f"{what}, which writes a turn as {shown(before, 80)}"


def _tried(tokenizer: Any) -> str | None:
    try:
        with limited(*_SAMPLE):
            return rendered(tokenizer, _SAMPLE)
    except TEMPLATE_ERRORS:
        return None


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its BOS in front of a text."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def _refuse_unknown_tokens(name: str, named: NamedTemplate, tokenizer: Any) -> None:
    known = tokenizer.get_vocab()
    missing = [token for token in named.tokens if token not in known]
    if missing:
        raise DataError(
            f"the chat template {name} is made of tokens that this tokenizer does not have",
            where="model.template",
            found=f"missing {listed(missing)}",
            fix=f"set model.add_tokens: {missing}, or choose a template of plain text: "
            + listed(other for other, entry in NAMED.items() if not entry.tokens),
        )
    if "eos_token" in named.text and not tokenizer.eos_token:
        raise DataError(
            f"the chat template {name} ends answers with EOS, which this tokenizer does not have",
            where="model.template",
            fix="set the tokenizer's eos_token",
        )


class _GenerationTag(Extension):
    """The tag that marks answers in some templates: transformers compiles it, here only the syntax is checked."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[Node]:
        next(parser.stream)
        body: list[Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def syntax(text: str) -> Template:
    """What a chat template is made of; jinja2's own error where it is none."""
    return ImmutableSandboxedEnvironment(extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]).parse(text)


def _refuse_syntax_errors(text: str) -> None:
    try:
        syntax(text)
    except TemplateSyntaxError as error:
        raise DataError(
            f"not a valid chat template: {error.message}",
            where=f"model.template, line {error.lineno}",
            found=shown(text),
            fix="mend the template there; to try it: tunesmith check",
        ) from None
    except RecursionError:
        raise DataError(
            "not a valid chat template: nested too deeply", where="model.template", fix="write it with fewer brackets"
        ) from None
