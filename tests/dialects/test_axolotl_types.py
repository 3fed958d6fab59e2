"""What Axolotl's dataset types make of a row: the words, and which of them are learned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from test_axolotl import BASE
from their_files import file
from tiny_tokenizers import byte_level

from tunesmith.data.masking.answering import learned_runs
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.templating.templates import install
from tunesmith.dialects.axolotl.types import INSTRUCT
from tunesmith.dialects.read import load_any
from tunesmith.errors import DataError

OPENING = "Below is an instruction that describes a task"
ALONE = f"{OPENING}. Write a response that appropriately completes the request."
PAIRED = (
    f"{OPENING}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
CONTEXT = "SYSTEM: Use the following contextual information to concisely answer the question.\n\n"
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
BARE = {"instruction": "Add.", "input": "", "output": "3"}
ORCA = {"system_prompt": "Be brief.", "question": "Why?", "response": "So."}
CHOICE = {"question": "Which?", "choices": ["a", "b"], "solution": "b"}
TURNS = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}

WORDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("alpaca", ALPACA, f"{PAIRED}\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", "3"),
    ("alpaca", BARE, f"{ALONE}\n\n### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("alpaca", {"instruction": "Add.", "output": "3"}, f"{ALONE}\n\n### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("alpaca_instruct.load", BARE, f"{ALONE}\n\n### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("alpaca:instruct", BARE, f"{ALONE}\n\n### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("alpaca.load_no_prompt", ALPACA, "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", "3"),
    ("alpaca_instruct.load_no_prompt", BARE, "### Instruction:\nAdd.\n\n### Response:\n", "3"),
    ("alpaca:chat", ALPACA, f"SYSTEM: {PAIRED}\nUSER: Add.\n1 2\nASSISTANT:", "3"),
    ("alpaca_chat", BARE, f"SYSTEM: {ALONE}\nUSER: Add.\nASSISTANT:", "3"),
    ("alpaca_chat.load_no_prompt", ALPACA, "USER: Add.\n1 2\nASSISTANT:", "3"),
    ("alpaca_chat.load_no_prompt", BARE, "USER: Add.\nASSISTANT:", "3"),
    ("alpaca_chat.load_qa", {"question": "Q?", "answer": "A"}, f"SYSTEM: {ALONE}\nUSER: Q?\nASSISTANT:", "A"),
    (
        "alpaca:chatml",
        ALPACA,
        f"<|im_start|>system\n{PAIRED}<|im_end|>\n<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n",
        "3",
    ),
    ("alpaca_chat.load_camel_ai", {"message_1": "Hi", "message_2": "Ho"}, "Hi ", "Ho"),
    ("alpaca:phi", BARE, f"<|system|>\n{ALONE}<|end|>\n<|user|>\nAdd.<|end|><|assistant|>", "3"),
    ("alpaca_w_system", {**BARE, "system": "Be."}, "SYSTEM: Be.\nUSER: Add.\nASSISTANT:", "3"),
    ("alpaca_w_system.load_chat", {**BARE, "system": ""}, "USER: Add.\nASSISTANT:", "3"),
    (
        "alpaca_w_system.load_instruct",
        {**BARE, "system": "Be."},
        "Be.\n\n### Instruction:\nAdd.\n\n### Response:\n",
        "3",
    ),
    ("alpaca_w_system.load_open_orca", ORCA, "### System:\nBe brief.\n### Human:\nWhy?\n### Assistant:\n", "So."),
    (
        "alpaca_w_system.load_open_orca_chatml",
        ORCA,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "So.",
    ),
    (
        "alpaca_w_system.load_open_orca_chatml",
        {**ORCA, "system_prompt": ""},
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "So.",
    ),
    (
        "jeopardy",
        {"category": "SEA", "question": "Wet?", "answer": "water"},
        f"{PAIRED}\n\n### Instruction:\nWet?\n\n### Input:\nSEA\n\n### Response:\n",
        "what is water",
    ),
    ("oasst", {"INSTRUCTION": "Do", "RESPONSE": "Done"}, f"{ALONE}\n\n### Instruction:\nDo\n\n### Response:\n", "Done"),
    (
        "gpteacher",
        {"instruction": "Add.", "input": "", "response": "3"},
        f"{ALONE}\n\n### Instruction:\nAdd.\n\n### Response:\n",
        "3",
    ),
    (
        "explainchoice",
        CHOICE,
        "SYSTEM: Choose the answer that best answers the question. Explain your reasoning.\n\n"
        'USER: Which?\n- "a"\n- "b"\nASSISTANT:',
        "b",
    ),
    (
        "concisechoice",
        {"question": "Which?", "choices": ["a", "b"], "explanation": "b is"},
        "Choose the answer that best answers the question. Be concise in your response.\n\n"
        'USER: Which?\n- "a"\n- "b"\nASSISTANT:\n',
        "b is",
    ),
    (
        "summarizetldr",
        {"article": "Long.", "summary": "Short."},
        "USER: Summarize the following article as a TL;DR.\nLong.\nASSISTANT:",
        "Short.",
    ),
    ("context_qa", {"article": "T", "question": "Q", "answer": "A"}, f"{CONTEXT}USER: T\n===\nQ\nASSISTANT:", "A"),
    (
        "context_qa.load_v2",
        {"context": "T", "question": "Q", "answer": "A"},
        "Context: T\nQuestion: Q\n",
        "Answer: A",
    ),
    (
        "context_qa.load_404",
        {"article": "T", "unanswerable_question": "Q"},
        f"{CONTEXT}USER: T\n===\nQ\nASSISTANT:",
        "The context provided does not contain any information about your inquiry. "
        "Therefore, I'm unable to answer your question based on the given context.",
    ),
    ("metharme", {"prompt": "<|user|>Hi<|model|>", "generation": "Ho"}, "<|user|>Hi<|model|>", "Ho"),
    ("orcamini", ORCA, "### System:\nBe brief.\n\n### User:\nWhy?\n\n### Response:\n", "So."),
    ("pygmalion", {"conversations": [{"role": "human", "value": "Hi"}, {"role": "bot", "value": "Ho"}]},
     "<|user|> Hi<|model|>", " Ho"),
    ("llama2_chat", TURNS, "[INST] Hi [/INST]", " Ho "),
]  # fmt: skip


def prepared(type_: Any, rows: list[dict[str, Any]], folder: Path, **more: Any) -> tuple[Prepared, Any]:
    values = {**BASE, "datasets": [{"path": "some/rows", "type": type_, **more.pop("entry", {})}], **more}
    recipe = load_any(file(folder, values)).resolved.recipe
    tokenizer = byte_level("{{ messages[0]['content'] }}")
    if recipe.model.template:
        install(recipe.model.template, tokenizer)
    return prepare(recipe.data, tokenizer, seed=0, rows=rows), tokenizer


def told(made: Prepared, tokenizer: Any) -> tuple[str, str]:
    """The text of the first row, up to the end of what is learned, and its learned part."""
    example = made.train[0]
    learned = [int(token) for token, weight in zip(example.token_ids, example.loss_weights, strict=True) if weight]
    last = max(index for index, weight in enumerate(example.loss_weights) if weight)
    return tokenizer.decode(example.token_ids[: last + 1]), tokenizer.decode(learned)


@pytest.mark.parametrize(("type_", "row", "prompt", "answer"), WORDS, ids=[f"{w[0]}-{i}" for i, w in enumerate(WORDS)])
def test_a_type_words_its_rows(type_: str, row: dict[str, Any], prompt: str, answer: str, tmp_path: Path) -> None:
    made, tokenizer = prepared(type_, [row], tmp_path)
    text, learned = told(made, tokenizer)
    end = "<|im_end|>" if "im_start" in prompt else tokenizer.eos_token
    assert text.removeprefix(tokenizer.bos_token or "") == prompt + answer + end
    assert learned == answer + end


def test_every_type_has_its_words() -> None:
    others = {"completion", "pretrain", "input_output", "alpaca_chat.load_concise"}
    assert set(INSTRUCT) - {w[0].removesuffix(".load") for w in WORDS} == others


def test_completion_is_plain_text_of_any_column_and_split_where_it_is_long(tmp_path: Path) -> None:
    rows = [{"body": "the quick brown fox jumps over the lazy dog " * 8}]
    made, _ = prepared("completion", rows, tmp_path, entry={"field": "body"}, sequence_len=32)
    assert len(made.train) > 1
    assert all(example.num_learned == len(example) - 1 for example in made.train)


def test_words_of_the_user(tmp_path: Path) -> None:
    type_ = {
        "system_prompt": "Be {brief}.",
        "system_format": "S: {system}\n",
        "field_instruction": "q",
        "field_output": "a",
        "no_input_format": "Q: {instruction} {{literal}}\nA:",
    }
    type_["system_prompt"] = "Be brief."
    made, tokenizer = prepared(type_, [{"q": "Why?", "a": "So."}], tmp_path)
    assert told(made, tokenizer)[0] == "S: Be brief.\nQ: Why? {literal}\nA:So." + tokenizer.eos_token


@pytest.mark.parametrize("type_", ["chat_template", "sharegpt", "chat_template.default"])
def test_conversations_by_the_chat_template(type_: str, tmp_path: Path) -> None:
    made, tokenizer = prepared(type_, [TURNS], tmp_path, chat_template="chatml")
    assert told(made, tokenizer) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>",
        "Ho<|im_end|>",
    )


def test_own_keys_and_roles_of_messages(tmp_path: Path) -> None:
    rows = [{"turns": [{"who": "asker", "says": "Hi"}, {"who": "answerer", "says": "Ho"}]}]
    entry = {
        "field_messages": "turns",
        "message_property_mappings": {"role": "who", "content": "says"},
        "roles": {"user": ["asker"], "assistant": ["answerer"]},
        "roles_to_train": ["assistant", "user"],
    }
    made, tokenizer = prepared("chat_template", rows, tmp_path, entry=entry, chat_template="chatml")
    assert told(made, tokenizer)[1] == "Hi<|im_end|>Ho<|im_end|>"


def test_train_on_inputs_learns_everything(tmp_path: Path) -> None:
    made, _ = prepared("alpaca", [ALPACA], tmp_path, train_on_inputs=True)
    assert made.train[0].num_learned == len(made.train[0]) - 1


PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("chatml.argilla", {"system": "Be.", "instruction": "Hi", "chosen_response": "Yes", "rejected_response": "No"}),
    ("chatml.argilla", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "system": "Be."}),
    ("chatml", {"system": "Be.", "question": "Hi", "chosen": "Yes", "rejected": "No"}),
    ("chatml.icr", {"system": "Be.", "input": "Hi", "chosen": "Yes", "rejected": "No"}),
    ("chatml.intel", {"system": "Be.", "question": "Hi", "chosen": "Yes", "rejected": "No"}),
    ("chatml.prompt_pairs", {"system": "Be.", "prompt": "Hi", "chosen": "Yes", "rejected": "No"}),
    (
        "chatml.ultra",
        {
            "system": "Be.",
            "prompt": "Hi",
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
        },
    ),
]


@pytest.mark.parametrize(("type_", "row"), PAIRS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PAIRS)])
def test_pairs_in_chatml(type_: str, row: dict[str, Any], tmp_path: Path) -> None:
    values = {**BASE, "rl": "dpo", "datasets": [{"path": "some/pairs", "type": type_}]}
    recipe = load_any(file(tmp_path, values)).resolved.recipe
    tokenizer = byte_level("{{ messages[0]['content'] }}")
    install(str(recipe.model.template), tokenizer)
    made = prepare(recipe.data, tokenizer, seed=0, rows=[row], takes=recipe.takes)
    texts = [tokenizer.decode(example.token_ids).rstrip() for example in made.train]
    before = "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [f"{before}Yes<|im_end|>", f"{before}No<|im_end|>"]


def test_of_ranked_answers_the_two_last_are_a_pair_as_in_axolotl_and_that_is_said(tmp_path: Path) -> None:
    values = {**BASE, "rl": "dpo", "datasets": [{"path": "some/pairs", "type": "zephyr.nectar"}]}
    read = load_any(file(tmp_path, values))
    tokenizer = byte_level("{{ messages[0]['content'] }}")
    install(str(read.resolved.recipe.model.template), tokenizer)
    ranked = [{"answer": "worse", "rank": 2.0}, {"answer": "worst", "rank": 3.0}, {"answer": "best", "rank": 1.0}]
    rows = [{"prompt": "Hi", "answers": ranked}]
    recipe = read.resolved.recipe
    made = prepare(recipe.data, tokenizer, seed=0, rows=rows, takes=recipe.takes)
    texts = [tokenizer.decode(example.token_ids).removeprefix(tokenizer.bos_token or "") for example in made.train]
    before = "<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
    assert texts == [f"{before}{answer}{tokenizer.eos_token}" for answer in ("worst", "worse")]
    assert read.translation is not None
    assert any("these are the two worst" in note for note in read.translation.notes)


def test_a_type_whose_words_are_not_here_is_read_in_words_of_ones_own_as_its_refusal_says(tmp_path: Path) -> None:
    values = {**BASE, "datasets": [{"path": "some/rows", "type": "reflection"}]}
    form = '{prompt: "Do: {{ instruction }}\\n", answer: "{{ output }} So: {{ corrected }}"}'
    typed = ("datasets[0].type=", "model.template=plain", f"data.format={form}")
    recipe = load_any(file(tmp_path, values), typed).resolved.recipe
    tokenizer = byte_level("{{ messages[0]['content'] }}")
    install(str(recipe.model.template), tokenizer)
    row = {"instruction": "Add.", "output": "3", "reflection": "no", "corrected": "4"}
    made = prepare(recipe.data, tokenizer, seed=0, rows=[row])
    assert told(made, tokenizer)[1] == "3 So: 4" + tokenizer.eos_token


def test_segments_and_token_ids_have_their_own_mask(tmp_path: Path) -> None:
    segments = [{"label": False, "text": "<s>Hi "}, {"label": True, "text": "Ho</s>"}, {"label": False, "text": "\n"}]
    made, tokenizer = prepared("input_output", [{"segments": segments}], tmp_path)
    assert told(made, tokenizer) == ("<s>Hi Ho</s>", "Ho</s>")
    made, tokenizer = prepared(None, [{"input_ids": [11, 12, 13], "labels": [-100, 12, -100]}], tmp_path)
    assert made.train[0].loss_weights.tolist() == [0, 1, 0]


DETAILED = [  # the example of their documentation, but for a word
    {"from": "system", "value": "You are an AI assistant.", "train": False},
    {"from": "human", "value": "Hello", "train": False},
    {"from": "assistant", "value": "Hello", "train": True},
    {"from": "human", "value": "How are you?", "train": True},
    {
        "from": "assistant",
        "value": "I'm doing very well, thank you!",
        "train_detail": [
            {"begin_offset": 0, "end_offset": 8, "train": False},
            {"begin_offset": 9, "end_offset": 18, "train": True},
            {"begin_offset": 19, "end_offset": 30, "train": False},
        ],
    },
    {"from": "human", "value": "I'm doing very well, thank you!", "train": True},
    {"from": "assistant", "value": "Hi there!", "train": True},
]
FLAGGED = {
    "field_messages": "conversations",
    "message_property_mappings": {"role": "from", "content": "value"},
    "roles_to_train": [],
    "train_on_eos": "turn",
    "message_field_training": "train",
    "message_field_training_detail": "train_detail",
}


def test_offsets_of_what_is_learned_within_a_message(tmp_path: Path) -> None:
    rows = [{"conversations": DETAILED}]
    made, tokenizer = prepared("chat_template", rows, tmp_path, entry=FLAGGED, chat_template="chatml")
    runs = [tokenizer.decode(made.train[0].token_ids[start:end]) for start, end in learned_runs(made.train[0])]
    very_well = DETAILED[4]["value"][9:19]
    assert runs == [
        *("Hello<|im_end|>", "How are you?<|im_end|>", very_well, "<|im_end|>"),
        *("I'm doing very well, thank you!<|im_end|>", "Hi there!<|im_end|>"),
    ]


ONE_TRUE = [{"begin_offset": 2, "end_offset": 3, "train": True}]
FLAGS: list[tuple[dict[str, Any], str]] = [
    # The flag goes before the offsets, and these before the role; no offsets are a flag that says no.
    ({"train_detail": ONE_TRUE}, "34<|im_end|>"),
    ({"train_detail": ONE_TRUE, "train": True}, "34<|im_end|>"),
    ({"train_detail": ONE_TRUE, "train": False}, ""),
    ({"train_detail": [{**ONE_TRUE[0], "train": False}]}, "<|im_end|>"),
    ({"train_detail": []}, ""),
    ({"train_detail": [], "train": True}, "123456<|im_end|>"),
    ({"train_detail": None}, "123456<|im_end|>"),
    ({"train_detail": [{"begin_offset": 0, "end_offset": 0, "train": 1}, *ONE_TRUE]}, "134<|im_end|>"),
]


@pytest.mark.parametrize(("said", "learned"), FLAGS)
def test_flags_and_offsets_beside_each_other(said: dict[str, Any], learned: str, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?", "train": True}, {"from": "assistant", "value": "123456", **said}]
    # The key that no message has would be refused.
    other = [{"from": "human", "value": "x", "train": True, "train_detail": ONE_TRUE[:0]}]
    entry = {key: value for key, value in FLAGGED.items() if key != "roles_to_train"}
    rows = [{"conversations": turns}, {"conversations": other}]
    made, tokenizer = prepared("chat_template", rows, tmp_path, entry=entry, chat_template="chatml")
    assert told(made, tokenizer)[1] == f"?<|im_end|>{learned}"


def test_no_roles_to_train_leave_it_to_the_messages(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    rows = [{"conversations": [*turns, {**turns[1], "value": "Hu", "train": True}]}]
    entry = {**FLAGGED, "message_field_training_detail": None}
    made, tokenizer = prepared("chat_template", rows, tmp_path, entry=entry, chat_template="chatml")
    assert told(made, tokenizer)[1] == "Hu<|im_end|>"


def test_offsets_out_of_range_name_the_row_and_the_message(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "assistant", "value": "123456", "train_detail": ONE_TRUE}]
    wrong = [turns[0], {**turns[1], "train_detail": [{"begin_offset": 2, "end_offset": 6, "train": True}]}]
    rows = [{"conversations": turns}, {"conversations": wrong}]
    entry = {**FLAGGED, "message_field_training": None}
    with pytest.raises(DataError, match=r"row 2: span 1 of 'learn_spans' of message 2 of 'conversations' reaches"):
        prepared("chat_template", rows, tmp_path, entry=entry, chat_template="chatml")
