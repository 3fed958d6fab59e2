"""Reading one file of rows, strictly: every broken row is named with its line, what was found and what to do.

JSONL, JSON and CSV are parsed here and not by `datasets`, whose readers give one error without a line and let NaN,
duplicate keys and lone surrogates pass. Parquet and Arrow go through `datasets`. Text files may be packed with gzip.

A reader is a walk: it gives a row at a time, and notes what is broken without ending there.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tunesmith.data.problems import Problems, counted, listed, shown
from tunesmith.data.reading.empty_cells import EMPTY_CELL
from tunesmith.data.reading.json_rows import read_json, read_jsonl
from tunesmith.data.reading.opened import LONGEST_BYTES, RawRow, checked_head, decoded, ending, lines, too_long
from tunesmith.data.reading.quiet import quiet_datasets
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader


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


def _text_lines(path: Path, problems: Problems) -> Iterator[str]:
    """The lines of a file; one that is not UTF-8 is a problem, and does not hide those behind it."""
    for number, raw in lines(path):
        try:
            yield decoded(raw, f"{path}, line {number}")
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
    checked_head(path)
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
            yield Origin(str(path), line), dict(zip(header, map(_cell, values), strict=True))
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


def _cell(value: str) -> str:
    """Windows' line ends inside quotes become plain ones, which the model should learn to write, as in plain text."""
    if not value:
        return EMPTY_CELL
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
    previous = csv.field_size_limit(LONGEST_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(previous)


def _read_text(path: Path, problems: Problems) -> Iterator[RawRow]:
    """Plain text: a row per paragraph, parted by empty lines; in a file without empty lines, a row per line.

    Windows' line ends become plain ones: the model should not learn to write them.
    """
    checked_head(path)
    by_paragraph = _has_paragraphs(path)
    paragraph: list[str] = []
    start, length = 1, 0
    for number, line in enumerate(chain(_text_lines(path, problems), [""]), start=1):
        if paragraph and (not by_paragraph or not line.strip()):
            yield Origin(str(path), start), {"text": "".join(paragraph).rstrip("\r\n")}
            paragraph, length = [], 0
        if line.strip():
            start = start if paragraph else number
            length += len(line)
            if length > LONGEST_BYTES:
                raise too_long("the paragraph", f"{path}, line {start}")
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
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
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
