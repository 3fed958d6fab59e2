"""Shapes that chat templates of real models take, made small: what is learned in each, and what is said."""

from __future__ import annotations

from itertools import groupby

import pytest
import tiny_tokenizers as tiny

from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Conversation, Message, Origin

ORIGIN = Origin("test", 1)
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}

# As Cohere's: two tokens end an answer, and only the second ends the turn.
TWO_ENDS = tiny.CHATML.replace("'<|im_end|>'", "'<|end|><|im_end|>'")
# As Qwen 3.5's: generation opens a thought, answers before the last question are shown without one.
OPENS_A_THOUGHT = (
    "{% set asked = namespace(at=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set asked.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
    "{{ raise_exception('No user query found') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > asked.at %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
# As gpt-oss': a call ends with a token of its own.
CALLS_END_OTHERWISE = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
    "{% if m['tool_calls'] %}{{ ' to=' + (m['tool_calls'] | tojson) + '<|end|>' }}"
    "{% else %}{{ '\\n' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
# As GLM's: no token ends an answer, the next role's begins; and a thought stands before each.
NOTHING_ENDS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>\\n<think></think>\\n' + m['content'] }}"
    "{% else %}{{ '<|user|>\\n' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
# As Mistral's: an id of nine letters or digits with every call and every reply.
WANTS_IDS = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% for call in m['tool_calls'] or [] %}{% if not call['id'] or call['id'] | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ call | tojson }}{% endfor %}"
    "{% if m['role'] == 'tool' %}{% if not m['tool_call_id'] or m['tool_call_id'] | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ m['tool_call_id'] + ' ' }}{% endif %}{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), ORIGIN)


TWO_QUESTIONS = talk(("user", "what?"), ("assistant", "the fox"), ("user", "and?"), ("assistant", "the dog"))


def learned(template: str, row: Conversation) -> list[str]:
    tokenizer = tiny.byte_level(template)
    example = Renderer(tokenizer).render(row)
    runs = groupby(zip(example.token_ids, example.loss_weights, strict=True), key=lambda pair: pair[1] > 0)
    return [tokenizer.decode([int(token) for token, _ in run]) for is_learned, run in runs if is_learned]


def test_all_tokens_that_end_a_turn_are_learned_and_the_last_of_them_stops():
    assert learned(TWO_ENDS, TWO_QUESTIONS) == ["the fox<|end|><|im_end|>", "the dog<|end|><|im_end|>"]
    tokenizer = tiny.byte_level(TWO_ENDS)
    assert Renderer(tokenizer).end_ids == tuple(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))


def test_answers_shown_without_the_thought_that_generation_opens_are_learned_whole():
    assert learned(OPENS_A_THOUGHT, TWO_QUESTIONS) == ["the fox<|im_end|>", "\n</think>\n\nthe dog<|im_end|>"]
    greeting = talk(("system", "s"), ("assistant", "hello"), ("user", "what?"), ("assistant", "the dog"))
    assert learned(OPENS_A_THOUGHT, greeting) == ["hello<|im_end|>", "\n</think>\n\nthe dog<|im_end|>"]
    # a content that merely looks like the thought that is opened
    sly = talk(("user", "what?"), ("assistant", "<think"), ("user", "and?"), ("assistant", "the dog"))
    assert learned(OPENS_A_THOUGHT, sly)[0] == "<think<|im_end|>"


