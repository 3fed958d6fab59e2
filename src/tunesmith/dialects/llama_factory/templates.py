"""LLaMA-Factory's names of chat templates: which of them are worded here, and which are the tokenizer's own.

Its templates of model families (qwen, llama3, gemma …) copy what these models' tokenizers bring, but for tools,
thoughts and default system turns; there the tokenizer's own are what the model knows, and that one is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tunesmith.dialects.base import Said
from tunesmith.strict import near


@dataclass(frozen=True)
class Words:
    """What stands around a turn's {content}; {bos} and {eos} are the tokenizer's. `opening`: the system turn of a
    conversation without one. `fused`: the system turn stands within the first question."""

    user: str
    opens: str
    answer: str
    system: str = "{content}"
    opening: str = ""
    fused: bool = False

    def jinja(self, opening: str | None = None) -> str:
        """The template, with another `opening` where one is given."""
        start = self.opening if opening is None else opening
        system = _written(self.system, "system")
        user = _written(
            self.user, f"({system} if loop.first and system else '') + content" if self.fused else "content"
        )
        return (
            "{%- if messages and messages[0]['role'] == 'system' -%}"
            "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
            f"{{%- else -%}}{{%- set system = {_quoted(start)} -%}}{{%- set turns = messages -%}}{{%- endif -%}}"
            + ("" if self.fused else f"{{{{- {system} if system else '' -}}}}")
            + "{%- for message in turns -%}{%- set content = message['content'] -%}"
            "{%- if message['role'] == 'assistant' -%}"
            f"{{{{- {_written(self.opens + self.answer, 'content')} -}}}}"
            f"{{%- else -%}}{{{{- {user} -}}}}{{%- endif -%}}{{%- endfor -%}}"
            + (
                f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(self.opens)} -}}}}{{%- endif -%}}"
                if self.opens
                else ""
            )
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _written(text: str, content: str) -> str:
    """A Jinja expression of a text with holes."""
    holes = {"{content}": f"({content})", "{bos}": "bos_token", "{eos}": "eos_token"}
    parts, rest = [], text
    while rest:
        at, hole = min(((rest.find(hole), hole) for hole in holes if hole in rest), default=(len(rest), ""))
        parts += [_quoted(rest[:at])] if at else []
        parts += [holes[hole]] if hole else []
        rest = rest[at + len(hole) :]
    return " + ".join(parts) or '""'


_CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_CHATML = Words(
    "<|im_start|>user\n{content}<|im_end|>\n",
    "<|im_start|>assistant\n",
    "{content}<|im_end|>\n",
    "<|im_start|>system\n{content}<|im_end|>\n",
)
_ALPACA = Words(
    "### Instruction:\n{content}\n\n",
    "### Response:\n",
    "{content}{eos}\n\n",
    opening="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
)
_LLAMA2 = Words("{bos}[INST] {content} [/INST]", "", "{content}{eos}", "<<SYS>>\n{content}\n<</SYS>>\n\n", fused=True)
WORDED: dict[str, Words] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "chatml_de": Words(
        _CHATML.user,
        _CHATML.opens,
        _CHATML.answer,
        _CHATML.system,
        "Du bist ein freundlicher und hilfsbereiter KI-Assistent.",
    ),
    "default": Words("Human: {content}{eos}\n", "Assistant:", "{content}{eos}\n", "System: {content}{eos}\n"),
    "empty": Words("{content}", "", "{content}"),
    "llama2": _LLAMA2,
    "llama2_zh": Words(
        _LLAMA2.user,
        _LLAMA2.opens,
        _LLAMA2.answer,
        _LLAMA2.system,
        "You are a helpful assistant. 你是一个乐于助人的助手。",
        fused=True,
    ),
    "vicuna": Words("USER: {content} ", "ASSISTANT:", "{content}{eos}", opening=_CURIOUS),
    "zephyr": Words(
        "<|user|>\n{content}{eos}",
        "<|assistant|>\n",
        "{content}{eos}",
        "<|system|>\n{content}{eos}",
        "You are Zephyr, a helpful assistant.",
    ),
}
"""Templates that belong to no model's tokenizer, in LLaMA-Factory's words."""
NAMED = ("alpaca", "chatml")
"""Of these, those whose words are in data/templating/templates.py too; its alpaca parts a row's own system turn from
the rest."""
FAMILIES = (
    *(
        "bailing",
        "cohere",
        "cpm3",
        "cpm4",
        "dbrx",
        "deepseek",
        "ernie",
        "exaone",
        "falcon_h1",
        "gemma",
        "glm4",
        "glmz1",
    ),
    *("gpt_oss", "granite", "hunyuan", "intern", "kimi", "lfm", "llama3", "llama4", "marco", "mimo", "minimax"),
    *("ministral", "mistral", "moonlight", "olmo", "openchat", "opencoder", "phi", "qwen", "sailor", "seed", "skywork"),
    *("smollm", "solar", "starchat", "telechat2", "yi", "youtu"),
)
"""Beginnings of names of templates that are the tokenizer's own."""
_REASONING = ("qwen3", "deepseekr1", "glmz1", "glm4_moe", "gpt_oss", "mimo", "minimax2", "seed_oss", "ernie", "kimi")
"""Of those, the ones that write an empty thought in front of an answer without one."""


def template(said: Said, stage: str) -> None:
    name, opening = said.take("template", str), said.take("default_system", str)
    thinks = said.take("enable_thinking", bool, True)
    if stage == "pt":
        for key in ("template", "default_system", "enable_thinking"):
            said.idle(key, "plain text has no turns")
        return
    if not thinks and (name or "").startswith(_REASONING) and "nothink" not in (name or ""):
        fix = (
            "leave it out, and take the thoughts out of the rows; the chat template writes an empty one where it has to"
        )
        said.refuse("enable_thinking", f"is false with template {name}", fix)
    else:
        said.idle("enable_thinking", "the chat template writes thoughts as the model knows them")
    if name in WORDED:
        _worded(said, name, opening)
    elif name is not None and name.startswith(FAMILIES):
        said.carry("template", "the tokenizer's own chat template, which it copies")
        said.note(
            f"template {name}: turns are worded by the tokenizer's own chat template, which LLaMA-Factory's copies but "
            "for tools, thoughts and default system turns; a model without one needs model.template (llama3, chatml …)"
        )
    elif name is not None:
        meant = near(name, list(WORDED), {})
        fix = f"did you mean {meant}? Else " if meant else ""
        fix += "say `template= model.template=FILE` on the command line, with the template as Jinja"
        expected = ", ".join([*WORDED, *(f"{family} …" for family in FAMILIES)])
        said.refuse("template", f"is {name}, which is not among those here", fix, expected=expected)


def _worded(said: Said, name: str, opening: str | None) -> None:
    if name in NAMED and opening is None:
        said.put("model.template", name, "template")
    else:
        keys = ("template", "default_system") if opening is not None else ("template",)
        said.put("model.template", WORDED[name].jinja(opening), *keys)
    if name == "alpaca":
        said.note("template alpaca: an empty line stands behind a row's own system turn; LLaMA-Factory writes none")
    if not WORDED[name].user.startswith("{bos}"):
        said.note(f"template {name}: a BOS stands in front where the tokenizer writes one; LLaMA-Factory leaves it out")
    if name == "empty" and not said.take("train_on_prompt", bool, False):
        said.put("data.learn_ends", "none", "template")
