"""The items of a JSON list, one at a time: of the text, memory holds one item and the section that is read at once."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Iterator

from tunesmith.data.reading.strict_json import Parsed, parse_from

SECTION_BYTES = 1 << 20
_SPACE = " \t\n\r"


class NoList(Exception):
    """The text is no list, or is broken: to be read whole, which says where."""


class _Text:
    """What was read of a file and is not done with. `at`: where the next item is looked for."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.is_whole = "", 0, False

    def read(self) -> bool:
        """More of it: twice as much each time, so that a long item is not begun too often. Whether there was more."""
        if self.is_whole:
            return False
        left = self.text[self.at :]
        section = self.file.read(max(SECTION_BYTES, len(left)))
        self.is_whole = not section
        self.text, self.at = left + self.decoder.decode(section, final=self.is_whole), 0
        return True

    def next(self, place: int) -> tuple[str, int]:
        """The next character from `place` on that is no space, and its place; "" where what was read ends before."""
        while place < len(self.text) and self.text[place] in _SPACE:
            place += 1
        return self.text[place : place + 1], place

    def until(self, wanted: str) -> str:
        """Goes behind the next character that is no space, which is one of `wanted`."""
        while True:
            found, place = self.next(self.at)
            if found:
                break
            if not self.read():
                raise NoList
        if found not in wanted:
            raise NoList
        self.at = place + 1
        return found


def items(file: io.BufferedIOBase, longest: int = sys.maxsize) -> Iterator[Parsed]:
    """Raises NoList, behind the items that come before what is wrong; RecursionError for an item that is nested too
    deeply, OverflowError for one of more letters than `longest`."""
    text = _Text(file)
    try:
        text.until("[")
        is_first = True
        while True:
            while not text.next(text.at)[0] and text.read():
                pass
            found, text.at = text.next(text.at)
            if is_first and found == "]":
                text.until("]")
                break
            item, end = _item(text, longest)
            yield item
            text.at, is_first = end, False
            if text.until(",]") == "]":
                break
        while not text.next(text.at)[0]:
            if not text.read():
                return
    except UnicodeDecodeError as error:
        raise NoList from error
    raise NoList  # something stands behind the list


def _item(text: _Text, longest: int) -> tuple[Parsed, int]:
    """The item that begins here, and where it ends. It is whole once it is seen what stands behind it: a number may go
    on in what is not read yet."""
    while True:
        try:
            item, end = parse_from(text.text, text.at)
            behind, _ = text.next(end)
            if behind and behind in ",]":
                return item, end
        except json.JSONDecodeError:
            pass
        if len(text.text) - text.at > longest:
            raise OverflowError
        if not text.read():
            raise NoList