def test_a_call_that_ends_with_a_token_of_its_own_is_learned_with_it():
    turns = (
        Message("user", "rain?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "yes"),
        Message("assistant", "it rains"),
    )
    call, answer = learned(CALLS_END_OTHERWISE, Conversation(turns, ORIGIN, (TOOL,)))
    assert call.startswith(" to=[{")
    assert call.endswith("<|end|>")
    assert answer == "\nit rains<|im_end|>"


def test_answers_that_no_token_ends_are_learned_up_to_the_next_turn():
    assert learned(NOTHING_ENDS, TWO_QUESTIONS) == ["\n<think></think>\nthe fox", "\n<think></think>\nthe dog</s>"]


@pytest.mark.parametrize("given", ["", "call_0123456789", "abcdefghi"])
def test_calls_get_the_ids_that_a_template_wants_and_replies_the_same(given):
    calls = tuple({"id": given + str(i), **CALL} if len(given) > 9 else CALL for i in range(2))
    calls = ({"id": given, **CALL},) if len(given) == 9 else calls
    replies = [Message("tool", "yes", tool_call_id=call.get("id")) for call in reversed(calls)]
    turns = (Message("user", "rain?"), Message("assistant", "", tool_calls=calls), *replies, Message("assistant", "x"))
    tokenizer = tiny.byte_level(WANTS_IDS)
    renderer = Renderer(tokenizer)
    example = renderer.render(Conversation(turns, ORIGIN, (TOOL,)))
    text = tokenizer.decode(example.token_ids.tolist())
    wanted = [given] if len(given) == 9 else ["000000001", "000000002"]
    assert all(text.count(one) == 2 for one in wanted)
    replied = [text.index(f"{one} yes") for one in wanted]
    assert replied == sorted(replied, reverse=len(given) > 9)
    assert any("ids" in note for note in renderer.notes) == (len(given) != 9)
    prompt = renderer.prompt_ids(turns[:-1], (TOOL,))
    assert example.token_ids[: len(prompt)].tolist() == prompt


def test_words_that_a_template_does_not_write_out_are_counted():
    only_first_system = tiny.CHATML.replace(
        "{{ '<|im_start|>'",
        "{% if m['role'] == 'system' and not loop.first %}{% continue %}{% endif %}{{ '<|im_start|>'",
    )
    rows = [
        {"messages": [{"role": r, "content": c} for r, c in turns]}
        for turns in (
            [("user", "a"), ("assistant", "one"), ("system", "be loud"), ("user", "b"), ("assistant", "two")],
            [("system", " be loud "), ("user", "b"), ("assistant", "two")],
        )
    ]
    prepared = prepare(DataSettings(train="rows"), tiny.byte_level(only_first_system), seed=0, rows=rows)
    assert prepared.counts["hidden"] == 1
    thoughts = [{"prompt": "q", "completion": "<think>\nhm\n</think>\n\nyes"}, {"prompt": "q", "completion": "yes"}]
    dropping = tiny.DROPS_THOUGHT.replace("and not loop.last", "")
    assert prepare(DataSettings(train="rows"), tiny.byte_level(dropping), seed=0, rows=thoughts).counts["hidden"] == 1
    quoting = tiny.CHATML.replace("m['content']", "(m['content'] | tojson)")
    quoted = [{"prompt": 'say "é"\n', "completion": "yes"}]
    assert prepare(DataSettings(train="rows"), tiny.byte_level(quoting), seed=0, rows=quoted).counts["hidden"] == 0


def test_white_space_before_an_answer_that_is_cut_otherwise_without_it_is_counted():
    """GPT-2's words: of two line breaks before a letter the last stands alone, at the end of a text it does not."""
    tokenizer = tiny.byte_level(tiny.CHATML.replace("'\\n'", "'\\n\\n'").replace("assistant\\n", "assistant\\n\\n"))
    renderer = Renderer(tokenizer)
    row = talk(("user", "what?"), ("assistant", "the fox"))
    rendering = renderer.render_all([row])
    prompt = renderer.prompt_ids(row.messages[:1])
    assert rendering.examples[0].token_ids[: len(prompt)].tolist() != prompt
    assert rendering.straddled == [ORIGIN]
    one_break = Renderer(tiny.byte_level(tiny.CHATML)).render_all([row])
    assert one_break.straddled == []


def test_an_end_that_cannot_be_added_is_not_claimed():
    tokenizer = tiny.byte_level(tiny.NEVER_ENDS)
    tokenizer.eos_token = None
    renderer = Renderer(tokenizer)
    renderer.render(talk(("user", "q"), ("assistant", "a")))
    assert any("no end is learned" in note for note in renderer.notes)
    assert not any("EOS is added" in note for note in renderer.notes)
