"""TRL's files: the rows, which of their tokens are learned, how long they are, and the template."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from their_files import TRL as BASE
from their_files import TRL_HELD as HELD
from their_files import TRL_MIXED as MIXED
from their_files import entry_of, file, notes_of, refusal
from their_files import trl_settings as made

from tunesmith.dialects.base import Fate
from tunesmith.dialects.columns import MOST_BYTES
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


PAIR = {"prompt": "Hi", "chosen": "Ho", "rejected": "Hu"}
JUDGED = {"prompt": "Hi", "completion": "Ho", "label": True}


@pytest.mark.parametrize(("row", "trainer"), [(PAIR, "dpo"), (PAIR, "reward"), (JUDGED, "kto"), (JUDGED, "sft")])
@pytest.mark.parametrize("values", [{}, {"dataset_name": None, "datasets": [{"path": "pairs.jsonl"}]}])
def test_judged_answers_want_a_trainer_that_is_named(
    row: dict[str, Any], trainer: str, values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    path = file(tmp_path, {**BASE, "trainer": None, "dataset_name": "pairs.jsonl", **values})
    said = refusal(path)
    assert "the file does not say which trainer reads them" in said
    assert f"trainer={trainer}" in said
    kind = {"reward": "reward", "sft": "sft"}.get(trainer, "preference")
    assert load_any(path, [f"trainer={trainer}"]).resolved.recipe.objective.kind == kind


@pytest.mark.parametrize(
    "row", [{**PAIR, "messages": []}, {"prompt": "Hi", "completion": "Ho"}, {**JUDGED, "label": 1}]
)
def test_rows_that_sft_reads_want_none(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    read = load_any(file(tmp_path, {**BASE, "trainer": None, "dataset_name": "pairs.jsonl"}))
    assert read.resolved.recipe.objective.kind == "sft"


def test_labelled_rows_without_a_completion_are_none_of_sft(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "Hi", "response": "Ho", "label": True}) + "\n")
    said = refusal(file(tmp_path, {**BASE, "trainer": None, "dataset_name": "pairs.jsonl"}))
    assert "trainer=kto" in said
    assert "trainer=sft" not in said


def test_empty_cells_of_a_table_are_no_columns_of_its_rows(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,messages\nHi,Ho,Hu,\n")
    assert "has pairs of answers" in refusal(file(tmp_path, {**BASE, "trainer": None, "dataset_name": "pairs.csv"}))


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_not_read_whole_to_see_its_first_row(packed: bool, tmp_path: Path) -> None:
    """A list is read row by row, whatever its size; an object that holds the list is not."""
    name = "pairs.json.gz" if packed else "pairs.json"
    path = file(tmp_path, {**BASE, "trainer": None, "dataset_name": name})

    def write(value: Any, before: str = "") -> None:
        text = (before + json.dumps(value)).encode()
        (tmp_path / name).write_bytes(gzip.compress(text, 1) if packed else text)

    long = [PAIR, {**PAIR, "prompt": "x" * MOST_BYTES}]
    for seen in ([PAIR], {"data": [PAIR]}, long):
        write(seen, "\ufeff \n")
        assert "has pairs of answers" in refusal(path)
    write({"data": long}, "\ufeff \n")
    assert load_any(path).resolved.recipe.objective.kind == "sft"
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    assert load_any(path).resolved.recipe.objective.kind == "sft"


def test_where_the_rows_are_not_seen_the_note_names_the_trainers_of_judged_answers(tmp_path: Path) -> None:
    notes = " ".join(notes_of(load_any(file(tmp_path, {**BASE, "trainer": None}))))
    assert "trainer=dpo (or orpo, cpo, reward), answers with a label trainer=kto" in notes
