"""Sources that are walked over row by row, as often as need be, and never lie in memory whole.

What is broken or odd in them is not told here: a walk ends with `ReadWhole`, and the reader of whole files (files.py)
says what is wrong, and where.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.data.files import READERS, RawRow, ending, of_arrow
from tunesmith.data.quiet import quiet_datasets
from tunesmith.data.settings import DataSettings
from tunesmith.data.sources import read
from tunesmith.data.strict_json import first_fault, parse
from tunesmith.data.types import Origin

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
TABLES = {".parquet": "parquet", ".arrow": "arrow"}
UTF8_MARK = b"\xef\xbb\xbf"


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

    def _marks(self) -> Iterator[Any]:
        """As many as there are rows, at the least cost."""
        return iter(self)


class Lines(_Walked):
    """A JSONL file."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        super().__init__(limit)
        self.path = path

    def _marks(self) -> Iterator[tuple[int, bytes]]:
        """The lines that hold anything, with their numbers."""
        given, name = 0, self.path.suffix.lower()
        with gzip.open(self.path) if name == ".gz" else self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                raw = raw.removeprefix(UTF8_MARK) if number == 1 else raw
                if raw.strip():
                    yield number, raw
                    given += 1
                if given == self.limit:
                    break

    def __iter__(self) -> Iterator[RawRow]:
        source = str(self.path)
        for number, raw in self._marks():
            try:
                parsed = parse(raw.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                raise ReadWhole from error
            if not isinstance(parsed.value, dict) or (parsed.has_faults and first_fault(parsed.value) is not None):
                raise ReadWhole
            yield Origin(source, number), parsed.value


class Columns(_Walked):
    """A Parquet or Arrow file, streamed by `datasets` so that nothing is copied into its cache."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        super().__init__(limit)
        self.path = path

    def _marks(self) -> Iterator[Any]:
        from pyarrow import parquet

        if TABLES[ending(self.path)] != "parquet":
            return iter(self)
        with _or_read_whole():
            return iter(range(parquet.read_metadata(str(self.path)).num_rows)[: self.limit])

    def __iter__(self) -> Iterator[RawRow]:
        from datasets import load_dataset

        kind, source = TABLES[ending(self.path)], str(self.path)
        with quiet_datasets(), TemporaryDirectory() as folder, _or_read_whole():
            rows = load_dataset(kind, data_files=source, split="train", streaming=True, cache_dir=folder)
            for number, row in enumerate(islice(rows, self.limit), start=1):
                yield Origin(source, number), of_arrow(row)


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
    if path.is_file() and ending(path) in LINES:
        return Lines(path, one.limit)
    if path.is_file() and ending(path) in TABLES:
        return Columns(path, one.limit)
    if is_saved(path):
        return DataSet(_saved(path, one.split), str(path), one.limit)
    if not path.exists() and one.limit is None:
        label = f"{one.named} ({one.subset}, {one.split})" if one.subset else f"{one.named} ({one.split})"
        return DataSet(of_hub(one.named, one.subset, one.split), label)
    return read(one.named, split=one.split, subset=one.subset, limit=one.limit)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def _saved(folder: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    with quiet_datasets(), _or_read_whole():
        saved = load_from_disk(str(folder))
        return saved[split] if isinstance(saved, DatasetDict) else saved


def of_hub(name: str, subset: str | None, split: str) -> Any:
    if name.count("/") != 1 or ending(Path(name)) in READERS:  # a file that is not there
        raise ReadWhole
    from datasets import load_dataset

    with quiet_datasets(), _or_read_whole():
        return load_dataset(name, subset, split=split)


@contextmanager
def _or_read_whole() -> Iterator[None]:
    """`datasets` and pyarrow raise a dozen kinds of errors."""
    try:
        yield
    except Exception as error:
        raise ReadWhole from error
