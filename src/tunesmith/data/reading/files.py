"""Reading one file of rows, strictly: every broken row is named with its line, what was found and what to do.

JSONL, JSON and CSV are parsed here and not by `datasets`, whose readers give one error without a line and let NaN,
duplicate keys and lone surrogates pass. Parquet and Arrow go through `datasets`. Text files may be packed with gzip.

A reader is a walk: it gives a row at a time, and notes what is broken without ending there.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tunesmith.data.problems import Problems, counted, listed, shown
from tunesmith.data.reading.json_list import NoList, items
from tunesmith.data.reading.quiet import quiet_datasets
from tunesmith.data.reading.strict_json import Fault, Parsed, first_fault, parse
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

RawRow = tuple[Origin, dict[str, Any]]

_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UTF8_MARK = b"\xef\xbb\xbf"
_BINARY = {b"\x1f\x8b": "a gzip archive", b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF"}


def read_file(path: Path, limit: int | None) -> list[RawRow]:
    """All rows of one file, by its ending."""
    return list(told_rows(path, limit))


def told_rows(path: Path, limit: int | None) -> Iterator[RawRow]:
    """The rows of one file that can be read; behind the last of them, one DataError for all that cannot."""
    problems, count = Problems(f"broken rows in {path}"), 0
    for row in islice(rows_of(path, problems), limit):
        yield row
        count += 1
    problems.raise_if_any()
    if count == 0:
        raise DataError(
            "the file has no rows",
            where=str(path),
            found="an empty file" if path.stat().st_size == 0 else "no row in it",
            fix="give a file with rows in it",
        )


def rows_of(path: Path, problems: Problems) -> Iterator[RawRow]:
    """The rows of one file as they are come upon; those that cannot be read go to `problems`, by then."""
    try:
        yield from READERS[ending(path)](path, problems)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            "not a whole gzip archive",
            where=str(path),
            found=str(error),
            fix="pack or copy the file again; an interrupted download looks like this",
        ) from error


def ending(path: Path) -> str:
    """By which a file's reader is found: ".jsonl", or ".jsonl.gz" where it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _opened(path: Path) -> io.BufferedIOBase:
    """The bytes of a file, unpacked."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _checked_head(path: Path) -> None:
    """Refuse what is not UTF-8 text by its first bytes."""
    with _opened(path) as file:
        head = file.read(8192)
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise DataError("the file is not UTF-8", where=str(path), found=name, fix="save it as UTF-8")
    kind = next((name for magic, name in _BINARY.items() if head.startswith(magic)), None)
    if kind is None and b"\0" in head:
        kind = "zero bytes"
    if kind:
        raise DataError(
            "this looks like a binary file, not text",
            where=str(path),
            found=kind,
            expected=f"{ending(path)} as UTF-8 text",
            fix="unpack or convert it, or give it the ending of what it is",
        )


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "not valid UTF-8",
            where=where,
            found=f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line",
            fix="save the file as UTF-8",
        ) from None


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
            fix="mend or remove the row",
        ) from None
    except RecursionError:
        raise DataError("nested too deeply", where=where, fix="mend or remove the row") from None


def _as_object(value: Any, where: str, *, has_faults: bool) -> dict[str, Any]:
    fault = first_fault(value) if has_faults else None
    if fault is not None:
        raise DataError(f"not valid JSON: {fault}", where=where, fix="mend or remove the row")
    if isinstance(value, dict):
        return value
    raise DataError(
        "a row must be a JSON object",
        where=where,
        found=f"{type(value).__name__} {shown(value, 40)}",
        expected='{"column": value, …}',
        fix="mend or remove the row",
    )


def _read_jsonl(path: Path, problems: Problems) -> Iterator[RawRow]:
    _checked_head(path)
    is_first = True
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(_UTF8_MARK) if number == 1 else raw
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            if is_first and raw.lstrip().startswith(b"["):
                yield from _read_json(path, problems)
                return
            is_first = False
            try:
                parsed = _parse(_decode(raw, where), where)
                row = _as_object(parsed.value, where, has_faults=parsed.has_faults)
            except DataError as error:
                problems.add(error)
            else:
                yield Origin(str(path), number), row


def _read_json(path: Path, problems: Problems) -> Iterator[RawRow]:
    """A list is read item by item, and any other text whole."""
    _checked_head(path)
    number = 0
    with _opened(path) as file:
        try:
            for number, item in enumerate(items(file), start=1):
                yield from _row_of_list(path, number, item, problems)
            return
        except NoList:
            pass
    for place, other in enumerate(_whole_list(path, problems), start=1):
        if isinstance(other, tuple):
            yield other
        elif place > number:
            yield from _row_of_list(path, place, other, problems)


def _row_of_list(path: Path, number: int, item: Parsed, problems: Problems) -> Iterator[RawRow]:
    try:
        row = _as_object(item.value, f"{path}, row {number}", has_faults=item.has_faults)
    except DataError as error:
        problems.add(error)
    else:
        yield Origin(str(path), number), row


def _whole_list(path: Path, problems: Problems) -> Iterator[Parsed | RawRow]:
    """The items of a list that stands in an object, or the rows of a file that has one on each line."""
    with _opened(path) as file:
        raw = file.read().removeprefix(_UTF8_MARK)
    if not raw.strip():
        return
    first_line = raw.lstrip().partition(b"\n")[0]
    try:
        parsed = _parse(_decode(raw, str(path)), str(path))
    except DataError:
        # Many files named .json hold one object per line.
        if first_line.rstrip().startswith(b"{") and first_line.rstrip().endswith(b"}"):
            del raw
            yield from _read_jsonl(path, problems)
            return
        raise
    value = parsed.value
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, dict) and b"\n" not in raw.strip():
        value = [value]
    del raw
    if isinstance(value, Fault):
        raise DataError(f"not valid JSON: {value.what}", where=str(path), fix="mend the file")
    if not isinstance(value, list):
        raise DataError(
            "a JSON file must hold a list of objects",
            where=str(path),
            found=f"an object with keys {listed(list(value)[:8])}" if isinstance(value, dict) else type(value).__name__,
            expected='[{…}, …] or {"data": [{…}, …]}',
        )
    for item in value:
        yield Parsed(item, parsed.has_faults)


def _text_lines(path: Path, problems: Problems) -> Iterator[str]:
    """The lines of a file; one that is not UTF-8 is a problem, and does not hide those behind it."""
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(_UTF8_MARK) if number == 1 else raw
            try:
                yield _decode(raw, f"{path}, line {number}")
            except DataError as error:
                problems.add(error)
                yield raw.decode("utf-8", errors="replace")


INDEX = "(index)"
"""A first column without a name that numbers the rows, as pandas' `to_csv` writes it; `convert` leaves it out."""


