"""Sources that are walked over row by row, as often as need be, and never lie in memory whole.

A walk ends with `ReadWhole` at whatever is broken: cache/telling.py says what, and where, of all that is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunesmith.data.problems import Problems
from tunesmith.data.reading.files import READERS, RawRow, ending, of_arrow, rows_of, told_rows
from tunesmith.data.reading.hub import is_out_of_reach
from tunesmith.data.reading.opened import lines
from tunesmith.data.reading.quiet import quiet_datasets
from tunesmith.data.reading.sources import data_files, is_saved, read, refuse_split_of_file, saved_split
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


class ReadWhole(Exception):
    """These rows are for the reader that takes all of them at once."""


class _Walked(Collection[RawRow]):
    """Rows that are read anew at each walk; how many there are is known after the first."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self._length = limit, None if limit != 0 else 0

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self._marks())
        return self._length

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)

    def tell(self) -> None:
        """Raise what is broken, all of it, in the words of the reader of whole files."""
        deque(self, maxlen=0)

    def _marks(self) -> Iterator[Any]:
        """As many as there are rows, at the least cost."""
        return iter(self)


class File(_Walked):
    """One file of any kind."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        super().__init__(limit)
        self.path = path

    def _marks(self) -> Iterator[Any]:
        if ending(self.path) in LINES:
            return iter(range(self._num_lines())[: self.limit])
        if ending(self.path) == ".parquet":
            from pyarrow import parquet

            with _or_read_whole():
                return iter(range(parquet.read_metadata(str(self.path)).num_rows)[: self.limit])
        return iter(self)

    def _num_lines(self) -> int:
        """Lines that hold anything."""
        with _or_read_whole():
            return sum(1 for _, raw in lines(self.path) if raw.strip())

    def __iter__(self) -> Iterator[RawRow]:
        problems, is_empty = Problems(""), True
        rows = rows_of(self.path, problems)
        try:
            for row in islice(rows, self.limit):
                if problems.count:
                    break
                yield row
                is_empty = False
        except DataError as error:
            raise ReadWhole from error
        if problems.count or is_empty:
            raise ReadWhole

    def tell(self) -> None:
        deque(told_rows(self.path, self.limit), maxlen=0)


class Files(_Walked):
    """The files of a folder, one behind the other."""

    def __init__(self, paths: Sequence[Path], limit: int | None = None) -> None:
        super().__init__(limit)
        self.paths = paths

    def _marks(self) -> Iterator[Any]:
        if self.limit is not None:
            return iter(self)
        return chain.from_iterable(File(path)._marks() for path in self.paths)

    def __iter__(self) -> Iterator[RawRow]:
        return self._chained(lambda path, limit: iter(File(path, limit)))

    def tell(self) -> None:
        deque(self._chained(told_rows), maxlen=0)

    def _chained(self, rows_of_file: Callable[[Path, int | None], Iterator[RawRow]]) -> Iterator[RawRow]:
        """As many as are wanted; files behind those that hold them are not opened."""
        left = self.limit
        for path in self.paths:
            for row in rows_of_file(path, left):
                yield row
                left = left if left is None else left - 1
            if left == 0:
                break


class DataSet(_Walked):
    """A data set of `datasets`, which maps it into memory."""

    def __init__(self, rows: Any, name: str, limit: int | None = None) -> None:
        super().__init__(limit)
        self.rows, self.name = rows, name
        self._length = len(rows) if limit is None else min(limit, len(rows))

    def __iter__(self) -> Iterator[RawRow]:
        with _or_read_whole():
            for number, row in enumerate(islice(self.rows, self.limit), start=1):
                yield Origin(self.name, number), of_arrow(row)


def walked(one: DataSettings) -> Collection[RawRow]:
    """The rows of a source: to be walked over, or a list where its kind is read whole."""
    path = Path(one.named).expanduser()
    if path.is_dir():
        if is_saved(path):
            return DataSet(_saved(path, one.split), str(path), one.limit)
        return Files(data_files(path, one.split), one.limit)
    if path.is_file() and ending(path) in READERS:
        refuse_split_of_file(path, one.split)
        return File(path, one.limit)
    if not path.exists() and one.limit is None:
        label = f"{one.named} ({one.subset}, {one.split})" if one.subset else f"{one.named} ({one.split})"
        return DataSet(of_hub(one.named, one.subset, one.split), label)
    return read(one.named, split=one.split, subset=one.subset, limit=one.limit)


def _saved(folder: Path, split: str) -> Any:
    from datasets import load_from_disk

    with quiet_datasets(), _or_read_whole():
        return saved_split(load_from_disk(str(folder)), folder, split)


def of_hub(name: str, subset: str | None, split: str) -> Any:
    if name.count("/") != 1 or ending(Path(name)) in READERS:  # a file that is not there
        raise ReadWhole
    from datasets import load_dataset

    if is_out_of_reach(name):
        raise ReadWhole
    with quiet_datasets(), _or_read_whole():
        return load_dataset(name, subset, split=split)


@contextmanager
def _or_read_whole() -> Iterator[None]:
    """`datasets` and pyarrow raise a dozen kinds of errors."""
    try:
        yield
    except Exception as error:
        raise ReadWhole from error
