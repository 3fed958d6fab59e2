"""Of an Axolotl file: the rows, how their types word them, and which of their tokens are learned."""

from __future__ import annotations

import os
from typing import Any

from tunesmith.data.formats import FORMATS
from tunesmith.dialects.axolotl.learned import learned
from tunesmith.dialects.axolotl.roles import roles
from tunesmith.dialects.axolotl.row_types import known_types, rows_of
from tunesmith.dialects.axolotl.templates import OWN, named
from tunesmith.dialects.axolotl.types import Rows
from tunesmith.dialects.base import (
    NO_SUBSET,
    WALKED,
    Fate,
    Key,
    Said,
    carried,
    idle,
    instead,
    is_file,
    left_over,
    of_a_file,
    refused,
    there,
)
from tunesmith.dialects.columns import first_row, unread
from tunesmith.notation import write_inline
from tunesmith.recipe_paths import DATA_SUFFIXES
from tunesmith.recipe_rules import BARE

_PREPARED = "what is large is prepared once and kept in the cache, by everything that changes a token of it"
_OF_ENTRIES = {
    **carried("data.train", "path", "data_files"),
    **carried("data.split", "split", "train_on_split"),
    **carried("data.subset", "name"),
    **carried("data.format", "type", "field", "text_column"),
    **carried("data.columns", "field_messages", "field_tools", "field_system", "field_chosen", "field_rejected"),
    **carried("data.message_keys", "message_property_mappings", "message_field_role", "message_field_content"),
    **carried("data.message_keys", "message_field_training", "message_field_training_detail", "field_thinking"),
    **carried("data.roles", "roles", "field_human", "field_model"),
    **carried("data.learn", "roles_to_train"),
    **carried("data.learn_ends", "train_on_eos", "train_on_eot"),
    **carried("weight of the source", "shards"),
    **carried("model.template", "chat_template", "chat_template_jinja", "conversation"),
    **idle("what a file holds is seen from its ending", "ds_type"),
    **idle("the template says where it stands", "template_thinking_key"),
    **idle(_PREPARED, "preprocess_shards"),
    **idle("where a turn ends is found in the chat template", "eot_tokens"),
    **idle("data sets run no code here", "trust_remote_code"),
    **idle("every row is read strictly", "strict"),
    **refused("take the system turns out of the rows", "drop_system_message"),
    **refused("download that revision, and name the file", "revision"),
    **refused("leave it out: shards takes a share of the rows", "shards_idx"),
    **refused("write the words into type: {format: …}", "input_format", "input_transform"),
    **refused("put the reasoning into a field of its own", "split_thinking"),
    **refused("leave it out: rows are not distilled from stored log-probabilities", "logprobs_field", "temperature"),
    **refused("process reward models are not trained here", "step_separator", "max_completion_length"),
    **refused("process reward models are not trained here", "train_on_last_step_only"),
    **refused("name the rows to begin with in a file of their own", "skip"),
}
DATA_KEYS: dict[str, Key] = {
    **{f"datasets[].{name}": key for name, key in _OF_ENTRIES.items()},
    **{f"pretraining_dataset[].{name}": key for name, key in _OF_ENTRIES.items()},
    **{f"test_datasets[].{name}": key for name, key in _OF_ENTRIES.items()},
    **carried("data.train", "datasets", "pretraining_dataset"),
    **carried("data.held_out", "val_set_size", "test_datasets"),
    **carried("data.max_length", "sequence_len"),
    **carried("data.overlong", "excess_length_strategy"),
    **carried("data.learn", "train_on_inputs"),
    **carried("data.shuffle", "shuffle_merged_datasets", "curriculum_sampling"),
    **refused("write the system turn into the rows or the template", "default_system_message"),
    **refused("leave it out: rows of fewer tokens are learned too", "min_sample_len"),
    **idle(_PREPARED, "dataset_prepared_path", "dataset_prepared_cache", "is_preprocess"),
    **idle(WALKED, "streaming", "streaming_multipack_buffer_size", "pretrain_multipack_buffer_size"),
    **idle("rows are not mixed within one attention", "pretrain_multipack_attn"),
}
_LENGTHS = {"drop": "drop", "truncate": "truncate", "raise": "error"}
_SHAREGPT = {"chatml": "chatml", "llama-2": None, "llama3": "llama3", "vicuna_v1.1": "vicuna", "gemma": "gemma"}
_FIELDS = {
    **{"field_messages": "messages", "field_tools": "tools", "field_system": "system", "field_chosen": "chosen"},
    **{"field_rejected": "rejected", "field": "text", "text_column": "text"},
}
"""Keys that name a column, and what is in it."""
_OF_MESSAGES = ("messages", "preference", "unpaired")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What the reasoning of a message is called, and found under by itself."""
_BUILDERS = ("json", "csv", "parquet", "text", "arrow")


def datasets(said: Said) -> str | None:
    """Puts `data`; gives the template that the rows' types bring, if they do."""
    key = "datasets" if said.has("datasets") or not said.has("pretraining_dataset") else "pretraining_dataset"
    if key == "pretraining_dataset" and isinstance(said.values[key], str):
        said.put("data.train", said.take(key, str), key)
        said.put("data.format", "text", key)
        said.put("data.overlong", "split", key)
        _of_all(said, {"text"})
        return None
    entries = said.entries(key)
    if not entries and not said.has(key):
        said.refuse(key, "is missing", "give datasets: [{path: …, type: …}]")
    known = known_types(said)
    sources: list[dict[str, Any]] = []
    made: list[list[dict[str, Any]]] = []
    types = [rows_of(entry, known) for entry in entries]
    for entry, rows in zip(entries, types, strict=True):
        own = _sources(entry, rows)
        made.append(own)
        words = _own_template(entry, rows)
        sources += [source | ({} if _is_bare(rows) else {"template": words}) for source in own]
        if rows.note:
            said.note(rows.note)
    template = _shared_template(sources)
    _put_sources(said, key, list(zip(entries, made, strict=True)), sources)
    learned(said, entries, types)
    _of_all(said, {str(source["format"]) for source in sources})
    return template


