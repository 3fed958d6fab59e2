"""The bytes of a file of rows, unpacked, and its lines: UTF-8, and none of them longer than memory can bear."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.types import Origin
from tunesmith.errors import DataError

RawRow = tuple[Origin, dict[str, Any]]

LONGEST_BYTES = 2**28
"""Of a line, a field of a table, an item of a JSON list, a paragraph: a packed file of 10 MB may unpack to a line of
10 GB."""
MOST_WHOLE_BYTES = 2**31
"""Of a JSON text that is no list, and is read whole."""

UTF8_MARK = b"\xef\xbb\xbf"
_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_BINARY = {b"\x1f\x8b": "a gzip archive", b"PK\x03\x04": "a zip archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF"}


def ending(path: Path) -> str:
    """By which a file's reader is found: ".jsonl", or ".jsonl.gz" where it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes if suffixes[-1:] == [".gz"] else suffixes[-1:])


def opened(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, from 1. A DataError for one that is longer than any row."""
    with opened(path) as file:
        number = 0
        while raw := file.readline(LONGEST_BYTES + 1):
            number += 1
            if len(raw) > LONGEST_BYTES:
                raise too_long("the line", f"{path}, line {number}")
            yield number, raw.removeprefix(UTF8_MARK) if number == 1 else raw


def too_long(what: str, where: str) -> DataError:
    return DataError(
        f"{what} is too long to be a row",
        where=where,
        found=f"more than {LONGEST_BYTES:,} bytes",
        expected="a row of a length that a model could learn from",
        fix="write each row on a line of its own, or leave this one out",
    )


def checked_head(path: Path) -> bytes:
    """The first bytes of a file. A DataError where they are not those of UTF-8 text."""
    with opened(path) as file:
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
    return head.removeprefix(UTF8_MARK)


def decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "not valid UTF-8",
            where=where,
            found=f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line",
            fix="save the file as UTF-8",
        ) from None
