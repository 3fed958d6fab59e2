"""Rows that are handed over in Python: dictionaries, a table of pandas, or a data set of `datasets`.

Neither package is imported here: rows that are of one of them say so themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunesmith.data.problems import Problems, listed, shown
from tunesmith.data.reading.files import RawRow, of_arrow
from tunesmith.data.reading.strict_json import DEEPEST, is_deep
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

_EXPECTED = "a list of dictionaries, a pandas DataFrame or a datasets.Dataset"


def dictionaries(source: Any) -> Iterable[Any]:
    """The rows of `source`, one a dictionary, as far as they are. DataError where it is nothing that holds rows."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(source).__mro__}
    if kinds & {("pandas", "DataFrame")}:
        return _of_table(source)
    if kinds & {("datasets", "DatasetDict"), ("datasets", "IterableDatasetDict")}:
        first = next(iter(source), "train")
        raise DataError(
            "these are the splits of a data set, and not its rows",
            where="rows",
            found=f"{type(source).__name__} with {listed(source)}",
            expected=_EXPECTED,
            fix=f"give one of them: rows[{first!r}]",
        )
    if kinds & {("datasets", "Dataset"), ("datasets", "IterableDataset")}:
        return map(of_arrow, source)
    if isinstance(source, Mapping):
        raise DataError(
            "rows must be a list, with a dictionary for each row",
            where="rows",
            found=f"{type(source).__name__} with the keys {listed(list(source)[:8])}",
            expected=_EXPECTED,
            fix="a single row: [row]; columns: [dict(zip(rows, row)) for row in zip(*rows.values())]",
        )
    if not isinstance(source, Iterable):
        raise DataError(
            "rows must be a list, with a dictionary for each row",
            where="rows",
            found=f"{type(source).__name__} {shown(source, 40)}",
            expected=_EXPECTED,
            fix="give [{…}, {…}]",
        )
    return source


def _of_table(table: Any) -> Iterator[dict[str, Any]]:
    """What pandas has nothing for (NaN, NaT, NA) is null, and what numpy holds is plain again."""
    if not table.columns.is_unique:
        twice = list(dict.fromkeys(table.columns[table.columns.duplicated()]))
        raise DataError("columns of the DataFrame have one name", where="rows", found=listed(twice), fix="rename them")
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        yield {str(name): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if type(value).__module__.partition(".")[0] == "numpy":
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def read_python(source: Any, limit: int | None) -> list[RawRow]:
    """The rows with their numbers; those that are no dictionaries are one DataError that names them all."""
    problems = Problems("broken rows")
    rows: list[RawRow] = []
    for number, row in enumerate(dictionaries(source), start=1):
        if isinstance(row, Mapping) and is_deep(row := dict(row)):
            problems.add(
                DataError(
                    "nested too deeply",
                    where=f"rows, row {number}",
                    found=f"lists and dictionaries in one another, more than {DEEPEST} of them",
                    fix="mend or leave out the row",
                )
            )
        elif isinstance(row, Mapping):
            rows.append((Origin("rows", number), dict(row)))
        else:
            problems.add(
                DataError(
                    "a row must be a dictionary",
                    where=f"rows, row {number}",
                    found=f"{type(row).__name__} {shown(row, 40)}",
                    expected='{"column": value, …}',
                    fix="give a dictionary for each row",
                )
            )
        if limit is not None and len(rows) >= limit:
            break
    problems.raise_if_any()
    if not rows:
        raise DataError("no rows were given", where="rows", fix="give at least one dictionary")
    return rows