def _checked_header(header: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    if names[0] == "" and len(names) > 1 and INDEX not in names:
        names[0] = INDEX
    wrong = next((name for name in names if not name or names.count(name) > 1), None)
    if wrong is not None:
        raise DataError(
            "the first line must name every column, each once",
            where=f"{path}, line 1",
            found=listed(repr(name) for name in names),
            fix="name the columns in the first line",
        )
    others = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}
    parted = next((shown_as for mark, shown_as in others.items() if mark in "".join(names)), None)
    if len(names) == 1 and parted:
        raise DataError(
            f"the fields seem to be parted by {parted}",
            where=f"{path}, line 1",
            found=names[0],
            expected="a tab between fields (.tsv)" if ".tsv" in ending(path) else "a comma between fields (.csv)",
            fix="write the file anew, or give it the ending of what it is",
        )
    return names


def _read_csv(path: Path, problems: Problems) -> Iterator[RawRow]:
    _checked_head(path)
    delimiter = "\t" if ".tsv" in ending(path) else ","
    reader = csv.reader(_text_lines(path, problems), delimiter=delimiter, strict=True)
    records = _csv_records(reader, path, problems)
    try:
        first = next(records, None)
        header = _checked_header(first[1], path) if first else []
    except DataError as error:
        problems.add(error)
        return
    has_index = first is not None and not first[1][0].strip()
    for number, (line, values) in enumerate(records):
        if has_index and values[0].strip() != str(number) and len(values) == len(header):
            problems.add(_no_index(path, line, header, values[0]))
            return
        if len(values) == len(header):
            yield Origin(str(path), line), dict(zip(header, map(_plain_line_ends, values), strict=True))
            continue
        problems.add(
            DataError(
                "the row does not have as many fields as the header",
                where=f"{path}, line {line}",
                found=f"{counted(len(values), 'field')}: {shown(values)}",
                expected=f"{counted(len(header), 'field')} ({listed(header)})",
                fix='mend the row; put "…" around fields that hold a comma or a line break',
            )
        )


