"""What Axolotl's dataset types mean: which columns, and the words around them.

Types that word their rows themselves are plain text here too, written by Jinja over the columns; where the words are
those of a chat template (Alpaca's, ChatML), that template writes them, and the model can be talked with afterwards.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rows:
    """How rows of one type are read. `template`: what words them; None: the chat template of the file or the model."""

    format: str | dict[str, str]
    template: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    reads: tuple[str, ...] | None = None
    """Of the columns that the format would read, in our words, those that the type does; None: all of them."""


_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_NO_INPUT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_CONCISE = (
    "Below is an instruction from a USER that describes a task, paired with an input that provides further context. "
    "The ASSISTANT writes a response that concisely and appropriately completes the request.\n\n"
)
_CONCISE_NO_INPUT = (
    "Below is an instruction from a USER that describes a task. "
    "The ASSISTANT writes a response that appropriately and concisely completes the request.\n\n"
)
_UNKNOWN = (
    "The context provided does not contain any information about your inquiry. "
    "Therefore, I'm unable to answer your question based on the given context."
)
_PYGMALION = (
    "{%- for message in messages -%}"
    "{{ '<|' + ('model' if message['role'] == 'assistant' else message['role']) + '|> ' + message['content'] | trim }}"
    "{{- eos_token if message['role'] == 'assistant' else '' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|model|>' }}{%- endif -%}"
)
_LLAMA2 = (
    "{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else none -%}"
    "{%- for message in (messages if system is none else messages[1:]) -%}"
    "{%- if message['role'] == 'assistant' -%}{{ ' ' + message['content'] | trim + ' ' + eos_token }}"
    "{%- else -%}{{ bos_token + '[INST] ' }}"
    "{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system is not none else '' }}"
    "{{- message['content'] | trim + ' [/INST]' }}{%- endif -%}{%- endfor -%}"
)


def jinja(text: str, columns: Mapping[str, str], said: Mapping[str, str] | None = None) -> str:
    """Python's format text as Jinja: "{instruction}" -> "{{ question }}" for {"instruction": "question"}. `said`: names
    that stand for a text and not for a column."""
    written = ""
    for literal, name, _, _ in string.Formatter().parse(text):
        written += _as_it_stands(literal)
        if name is not None:
            written += _as_it_stands(said[name]) if said and name in said else f"{{{{ {columns[name]} }}}}"
    return written


def _as_it_stands(text: str) -> str:
    """A text within a template, with none of its braces read."""
    marked = any(mark in text for mark in ("{{", "{%", "{#", "}}")) or text.endswith("{")
    return f"{{% raw %}}{text}{{% endraw %}}" if marked else text


def given_by(column: str) -> str:
    return f"{column} is defined and {column}"


def instruct(
    turn: str,
    without: str,
    *,
    system: str = "",
    system_without: str | None = None,
    instruction: str = "instruction",
    input: str | None = "input",
    output: str = "{{ output }}",
) -> Rows:
    """Rows that the type words: `turn` with an input, `without` one; `system` in front is text, or Jinja."""
    columns = {"instruction": instruction, "input": input or ""}
    bare = (system if system_without is None else system_without) + jinja(without, columns)
    if input is None:
        return Rows({"prompt": bare, "answer": output}, "plain")
    whole = system + jinja(turn, columns)
    return Rows(
        {"prompt": f"{{% if {given_by(input)} %}}{whole}{{% else %}}{bare}{{% endif %}}", "answer": output}, "plain"
    )


def _alpaca(instruction: str = "instruction", input: str | None = "input", output: str = "{{ output }}") -> Rows:
    """Alpaca's words, as the template `alpaca` writes them: an input stands behind the instruction."""
    if input is None:
        return Rows({"system": _NO_INPUT, "prompt": f"{{{{ {instruction} }}}}", "answer": output}, "alpaca")
    behind = f"{{% if {given_by(input)} %}}\n\n### Input:\n{{{{ {input} }}}}{{% endif %}}"
    opening = f"{{% if {given_by(input)} %}}{_INPUT}{{% else %}}{_NO_INPUT}{{% endif %}}"
    return Rows({"system": opening, "prompt": f"{{{{ {instruction} }}}}{behind}", "answer": output}, "alpaca")


