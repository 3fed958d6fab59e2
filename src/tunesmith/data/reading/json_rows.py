"""Rows of JSONL and JSON files: an object a line, a list of objects, or a list that stands in an object."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.problems import Problems, counted, listed, shown
from tunesmith.data.reading.json_list import NoList, items
from tunesmith.data.reading.opened import (
    LONGEST_BYTES,
    MOST_WHOLE_BYTES,
    UTF8_MARK,
    RawRow,
    checked_head,
    decoded,
    lines,
    opened,
    too_long,
)
from tunesmith.data.reading.strict_json import DEEPEST, Fault, Parsed, first_fault, is_deep, parse
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

_MEND = "mend or remove the row"
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


def read_jsonl(path: Path, problems: Problems) -> Iterator[RawRow]:
    if checked_head(path).lstrip().startswith(b"["):
        yield from read_json(path, problems)
        return
    for number, raw in lines(path):
        if not raw.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = _as_object(_parse(decoded(raw, where), where), where)
        except DataError as error:
            problems.add(error)
        else:
            yield Origin(str(path), number), row


def read_json(path: Path, problems: Problems) -> Iterator[RawRow]:
    """A list is read item by item, and any other text whole."""
    checked_head(path)
    number = 0
    with opened(path) as file:
        try:
            for number, item in enumerate(items(file, LONGEST_BYTES), start=1):
                yield from _row_of_list(path, number, item, problems)
            return
        except NoList:
            pass
        except RecursionError:
            raise _too_deep(f"{path}, row {number + 1}") from None
        except OverflowError:
            raise too_long("the item of the list", f"{path}, row {number + 1}") from None
    for place, other in enumerate(_whole_list(path, problems), start=1):
        if isinstance(other, tuple):
            yield other
        elif place > number:
            yield from _row_of_list(path, place, other, problems)


def _row_of_list(path: Path, number: int, item: Parsed, problems: Problems) -> Iterator[RawRow]:
    try:
        row = _as_object(item, f"{path}, row {number}")
    except DataError as error:
        problems.add(error)
    else:
        yield Origin(str(path), number), row


def _parse(text: str, where: str) -> Parsed:
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"not valid JSON: {error.msg} at {at}",
            where=where,
            found=shown(text[max(error.pos - 20, 0) : error.pos + 20].strip() or "nothing"),
            expected="a JSON object",
            fix=_MEND,
        ) from None
    except RecursionError:
        raise _too_deep(where) from None


def _too_deep(where: str) -> DataError:
    return DataError(
        "nested too deeply",
        where=where,
        found=f"lists and objects in one another, more than {DEEPEST} of them",
        expected=f"at most {DEEPEST}",
        fix=_MEND,
    )


def _as_object(parsed: Parsed, where: str) -> dict[str, Any]:
    value = parsed.value
    if parsed.may_be_deep and is_deep(value):
        raise _too_deep(where)
    fault = first_fault(value) if parsed.has_faults else None
    if fault is not None:
        raise DataError(f"not valid JSON: {fault}", where=where, fix=_MEND)
    if isinstance(value, dict):
        return value
    raise DataError(
        "a row must be a JSON object",
        where=where,
        found=f"{type(value).__name__} {shown(value, 40)}",
        expected='{"column": value, …}',
        fix=_MEND,
    )


def _whole_list(path: Path, problems: Problems) -> Iterator[Parsed | RawRow]:
    """The items of a list that stands in an object, or the rows of a file that has one on each line."""
    with opened(path) as file:
        raw = file.read(MOST_WHOLE_BYTES + 1).removeprefix(UTF8_MARK)
    if not raw.strip():
        return
    first_line = raw.lstrip().partition(b"\n")[0]
    is_lines = first_line.rstrip().startswith(b"{") and first_line.rstrip().endswith(b"}")
    if len(raw) > MOST_WHOLE_BYTES:
        if is_lines and len(first_line) < len(raw):
            del raw
            yield from read_jsonl(path, problems)
            return
        raise DataError(
            "the JSON text is no list, and too large to be read whole",
            where=str(path),
            found=f"more than {MOST_WHOLE_BYTES:,} bytes",
            expected="[{…}, …], which is read row by row",
            fix=f"write its rows a line each: {_jq(path, 'data')}",
        )
    try:
        parsed = _parse(decoded(raw, str(path)), str(path))
    except DataError:
        # Many files named .json hold one object per line.
        if is_lines:
            del raw
            yield from read_jsonl(path, problems)
            return
        raise
    value = parsed.value
    is_line = b"\n" not in raw.strip()
    del raw
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    elif isinstance(value, dict) and is_line and not _is_splits(value):
        value = [value]
    if isinstance(value, Fault):
        raise DataError(f"not valid JSON: {value.what}", where=str(path), fix="mend the file")
    if not isinstance(value, list):
        raise _no_list(path, value, is_line=is_line)
    for item in value:
        yield Parsed(item, parsed.has_faults, parsed.may_be_deep)


def _is_splits(value: dict[str, Any]) -> bool:
    """Whether an object holds lists of rows by the names of splits, and no other list of objects."""
    lists = {
        key: items_
        for key, items_ in value.items()
        if isinstance(items_, list) and all(isinstance(item, dict) for item in items_)
    }
    return any(lists.values()) and lists.keys() <= set(_SPLITS)


def _no_list(path: Path, value: Any, *, is_line: bool) -> DataError:
    expected = '[{…}, …] or {"data": [{…}, …]}'
    lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
    if lists:
        files = "; ".join(_jq(path, key) for key in lists[:3])
        alone = "; to read the object as one row, put it in a list: [{…}]" if is_line else ""
        return DataError(
            "a JSON file must hold one list of objects, and this is an object with lists in it",
            where=str(path),
            found="; ".join(f"{key!r}: {counted(len(value[key]), 'item')}" for key in lists[:8]),
            expected=expected,
            fix=f"write each list to a file of its own, and name that: {files}{alone}",
        )
    return DataError(
        "a JSON file must hold a list of objects",
        where=str(path),
        found=f"an object with keys {listed(list(value)[:8])}" if isinstance(value, dict) else type(value).__name__,
        expected=expected,
        fix="put the rows in a list, or write each on a line of its own and name the file .jsonl",
    )


def _jq(path: Path, key: str) -> str:
    name = path.name.removesuffix(".gz")
    source = shlex.quote(name) if name == path.name else f"<(gunzip -c {shlex.quote(path.name)})"
    kept = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in key)
    return f"jq -c {shlex.quote(f'.[{json.dumps(key)}][]')} {source} > {kept or 'rows'}.jsonl"