def _is_bare(rows: Rows) -> bool:
    """Whether no template words rows of this type."""
    return rows.format in BARE


def _shared_template(sources: list[dict[str, Any]]) -> str | None:
    """The template of the run: that of conversations, else of the first; rows of another keep theirs to themselves."""
    given = list(dict.fromkeys(source["template"] for source in sources if "template" in source))
    main = next((words for words in (OWN, None) if words in given), given[0] if given else None)
    for source in sources:
        if "template" in source and source["template"] == main:
            del source["template"]
    return main


def _own_template(entry: Said, rows: Rows) -> str | None:
    """The template that an entry asks for itself, or that its type brings."""
    name, text = entry.take("chat_template", str), entry.take("chat_template_jinja", str)
    style = entry.take("conversation", str)
    if rows.template is not None:
        for key in ("chat_template", "chat_template_jinja", "conversation"):
            entry.idle(key, "the type of the rows words them")
        return rows.template
    if text is not None and name in (None, "jinja"):
        return text
    if name is not None:
        left_over(entry, f"chat_template is {name}, and not jinja", "chat_template_jinja")
        return named(entry, name)
    if style is not None:
        if _SHAREGPT.get(style) is None:
            known = list(filter(_SHAREGPT.get, _SHAREGPT))
            fix = (
                f"{instead('conversation', style, known, 'chatml')}; or take it out, for the model's own chat template"
            )
            entry.refuse("conversation", f"cannot be {style}", fix, expected=", ".join(known))
        return _SHAREGPT.get(style)
    return None


def _paths(entry: Said) -> list[str]:
    """The files of an entry: its path, or the data_files of a folder or of a kind of file."""
    path, files = entry.take("path", str), entry.items("data_files", str)
    if path is None:
        fix = "name the rows: path: rows.jsonl, or path: OWNER/NAME"
        entry.refuse("path", "is missing", fix, expected="a file, a folder, or a hub id")
        return []
    if not files:
        return [path]
    if path in _BUILDERS:
        return files
    if path.endswith(DATA_SUFFIXES):
        if any(os.path.basename(file) != os.path.basename(path) for file in files):
            entry.refuse("data_files", f"names others than {path}", "leave one of the two out")
        return [path]
    if any(os.path.isdir(folder) for folder in (path, entry.folder / path)):
        return [os.path.join(path, file) for file in files]
    entry.refuse("data_files", "stands beside a hub id", "download the file, and give its path")
    return [path]


