"""Writes rows flat into files as they are made (`laid.py` says how they lie there)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from tunesmith.data.cache.laid import COLUMNS
from tunesmith.data.cache.plain_values import NotFlat, plain
from tunesmith.data.types import Answer, Classified, Example, Row


class _Column:
    """One file of numbers, with its length and digest so far."""

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.file, self.dtype = file, np.dtype(dtype)
        self.length, self.digest = 0, hashlib.blake2b(digest_size=16)

    def add(self, values: np.ndarray | Iterable[int]) -> None:
        made = np.asarray(values if isinstance(values, np.ndarray) else list(values)).astype(self.dtype).tobytes()
        self.file.write(made)
        self.digest.update(made)
        self.length += len(made) // self.dtype.itemsize


class Laying:
    """A folder that rows are written into, open inside a `with`. `described` is what a table needs beside the files.

    Raises NotFlat for rows that have no place there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._on_exit = folder, ExitStack()
        self._names: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._kinds: dict[str, int] = {}

    def __enter__(self) -> Self:
        opened = {name: self._on_exit.enter_context((self.folder / name).open("wb")) for name in COLUMNS}
        self._columns = {name: _Column(opened[name], dtype) for name, dtype in COLUMNS.items()}
        for name in ("starts", "row_starts", "answer_starts"):
            self._columns[name].add([0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_exit.close()

    def __len__(self) -> int:
        """Rows that lie there."""
        return self._columns["sources"].length

    def add(self, examples: Sequence[Example]) -> None:
        if not examples:
            return
        ids = np.concatenate([example.token_ids for example in examples])
        weights = np.concatenate([example.loss_weights for example in examples])
        is_learned = weights != 0
        if not np.array_equal(weights, is_learned) or ids.min(initial=0) < 0 or ids.max(initial=0) >= 2**31:
            raise NotFlat("weights other than 0 and 1")
        origins = [example.origin for example in examples]
        self._columns["kinds"].add(_number(self._kinds, json.dumps(_said(example))) for example in examples)
        self._add_texts("tokens", "starts", [np.where(is_learned, ~ids, ids)], map(len, examples))
        self._columns["sources"].add(_number(self._names, origin.source) for origin in origins)
        self._columns["numbers"].add(origin.row for origin in origins)
        self._columns["is_told"].add(example.answers is not None for example in examples)
        answers = [np.array(example.answers or (), dtype=np.int64).reshape(-1) for example in examples]
        self._add_texts("answers", "answer_starts", answers, map(len, answers))
        groups = [example.group for example in examples]
        self._columns["groups"].add(-1 if group is None else _number(self._groups, group) for group in groups)

    def add_meanings(self, rows: Sequence[Row]) -> None:
        texts = [np.frombuffer(json.dumps(plain(row)).encode(), dtype=np.uint8) for row in rows]
        self._add_texts("row_texts", "row_starts", texts, map(len, texts))

    def _add_texts(self, name: str, starts: str, values: Sequence[np.ndarray], lengths: Iterable[int]) -> None:
        """Rows of these lengths, one behind the other."""
        column = self._columns[name]
        ends = column.length + np.cumsum(np.array(list(lengths), dtype=np.int64))
        for value in values:
            column.add(value)
        self._columns[starts].add(ends)

    def described(self) -> dict[str, Any]:
        columns = {name: [column.length, column.digest.hexdigest()] for name, column in self._columns.items()}
        names = {"names": self._names, "groups": self._groups, "kinds": self._kinds}
        return {"columns": columns, **{name: list(known) for name, known in names.items()}}


def _number(known: dict[str, int], name: str) -> int:
    return known.setdefault(name, len(known))


def _said(example: Example) -> list[Any]:
    """What an example is beside its tokens, its origin and its group."""
    kind = type(example)
    if kind is Example:
        return ["Example"]
    if isinstance(example, Answer) and kind is Answer:
        return ["Answer", example.side, plain(example.margin)]
    if isinstance(example, Classified) and kind is Classified:
        return ["Classified", list(example.labels), example.has_turns]
    raise NotFlat(kind.__name__)
