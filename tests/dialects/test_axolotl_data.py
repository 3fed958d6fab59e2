"""Axolotl's files: rows, how they are read, and the chat templates and tokens that they are written in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from their_files import AXOLOTL as BASE
from their_files import AXOLOTL_CHAT as CHAT
from their_files import AXOLOTL_GRPO as GRPO
from their_files import entry_of, file, refusal

from tunesmith.data.formats import convert
from tunesmith.data.types import Conversation, Origin
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError


def test_rows_of_several_types_keep_their_words(tmp_path: Path) -> None:
    entries = [
        {"path": "a/b", "type": "alpaca"},
        {"path": "c/d", "type": "chat_template"},
        {"path": "e/f", "type": "completion"},
    ]
    made = load_any(file(tmp_path, {**BASE, "datasets": entries, "chat_template": "chatml"})).resolved.recipe
    assert made.model.template == "chatml"
    assert [source.template for source in made.data.train] == ["alpaca", None, None]
    assert [source.format if isinstance(source.format, str) else "words" for source in made.data.train] == [
        "words",
        "messages",
        "text",
    ]


def test_an_entry_that_asks_for_the_tokenizer_s_own_template_gets_it(tmp_path: Path) -> None:
    entry = {"path": "a/b", "type": "chat_template", "chat_template": "tokenizer_default"}
    made = load_any(file(tmp_path, {**BASE, "datasets": [entry], "chat_template": "chatml"})).resolved.recipe
    assert made.model.template is None


@pytest.mark.parametrize("key", ["datasets", "pretraining_dataset"])
def test_one_mapping_is_a_list_of_it(key: str, tmp_path: Path) -> None:
    said = {**BASE, "datasets": None, "max_steps": 3, key: {"path": "a/b", "type": "completion"}}
    assert load_any(file(tmp_path, said)).resolved.recipe.data.train == "a/b"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"pretraining_dataset": [{"path": "a/b"}]}, "stands beside keys that go before it"),
        ({"rl": "dpo", "datasets": [{"path": "a/b", "type": {"prompt_format": "{instruction}"}}]}, "cannot be filled"),
        ({"rl": "kto", "datasets": [{"path": "a/b", "type": {"prompt_format": "[I] {prompt}"}}]}, "not done for kto"),
        ({**GRPO, "datasets": [{"path": "a/b", "type": "rewards.transform"}]}, "not called here"),
        ({"test_datasets": [{"path": "json", "data_files": ["a.jsonl", "b.jsonl"]}]}, "names 2 files"),
    ],
)
def test_what_hangs_together_wrongly_is_a_sentence(said: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(TunesmithError, match=what):
        load_any(file(tmp_path, {**BASE, **said}))


def test_a_file_beside_its_kind_and_its_files(tmp_path: Path) -> None:
    entry = {"path": "rows.jsonl", "ds_type": "json", "data_files": ["rows.jsonl"], "type": "alpaca"}
    made = load_any(file(tmp_path, {**BASE, "datasets": [entry]})).resolved.recipe
    assert made.data.train == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "mistral_v3_tekken", "phi_4", "tokenizer_default_fallback_chatml"])
def test_a_family_s_template_is_the_tokenizer_s_own(name: str, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, **CHAT, "chat_template": name}))
    assert read.resolved.recipe.model.template is None
    assert entry_of(read, "chat_template").fate is Fate.CARRIED
    assert any(f"{name}: the tokenizer's own chat template is taken" in note for note in read.resolved.notes)


def test_who_adds_some_tokens_of_a_template_adds_its_end_too(tmp_path: Path) -> None:
    said = {"tokens": ["<|im_start|>"], "special_tokens": {"eos_token": "<|im_end|>", "unk_token": "<unk>"}}
    made = load_any(file(tmp_path, {**BASE, **CHAT, **said})).resolved.recipe.model
    assert made.add_tokens == ("<|im_start|>", "<|im_end|>")
    assert made.special_tokens == {"eos": "<|im_end|>", "unk": "<unk>"}
    alone = load_any(file(tmp_path, {**BASE, "special_tokens": said["special_tokens"]})).resolved.recipe.model
    assert alone.add_tokens == (), "it is expected to be there, and refused where it is not"


HI, HO, HU = ({"role": role, "content": said} for role, said in (("user", "Hi"), ("assistant", "Ho"), ("user", "Hu")))


@pytest.mark.parametrize(
    ("type_", "row", "passed_over"),
    [
        ("chat_template", {"messages": [HI, HO], "conversations": [HU, HO]}, {"conversations"}),
        ("sharegpt", {"messages": [HU, HO], "conversations": [HI, HO]}, {"messages"}),
        ("chat_template", {"messages": [HI, HO], "conversations": None}, set()),
        ("chat_template", {"conversations": [HI, HO]}, set()),
        ("sharegpt", {"messages": [HI, HO]}, set()),
    ],
)
def test_of_two_lists_of_messages_the_types_own_is_read(
    type_: str, row: dict[str, Any], passed_over: set[str], tmp_path: Path
) -> None:
    (tmp_path / "talk.jsonl").write_text(json.dumps(row) + "\n")
    made = load_any(file(tmp_path, {**BASE, "datasets": [{"path": "talk.jsonl", "type": type_}]})).resolved.recipe.data
    assert {name for name in ("messages", "conversations") if name in made.columns} == passed_over
    (read,) = convert([(Origin("talk.jsonl", 1), row)], made.format, made.columns).rows
    assert isinstance(read, Conversation)
    assert [turn.content for turn in read.messages] == ["Hi", "Ho"]


@pytest.mark.parametrize("slices", [({"shards": 4}, {"split": "train[:10]"}), ({}, {"shards": 2})])
def test_slices_of_one_file_want_files_of_their_own(slices: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    entries = [{"path": "rows.jsonl", "type": "alpaca", **each} for each in slices]
    said = refusal(file(tmp_path, {**BASE, "datasets": entries}))
    assert "datasets[1].path names rows.jsonl once more" in said
    assert "write each slice into a file of its own" in said


def test_splits_of_one_hub_id_are_sources_of_their_own(tmp_path: Path) -> None:
    entries = [{"path": "a/b", "type": "alpaca", "split": split, "shards": 2} for split in ("one", "two")]
    made = load_any(file(tmp_path, {**BASE, "datasets": entries})).resolved.recipe.data
    assert [(source.split, source.weight) for source in made.train] == [("one", 0.5), ("two", 0.5)]