def _sources(entry: Said, rows: Rows) -> list[dict[str, Any]]:
    """What an entry comes to as sources of ours: one for each of its files."""
    paths = _paths(entry)
    source: dict[str, Any] = {"format": rows.format}
    key = next((key for key in ("split", "train_on_split") if entry.has(key)), None)
    files = bool(paths) and all(is_file(entry, path) for path in paths)
    if key is not None:
        source |= of_a_file(entry, key) if files else {"split": entry.take(key, str)}
    if entry.has("name") and not (files or any(os.path.isdir(path) for path in paths)):
        source["subset"] = entry.take("name", str)
    if "subset" not in source:
        left_over(entry, NO_SUBSET, "name")
    if columns := {**_columns(entry, rows, paths), **rows.columns}:
        source["columns"] = columns
    keys: dict[str, str | None] = {}
    own_roles: dict[str, str] = {}
    if _is_bare(rows) or isinstance(rows.format, dict):
        left_over(entry, "rows of this type have no messages", *_FROM["message_keys"], *_FROM["roles"])
    else:
        keys, own_roles = _message_keys(entry, rows), dict(rows.roles) | roles(entry)
    if keys:
        source["message_keys"] = keys
    if own_roles:
        source["roles"] = own_roles
    shards = entry.take("shards", int)
    if shards is not None and shards > 1:
        source["weight"] = 1.0 / shards
    return [{"path": each, **source} for each in paths]


def _columns(entry: Said, rows: Rows, paths: list[str]) -> dict[str, str | None]:
    """Where the rows have what their type reads; columns that it passes over are null. `paths`: where they lie."""
    reads, form = rows.reads, rows.format
    fields = _FIELDS
    if isinstance(form, dict) or reads is not None:
        fields = {key: ours for key, ours in fields.items() if ours in (reads or ()) and ours not in rows.columns}
        left_over(
            entry, "rows of this type have their columns by other names", *(key for key in _FIELDS if key not in fields)
        )
    columns: dict[str, str | None] = {ours: entry.take(key, str, "") for key, ours in fields.items() if entry.has(key)}
    if form in ("messages", "preference") and (turns := columns.get("messages")) is not None:
        others = [name for name in reads or ("tools", "system") if name != "messages"]
        if turns in FORMATS[str(form)].reads:  # it stays where it is, and others of its kind are not looked at
            del columns["messages"]
            reads = (turns, *others)
        else:
            reads = ("messages", *others)
    elif form == "messages" and reads is None:
        reads = ("messages", "conversations", "tools", "system")
        columns = _other_turns(entry, paths) | columns
    if isinstance(form, str) and reads is not None:
        columns = unread(form, *reads, *columns) | columns
    return {ours: yours for ours, yours in columns.items() if yours != ours}


def _other_turns(entry: Said, paths: list[str]) -> dict[str, str | None]:
    """Of rows with two lists of messages, the one that is not read: chat_template reads `messages`, sharegpt
    `conversations`. Rows with one of them are read by it."""
    if not any(first_row(entry, path).keys() >= {"messages", "conversations"} for path in paths):
        return {}
    is_shared = str(entry.values.get("type")).startswith("sharegpt")
    return {"messages" if is_shared else "conversations": None}


def _message_keys(entry: Said, rows: Rows) -> dict[str, str | None]:
    given = entry.raw("message_property_mappings")
    keys: dict[str, str | None] = dict(given) if isinstance(given, dict) else {}
    if given is not None and not isinstance(given, dict):
        fix = "write it so: message_property_mappings: {role: from, content: value}"
        what = f"cannot be {write_inline(given)}"
        entry.refuse("message_property_mappings", what, fix, expected="{role: …, content: …}")
    named = {"message_field_role": "role", "message_field_content": "content", "message_field_training": "learn"}
    named |= {"message_field_training_detail": "learn_spans", "field_thinking": "reasoning"}
    keys |= {ours: entry.take(key, str, "") for key, ours in named.items() if entry.has(key)}
    keys = {ours: yours for ours, yours in keys.items() if yours not in (None, ours)}
    if keys.get("reasoning") in _THOUGHTS:
        del keys["reasoning"]
    is_weighed = str(entry.values.get("type")).startswith("sharegpt")
    if rows.format in _OF_MESSAGES and not is_weighed:
        keys.setdefault("learn", None)
    return keys


def _put_sources(
    said: Said, key: str, entries: list[tuple[Said, list[dict[str, Any]]]], sources: list[dict[str, Any]]
) -> None:
    """`entries`: each with the sources that it came to."""
    if len(sources) == 1 and sources[0].keys() <= _OF_ONE:
        for name, value in sources[0].items():
            entries[0][0].put("data.train" if name == "path" else f"data.{name}", value, *_FROM[name])
        return
    _refuse_slices(entries)
    for number, (entry, own) in enumerate(entries):
        for name, keys in _FROM.items():
            for of_entry in keys:
                if entry.has(of_entry) and any(name in source for source in own):
                    entry.carry(of_entry, f"{name} of data.train[{number}]")
    said.ledger.settings[("data", "train")] = (sources, f"{said.where((key,))} ({key})")


