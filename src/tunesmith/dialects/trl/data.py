"""Of a TRL file: the rows, how they are read, how long they are, and which of their tokens are learned."""

from __future__ import annotations

import os
from typing import Any

from tunesmith.dialects.base import NO_SUBSET, Said, is_file, left_over, of_a_file, there
from tunesmith.dialects.columns import unread
from tunesmith.dialects.trl.trainer import PAIRS, POLICY
from tunesmith.notation import write_inline

BUILDERS = ("json", "csv", "parquet", "text", "arrow")
_NOT_READ = ("system", "system_prompt", "functions")
"""Of columns beside a conversation, those that TRL passes over in any of its formats."""
ENDLESS = 1 << 20
"""For no limit of length: the model's own is kept in any case."""
_FORMATS: dict[str, tuple[tuple[str, frozenset[str]], ...]] = {
    "sft": (
        ("prompt-completion", frozenset({"prompt", "completion"})),
        ("messages", frozenset({"messages"})),
        ("messages", frozenset({"conversations"})),
        ("text", frozenset({"text"})),
    ),
    "kto": (
        ("unpaired", frozenset({"prompt", "completion", "label"})),
        ("preference", frozenset({"chosen", "rejected"})),
    ),
    "pairs": (("preference", frozenset({"chosen", "rejected"})),),
    "policy": (("prompt", frozenset({"prompt"})),),
}
"""What a selection of columns makes of rows, the most telling first."""


def rows(said: Said, trainer: str) -> None:
    formats = _mixture(said, trainer) if said.has("datasets") else _one(said)
    selected = said.ledger.settings.get(("data", "columns"), ({}, ""))[0]
    columns = {**_passed_over(trainer), **selected}
    column, named = said.take("dataset_text_field", str, "text"), list[str]()
    if column != "text":
        columns["text"] = column
        named = list(there(said, "dataset_text_field"))
    else:
        said.idle("dataset_text_field", "it is the column's name anyway")
    if columns:
        said.put("data.columns", columns, *named)
    if trainer not in POLICY:
        said.put("data.message_keys", {"learn": None})
    if trainer == "sft":
        _learned(said, formats)
    options = said.raw("dataset_kwargs")
    if isinstance(options, dict) and set(options) <= {"add_special_tokens", "append_concat_token"}:
        said.idle("dataset_kwargs", "special tokens stand where the tokenizer and the template put them")
    length(said, trainer)


def _passed_over(trainer: str) -> dict[str, str | None]:
    """For `data.columns`: what the formats here would read, and TRL does not. Rewards are given all columns."""
    if trainer in POLICY:
        return {}
    if trainer == "sft":
        return dict.fromkeys(_NOT_READ)
    form = "unpaired" if trainer == "kto" else "preference"
    return unread(form, "prompt", "completion", "label", "chosen", "rejected", "tools", "margin")


def strategy(said: Said) -> str:
    """When is evaluated: no, steps or epoch."""
    key = "eval_strategy" if said.has("eval_strategy") else "evaluation_strategy"
    return said.take(key, str, "no")


def _one(said: Said) -> set[str]:
    name = said.take("dataset_name", str)
    if name is None:
        said.refuse("dataset_name", "is missing", "give a file, a folder or a hub id")
        name = ""
    said.put("data.train", name, "dataset_name")
    one_file = is_file(said, name)
    if said.has("dataset_config") and not one_file and not os.path.isdir(name):
        said.put("data.subset", said.take("dataset_config", str), "dataset_config")
    left_over(said, NO_SUBSET, "dataset_config")
    if said.has("dataset_train_split") and one_file:
        for setting, value in of_a_file(said, "dataset_train_split").items():
            said.put(f"data.{setting}", value, "dataset_train_split")
    elif said.has("dataset_train_split"):
        said.put("data.split", said.take("dataset_train_split", str), "dataset_train_split")
    part = said.take("dataset_test_split", str, "test")
    if strategy(said) == "no":
        left_over(said, "eval_strategy is no: nothing is held out", "dataset_test_split")
    elif one_file:
        key = "eval_strategy" if said.has("eval_strategy") else "evaluation_strategy"
        fix = "hold rows out with data.held_out=0.05, and set eval_strategy=no"
        said.refuse(key, f"asks for a split {part}, and {name} is one file", fix)
    else:
        said.put("data.held_out", f"{name}:{part}", *there(said, "dataset_test_split"))
    left_over(said, "it is of a mixture: datasets", "test_split_size")
    return set()


