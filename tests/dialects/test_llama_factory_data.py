"""LLaMA-Factory's files: data sets by name in dataset_info.json, and their rows as the model sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from their_files import FACTORY as BASE
from their_files import FACTORY_ROWS as ROWS
from their_files import PAIR_COLUMNS, refusal
from their_files import factory_file as file
from their_files import factory_home as home
from their_files import factory_settings as settings
from tiny_tokenizers import byte_level

from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.templating.templates import install
from tunesmith.data.types import Conversation, Origin
from tunesmith.dialects.llama_factory.templates import WORDED
from tunesmith.dialects.read import load_any
from tunesmith.errors import DataError, TunesmithError
from tunesmith.notation import write

SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL = {
    "alpaca_en_demo": "instruct/alpaca_en.json",
    "identity": "instruct/identity.json",
    "dpo_en_demo": "preference/dpo_en_sharegpt.json",
    "kto_en_demo": "preference/kto_en.json",
    "glaive_toolcall_en_demo": "tools/glaive_toolcall_en.json",
}
needs_real = pytest.mark.skipif(
    not all((SHARED / "data" / name).is_file() for name in REAL.values()), reason="the data are not beside the checkout"
)

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}

# ---- dataset_info.json --------------------------------------------------------------------------------------------


def test_several_data_sets_each_with_its_own_reading(tmp_path: Path) -> None:
    data = settings(tmp_path, dataset="rows, chat,hub", max_samples=7).data
    assert [source.path for source in data.train] == [str(tmp_path / "data" / "rows.json"), "owner/chat", "owner/rows"]
    assert [isinstance(source.format, str) for source in data.train] == [False, True, False]
    assert (data.train[2].split, data.train[2].subset, data.limit) == ("train_sft", "en", 7)


def test_tags_and_columns(tmp_path: Path) -> None:
    tags = {"role_tag": "speaker", "content_tag": "words", "user_tag": "asker", "assistant_tag": "gpt"}
    entry = {
        **{"hf_hub_url": "owner/rows", "formatting": "sharegpt", "tags": tags},
        **{"columns": {"messages": "turns", "system": "rules", "tools": "functions"}},
    }
    data = load_any(file(tmp_path, {**BASE, "dataset": "own"}, own=entry)).resolved.recipe.data
    assert data.message_keys == {"role": "speaker", "content": "words", "learn": None}
    assert data.roles == {"asker": "user"}
    named = {"messages": "turns", "system": "rules", "tools": "functions"}
    assert data.columns == {**named, **dict.fromkeys(("conversations", "functions", "system_prompt"))}


def test_held_out_rows_of_their_own(tmp_path: Path) -> None:
    more = str(tmp_path / "data" / "more.json")
    assert settings(tmp_path, eval_dataset="more").data.held_out == more
    data = settings(tmp_path, dataset="rows,chat", eval_dataset="more").data
    assert (data.held_out, data.of_other_files.format) == (more, data.sources[0].format)
    assert data.sources[1].format == "messages"
    assert settings(tmp_path, val_size=5).data.held_out == 5


def test_a_file_in_place_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    path = home(tmp_path) / "their.yml"
    path.write_text(write({**BASE, "dataset": "mine.json"}))
    assert load_any(path).resolved.recipe.data.train == str(tmp_path / "mine.json")
    assert settings(tmp_path, dataset_dir="ONLINE", dataset="owner/rows").data.train == "owner/rows"


def test_the_file_of_data_sets_is_found_where_theirs_looks_and_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, BASE)
    (tmp_path / "here" / "data").mkdir(parents=True)
    (tmp_path / "here" / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"hf_hub_url": "from/here"}}))
    assert load_any(path).resolved.recipe.data.train == str(tmp_path / "data" / "rows.json")
    monkeypatch.chdir(tmp_path / "here")
    assert load_any(path).resolved.recipe.data.train == "from/here"


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"file_name": "gone.json"}, "there is no"),
        ({"file_name": "rwos.json"}, "did you mean: rows.json"),
        ({"ms_hub_url": "a/b"}, "download it"),
        ({"script_url": "a"}, "download it"),
        ({"formatting": "sharegtp", "file_name": "rows.json"}, "alpaca, sharegpt or openai"),
        ({"file_name": "rows.json", "num_samples": 5}, "max_samples"),
        ({"hf_hub_url": "a/b", "folder": "x"}, "download that folder"),
        ({"file_name": "rows.json", "split": "test"}, "a file has no split"),
        ({"file_name": "rows.json", "columns": {"prmpt": "q"}}, "did you mean prompt"),
        ({"file_name": "rows.json", "colums": {}}, "did you mean columns"),
        ({"file_name": "rows.json", "formatting": "sharegpt", "columns": {"images": "images"}}, "train on text"),
        ({"file_name": "rows.json", "ranking": True}, "stage dpo or rm"),
        ({"file_name": "rows.json", "columns": {**ALPACA_COLUMNS, "kto_tag": "ok"}}, "stage kto"),
        ({"file_name": "rows.json", "columns": {**ALPACA_COLUMNS, "tools": "tools"}}, "sharegpt"),
        ({"file_name": "rows.json", "columns": {"prompt": "instruction"}}, "names no response"),
        ({}, "file_name or hf_hub_url"),
        ("rows.json", '{"file_name": …}'),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_read_is_named(entry: Any, what: str, tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "dataset": "own"}, own=entry))
    assert f"{tmp_path / 'data' / 'dataset_info.json'}, own" in said
    assert what in said


IN_COLUMNS = {"hf_hub_url": "a/b", "split": "train_sft", "columns": {**ALPACA_COLUMNS, "history": "history"}}


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        ([{"history": [["Hi", "Ho"]], "input": ""}], "alpaca"),
        ([{"history": [], "input": "1 2"}, {"history": None, "input": ""}], "words"),
        ([{"history": [["Hi", "Ho"]], "input": "1 2"}], None),
    ],
)
def test_rows_of_the_hub_with_a_history_and_an_input_are_looked_at_as_those_of_a_file_are(
    rows: list[dict[str, Any]], form: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def hub(path: str, **where: Any) -> list[Any]:
        asked.append((path, where))
        return [(Origin(path, number), row) for number, row in enumerate(rows, 1)]

    monkeypatch.setattr("tunesmith.dialects.llama_factory.rows.read", hub)
    path = file(tmp_path, {**BASE, "dataset": "own"}, own=IN_COLUMNS)
    if form is None:
        assert "joined otherwise here" in refusal(path)
    else:
        data = load_any(path).resolved.recipe.data
        assert data.split == "train_sft"
        assert (data.format if isinstance(data.format, str) else "words") == form
    assert asked[0] == ("a/b", {"limit": None, "split": "train_sft", "subset": None})


def test_rows_of_the_hub_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str, **where: Any) -> list[Any]:
        raise DataError("the hub cannot be reached", where=path)

    monkeypatch.setattr("tunesmith.dialects.llama_factory.rows.read", gone)
    said = refusal(file(tmp_path, {**BASE, "dataset": "own"}, own=IN_COLUMNS))
    assert "history: its rows have to be looked at, and cannot be: the hub cannot be reached" in said
    assert "name its file as file_name" in said
    alone = {**IN_COLUMNS, "columns": {"prompt": "q", "response": "a", "history": "history"}}
    data = load_any(file(tmp_path, {**BASE, "dataset": "own"}, own=alone)).resolved.recipe.data
    assert data.format == "alpaca"
    assert data.columns == {"instruction": "q", "output": "a", **dict.fromkeys(("input", "system", "system_prompt"))}


def test_a_subset_of_a_file_is_said_to_be_without_effect(tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, "dataset": "own"}, own={"file_name": "rows.json", "subset": "en"}))
    assert read.resolved.recipe.data.subset is None
    assert read.translation is not None
    assert any("subset en is without effect" in note for note in read.translation.notes)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "dataset": "rosw"}))
    assert "did you mean rows?" in said
    assert "dataset_info.json" in said
    assert "line 3" in said
    path = tmp_path / "alone" / "their.yml"
    path.parent.mkdir()
    path.write_text(write(BASE))
    assert "there is no dataset_info.json" in refusal(path)
    assert "dataset_dir=" in refusal(path)
    (path.parent / "data").mkdir()
    (path.parent / "data" / "dataset_info.json").write_text('{"rows": {"file_name": "rows.json",}}')
    assert "line 1, column 36: this is not JSON" in refusal(path)


# ---- rows ---------------------------------------------------------------------------------------------------------


def prepared(
    folder: Path, rows: list[dict[str, Any]] | None, entry: dict[str, Any], **values: Any
) -> tuple[Prepared, Any]:
    """The rows of one data set as the model would see them."""
    own: dict[str, Any] = {"file_name": "own.json", **entry}
    if rows is not None:
        (home(folder) / "data" / "own.json").write_text(json.dumps(rows))
    recipe = load_any(file(folder, {**BASE, "dataset": "own", **values}, own=own)).resolved.recipe
    tokenizer = byte_level()
    install(recipe.model.template or "chatml", tokenizer)
    return prepare(recipe.data, tokenizer, takes=recipe.takes, seed=0), tokenizer


def shown(made: tuple[Prepared, Any], number: int = 0) -> tuple[str, str]:
    """A row's whole text, and what is learned of it."""
    example, tokenizer = made[0].train[number], made[1]
    learned = [token for token, weight in zip(example.token_ids, example.loss_weights, strict=True) if weight]
    return tokenizer.decode(example.token_ids), tokenizer.decode(learned)


