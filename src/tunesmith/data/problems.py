"""Broken rows, gathered so that a person hears of all of them at once."""

from __future__ import annotations

from tunesmith.errors import DataError

SHOWN = 10


class Problems:
    """Collects one error per broken row; shows the first ten and the count.

    `stage`: of the problems of one step of the way, which hide which: with any of a smaller one, none gets to this.
    """

    def __init__(self, noun: str, stage: int = 0) -> None:
        self.noun, self.stage = noun, stage
        self.count = 0
        self.first: list[DataError] = []

    def add(self, error: DataError) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(error)

    def add_all(self, others: Problems) -> None:
        """Those of further rows."""
        self.count += others.count
        self.first += others.first[: SHOWN - len(self.first)]

    def raise_if_any(self) -> None:
        if self.count:
            error = self._as_one()
            error.problems = self
            raise error

    def _as_one(self) -> DataError:
        if self.count == 1:
            (one,) = self.first
            return DataError(one.what, where=one.where, found=one.found, expected=one.expected, fix=one.fix)
        lines = []
        for error in self.first:
            found = f" (found: {error.found})" if error.found else ""
            lines.append(f"  {error.where}: {error.what}{found}" if error.where else f"  {error.what}{found}")
        if self.count > len(self.first):
            lines.append(f"  … and {self.count - len(self.first)} more")
        return DataError(
            f"{self.count} {self.noun}\n" + "\n".join(lines),
            expected=_in_order([error.expected for error in self.first]),
            fix=_in_order([error.fix for error in self.first]),
        )


def _in_order(texts: list[str | None]) -> str | None:
    """The different texts, each once."""
    return "; ".join(dict.fromkeys(text for text in texts if text)) or None


def shown(value: object, length: int = 80) -> str:
    """`value` as short text for an error."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def counted(number: int, noun: str) -> str:
    """1 row, 1,200 rows."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: object) -> str:
    """Column names for an error."""
    return ", ".join(str(name) for name in names) or "none"  # type: ignore[attr-defined]