_TURN, _WITHOUT = (
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    ("### Instruction:\n{instruction}\n\n### Response:\n"),
)
_USER, _USER_WITHOUT = "USER: {instruction}\n{input}\nASSISTANT:", "USER: {instruction}\nASSISTANT:"
_CHAT = {"turn": _USER, "without": _USER_WITHOUT}
_SYSTEM = f"{{% if {given_by('system')} %}}SYSTEM: {{{{ system }}}}\n{{% endif %}}"
_TURNS = ("messages", "conversations")
_CHOICES = '{% for choice in choices %}{{ "" if loop.first else "\n" }}- "{{ choice }}"{% endfor %}'
_SOLUTION = f"{{% if {given_by('solution')} %}}{{{{ solution }}}}{{% else %}}{{{{ explanation }}}}{{% endif %}}"


def _choice(system: str, end: str) -> Rows:
    prompt = f"{system}USER: {{{{ question }}}}\n{_CHOICES}\nASSISTANT:{end}"
    return Rows({"prompt": prompt, "answer": _SOLUTION}, "plain")


INSTRUCT: dict[str, Rows] = {
    "alpaca": _alpaca(),
    "alpaca_instruct": _alpaca(),
    "alpaca:instruct": _alpaca(),
    "alpaca.load_no_prompt": instruct(_TURN, _WITHOUT),
    "alpaca_instruct.load_no_prompt": instruct(_TURN, _WITHOUT),
    "alpaca:chat": instruct(**_CHAT, system=f"SYSTEM: {_INPUT}\n", system_without=f"SYSTEM: {_NO_INPUT}\n"),
    "alpaca_chat": instruct(**_CHAT, system=f"SYSTEM: {_INPUT}\n", system_without=f"SYSTEM: {_NO_INPUT}\n"),
    "alpaca_chat.load_no_prompt": instruct(**_CHAT),
    "alpaca_chat.load_qa": instruct(
        **_CHAT, system=f"SYSTEM: {_NO_INPUT}\n", instruction="question", input=None, output="{{ answer }}"
    ),
    "alpaca_chat.load_concise": instruct(
        **_CHAT,
        system=f"SYSTEM: {_CONCISE}\n",
        system_without=f"SYSTEM: {_CONCISE_NO_INPUT}\n",
        output=f"{{% if {given_by('output')} %}}{{{{ output }}}}{{% else %}}{{{{ response }}}}{{% endif %}}",
    ),
    "alpaca_chat.load_camel_ai": Rows({"prompt": "{{ message_1 }} ", "answer": "{{ message_2 }}"}, "plain"),
    "alpaca:chatml": Rows(
        {
            "system": f"{{% if {given_by('input')} %}}{_INPUT}{{% else %}}{_NO_INPUT}{{% endif %}}",
            "prompt": f"{{{{ instruction }}}}{{% if {given_by('input')} %}}\n{{{{ input }}}}{{% endif %}}",
            "answer": "{{ output }}",
        },
        "chatml",
    ),
    "alpaca:phi": instruct(
        "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
        "<|user|>\n{instruction}<|end|><|assistant|>",
        system=f"<|system|>\n{_INPUT}<|end|>\n",
        system_without=f"<|system|>\n{_NO_INPUT}<|end|>\n",
    ),
    "alpaca_w_system": instruct(**_CHAT, system=_SYSTEM),
    "alpaca_w_system.load_chat": instruct(**_CHAT, system=_SYSTEM),
    "alpaca_w_system.load_instruct": instruct(
        _TURN, _WITHOUT, system=f"{{% if {given_by('system')} %}}{{{{ system }}}}\n\n{{% endif %}}"
    ),
    "alpaca_w_system.load_open_orca": Rows(
        {
            "prompt": f"{{% if {given_by('system_prompt')} %}}### System:\n{{{{ system_prompt }}}}\n{{% endif %}}"
            "### Human:\n{{ question }}\n### Assistant:\n",
            "answer": "{{ response }}",
        },
        "plain",
    ),
    "alpaca_w_system.load_open_orca_chatml": Rows(
        {"system": "{{ system_prompt }}", "prompt": "{{ question }}", "answer": "{{ response }}"}, "chatml"
    ),
    "jeopardy": _alpaca("question", "category", "what is {{ answer }}"),
    "oasst": _alpaca("INSTRUCTION", None, "{{ RESPONSE }}"),
    "gpteacher": _alpaca(output="{{ response }}"),
    "explainchoice": _choice(
        "SYSTEM: Choose the answer that best answers the question. Explain your reasoning.\n\n", ""
    ),
    "concisechoice": _choice(
        "Choose the answer that best answers the question. Be concise in your response.\n\n", "\n"
    ),
    "summarizetldr": Rows(
        {
            "prompt": "USER: Summarize the following article as a TL;DR.\n{{ article }}\nASSISTANT:",
            "answer": "{{ summary }}",
        },
        "plain",
    ),
    "context_qa": Rows(
        {
            "prompt": "SYSTEM: Use the following contextual information to concisely answer the question.\n\n"
            "USER: {{ article }}\n===\n{{ question }}\nASSISTANT:",
            "answer": "{{ answer }}",
        },
        "plain",
    ),
    "context_qa.load_v2": Rows(
        {"prompt": "Context: {{ context }}\nQuestion: {{ question }}\n", "answer": "Answer: {{ answer }}"}, "plain"
    ),
    "context_qa.load_404": Rows(
        {
            "prompt": "SYSTEM: Use the following contextual information to concisely answer the question.\n\n"
            "USER: {{ article }}\n===\n{{ unanswerable_question }}\nASSISTANT:",
            "answer": _UNKNOWN,
        },
        "plain",
    ),
    "metharme": Rows(
        {"prompt": "{{ prompt }}", "answer": "{{ generation }}"},
        "plain",
        note="type metharme: answers end in one EOS here, not in three",
    ),
    "orcamini": Rows(
        {
            "prompt": "### System:\n{{ system_prompt }}\n\n### User:\n{{ question }}\n\n### Response:\n",
            "answer": "{{ response }}",
        },
        "plain",
    ),
    "pygmalion": Rows("messages", _PYGMALION, roles={"bot": "assistant", "human": "user"}, reads=_TURNS),
    "llama2_chat": Rows(
        "messages", _LLAMA2, note="type llama2_chat: rows without a system turn get none", reads=_TURNS
    ),
    "input_output": Rows("segments"),
    "completion": Rows("text"),
    "pretrain": Rows("text"),
}
"""Of supervised rows."""