CURIOUS = WORDED["vicuna"].opening
OPENING = WORDED["alpaca"].opening
ADD = [{"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}]
WITH_SYSTEM = {"columns": {**ALPACA_COLUMNS, "system": "system"}}
ENDED = "3<|im_end|>"


@pytest.mark.parametrize(
    ("values", "entry", "text", "learned"),
    [
        ({}, {}, "<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({}, {"columns": {"prompt": "instruction", "response": "output"}},
         "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({}, WITH_SYSTEM, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.\n1 2<|im_end|>\n"
         "<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({"default_system": "Say {{it}}."}, {}, "<|im_start|>system\nSay {{it}}.<|im_end|>\n<|im_start|>user\nAdd.\n1 2"
         "<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({"template": "alpaca"}, {}, f"{OPENING}### Instruction:\nAdd.\n1 2\n\n### Response:\n3</s>", "3</s>"),
        ({"template": "vicuna"}, {}, f"{CURIOUS}USER: Add.\n1 2 ASSISTANT:3</s>", "3</s>"),
        ({"template": "vicuna"}, WITH_SYSTEM, "Be brief.USER: Add.\n1 2 ASSISTANT:3</s>", "3</s>"),
        ({"template": "vicuna", "default_system": "It's so."}, {}, "It's so.USER: Add.\n1 2 ASSISTANT:3</s>", "3</s>"),
        ({"template": "zephyr"}, WITH_SYSTEM,
         "<|system|>\nBe brief.</s><|user|>\nAdd.\n1 2</s><|assistant|>\n3</s>", "3</s>"),
        ({"template": "default"}, WITH_SYSTEM,
         "System: Be brief.</s>\nHuman: Add.\n1 2</s>\nAssistant:3</s>\n", "3</s>"),
        ({"template": "llama2"}, WITH_SYSTEM,
         "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nAdd.\n1 2 [/INST]3</s>", "3</s>"),
        ({"template": "empty"}, {}, "Add.\n1 23</s>", "3"),
        ({"template": "chatml_de"}, {}, "<|im_start|>system\nDu bist ein freundlicher und hilfsbereiter KI-Assistent."
         "<|im_end|>\n<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
    ],
)  # fmt: skip
def test_words(values: dict[str, Any], entry: dict[str, Any], text: str, learned: str, tmp_path: Path) -> None:
    whole, wanted = shown(prepared(tmp_path, ADD, entry, **values))
    assert (whole.removeprefix("<s>"), wanted) == (text.removeprefix("<s>"), learned)


def test_the_whole_row_is_learned_where_the_prompt_is(tmp_path: Path) -> None:
    text, learned = shown(prepared(tmp_path, ADD, {}, train_on_prompt=True))
    assert text.endswith(learned)
    assert "Add." in learned


def test_turns_of_several_questions_in_every_template(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2}]
    for name, words in WORDED.items():
        text, learned = shown(prepared(tmp_path, rows, {"formatting": "sharegpt"}, template=name))
        one = words.user.replace("{content}", "a") + words.opens + words.answer.replace("{content}", "b")
        one = one.replace("{eos}", "</s>").replace("{bos}", "<s>").rstrip("\n")  # ours leaves out what follows the last
        assert text.rstrip("\n").endswith(one) or name == "empty"
        assert learned.count("b") == 2
        assert "a" not in learned.replace("assistant", "")


def test_columns_with_names_that_jinja_cannot_say(tmp_path: Path) -> None:
    entry = {"columns": {"prompt": "the question", "response": "the-answer"}}
    text, _ = shown(prepared(tmp_path, [{"the question": "Why?", "the-answer": "So."}], entry))
    assert "user\nWhy?<" in text
    assert "assistant\nSo.<" in text


def test_earlier_turns(tmp_path: Path) -> None:
    entry = {"columns": {**ALPACA_COLUMNS, "history": "history"}}
    bare = {**ADD[0], "input": ""}
    rows = [{**bare, "history": [["Hi", "Ho"]]}, {**bare, "history": []}]
    with pytest.raises(TunesmithError) as caught:
        prepared(tmp_path, [*rows, ADD[0]], entry)
    assert "rows with an input too" in str(caught.value)
    text, learned = shown(prepared(tmp_path, rows, entry))
    assert "Ho<|im_end|>" in text
    assert learned == "Ho<|im_end|>3<|im_end|>"
    assert "Add.\n1 2<" in shown(prepared(tmp_path, ADD, entry))[0]


@pytest.mark.parametrize(
    ("stage", "entry", "row"),
    [
        ("dpo", {"ranking": True}, {"instruction": "Q", "input": "R", "chosen": "A", "rejected": "B"}),
        ("rm", {"ranking": True, "columns": {**ALPACA_COLUMNS, "chosen": "good", "rejected": "bad"}},
         {"instruction": "Q", "input": "R", "good": "A", "bad": "B"}),
        ("kto", {"columns": {"prompt": "q", "response": "a", "kto_tag": "good"}}, {"q": "Q\nR", "a": "A", "good": 1}),
        ("kto", {"formatting": "sharegpt", "columns": {"messages": "turns", "kto_tag": "label"}, "tags": OPENAI_TAGS},
         {"turns": [{"role": "user", "content": "Q\nR"}, {"role": "assistant", "content": "A"}], "label": True}),
    ],
)  # fmt: skip
def test_answers_under_judgement(stage: str, entry: dict[str, Any], row: dict[str, Any], tmp_path: Path) -> None:
    text, learned = shown(prepared(tmp_path, [row, row], entry, stage=stage))
    assert text.startswith("<|im_start|>user\nQ\nR<|im_end|>")
    assert learned == "A<|im_end|>"


def test_plain_text(tmp_path: Path) -> None:
    text, _ = shown(prepared(tmp_path, [{"body": "The quick brown fox."}], {"columns": {"prompt": "body"}}, stage="pt"))
    assert "The quick brown fox." in text
    with pytest.raises(TunesmithError, match="is not of plain text"):
        prepared(tmp_path, [{"body": "x"}], {}, stage="pt")


# ---- their own files ----------------------------------------------------------------------------------------------


def real(folder: Path, **values: Any) -> tuple[Prepared, Any]:
    """One of LLaMA-Factory's demonstrations, by its own entry."""
    entries: dict[str, Any] = {
        "alpaca_en_demo": {},
        "identity": {},
        "dpo_en_demo": {"ranking": True, "formatting": "sharegpt", "columns": PAIR_COLUMNS},
        "kto_en_demo": {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": OPENAI_TAGS,
        },
        "glaive_toolcall_en_demo": {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        },
    }
    for name, entry in entries.items():
        entry["file_name"] = str(SHARED / "data" / REAL[name])
    recipe = load_any(file(folder, {**BASE, **values}, **entries)).resolved.recipe
    tokenizer = byte_level()
    install(recipe.model.template or "chatml", tokenizer)
    return prepare(recipe.data, tokenizer, takes=recipe.takes, seed=0), tokenizer


@needs_real
def test_their_instructions(tmp_path: Path) -> None:
    made, tokenizer = real(tmp_path, dataset="identity,alpaca_en_demo", max_samples=120, cutoff_len=8192)
    assert len(made.train) == 91 + 120
    rows = json.loads((SHARED / "data" / REAL["alpaca_en_demo"]).read_text())
    number = next(number for number, row in enumerate(rows) if row["input"])
    text = tokenizer.decode(made.train[91 + number].token_ids)
    assert f"user\n{rows[number]['instruction']}\n{rows[number]['input']}<|im_end|>" in text


@needs_real
def test_their_pairs_and_judgements(tmp_path: Path) -> None:
    pairs, _ = real(tmp_path, dataset="dpo_en_demo", stage="dpo", max_samples=20, cutoff_len=8192)
    assert len(pairs.train) == 2 * 20
    judged, _ = real(tmp_path, dataset="kto_en_demo", stage="kto", max_samples=20, cutoff_len=8192)
    assert len(judged.train) == 20


@needs_real
def test_their_tool_calls(tmp_path: Path) -> None:
    values = {**BASE, "dataset": "glaive_toolcall_en_demo"}
    entry = {
        **{"file_name": str(SHARED / "data" / REAL["glaive_toolcall_en_demo"]), "formatting": "sharegpt"},
        **{"columns": {"messages": "conversations", "tools": "tools"}},
    }
    recipe = load_any(file(tmp_path, values, glaive_toolcall_en_demo=entry)).resolved.recipe
    from tunesmith.data.mixture import read_parts

    (part,) = read_parts(recipe.data)
    rows = part.converted(recipe.takes).rows
    assert len(rows) == 300
    assert all(isinstance(row, Conversation) for row in rows)
    first = rows[0]
    assert isinstance(first, Conversation)
    assert first.tools
    call = next(turn for turn in first.messages if turn.tool_calls).tool_calls[0]["function"]
    assert call["name"] == "search_recipes"
    assert call["arguments"]["ingredients"]
    assert any(turn.role == "tool" for turn in first.messages)


@pytest.mark.parametrize("is_used", [False, True])
def test_a_role_of_calls_is_refused_where_a_row_has_it(is_used: bool, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "call" if is_used else "gpt", "value": "{}"}]
    tags = {"function_tag": "call"}
    entry = {"file_name": "turns.json", "formatting": "sharegpt", "tags": tags}
    path = file(tmp_path, {**BASE, "dataset": "own"}, own=entry)
    (tmp_path / "data" / "turns.json").write_text(json.dumps([{"conversations": turns}]))
    if is_used:
        assert "name the role function_call in the rows" in refusal(path)
    else:
        assert load_any(path).resolved.recipe.data.format == "messages"
