"""TRL's files: the rows, which of their tokens are learned, how long they are, and the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from their_files import TRL as BASE
from their_files import TRL_HELD as HELD
from their_files import TRL_MIXED as MIXED
from their_files import entry_of, file
from their_files import trl_settings as made

from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError


@pytest.mark.parametrize(
    ("said", "learn"),
    [
        ({}, "completions"),
        ({"assistant_only_loss": False}, "completions"),
        ({"assistant_only_loss": True}, "answers"),
        ({"completion_only_loss": True}, "answers"),
        ({"completion_only_loss": False}, "everything"),
        ({**MIXED, "datasets": [{"path": "a/b", "columns": ["prompt", "completion"]}]}, "answers"),
        ({**MIXED, "datasets": [{"path": "a/b", "columns": ["messages"]}]}, "completions"),
    ],
)
def test_which_tokens_are_learned(said: Any, learn: str, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, **said}))
    assert read.resolved.recipe.data.learn == learn
    is_open = "completion_only_loss" not in said and learn == "completions"
    assert any("assistant_only_loss=true" in line for line in read.resolved.notes) is is_open


def test_sources_of_a_mixture(tmp_path: Path) -> None:
    two = [{"path": "a/b", "split": "train_sft", "name": "en"}, {"path": "json", "data_files": ["rows.jsonl"]}]
    (tmp_path / "rows.jsonl").touch()
    data = made(tmp_path, dataset_name="ignored/rows", datasets=two, test_split_size=100).data
    assert [(source.path, source.split, source.subset) for source in data.train] == [
        ("a/b", "train_sft", "en"),
        (str(tmp_path / "rows.jsonl"), None, None),
    ]
    assert data.held_out == 100
    assert entry_of(load_any(file(tmp_path, {**BASE, "datasets": two})), "dataset_name").fate is Fate.IDLE
    with pytest.raises(TunesmithError, match="test_split_size"):
        load_any(file(tmp_path, {**BASE, "datasets": two, **HELD}))


def test_a_file_has_no_test_split(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(TunesmithError, match=r"data\.held_out"):
        load_any(file(tmp_path, {**BASE, "dataset_name": "rows.jsonl", **HELD}))


def test_no_limit_of_length(tmp_path: Path) -> None:
    path = tmp_path / "their.yaml"
    path.write_text("model_name_or_path: a/b\ndataset_name: c/d\nmax_length: null\n")
    assert load_any(path).resolved.recipe.data.max_length > 1_000_000
    with pytest.raises(TunesmithError, match="how long a pack is"):
        load_any(path, ["packing=true"])


def test_a_template_of_a_file(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    assert made(tmp_path, chat_template_path="chat.jinja").model.template == str(template)
    (tmp_path / "tokenizer").mkdir()
    template.rename(tmp_path / "tokenizer" / "chat_template.jinja")
    folder = str(tmp_path / "tokenizer")
    assert made(tmp_path, chat_template_path=folder).model.template.endswith("chat_template.jinja")
    with pytest.raises(TunesmithError, match="is not fetched"):
        load_any(file(tmp_path, {**BASE, "chat_template_path": "Qwen/Qwen3-0.6B"}))
