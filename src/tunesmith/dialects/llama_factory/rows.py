"""How rows of one of LLaMA-Factory's data sets are read here: format, columns, keys of messages, names of roles.

alpaca     instruction and input, joined by a line break, are the question; a format of Jinja words them
sharegpt   conversations, with the names of keys and roles under `tags`
openai     messages
file       a file that was named in place of an entry: alpaca of supervised rows, else what its columns say
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.data.formats import FORMATS
from tunesmith.data.reading.sources import read
from tunesmith.dialects.columns import unnamed, unread
from tunesmith.dialects.llama_factory.info import Entry
from tunesmith.errors import DataError

_PAIRS = ("dpo", "rm")
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}
_KNOWN_ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot"),
    "tool": ("tool", "observation", "tool_response"),
    "system": ("system",),
}
_CALLS = ("function_call", "tool_call")
_KEYS = {"role_tag": ("role", ("role", "from")), "content_tag": ("content", ("content", "value"))}


def source(entry: Entry, stage: str, opening: str | None) -> dict[str, Any]:
    """`format`, and what else a source of ours says. `opening`: the system turn of rows without one. Raises a
    RecipeError where such rows cannot be read as LLaMA-Factory reads them."""
    pairs = stage in _PAIRS
    if entry.formatting == "file":
        return {"format": {"pt": "text", "sft": _alpaca(entry, opening)["format"]}.get(stage, "auto")}
    if pairs and not entry.ranking:
        raise entry.wrong(f"is not of pairs, and the stage is {stage}", 'name other rows, or say "ranking": true')
    if entry.ranking and not pairs:
        raise entry.wrong(f"is of pairs, and the stage is {stage}", "name other rows, or take stage dpo or rm")
    if stage == "kto" and "kto_tag" not in entry.columns:
        raise entry.wrong("names no column kto_tag, and the stage is kto", 'say "columns": {…, "kto_tag": "label"}')
    if stage != "kto" and "kto_tag" in entry.columns:
        raise entry.wrong(f"names a column kto_tag, and the stage is {stage}", "take it out, or take stage kto")
    if stage == "pt":
        return _text(entry)
    if entry.formatting != "alpaca":
        if opening is not None:
            fix = "write the system turn into the rows"
            raise entry.wrong("default_system would stand before messages, whose rows bring their own turns", fix)
        return _messages(entry, stage)
    if "tools" in entry.columns:
        raise entry.wrong("columns.tools: rows of instructions are read without tools", "give messages: sharegpt")
    return _judged(entry, opening) if stage == "kto" else _alpaca(entry, opening)


def _text(entry: Entry) -> dict[str, Any]:
    if entry.formatting != "alpaca" or "prompt" not in entry.columns or "query" in entry.columns:
        raise entry.wrong("is not of plain text, and the stage is pt", 'say "columns": {"prompt": "text"}')
    return {"format": "text", **_renamed({"text": entry.columns["prompt"]})}


def _renamed(columns: Mapping[str, str | None]) -> dict[str, Any]:
    differing = {ours: yours for ours, yours in columns.items() if ours != yours}
    return {"columns": differing} if differing else {}


def _messages(entry: Entry, stage: str) -> dict[str, Any]:
    form = {"dpo": "preference", "rm": "preference", "kto": "unpaired"}.get(stage, "messages")
    columns = {name: entry.columns[name] for name in ("tools", "system") if name in entry.columns}
    messages = entry.columns.get("messages")
    if stage in _PAIRS:
        columns |= {name: entry.columns.get(name, name) for name in ("chosen", "rejected")}
    if stage == "kto":
        columns |= _label(entry)
    if messages in FORMATS[form].reads:
        columns[messages] = messages
    elif messages is not None:
        columns["messages"] = messages
    usual = () if messages is not None else ("conversations", "messages")
    return {"format": form, **_only(form, columns, *usual), **_tags(entry)}


def _only(form: str, columns: dict[str, str], *usual: str) -> dict[str, Any]:
    """Where the columns are that the entry names: of what else the format would read, `usual` alone are looked at."""
    return _renamed({**unread(form, *columns, *usual), **columns})


def _label(entry: Entry) -> dict[str, str]:
    tag = entry.columns["kto_tag"]
    return {tag: tag} if tag == "kto_tag" else {"label": tag}


def _tags(entry: Entry) -> dict[str, Any]:
    """What the rows call keys and roles. No key of a message says to LLaMA-Factory whether it is learned."""
    given = {ours: entry.tags[tag] for tag, (ours, _) in _KEYS.items() if entry.tags.get(tag) not in (None, ours)}
    keys: dict[str, str | None] = {**given, "learn": None}
    roles = {
        entry.tags[tag]: ours
        for tag, ours in _ROLES.items()
        if tag in entry.tags and entry.tags[tag] not in _KNOWN_ROLES[ours]
    }
    calls = entry.tags.get("function_tag", _CALLS[0])
    if calls not in _CALLS and _some_turn_is(entry, calls):
        fix = f"name the role {_CALLS[0]} in the rows, and leave function_tag out"
        raise entry.wrong(f"tags.function_tag: {calls} is not read as a tool call", fix)
    return {"message_keys": keys, **({"roles": roles} if roles else {})}


def _alpaca(entry: Entry, opening: str | None) -> dict[str, Any]:
    """Instructions: their words by a format of Jinja over the columns."""
    columns = entry.columns
    history, query = columns.get("history"), columns.get("query")
    # Without an input, rows with earlier turns and rows without are read alike: those of the hub need not be fetched.
    if history is not None and ((query is None and not entry.is_local) or _some_row_has(entry, history)):
        return _with_history(entry, opening, history, query)
    wanted = {"instruction": columns.get("prompt"), "input": query, "system": columns.get("system")}
    if entry.ranking:
        wanted |= {name: columns.get(name, name) for name in ("chosen", "rejected")}
    else:
        wanted["output"] = columns.get("response")
    for name in ("instruction", "chosen" if entry.ranking else "output"):
        if wanted[name] is None:
            theirs = {"instruction": "prompt", "output": "response"}.get(name, name)
            raise entry.wrong(f"columns names no {theirs}", f'say "columns": {{…, "{theirs}": "…"}}')
    given = {ours: yours for ours, yours in wanted.items() if yours is not None}
    hard = unnamed(given)
    called = {ours: ours if ours in hard else yours for ours, yours in given.items()}
    question = f"{{{{ {called['instruction']} }}}}"
    if "input" in called:
        question = f'{{{{ [{called["instruction"]}, {called["input"]} | default("")] | select | join("\\n") }}}}'
    words = {"prompt": question}
    if "system" in called:
        words["system"] = (
            f"{{{{ {called['system']} | default({json.dumps(opening or '', ensure_ascii=False)}, true) }}}}"
        )
    elif opening is not None:
        words["system"] = f"{{{{ {json.dumps(opening, ensure_ascii=False)} }}}}"
    ends = ("chosen", "rejected") if entry.ranking else ("output",)
    words |= {"answer" if end == "output" else end: f"{{{{ {called[end]} }}}}" for end in ends}
    return {"format": words, **_renamed(hard)}


def _with_history(entry: Entry, opening: str | None, history: str, query: str | None) -> dict[str, Any]:
    """Earlier turns as pairs: our own format alpaca reads them."""
    fix = "give the turns as messages: formatting sharegpt"
    if entry.ranking:
        raise entry.wrong("columns.history: pairs of instructions are read without earlier turns", fix)
    if opening is not None:
        raise entry.wrong("default_system would stand before rows with a history", "write it into a column of the rows")
    if query is not None and _some_row_has(entry, query):
        raise entry.wrong(
            "columns.history: there are rows with an input too, which would be joined otherwise here", fix
        )
    theirs = {"instruction": "prompt", "output": "response", "system": "system"}
    columns = {ours: entry.columns[name] for ours, name in theirs.items() if name in entry.columns}
    return {"format": "alpaca", **_only("alpaca", columns | {"history": history})}


def _judged(entry: Entry, opening: str | None) -> dict[str, Any]:
    """Answers that are wanted or not, to prompts of one column."""
    for name in ("query", "history"):
        if name in entry.columns and _some_row_has(entry, entry.columns[name]):
            fix = f"write it into the column {entry.columns.get('prompt')}, or give messages: formatting sharegpt"
            raise entry.wrong(f"columns.{name}: judged rows have one column for the prompt", fix)
    if opening is not None:
        raise entry.wrong("default_system would stand before judged rows", "write it into the rows")
    theirs = {"prompt": "prompt", "completion": "response"}
    missing = [name for name in theirs.values() if name not in entry.columns]
    if missing:
        raise entry.wrong(f"columns names no {missing[0]}", f'say "columns": {{…, "{missing[0]}": "…"}}')
    if "system" in entry.columns:
        theirs["system"] = "system"
    columns = {ours: entry.columns[name] for ours, name in theirs.items()} | _label(entry)
    return {"format": "unpaired", **_only("unpaired", columns)}


def _some_turn_is(entry: Entry, role: str) -> bool:
    """Whether a message of some row has this role."""
    messages, key = entry.columns.get("messages", "conversations"), entry.tags.get("role_tag", "from")
    turns = (turn for row in _rows(entry, messages) for turn in _listed(row.get(messages)))
    return any(isinstance(turn, Mapping) and turn.get(key) == role for turn in turns)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _some_row_has(entry: Entry, column: str) -> bool:
    """Whether a row has this column filled."""
    return any(row.get(column) for row in _rows(entry, column))


def _rows(entry: Entry, column: str) -> Iterator[Mapping[str, Any]]:
    """Its rows, to be asked for a column. Those of the hub are looked at too, and are in its cache for the run."""
    where = {} if entry.is_local else {"split": entry.split or "train", "subset": entry.subset}
    try:
        rows = read(entry.path, limit=entry.limit, **where)  # type: ignore[arg-type]
    except DataError as error:
        if entry.is_local:
            raise
        fix = f"be online once, or download it and name its file as file_name; or take {column} out of columns"
        raise entry.wrong(f"{column}: its rows have to be looked at, and cannot be: {error.what}", fix) from None
    return (row for _, row in rows)