def _first(*columns: str) -> str:
    """Jinja for the first of these columns that a row has."""
    *others, last = columns
    return "{{ " + "".join(f"{name} if {name} is defined else " for name in others) + last + " }}"


_WITH_SYSTEM = f"{{% if {given_by('system')} %}}{{{{ system }}}}{{% endif %}}"


def _pair(prompt: str, chosen: str = "{{ chosen }}", rejected: str = "{{ rejected }}") -> dict[str, str]:
    return {"system": _WITH_SYSTEM, "prompt": prompt, "chosen": chosen, "rejected": rejected}


_PAIRS: dict[str, dict[str, str]] = {
    "argilla": _pair(
        _first("prompt", "input", "question", "instruction"),
        _first("chosen", "chosen_response"),
        _first("rejected", "rejected_response"),
    ),
    "argilla_chat": {
        "prompt": "{{ chosen[0].content }}",
        "chosen": "{{ chosen[1].content }}",
        "rejected": "{{ rejected[1].content }}",
    },
    "icr": _pair("{{ input }}"),
    "intel": _pair("{{ question }}"),
    "prompt_pairs": _pair("{{ prompt }}"),
    "ultra": _pair("{{ prompt }}", "{{ chosen[1].content }}", "{{ rejected[1].content }}"),
}
_TWO = ("chosen", "rejected")
_RANKED = "{{{{ (answers | sort(attribute='rank'))[{}].answer }}}}"
PAIRS: dict[str, Rows] = {
    **{f"{family}.{name}": Rows(form, family) for family in ("chatml", "llama3") for name, form in _PAIRS.items()},
    **{
        f"{family}{end}": Rows(_PAIRS["argilla"], family) for family in ("chatml", "llama3") for end in ("", ".default")
    },
    "chat_template": Rows("preference", reads=("messages", *_TWO)),
    "chat_template.default": Rows("preference", reads=("messages", *_TWO)),
    "chat_template.argilla_chat": Rows("preference", reads=_TWO),
    "chat_template.argilla": Rows("preference", reads=("prompt", "system", *_TWO)),
    "orpo.chat_template": Rows("preference", reads=("prompt", "system", *_TWO)),
    "zephyr.nectar": Rows(
        {
            "prompt": "<|system|>\n</s>\n<|user|>\n{{ prompt }}</s>\n<|assistant|>\n",
            "chosen": _RANKED.format(-1),
            "rejected": _RANKED.format(-2),
        },
        "plain",
        note="type zephyr.nectar: as in Axolotl, the answer of the highest number in rank is chosen, and the one below "
        "it rejected; where rank 1 is the best (as in Nectar) these are the two worst",
    ),
    "passthrough": Rows("preference", "plain", reads=("prompt", *_TWO)),
    "user_defined": Rows("preference", "plain", reads=("prompt", *_TWO)),
    "user_defined.default": Rows("preference", "plain", reads=("prompt", *_TWO)),
}
"""Of pairs: `rl: dpo`, `ipo`, `orpo`, `simpo`."""

