"""Whose turns are learned (`data.learn`) and which of their ends (`data.learn_ends`)."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.formats import convert
from tunesmith.data.masking.mask import Span, with_ends
from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.templating import templates
from tunesmith.data.types import Conversation, Document, Judged, Labelled, Message, Origin, Preference, Prompt
from tunesmith.errors import DataError, RecipeError

ORIGIN = Origin("test", 1)
ROLES = ("system", "user", "assistant", "tool")


def named(name: str, **how):
    tokenizer = tiny.byte_level(**how)
    tokenizer.add_tokens(list(templates.NAMED[name].tokens), special_tokens=True)
    templates.install(name, tokenizer)
    return tokenizer


TOKENIZERS = {
    **{f"{name}, bos {adds}": named(name, adds_bos=adds) for name in templates.NAMED for adds in (False, True)},
    **{
        f"{name}, bos {adds}": tiny.byte_level(getattr(tiny, name), adds_bos=adds)
        for name in ("CHATML", "LLAMA2", "DOUBLE_BOS", "NEVER_ENDS", "EOS_AT_THE_END", "REWRITES", "DROPS_THOUGHT")
        for adds in (False, True)
    },
    "EMPTY_THOUGHT_LAST": tiny.byte_level(tiny.EMPTY_THOUGHT_LAST),
    "GENERATION_TAG": tiny.byte_level(tiny.GENERATION_TAG),
    "HEADER_ENDS_IN_SPACE": tiny.byte_level(tiny.HEADER_ENDS_IN_SPACE),
    "trims": tiny.byte_level(tiny.CHATML, trims=True),
    "word mark": tiny.word_mark(tiny.LLAMA2, adds_bos=True),
    "word mark, CHATML": tiny.word_mark(tiny.CHATML),
}
ROWS = [
    {"messages": [{"role": role, "content": text} for role, text in turns]}
    for turns in (
        [("user", "what is it?"), ("assistant", "it is 42.")],
        [("user", "what?"), ("assistant", "the dog"), ("user", "and then"), ("assistant", "the fox\n\njumps")],
        [("user", "a question of the user alone"), ("assistant", "yes"), ("user", "why")],
    )
]


def data(**keys) -> DataSettings:
    return DataSettings(train="rows", **keys)


def weights(rows, tokenizer, **keys):
    return [example.loss_weights.tolist() for example in prepare(data(**keys), tokenizer, seed=0, rows=rows).train]


def tokens(rows, tokenizer, **keys):
    return [example.token_ids.tolist() for example in prepare(data(**keys), tokenizer, seed=0, rows=rows).train]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_everything_is_all_tokens_but_the_first_and_the_tokens_are_those_of_answers(name):
    tokenizer = TOKENIZERS[name]
    assert tokens(ROWS, tokenizer, learn="everything") == tokens(ROWS, tokenizer)
    for row in weights(ROWS, tokenizer, learn="everything"):
        assert row == [0.0] + [1.0] * (len(row) - 1)


def test_everything_of_prompt_and_completion_and_of_a_template_over_columns():
    tokenizer = TOKENIZERS["CHATML, bos False"]
    turns = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    template = TemplateFormat(system="s", prompt="{{ prompt }}", answer="{{ completion }}")
    for row, form in (
        ({"prompt": "q", "completion": "a"}, "auto"),
        ({"prompt": turns[0], "completion": turns[1]}, "auto"),
        ({"instruction": "q", "output": "a"}, "auto"),
        ({"prompt": "q", "completion": "a"}, template),
    ):
        [found] = weights([row], tokenizer, learn="everything", format=form)
        assert found == [0.0] + [1.0] * (len(found) - 1)


def test_everything_looks_for_no_turn_and_so_needs_no_template_that_shows_where_they_are():
    tokenizer = tiny.byte_level(tiny.CHATML)
    tokenizer.chat_template = tiny.CHATML + "{{ messages | tojson }}"
    row = Conversation((Message("user", "q"), Message("assistant", "a")), ORIGIN, is_whole=True)
    assert Renderer(tokenizer).render(row).num_learned == len(Renderer(tokenizer).render(row)) - 1


def test_everything_beside_a_mark_that_says_no_names_the_rows():
    marked = [{"role": "user", "content": "q", "weight": 0}, {"role": "assistant", "content": "a", "learn": True}]
    rows = [ROWS[0], {"messages": marked}, {"messages": marked}]
    with pytest.raises(DataError) as caught:
        prepare(data(learn="everything"), TOKENIZERS["CHATML, bos False"], seed=0, rows=rows)
    said = str(caught.value)
    assert "rows, row 2: message 1 is marked as not to be learned, and data.learn is everything" in said
    assert "rows, row 3" in said
    assert "set data.learn to answers" in said
    yes = [{**marked[0], "weight": 1}, marked[1]]
    assert prepare(data(learn="everything"), TOKENIZERS["CHATML, bos False"], seed=0, rows=[{"messages": yes}]).train


@pytest.mark.parametrize("name", TOKENIZERS)
def test_roles_are_learned_as_messages_that_are_marked(name):
    tokenizer = TOKENIZERS[name]
    for learn in (("assistant", "user"), ("user",), ("assistant",)):
        marked = [{"messages": [turn | {"learn": turn["role"] in learn} for turn in row["messages"]]} for row in ROWS]
        assert weights(ROWS, tokenizer, learn=learn) == weights(marked, tokenizer)
    both, answers, users = (
        weights(ROWS, tokenizer, learn=learn) for learn in (("user", "assistant"), "answers", ("user",))
    )
    for row, *parts in zip(both, answers, users, strict=True):
        shortest = min(map(len, parts))  # where nothing ends an answer, EOS is added to one that is learned
        assert row[:shortest] == np.max([part[:shortest] for part in parts], axis=0).tolist()


@given(
    roles=st.lists(st.sampled_from(ROLES), min_size=1, unique=True),
    marks=st.lists(st.sampled_from([None, True, False]), min_size=4, max_size=4),
)
def test_a_message_s_own_mark_wins_over_its_role(roles, marks):
    turns = [
        {"role": role, "content": "x"} | ({} if mark is None else {"train": mark})
        for role, mark in zip(ROLES, marks, strict=True)
    ]
    raw = [(ORIGIN, {"messages": turns})]
    [row] = convert(raw, "auto", {}, learn=tuple(roles)).rows
    expected = [role in roles if mark is None else mark for role, mark in zip(ROLES, marks, strict=True)]
    assert [turn.is_learned for turn in row.messages] == expected


def test_of_prompt_and_completion_answers_means_the_completion_and_roles_mean_all_turns():
    prompt = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "and", "learn": True},
    ]
    raw = [(ORIGIN, {"prompt": prompt, "completion": [{"role": "assistant", "content": "b"}]})]

    def learned(learn):
        [row] = convert(raw, "auto", {}, learn=learn).rows
        return [turn.is_learned for turn in row.messages]

    assert learned("answers") == [False, False, False, True]
    assert learned(("assistant",)) == [False, True, True, True]
    assert learned(("user",)) == [True, False, True, False]


def test_a_row_without_a_turn_of_the_roles_is_counted():
    tokenizer = TOKENIZERS["CHATML, bos False"]
    rows = [{"messages": [{"role": "system", "content": "s"}, *ROWS[0]["messages"]]}, *ROWS]
    prepared = prepare(data(learn=["system"]), tokenizer, seed=0, rows=rows)
    assert (prepared.counts.kept, prepared.counts["unlearnable"]) == (1, 3)
    with pytest.raises(DataError, match=r"named in data\.learn"):
        prepare(data(learn=["tool"]), tokenizer, seed=0, rows=rows)


def test_a_system_turn_that_stands_in_a_turn_that_is_not_learned_is_told():
    rows = [{"messages": [{"role": "system", "content": "s"}, *ROWS[0]["messages"]]}]
    made = prepare(
        data(learn=["system", "assistant"], system_turn="into-user"), tiny.byte_level(tiny.NO_SYSTEM), seed=0, rows=rows
    )
    assert any("system turns are not learned" in note for note in made.notes)


# --- ends ----------------------------------------------------------------------------------------------------------

ENDS = {
    **{f"{name}, bos True": "</s>" for name in ("mistral", "zephyr", "alpaca", "vicuna", "plain")},
    "chatml, bos False": "<|im_end|>",
    "llama3, bos True": "<|eot_id|>",
    "gemma, bos False": "<end_of_turn>",
    "phi3, bos False": "<|end|>",
    "CHATML, bos True": "<|im_end|>",
    "LLAMA2, bos False": "</s>",
    "EOS_AT_THE_END, bos False": "<|im_end|>",
    "REWRITES, bos False": "<|im_end|>",
    "GENERATION_TAG": "<|im_end|>",
    "word mark": "</s>",
}


@pytest.mark.parametrize("name", ENDS)
@settings(deadline=None, max_examples=8)
@given(marks=st.lists(st.sampled_from([None, False]), min_size=3, max_size=3))
def test_which_ends_are_learned_differ_in_the_end_tokens_alone(name, marks):
    tokenizer, turns = TOKENIZERS[name], []
    for number, mark in enumerate(marks):
        turns.append({"role": "user", "content": f"question {number}"})
        turns.append(
            {"role": "assistant", "content": f"the answer {number}"} | ({} if mark is None else {"learn": mark})
        )
    if not any(mark is None for mark in marks):
        return
    rows = [{"messages": turns}]
    assert (
        tokens(rows, tokenizer)
        == tokens(rows, tokenizer, learn_ends="none")
        == tokens(rows, tokenizer, learn_ends="last")
    )
    [ids], [turn], [last], [none] = (
        tokens(rows, tokenizer),
        *(weights(rows, tokenizer, learn_ends=ends) for ends in ("turn", "last", "none")),
    )
    is_end = [token == tokenizer.convert_tokens_to_ids(ENDS[name]) for token in ids]
    ends = [place for place, weight in enumerate(turn) if weight and is_end[place]]
    assert len(ends) == sum(mark is None for mark in marks)
    assert none == [weight * (place not in ends) for place, weight in enumerate(turn)]
    assert last == [weight * (place not in ends[:-1]) for place, weight in enumerate(turn)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_all_ends_are_those_of_turns_that_are_not_learned_too(name):
    """What `all` adds are end tokens alone: one of every turn that has one."""
    tokenizer = TOKENIZERS[name]
    turns = [
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "it is 42.", "learn": False},
        {"role": "user", "content": "and then"},
        {"role": "assistant", "content": "the fox\n\njumps"},
    ]
    rows = [{"messages": turns}]
    [ids], [all_ends], [usual] = (
        tokens(rows, tokenizer, learn_ends="all"),
        weights(rows, tokenizer, learn_ends="all"),
        weights(rows, tokenizer),
    )
    assert [ids] == tokens(rows, tokenizer)
    added = [token for token, more, less in zip(ids, all_ends, usual, strict=True) if more != less]
    traits = Renderer(tokenizer).chat.traits
    assert set(added) <= set(tokenizer(traits.ends[0], add_special_tokens=False).input_ids[-1:] if traits.ends else [])
    base = name.partition(",")[0]
    only_answers = (
        base in ("mistral", "alpaca", "vicuna", "plain", "LLAMA2", "word mark") and name != "word mark, CHATML"
    )
    assert len(added) == (0 if base == "NEVER_ENDS" else 1 if only_answers else 3)


def test_the_ends_of_learned_turns_of_other_roles_are_learned_with_all():
    tokenizer = TOKENIZERS["CHATML, bos False"]
    [ids], [row] = (
        tokens(ROWS[:1], tokenizer),
        weights(ROWS[:1], tokenizer, learn=["user", "assistant"], learn_ends="all"),
    )
    learned = tokenizer.decode([token for token, weight in zip(ids, row, strict=True) if weight])
    assert learned == "what is it?<|im_end|>it is 42.<|im_end|>"


def test_a_turn_that_is_not_shown_has_no_end():
    tokenizer = tiny.byte_level(tiny.CHATML.replace("in messages", "in messages if m['content'] != 'away'"))
    row = Conversation((Message("tool", "away"), Message("user", "q"), Message("assistant", "a")), ORIGIN)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    example = Renderer(tokenizer, learn_ends="all").render(row)
    assert example.token_ids[example.loss_weights > 0].tolist().count(end) == 2


def test_an_end_within_a_turn_s_own_words_is_not_the_turn_s():
    tokenizer = TOKENIZERS["mistral, bos False"]
    row = Conversation(
        (Message("user", "q"), Message("assistant", "a</s>b", learn=False), Message("user", "w")), ORIGIN
    )
    example = Renderer(tokenizer, learn_ends="all").render(row)
    assert int((example.loss_weights > 0).sum()) == 1


def test_an_end_that_is_added_is_learned_as_the_ends_are_and_it_is_said():
    tokenizer = TOKENIZERS["NEVER_ENDS, bos False"]
    for ends, learned in (("turn", 1.0), ("last", 1.0), ("none", 0.0)):
        made = prepare(data(learn_ends=ends), tokenizer, seed=0, rows=ROWS[:1])
        assert made.train[0].token_ids[-1] == tokenizer.eos_token_id
        assert made.train[0].loss_weights[-1] == learned
        assert any(("and not learned" in note) == (not learned) for note in made.notes if "never ends" in note)


def test_the_end_of_a_call_that_ends_in_a_token_of_its_own_is_an_end():
    tokenizer = tiny.byte_level(tiny.CHATML)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
        "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson + '<|end|>' }}{% else %}{{ '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = Conversation(
        (
            Message("user", "q"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "1", name="f"),
            Message("assistant", "one"),
        ),
        ORIGIN,
    )
    ends = [tokenizer.convert_tokens_to_ids(end) for end in ("<|end|>", "<|im_end|>")]

    def learned_ends(which):
        example = Renderer(tokenizer, learn_ends=which).render(row)
        return [int(token) for token in example.token_ids[example.loss_weights > 0] if token in ends]

    assert (learned_ends("turn"), learned_ends("last"), learned_ends("none")) == (ends, ends[1:], [])


def test_plain_text_is_learned_whole_whatever_is_said_of_turns():
    tokenizer = TOKENIZERS["CHATML, bos False"]
    usual = prepare(data(), tokenizer, seed=0, rows=[{"text": "plain"}]).fingerprint
    for keys in ({"learn": ["user"]}, {"learn": "everything"}, {"learn_ends": "none"}):
        assert prepare(data(**keys), tokenizer, seed=0, rows=[{"text": "plain"}]).fingerprint == usual
    document = Document("plain", ORIGIN)
    assert np.array_equal(
        Renderer(tokenizer, learn_ends="none").render(document).loss_weights,
        Renderer(tokenizer).render(document).loss_weights,
    )


@pytest.mark.parametrize("kinds", [(Preference,), (Judged, Preference), (Prompt,), (Labelled,)])
@pytest.mark.parametrize(("name", "value"), [("learn", "everything"), ("learn", ("user",)), ("learn_ends", "none")])
def test_what_is_learned_is_refused_where_no_conversation_is_before_any_row_is_read(kinds, name, value):
    with pytest.raises(RecipeError, match=rf"^data\.{name}: it says what is learned of conversations"):
        prepare(
            DataSettings(train="/no/such/file.jsonl", **{name: value}),
            TOKENIZERS["GENERATION_TAG"],
            seed=0,
            takes=kinds,
        )


def test_an_answer_that_is_its_end_alone_is_not_learned_without_it():
    chat = Renderer(TOKENIZERS["CHATML, bos False"]).chat
    text = "q<|im_end|>a<|im_end|>"
    spans = [Span(1, 11, True, is_answer=True), Span(11, 22, True, is_answer=True)]
    assert with_ends(chat, text, spans, "none") == [Span(11, 12, True, is_answer=True)]
    assert with_ends(chat, text, spans, "last") == spans[1:]
    assert with_ends(chat, text, spans, "turn") == spans


@pytest.mark.parametrize(
    ("turns", "ended"),
    [
        ([("user", "q"), ("assistant", "a")], "a"),
        ([("user", "q"), ("assistant", "a"), ("user", "r")], "r"),
        ([("user", "q"), ("assistant", "a"), ("user", "")], "a"),
        ([("assistant", "a"), ("user", "q"), ("user", "r")], "r"),
    ],
)
def test_the_last_end_is_that_of_the_last_learned_turn_of_any_role(turns, ended):
    tokenizer = TOKENIZERS["CHATML, bos False"]
    row = Conversation(tuple(Message(role, text, learn=True) for role, text in turns), ORIGIN)
    example = Renderer(tokenizer, learn_ends="last").render(row)
    learned = tokenizer.decode([int(token) for token in example.token_ids[example.loss_weights > 0]])
    assert learned == "".join(text + "<|im_end|>" * (text == ended) for _, text in turns)