def _plain_line_ends(value: str) -> str:
    """Windows' line ends inside quotes: as in plain text, the model should not learn to write them."""
    return value.replace("\r\n", "\n") if "\r" in value else value


def _no_index(path: Path, line: int, header: list[str], value: str) -> DataError:
    return DataError(
        "the first column has no name, and does not number the rows",
        where=f"{path}, line {line}",
        found=f"{value!r}, in front of {listed(header[1:])}",
        expected="a name for every column in the first line; or, without one, the numbers 0, 1, 2, … of pandas' index",
        fix="name the column in the first line; to leave pandas' index out, write the file by to_csv(…, index=False)",
    )


def _csv_records(reader: CsvReader, path: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """The records that hold anything, with the line on which each begins; reading goes on behind a broken one."""
    while True:
        line = reader.line_num + 1
        try:
            values = _next_record(reader)
        except csv.Error as error:
            problems.add(
                DataError(
                    f"not valid CSV: {error}",
                    where=f"{path}, line {line}",
                    fix='close the quotes; write a quote inside a quoted field as ""',
                )
            )
            continue
        if values is None:
            return
        if values:
            yield line, values


def _next_record(reader: CsvReader) -> list[str] | None:
    """The csv module refuses fields over 128 KiB unless told, and is told for all its readers: so for one record at a
    time, since a walk may rest between two of them. Texts are longer."""
    previous = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(previous)


def _read_text(path: Path, problems: Problems) -> Iterator[RawRow]:
    """Plain text: a row per paragraph, parted by empty lines; in a file without empty lines, a row per line.

    Windows' line ends become plain ones: the model should not learn to write them.
    """
    _checked_head(path)
    by_paragraph = _has_paragraphs(path)
    paragraph: list[str] = []
    start = 1
    for number, line in enumerate(chain(_text_lines(path, problems), [""]), start=1):
        if paragraph and (not by_paragraph or not line.strip()):
            yield Origin(str(path), start), {"text": "".join(paragraph).rstrip("\r\n")}
            paragraph = []
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line)


def _has_paragraphs(path: Path) -> bool:
    """Whether an empty line stands between two others. The first such place decides."""
    begun = parted = False
    for line in _text_lines(path, Problems("")):
        if line.strip():
            if parted:
                return True
            begun = True
        else:
            parted = begun
    return False


def _read_columnar(path: Path, problems: Problems) -> Iterator[RawRow]:
    """Parquet and Arrow, streamed by `datasets` so that nothing is copied into its cache."""
    from datasets import load_dataset
    from pyarrow import parquet

    if path.stat().st_size == 0:
        return
    builder = "parquet" if path.suffix.lower() == ".parquet" else "arrow"
    try:
        with quiet_datasets(), TemporaryDirectory() as folder:
            if builder == "parquet" and parquet.read_metadata(str(path)).num_rows == 0:
                return  # `datasets` takes such a file for a damaged one
            stream = load_dataset(builder, data_files=str(path), split="train", streaming=True, cache_dir=folder)
            for number, row in enumerate(stream, start=1):
                yield Origin(str(path), number), of_arrow(row)
    except Exception as error:  # pyarrow and datasets raise a dozen kinds for a damaged file
        raise DataError(
            f"not a readable {builder} file",
            where=str(path),
            found=shown(str(error).splitlines()[0] if str(error) else type(error).__name__, 160),
            fix="write the file again; an interrupted download or copy looks like this",
        ) from error


def of_arrow(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow gives every object the keys of all others, filled with null: a call would be taught arguments of others."""
    return {key: _without_filled(value) if isinstance(value, (list, dict)) else value for key, value in row.items()}


def _without_filled(value: Any, *, inside: bool = False) -> Any:
    """`value` without the nulls that stand inside the arguments of calls; all other nulls stay."""
    if isinstance(value, list):
        return [_without_filled(item, inside=inside) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if not (inside and item is None)}
    return {key: _without_filled(item, inside=inside or key == "arguments") for key, item in kept.items()}


_OF_TEXT = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
}
READERS: dict[str, Callable[[Path, Problems], Iterator[RawRow]]] = {
    **_OF_TEXT,
    ".parquet": _read_columnar,
    ".arrow": _read_columnar,
    **{f"{name}.gz": reader for name, reader in _OF_TEXT.items()},
}