_JUDGED = {
    "argilla": {"prompt": "instruction"},
    "argilla_chat": {"messages": "completion"},
    "intel": {"prompt": "question"},
    "prompt_pairs": {},
    "ultra": {},
}


def _judged_by(name: str) -> tuple[str, ...]:
    return ("messages", "label") if name == "argilla_chat" else ("prompt", "completion", "label", "system")


JUDGED: dict[str, Rows] = {
    f"{family}.{name}": Rows("unpaired", family, columns, reads=_judged_by(name))
    for family in ("chatml", "llama3")
    for name, columns in _JUDGED.items()
}
"""Of answers that are wanted or not: `rl: kto`."""

REWARDED: dict[str, Rows] = {
    "bradley_terry.chat_template": Rows("preference", reads=("input", "system", *_TWO)),
    "bradley_terry.llama3.icr": Rows(_pair("{{ input }}"), "llama3"),
}
"""Of a reward model's pairs."""

ASKED: dict[str, Rows] = {}
"""Of prompts, `rl: grpo`: rows are read by their columns."""


def _by_hand(answer: str, *columns: str) -> str:
    """How rows are read whose words a person gives."""
    asked = " ".join(f"{{{{ {column} }}}}" for column in columns)
    return (
        f'type the words you want: `"datasets[0].type=" model.template=plain '
        f'\'data.format={{prompt: "… {asked} …", answer: "{answer}"}}\'`'
    )


_PROSE = "its words are a page of Axolotl's own, which is not here"
_STEPS = "a reward for each step of an answer is not learned here"
UNWORDED: dict[str, tuple[str, str]] = {
    "reflection": (
        _PROSE,
        _by_hand("{{ output }} … {{ reflection }} … {{ corrected }}", "instruction", "input"),
    ),
    "creative_acr.load_answer": (_PROSE, _by_hand("{{ answer }}", "instruction")),
    "creative_acr.load_critique": (_PROSE, _by_hand("{{ critique }}", "instruction", "answer")),
    "creative_acr.load_revise": (_PROSE, _by_hand("{{ revision }}", "instruction", "answer", "critique")),
    "stepwise_supervised": (
        _STEPS,
        "judge whole answers: rows {prompt, completion, label} with rl: kto and type: chatml.prompt_pairs, "
        "or pairs with reward_model: true and type: bradley_terry.chat_template",
    ),
}
"""Types that are refused: why, and what to do instead."""
