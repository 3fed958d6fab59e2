"""Rows laid flat in files. Of a million of them memory holds their places, and the disk their tokens.

A row that is read from a table is an `Example` as any other: its arrays are made when they are asked for, and those of
a row that is not looked at are nowhere. `laying.py` writes what is read here.

tokens   [T] int32, one row behind the other; a learned token t stands as ~t, which is negative
starts   [n + 1] int64; row i is tokens[starts[i] : starts[i + 1]]
sources, numbers   [n]; its origin
groups, kinds      [n]; its group, and what it is beside its tokens: the side of a pair, the labels of a text
row_*    held-out rows by their meaning, as JSON
answers  [a, 2] the answers of the rows, one behind the other; row i's begin at answer_starts[i], in numbers
is_told  [n] whether a row tells its answers, if it has none too
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np

from tunesmith.data.cache.plain_values import of_plain
from tunesmith.data.types import Answer, Classified, Example, Origin, Row, Runs

COLUMNS = {
    "tokens": "<i4",
    "starts": "<i8",
    "sources": "<i4",
    "numbers": "<i8",
    "groups": "<i4",
    "kinds": "<i4",
    "row_texts": "u1",
    "row_starts": "<i8",
    "answers": "<i4",
    "answer_starts": "<i8",
    "is_told": "u1",
}
SECTION_BYTES = 1 << 24


class Table:
    """The columns of a folder, mapped into memory. `described`: {columns: {name: [length, digest]}, and the names that
    the numbers in them stand for}."""

    def __init__(self, folder: Path, described: Mapping[str, Any]) -> None:
        self.columns = {name: _mapped(folder / name, name, described["columns"][name][0]) for name in COLUMNS}
        self.tokens, self.starts = self.columns["tokens"], self.columns["starts"]
        self.sources, self.numbers = self.columns["sources"], self.columns["numbers"]
        self.groups, self.kinds = self.columns["groups"], self.columns["kinds"]
        self.names: list[str] = described["names"]
        self.group_names: list[str] = described["groups"]
        self.kind_names: list[Any] = [json.loads(text) for text in described["kinds"]]

    def __len__(self) -> int:
        return len(self.sources)

    def examples(self) -> list[Example]:
        classes = [LAID[name] for name, *_ in self.kind_names]
        return [classes[kind].at(self, place) for place, kind in enumerate(self.kinds.tolist())]

    def signed(self, place: int) -> np.ndarray:
        """The tokens of a row, learned ones as ~t."""
        return self.tokens[self.starts[place] : self.starts[place + 1]]

    def meanings(self) -> Sequence[Row]:
        return Rows(self.columns["row_texts"], self.columns["row_starts"])


def _mapped(path: Path, name: str, length: int) -> np.ndarray:
    dtype = np.dtype(COLUMNS[name])
    if length == 0:  # nothing cannot be mapped
        return np.zeros(0, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))


def is_whole(folder: Path, described: Mapping[str, Any]) -> bool:
    """Whether every column is what was written."""
    for name, dtype in COLUMNS.items():
        length, digest = described["columns"][name]
        path = folder / name
        if not path.is_file() or path.stat().st_size != length * np.dtype(dtype).itemsize:
            return False
        if digest_of_file(path) != digest:
            return False
    return True


def digest_of_file(path: Path) -> str:
    made = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while section := file.read(SECTION_BYTES):
            made.update(section)
    return made.hexdigest()


def text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Laid:
    """What the fields of an example are at its place of a table."""

    __slots__ = ()
    plain: ClassVar[type[Example]]
    table: Table
    place: int

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """A changed copy, as `dataclasses.replace` makes one, lies in memory as any other row."""
        return cls.plain(*values, **named)

    @classmethod
    def at(cls, table: Table, place: int) -> Any:
        made = object.__new__(cls)
        object.__setattr__(made, "table", table)
        object.__setattr__(made, "place", place)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        said = {name: getattr(self, name) for name in self.plain.__dataclass_fields__}
        return partial(self.plain, **said), ()

    def __len__(self) -> int:
        return int(self.table.starts[self.place + 1] - self.table.starts[self.place])

    @property
    def token_ids(self) -> np.ndarray:
        tokens = self.table.signed(self.place)
        return (tokens ^ (tokens >> 31)).astype(np.int64)  # ~t where it is negative

    @property
    def loss_weights(self) -> np.ndarray:
        return (self.table.signed(self.place) < 0).astype(np.float32)

    @property
    def num_learned(self) -> int:
        return int(np.count_nonzero(self.table.signed(self.place)[1:] < 0))

    @property
    def origin(self) -> Origin:
        return Origin(self.table.names[self.table.sources[self.place]], int(self.table.numbers[self.place]))

    @property
    def group(self) -> str | None:
        number = int(self.table.groups[self.place])
        return None if number < 0 else self.table.group_names[number]

    @property
    def answers(self) -> Runs | None:
        columns = self.table.columns
        if not columns["is_told"][self.place]:
            return None
        start, end = columns["answer_starts"][self.place : self.place + 2]
        return tuple((first, last) for first, last in columns["answers"][start:end].reshape(-1, 2).tolist())

    @property
    def _said(self) -> list[Any]:
        """What it is beside its tokens: the name of its class, and that class's own fields."""
        said: list[Any] = self.table.kind_names[self.table.kinds[self.place]]
        return said


class _LaidExample(_Laid, Example):  # type: ignore[misc]
    __slots__ = ("place", "table")
    plain = Example


class _LaidAnswer(_Laid, Answer):  # type: ignore[misc]
    __slots__ = ("place", "table")
    plain = Answer

    @property
    def side(self) -> str:  # type: ignore[override]
        side: str = self._said[1]
        return side

    @property
    def margin(self) -> float | str | None:  # type: ignore[override]
        margin: float | str | None = self._said[2]
        return margin


class _LaidClassified(_Laid, Classified):  # type: ignore[misc]
    __slots__ = ("place", "table")
    plain = Classified

    @property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._said[1])

    @property
    def has_turns(self) -> bool:  # type: ignore[override]
        return bool(self._said[2])


LAID: dict[str, type[_Laid]] = {"Example": _LaidExample, "Answer": _LaidAnswer, "Classified": _LaidClassified}
"""How rows are read, by what they are."""


class Rows(Sequence[Row]):
    """Rows by their meaning, each read from its JSON when it is asked for."""

    def __init__(self, texts: np.ndarray, starts: np.ndarray) -> None:
        self.texts, self.starts = texts, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        row: Row = of_plain(json.loads(self.texts[self.starts[place] : self.starts[place + 1]].tobytes()))
        return row
