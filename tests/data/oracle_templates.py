"""Chat templates known by heart: each as Jinja, and once more in Python as the pieces that it writes.

A piece is (text, kind, turn): `words` are what a turn says, `lead` what the model itself writes before its words, `end`
the token that ends the turn, `mark` all else. The pieces joined must be the text that the tokenizer's own template
gives, so that nobody need search in it: not for contents that look like a mark, nor for marks that look like a content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import test_template_shapes
import tiny_tokenizers as tiny

from tunesmith.data.templating import templates
from tunesmith.dialects.axolotl import types

Turn = dict[str, Any]
Piece = tuple[str, str, int]
EOS, BOS = "</s>", "<s>"


@dataclass(frozen=True)
class Known:
    """`jinja` writes what `write` says. `ends`: whether a token ends the last answer; where none does, EOS is added."""

    jinja: str
    write: Callable[[Sequence[Turn]], Iterator[Piece]]
    roles: tuple[str, ...] = ("system", "user", "assistant")
    ends: bool = True
    tools: tuple[dict[str, Any], ...] = ()
    thinks: bool = False


def chatml(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}\n", "mark", n
        yield turn["content"], "words", n
        yield "<|im_end|>", "end", n
        yield "\n", "mark", n


def double_bos(turns: Sequence[Turn]) -> Iterator[Piece]:
    yield BOS + BOS, "mark", 0
    yield from chatml(turns)


def rewrites(turns: Sequence[Turn]) -> Iterator[Piece]:
    yield f"{len(turns)} turns\n", "mark", 0
    yield from chatml(turns)


def eos_at_the_end(turns: Sequence[Turn]) -> Iterator[Piece]:
    yield from chatml(turns)
    yield EOS, "mark", len(turns) - 1


def drops_thought(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        said = turn["content"]
        if turn["role"] == "assistant" and n < len(turns) - 1:
            said = said.split("</think>")[-1]
        yield from ((text, kind, n) for text, kind, _ in chatml([turn | {"content": said}]))


def empty_thought(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}\n", "mark", n
        if turn["role"] == "assistant" and n == len(turns) - 1:
            yield "<think>\n\n</think>\n\n", "lead", n
        yield turn["content"], "words", n
        yield "<|im_end|>", "end", n
        yield "\n", "mark", n


def header_ends_in_space(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}: ", "mark", n
        yield turn["content"], "words", n
        yield "<|im_end|>", "end", n


def never_ends(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"### {turn['role']}\n", "mark", n
        yield turn["content"], "words", n
        yield "\n\n", "mark", n


def two_ends(turns: Sequence[Turn]) -> Iterator[Piece]:
    yield from ((f"<|end|>{text}" if kind == "end" else text, kind, n) for text, kind, n in chatml(turns))


def ends_in_words(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"### {turn['role']}\n", "mark", n
        yield turn["content"], "words", n
        yield "\n### End", "end" if turn["role"] == "assistant" else "mark", n
        yield "\n", "mark", n


def nothing_ends(turns: Sequence[Turn]) -> Iterator[Piece]:
    """What opens the next turn stands right behind an answer."""
    for n, turn in enumerate(turns):
        is_answer = turn["role"] == "assistant"
        yield "<|im_start|>" if is_answer else "<|user|>\n", "mark", n
        yield "\n<think></think>\n" if is_answer else "", "lead", n
        yield turn["content"], "words", n


def opens_a_thought(turns: Sequence[Turn]) -> Iterator[Piece]:
    """Generation is given the beginning of a thought, which answers before the last question are shown without.

    Before a question nothing is generated, and so nothing given.
    """
    asked = max(n for n, turn in enumerate(turns) if turn["role"] == "user")
    for n, turn in enumerate(turns):
        said = turn["content"]
        yield f"<|im_start|>{turn['role']}\n", "mark", n
        if turn["role"] == "assistant" and n > asked:
            yield "<think>\n", "mark", n
            yield "\n</think>\n\n", "lead", n
        elif turn["role"] == "assistant" and said.startswith("<think>\n") and _is_asked(turns[:n]):
            yield "<think>\n", "mark", n
            said = said.removeprefix("<think>\n")
        yield said, "words", n
        yield "<|im_end|>", "end", n
        yield "\n", "mark", n


def _is_asked(before: Sequence[Turn]) -> bool:
    return any(turn["role"] == "user" for turn in before)


def shows_last_thought(turns: Sequence[Turn]) -> Iterator[Piece]:
    """As Qwen 3's: thoughts in a field of their own, of the last answers alone."""
    asked = max((n for n, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    for n, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}\n", "mark", n
        if turn["role"] == "assistant" and n > asked and turn.get("reasoning_content"):
            yield f"<think>\n{turn['reasoning_content'].strip()}\n</think>\n\n", "lead", n
        yield turn["content"], "words", n
        yield "<|im_end|>", "end", n
        yield "\n", "mark", n


def llama3(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n", "mark", n
        yield turn["content"].strip(), "words", n
        yield "<|eot_id|>", "end", n


def llama2(turns: Sequence[Turn]) -> Iterator[Piece]:
    """BOS before every question, a space before and behind every answer."""
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    for n, turn in enumerate(turns):
        if n == 0 and system is not None:
            continue
        if turn["role"] == "assistant":
            yield " ", "lead", n
            yield turn["content"].strip(), "words", n
            yield " " + EOS, "end", n
            continue
        yield f"{BOS}[INST] ", "mark", n
        if n == 1 and system is not None:
            yield "<<SYS>>\n", "mark", 0
            yield system, "words", 0
            yield "\n<</SYS>>\n\n", "mark", 0
        yield turn["content"].strip(), "words", n
        yield " [/INST]", "mark", n


def bare_llama2(turns: Sequence[Turn]) -> Iterator[Piece]:
    """One BOS, and contents as they stand."""
    yield BOS, "mark", 0
    for n, turn in enumerate(turns):
        if turn["role"] == "assistant":
            yield " ", "lead", n
            yield turn["content"], "words", n
            yield EOS, "end", n
        else:
            yield "[INST] ", "mark", n
            yield turn["content"], "words", n
            yield " [/INST]", "mark", n


def mistral(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        if turn["role"] == "assistant":
            yield " ", "lead", n
            yield turn["content"].strip(), "words", n
            yield EOS, "end", n
        else:
            yield "[INST] ", "mark", n
            yield turn["content"], "words", n
            yield " [/INST]", "mark", n


def gemma(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"<start_of_turn>{'model' if turn['role'] == 'assistant' else turn['role']}\n", "mark", n
        yield turn["content"].strip(), "words", n
        yield "<end_of_turn>", "end", n
        yield "\n", "mark", n


def zephyr(turns: Sequence[Turn], end: str = EOS) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield f"<|{turn['role']}|>\n", "mark", n
        yield turn["content"], "words", n
        yield end, "end", n
        yield "\n", "mark", n


def phi3(turns: Sequence[Turn]) -> Iterator[Piece]:
    return zephyr(turns, "<|end|>")


def alpaca(turns: Sequence[Turn]) -> Iterator[Piece]:
    first = 0
    if turns[0]["role"] == "system":
        yield turns[0]["content"], "words", 0
        yield "\n\n", "mark", 0
        first = 1
    else:
        opening = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        )
        yield opening + "\n\n", "mark", 0
    for n, turn in enumerate(turns[first:], first):
        if turn["role"] == "assistant":
            yield "### Response:\n", "mark", n
            yield turn["content"], "words", n
            yield EOS, "end", n
            yield "" if n == len(turns) - 1 else "\n\n", "mark", n
        else:
            yield "### Instruction:\n", "mark", n
            yield turn["content"], "words", n
            yield "\n\n", "mark", n


def vicuna(turns: Sequence[Turn]) -> Iterator[Piece]:
    first = 0
    if turns[0]["role"] == "system":
        yield turns[0]["content"], "words", 0
        yield " ", "mark", 0
        first = 1
    else:
        yield "A chat between a curious user and an artificial intelligence assistant. ", "mark", 0
        yield "The assistant gives helpful, detailed, and polite answers to the user's questions. ", "mark", 0
    for n, turn in enumerate(turns[first:], first):
        is_answer = turn["role"] == "assistant"
        yield "ASSISTANT:" if is_answer else "USER: ", "mark", n
        if is_answer:
            yield " ", "lead", n
        yield turn["content"].strip(), "words", n
        yield (EOS, "end", n) if is_answer else (" ", "mark", n)


def plain(turns: Sequence[Turn]) -> Iterator[Piece]:
    for n, turn in enumerate(turns):
        yield turn["content"], "words", n
        if turn["role"] == "assistant":
            yield EOS, "end", n


def with_tools(turns: Sequence[Turn]) -> Iterator[Piece]:
    yield f"<|im_start|>system\n{TOOLS_AS_JSON}<|im_end|>\n", "mark", 0
    for n, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}\n", "mark", n
        yield turn["content"], "words", n
        for call in turn.get("tool_calls", ()):
            said = "".join(f"{key}={value}" for key, value in call["function"]["arguments"].items())
            yield f"<call>{call['function']['name']} {said}</call>", "lead", n
        yield "<|im_end|>", "end", n
        yield "\n", "mark", n


def calls_end_otherwise(turns: Sequence[Turn]) -> Iterator[Piece]:
    """As gpt-oss': a call, which shows no words, ends with a token of its own."""
    yield TOOLS_AS_JSON, "mark", 0
    for n, turn in enumerate(turns):
        yield f"<|im_start|>{turn['role']}", "mark", n
        if turn.get("tool_calls"):
            yield " to=" + json.dumps(turn["tool_calls"], ensure_ascii=False), "lead", n
            yield "<|end|>", "end", n
        else:
            yield "\n", "lead" if turn["role"] == "assistant" else "mark", n
            yield turn["content"], "words", n
            yield "<|im_end|>", "end", n


def tools_at_last_question(turns: Sequence[Turn]) -> Iterator[Piece]:
    """As Mistral's: what comes before an answer changes with what follows it; nothing opens one."""
    yield BOS, "mark", 0
    last = [turn for turn in turns if turn["role"] == "user"][-1]
    for n, turn in enumerate(turns):
        if turn["role"] == "user":
            yield f"TOOLS{TOOLS_AS_JSON}" if turn == last else "", "mark", n
            yield "[INST]", "mark", n
            yield turn["content"], "words", n
            yield "[/INST]", "mark", n
        elif turn.get("tool_calls"):
            yield "CALLS" + json.dumps(turn["tool_calls"], ensure_ascii=False), "lead", n
            yield EOS, "end", n
        elif turn["role"] == "tool":
            yield "RESULT", "mark", n
            yield turn["content"], "words", n
            yield "END", "mark", n
        else:
            yield " ", "lead", n
            yield turn["content"], "words", n
            yield EOS, "end", n


TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
TOOLS_AS_JSON = (
    '[{"type": "function", "function": {"name": "weather", "description": "d", '
    '"parameters": {"type": "object", "properties": {}}}}]'
)
SPOKEN = ("user", "assistant")
NAMED = {name: template.text for name, template in templates.NAMED.items()}

ENDS_IN_WORDS = (
    "{% for m in messages %}{{ '### ' + m['role'] + '\\n' + m['content'] + '\\n### End\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
SHOWS_LAST_THOUGHT = (
    "{% set asked = namespace(at=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set asked.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > asked.at and m['reasoning_content'] %}"
    "{{ '<think>\\n' + m['reasoning_content'].strip() + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALKED = ("user", "assistant", "tool")

KNOWN: dict[str, Known] = {
    "chatml": Known(tiny.CHATML, chatml),
    "generation tag": Known(tiny.GENERATION_TAG, chatml),
    "bos twice": Known(tiny.DOUBLE_BOS, double_bos),
    "counts its turns": Known(tiny.REWRITES, rewrites),
    "eos behind all": Known(tiny.EOS_AT_THE_END, eos_at_the_end),
    "drops thoughts": Known(tiny.DROPS_THOUGHT, drops_thought),
    "empty thought": Known(tiny.EMPTY_THOUGHT_LAST, empty_thought),
    "header with a space": Known(tiny.HEADER_ENDS_IN_SPACE, header_ends_in_space),
    "never ends": Known(tiny.NEVER_ENDS, never_ends, ends=False),
    "llama3": Known(NAMED["llama3"], llama3),
    "llama2": Known(types._LLAMA2, llama2),
    "llama2, bare": Known(tiny.LLAMA2, bare_llama2, SPOKEN),
    "mistral": Known(NAMED["mistral"], mistral, SPOKEN),
    "gemma": Known(NAMED["gemma"], gemma, SPOKEN),
    "zephyr": Known(NAMED["zephyr"], zephyr),
    "phi3": Known(NAMED["phi3"], phi3),
    "alpaca": Known(NAMED["alpaca"], alpaca),
    "vicuna": Known(NAMED["vicuna"], vicuna),
    "plain": Known(NAMED["plain"], plain),
    "two ends": Known(test_template_shapes.TWO_ENDS, two_ends),
    "ends in words": Known(ENDS_IN_WORDS, ends_in_words, ends=False),
    "nothing ends": Known(test_template_shapes.NOTHING_ENDS, nothing_ends, SPOKEN, ends=False),
    "opens a thought": Known(test_template_shapes.OPENS_A_THOUGHT, opens_a_thought),
    "shows the last thought": Known(SHOWS_LAST_THOUGHT, shows_last_thought, thinks=True),
    "tools": Known(tiny.WITH_TOOLS, with_tools, TALKED, tools=(TOOL,)),
    "calls end otherwise": Known(test_template_shapes.CALLS_END_OTHERWISE, calls_end_otherwise, TALKED, tools=(TOOL,)),
    "tools move": Known(tiny.TOOLS_AT_LAST_QUESTION, tools_at_last_question, TALKED, tools=(TOOL,)),
}