def _mixture(said: Said, trainer: str) -> set[str]:
    """`datasets`, which goes before `dataset_name`; gives the formats that their columns say."""
    of_one = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
    left_over(said, "datasets goes before it", *of_one)
    entries = said.entries("datasets")
    made = [_sources(entry, trainer) for entry in entries]
    sources = [source for own in made for source in own]
    if len(sources) == 1:
        for name, value in sources[0].items():
            entries[0].put("data.train" if name == "path" else f"data.{name}", value, *_FROM[name])
    else:
        for entry, own in zip(entries, made, strict=True):
            said_by = [key for name, keys in _FROM.items() for key in keys if any(name in source for source in own)]
            entry.put("data.train", sources, *(key for key in said_by if entry.has(key)))
        said.put("data.train", sources, "datasets")
    size = said.take("test_split_size", float)
    if size is not None:
        said.put("data.held_out", size if size < 1 else int(size), "test_split_size")
    elif strategy(said) != "no":
        said.refuse("eval_strategy", "asks for rows that datasets does not hold out", "set test_split_size=0.05")
    return {str(source.get("format")) for source in sources}


_FROM: dict[str, tuple[str, ...]] = {
    "path": ("path", "data_files"),
    "split": ("split",),
    "subset": ("name",),
    "format": ("columns",),
    "columns": ("columns",),
}
_FROM |= {"limit": ("split",)}


def _sources(entry: Said, trainer: str) -> list[dict[str, Any]]:
    path = entry.take("path", str)
    if path is None:
        entry.refuse("path", "is missing", "name the rows: path: rows.jsonl", expected="a file, a folder, or a hub id")
        return []
    split, files = entry.take("split", str, "train"), entry.raw("data_files")
    if isinstance(files, dict):
        files = files.get(split)
    files = files if isinstance(files, list) else [files] if files else []
    paths = [path]
    if files and path in BUILDERS:
        paths, split = [str(file) for file in files], ""
    elif files and os.path.isdir(path):
        paths, split = [os.path.join(path, str(file)) for file in files], ""
    elif entry.has("data_files"):
        entry.refuse("data_files", "stands beside a hub id", "download the file, and give its path")
    source: dict[str, Any] = {}
    files = all(is_file(entry, each) for each in paths)
    if entry.has("split") and split:
        source |= of_a_file(entry, "split") if files else {"split": split}
    left_over(entry, "data_files says which rows", *(("split",) if not split else ()))
    if entry.has("name") and not files and not os.path.isdir(path):
        source["subset"] = entry.take("name", str)
    left_over(entry, NO_SUBSET, *(("name",) if "subset" not in source else ()))
    columns = entry.items("columns", str)
    if columns:
        table = _FORMATS["pairs" if trainer in PAIRS and trainer != "kto" else _table(trainer)]
        found = next((name for name, needs in table if needs <= set(columns)), None)
        if found is None:
            expected = " or ".join(" and ".join(sorted(needs)) for _, needs in table)
            fix = f"name the columns that {trainer} reads: columns: [{', '.join(sorted(table[0][1]))}]; or take it out"
            entry.refuse("columns", f"cannot be {write_inline(columns)} of {trainer}", fix, expected=expected)
        else:
            source["format"] = found
            if trainer not in POLICY and (
                others := unread(found, *(name for name in columns if name not in _NOT_READ))
            ):
                source["columns"] = others
    return [{"path": each, **source} for each in paths]


def _table(trainer: str) -> str:
    return "policy" if trainer in POLICY else trainer


def _learned(said: Said, formats: set[str]) -> None:
    """TRL learns conversations and texts whole, and of rows of prompt and completion the completion."""
    answers, completions = said.take("assistant_only_loss", bool, False), said.take("completion_only_loss", bool)
    keys = (*there(said, "assistant_only_loss"), *there(said, "completion_only_loss"))
    if answers or completions:
        said.put("data.learn", "answers", *keys)
    elif completions is False:
        said.put("data.learn", "everything", *keys)
    elif formats == {"prompt-completion"}:
        said.put("data.learn", "answers", *keys)
    else:
        said.put("data.learn", "completions", *keys)
        said.note(
            "conversations are learned whole, questions too, as TRL does; assistant_only_loss=true for the answers"
        )


def most_tokens(said: Said) -> int | None:
    """The longest row; None where there is no limit."""
    key = "max_length" if "max_length" in said.values else "max_seq_length"
    if key in said.values and said.raw(key) is None:
        return None
    return said.take(key, int, 1024)


def length(said: Said, trainer: str) -> None:
    """Longer rows are cut at their end, those of a reward model left out; prompts of a policy have no limit."""
    if trainer in POLICY:
        said.put("data.max_length", ENDLESS)
        return
    most = most_tokens(said)
    keys = tuple(key for key in ("max_length", "max_seq_length") if said.has(key))
    said.put("data.max_length", ENDLESS if most is None else most, *keys[:1])
    left_over(said, "max_length goes before it", *keys[1:])
    said.put("data.overlong", "drop" if trainer == "reward" else "truncate")