def _refuse_slices(entries: list[tuple[Said, list[dict[str, Any]]]]) -> None:
    """Slices of one source by several entries: a row of two of them would be learned twice, or held out and learned."""
    known: list[tuple[dict[str, Any], bool]] = []
    for entry, own in entries:
        for source in own:
            whole = {name: value for name, value in source.items() if name not in ("limit", "weight")}
            is_slice = whole != source
            if any(whole == other and (is_slice or was_slice) for other, was_slice in known):
                what = f"names {whole['path']} once more, and slices of one source may have rows in common"
                entry.refuse("path", what, "write each slice into a file of its own, and name these")
            known.append((whole, is_slice))


_OF_ONE = {"path", "split", "limit", "subset", "format", "columns", "message_keys", "roles"}
"""What the data section says of a single source itself."""
_FROM: dict[str, tuple[str, ...]] = {
    "path": ("path", "data_files"),
    "split": ("split", "train_on_split"),
    "subset": ("name",),
    "format": ("type",),
    "columns": (
        *("field_messages", "field_tools", "field_system", "field_chosen", "field_rejected", "field", "text_column"),
    ),
    "message_keys": (
        *("message_property_mappings", "message_field_role", "message_field_content", "message_field_training"),
        *("message_field_training_detail", "field_thinking"),
    ),
    "roles": ("roles", "field_human", "field_model"),
    "weight": ("shards",),
    "limit": ("split", "train_on_split"),
}


def _of_all(said: Said, formats: set[str]) -> None:
    said.put("data.max_length", said.take("sequence_len", int, 512), *there(said, "sequence_len"))
    how = said.choose("excess_length_strategy", tuple(_LENGTHS), "drop")
    if "text" not in formats:
        said.put("data.overlong", _LENGTHS[how], *there(said, "excess_length_strategy"))
    else:  # Axolotl cuts texts in any case; what is no text is dropped beside them
        said.put("data.overlong", "split", *there(said, "excess_length_strategy"))
        if formats == {"text"}:
            said.carry("excess_length_strategy", "texts are cut into pieces, and none is longer")
        elif how != "drop":
            fix = "take it out, and longer rows are dropped; or train on plain text in a run of its own"
            said.refuse("excess_length_strategy", f"is {how}, and there is plain text too, which is cut", fix)
    if said.take("shuffle_merged_datasets", bool, True) is False or said.take("curriculum_sampling", bool, False):
        keys = ("shuffle_merged_datasets", "curriculum_sampling")
        said.put("data.shuffle", False, *(key for key in keys if said.has(key)))
    tests, size = said.entries("test_datasets"), said.take("val_set_size", float, 0.0)
    if tests and size:
        said.refuse("val_set_size", "stands beside test_datasets", "set val_set_size=0")
    if len(tests) > 1:
        said.refuse("test_datasets", f"names {len(tests)} sources", "put the held-out rows into one")
    for test in tests[:1]:
        _held_out(test, said.entries("datasets"))
    if size and not tests:
        said.put("data.held_out", size if size < 1 else int(size), "val_set_size")


def _held_out(test: Said, entries: list[Said]) -> None:
    """Held-out rows of their own; they are read as the training rows are."""
    paths, split = _paths(test), test.take("split", str)
    if len(paths) > 1:
        test.refuse("data_files", f"names {len(paths)} files", "put the held-out rows into one")
    path = paths[0] if paths else ""
    split = None if path.endswith(DATA_SUFFIXES) else split
    keys = tuple(key for key in ("path", "split", "data_files") if test.has(key) and (key != "split" or split))
    if split is None and test.has("split"):
        of_a_file(test, "split", may_be_cut=False)
    test.put("data.held_out", f"{path}:{split}" if split else path, *keys)
    trained = entries[0].values if entries else {}
    for key in test.values:
        is_read = key in _OF_ENTRIES and _OF_ENTRIES[key].fate is Fate.CARRIED
        if is_read and key not in (*keys, "split") and test.has(key):
            if trained.get(key) == test.values[key]:
                test.carry(key, "held-out rows are read as the training rows are")
            else:
                test.refuse(key, "is not what datasets[0] says: held-out rows are read as those are", "say the same")
