"""Draws an `Ask` at random over one schema, with values that its tables really hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tunesmith.demo.forms import Ask, Atom, Field, Having, Order
from tunesmith.demo.schemas import FREE_TEXT, LINK, Column, Schema, Table

SELECTS = {
    "cols": 40,
    "star": 4,
    "distinct": 6,
    "count": 12,
    "sum": 5,
    "avg": 6,
    "min": 5,
    "max": 5,
    "key_count": 9,
    "key_avg": 7,
}
NESTED = ("above_avg", "is_max")
JOINS = 0.4
PAIRED = ("eq", "ne", "gt", "lt", "ge", "le", "contains")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Contents:
    """The values of every column in each fill: fills[0]["books"]["price"]."""

    schema: Schema
    fills: Sequence[dict[str, dict[str, list[Any]]]]

    def values(self, field: Field) -> list[Any]:
        """Of the first fill, without NULL."""
        return [value for value in self.fills[0][field.table][field.column.name] if value is not None]

    def shared(self, field: Field) -> list[Any]:
        """Values that every fill holds."""
        sets = [set(fill[field.table][field.column.name]) for fill in self.fills]
        return sorted(set.intersection(*sets) - {None})


def draw_ask(schema: Schema, contents: Contents, random_: random.Random, joins: float = JOINS) -> Ask | None:
    """None where the tables have no column for what was drawn. `joins`: the share of questions that join."""
    return _Draw(schema, contents, random_, joins).ask()


class _Draw:
    def __init__(self, schema: Schema, contents: Contents, random_: random.Random, joins: float) -> None:
        self.schema, self.contents, self.random, self.joins = schema, contents, random_, joins

    def ask(self) -> Ask | None:
        table, parent = self._source()
        select = self._weighted(SELECTS)
        if select == "star" and parent:
            return None
        tables = [table, parent] if parent else [table]
        fields = [Field(t.name, c) for t in tables for c in t.columns if c.kind != LINK]
        chosen = self._selected(select, fields, table, parent)
        if chosen is None:
            return None
        ask = Ask(
            table.name,
            select,
            chosen,
            parent=parent.name if parent else "",
            link=table.link.name if parent and table.link else "",
        )
        atoms = self._atoms(ask, fields, table, parent)
        if (
            atoms is None
            or _fixes_key(select, chosen, atoms)
            or (parent and not self._uses_both(chosen, atoms, parent))
        ):
            return None
        having, order = self._having(ask), self._order(ask, fields)
        ask = Ask(ask.table, select, chosen, ask.parent, ask.link, atoms, ask.connector, having, order)
        return ask

    def _pick(self, options: Sequence[Item]) -> Item | None:
        return self.random.choice(options) if options else None

    def _weighted(self, weights: dict[str, int]) -> str:
        return self.random.choices(list(weights), weights=list(weights.values()))[0]

    def _source(self) -> tuple[Table, Table | None]:
        pairs = self.schema.pairs()
        if pairs and self.random.random() < self.joins:
            child, parent = self.random.choice(pairs)
            return child, parent
        return self.random.choice(self.schema.tables), None

    def _uses_both(self, fields: Sequence[Field], atoms: Sequence[Atom], parent: Table) -> bool:
        """A join that asks nothing of the parent would be one for nothing."""
        return any(field.table == parent.name for field in [*fields, *(atom.field for atom in atoms)])

    def _selected(
        self, select: str, fields: list[Field], table: Table, parent: Table | None
    ) -> tuple[Field, ...] | None:
        own = [field for field in fields if field.table == table.name]
        groups = [f for f in fields if f.column.kind == "choice" and not f.column.nullable]
        if select in ("star", "count"):
            return ()
        if select == "cols":
            return tuple(self._columns(fields, own, parent))
        if select == "distinct":
            return self._one(groups)
        numbers = [f for f in own if f.column.numeric and not f.column.nullable]
        if select in ("min", "max"):
            return self._one(numbers + [f for f in own if f.column.kind == "date"])
        if select in ("sum", "avg"):
            return self._one(numbers)
        names = groups + [f for f in fields if parent and f.table == parent.name and f.column.name == "name"]
        key = self._one(names)
        if key is None or select == "key_count":
            return key
        value = self._one(numbers)
        return None if value is None else (*key, *value)

    def _columns(self, fields: list[Field], own: list[Field], parent: Table | None) -> list[Field]:
        if parent and self.random.random() < 0.6:
            others = [field for field in fields if field.table == parent.name]
            return [self.random.choice(own), self.random.choice(others)]
        return self.random.sample(own, self.random.choice((1, 1, 2)))

    def _one(self, options: list[Field]) -> tuple[Field, ...] | None:
        field = self._pick(options)
        return None if field is None else (field,)

    def _atoms(self, ask: Ask, fields: list[Field], table: Table, parent: Table | None) -> tuple[Atom, ...] | None:
        shape = self._weighted({"none": 18, "one": 54, "two": 14, "nested": 9, "child": 5})
        if shape == "none":
            return ()
        if shape == "child":
            return self._child(table) if parent is None else None
        if shape == "nested":
            field = self._pick([f for f in fields if f.column.numeric and not f.column.nullable])
            return None if field is None else (Atom(self.random.choice(NESTED), field),)
        if parent:
            fields = [field for field in fields if field.table == parent.name or self.random.random() < 0.5]
        first = self._atom(fields, None if shape == "one" else PAIRED)
        if first is None or shape == "one":
            return None if first is None else (first,)
        second = self._atom([field for field in fields if field != first.field], PAIRED)
        return None if second is None else (first, second)

    def _child(self, table: Table) -> tuple[Atom, ...] | None:
        child = self._pick([child for child, parent in self.schema.pairs() if parent == table])
        if child is None or child.link is None:
            return None
        return (Atom(self.random.choice(("has_child", "no_child")), Field(child.name, child.link)),)

    def _atom(self, fields: list[Field], allowed: Sequence[str] | None) -> Atom | None:
        """The kind first, then a column that can bear it: so rare kinds are not crowded out by numbers."""
        kind = self.random.choice(allowed or list(BEARERS))
        field = self._pick([field for field in fields if BEARERS[kind](field.column)])
        if field is None:
            return None
        values = self._values(kind, field)
        return None if values is None else Atom(kind, field, values)

    def _values(self, kind: str, field: Field) -> tuple[str, ...] | None:
        if kind in ("null", "notnull"):
            return ()
        held = self.contents.values(field)
        if kind in ("gt", "lt", "ge", "le", "between"):
            cuts = sorted(self.random.sample(_middle(held), 2))
            if kind == "between":
                return (str(cuts[0]), str(cuts[1])) if cuts[0] != cuts[1] else None
            return (str(cuts[0]),)
        shared = self.contents.shared(field)
        if kind == "in":
            size = self.random.choice((2, 2, 3))
            return tuple(self.random.sample(shared, size)) if len(shared) > size else None
        value = self._pick(shared if kind in ("eq", "ne") else [str(v) for v in held])
        return None if value is None else self._pattern(kind, str(value))

    def _pattern(self, kind: str, value: str) -> tuple[str, ...] | None:
        if kind == "contains":
            start = self.random.randrange(1, max(2, len(value) - 2))
            piece = value[start : start + self.random.choice((2, 3))]
        elif kind == "prefix":
            piece = value.split()[0] if self.random.random() < 0.5 else value[: self.random.choice((1, 2))]
        else:
            return (value,)
        return (piece,) if piece.isalpha() else None

    def _having(self, ask: Ask) -> Having | None:
        if ask.select != "key_count" or self.random.random() < 0.65:
            return None
        return Having("count_ge", str(self.random.randint(2, 9)))

    def _order(self, ask: Ask, fields: list[Field]) -> Order | None:
        descending = self.random.random() < 0.5
        limit = self.random.choice((1, 2, 3, 3, 4, 5))
        if ask.grouped:
            return self._group_order(ask, descending)
        if ask.select not in ("cols", "star", "distinct") or self.random.random() < 0.45:
            return None
        if ask.select == "distinct":
            return Order(ask.fields[0], descending)
        by = self._pick([f for f in fields if not f.column.nullable and f.column.kind != "choice"])
        if by is None:
            return None
        limited = (by.column.numeric or by.column.kind == "date") and self.random.random() < 0.5
        return Order(by, descending, limit if limited else 0)

    def _group_order(self, ask: Ask, descending: bool) -> Order | None:
        if self.random.random() < 0.6:
            return None
        return Order("count" if ask.select == "key_count" else "agg", descending)


def _fixes_key(select: str, fields: Sequence[Field], atoms: Sequence[Atom]) -> bool:
    """Whether a condition names the very values that the groups or distinct values would be: a silly question."""
    listed = select.startswith("key") or select == "distinct"
    return listed and any(atom.kind in ("eq", "in") and atom.field == fields[0] for atom in atoms)


def _text(column: Column) -> bool:
    return column.kind in ("person", "title") and not column.nullable


def _measured(column: Column) -> bool:
    return (column.numeric or column.kind == "date") and not column.nullable


def _listed(column: Column) -> bool:
    return column.kind == "choice" and not column.nullable


BEARERS: dict[str, Callable[[Column], bool]] = {
    "eq": lambda c: _listed(c) or (c.kind == "int" and c.high - c.low <= 40 and not c.nullable) or c.kind == "person",
    "ne": _listed,
    "gt": _measured,
    "lt": _measured,
    "ge": _measured,
    "le": _measured,
    "between": _measured,
    "prefix": lambda c: _text(c) or (c.kind in FREE_TEXT and c.name == "code"),
    "contains": _text,
    "in": _listed,
    "null": lambda c: c.nullable,
    "notnull": lambda c: c.nullable,
}


def _middle(values: list[Any]) -> list[Any]:
    """The values between the first and last fifth: bounds that leave rows on both sides."""
    ordered = sorted(values)
    fifth = len(ordered) // 5
    return ordered[fifth : len(ordered) - fifth]
