"""What a question asks for, apart from words: an `Ask` becomes SQL here, English in `wording`, and errors below.

Ask = source x select x where x having x order         one canonical way of writing each query
form = its skeleton without tables, columns and values, the parts of which `parts` names
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunesmith.demo.schemas import Column, Schema

AGGREGATES = ("sum", "avg", "min", "max")
COMPARISONS = {"eq": "=", "ne": "!=", "gt": ">", "lt": "<", "ge": ">=", "le": "<="}
NESTED_AGGREGATES = {
    "above_avg": ("> ", "AVG"),
    "below_avg": ("< ", "AVG"),
    "is_max": ("= ", "MAX"),
    "is_min": ("= ", "MIN"),
}
CHILD_KINDS = ("has_child", "no_child", "child_where")
OPPOSITES = (
    ("gt", "lt"),
    ("ge", "le"),
    ("eq", "ne"),
    ("in", "notin"),
    ("null", "notnull"),
    ("above_avg", "below_avg"),
    ("is_max", "is_min"),
    ("has_child", "no_child"),
    ("prefix", "suffix"),
)
NEIGHBOURS = (("gt", "ge"), ("lt", "le"))


@dataclass(frozen=True)
class Field:
    table: str
    column: Column


@dataclass(frozen=True)
class Atom:
    """One condition. Child conditions carry the child's link as `field` and, for child_where, the `inner` condition."""

    kind: str
    field: Field
    values: tuple[str, ...] = ()
    inner: Atom | None = None


@dataclass(frozen=True)
class Having:
    """count_gt, count_ge (rows of the group), agg_gt or agg_lt (its aggregate)."""

    kind: str
    value: str


@dataclass(frozen=True)
class Order:
    """`by`: a field, or "count", "agg" or "key" of a group. `limit` 0 is none."""

    by: Field | str
    descending: bool
    limit: int = 0


@dataclass(frozen=True)
class Ask:
    """`select`: cols (one or two fields), star, distinct, count, count_distinct, sum, avg, min, max, minmax, or, with
    groups, key, key_count, key_sum, key_avg, key_min, key_max (fields: the key, then the aggregated one)."""

    table: str
    select: str
    fields: tuple[Field, ...] = ()
    parent: str = ""
    link: str = ""
    atoms: tuple[Atom, ...] = ()
    connector: str = "AND"
    having: Having | None = None
    order: Order | None = None

    @property
    def grouped(self) -> bool:
        return self.select.startswith("key")

    @property
    def aggregate(self) -> str:
        """The group's aggregate in SQL: the one selected, else the count."""
        kind = self.select.removeprefix("key").removeprefix("_")
        return f"{kind.upper()}({self.name(self.fields[1])})" if kind in AGGREGATES else "COUNT(*)"

    def name(self, field: Field) -> str:
        """No prefix: no column stands in two tables of a schema."""
        return field.column.name

    def sql(self) -> str:
        clauses = [f"SELECT {self._selected()} FROM {self.table}"]
        if self.parent:
            clauses.append(f"NATURAL JOIN {self.parent}")
        if self.atoms:
            clauses.append("WHERE " + f" {self.connector} ".join(self._condition(atom) for atom in self.atoms))
        if self.grouped:
            clauses.append(f"GROUP BY {self.name(self.fields[0])}")
        if self.having:
            clauses.append(f"HAVING {self._having(self.having)}")
        if self.order:
            clauses.append(f"ORDER BY {self._order_key(self.order)}{' DESC' if self.order.descending else ' ASC'}")
            if self.order.limit:
                clauses.append(f"LIMIT {self.order.limit}")
        return " ".join(clauses)

    def order_keys_sql(self) -> str:
        """The same rows with the key that sorts them and no limit: two equal keys would leave the order open."""
        assert self.order is not None
        bare = replace(self, order=None).sql()
        head, tail = bare.split(" FROM ", 1)
        return f"{head}, {self._order_key(self.order)} FROM {tail}"

    def _selected(self) -> str:
        names = [self.name(field) for field in self.fields]
        if self.select == "cols":
            return ", ".join(names)
        if self.grouped:
            return names[0] if self.select == "key" else f"{names[0]}, {self.aggregate}"
        fixed = {"star": "*", "count": "COUNT(*)"}
        if self.select in fixed:
            return fixed[self.select]
        patterns = {"distinct": "DISTINCT {0}", "count_distinct": "COUNT(DISTINCT {0})", "minmax": "MIN({0}), MAX({0})"}
        return patterns.get(self.select, self.select.upper() + "({0})").format(names[0])

    def _condition(self, atom: Atom) -> str:
        name, column, values = self.name(atom.field), atom.field.column, [_literal(atom.field, v) for v in atom.values]
        if atom.kind in COMPARISONS:
            return f"{name} {COMPARISONS[atom.kind]} {values[0]}"
        if atom.kind in NESTED_AGGREGATES:
            sign, function = NESTED_AGGREGATES[atom.kind]
            return f"{name} {sign}(SELECT {function}({column.name}) FROM {atom.field.table})"
        if atom.kind in CHILD_KINDS:
            where = f" WHERE {replace(self, parent='')._condition(atom.inner)}" if atom.inner else ""
            sign = "NOT IN" if atom.kind == "no_child" else "IN"
            return f"{column.name} {sign} (SELECT {column.name} FROM {atom.field.table}{where})"
        raw = atom.values[0] if atom.values else ""
        return {
            "between": lambda: f"{name} BETWEEN {values[0]} AND {values[1]}",
            "prefix": lambda: f"{name} LIKE '{raw}%'",
            "contains": lambda: f"{name} LIKE '%{raw}%'",
            "suffix": lambda: f"{name} LIKE '%{raw}'",
            "in": lambda: f"{name} IN ({', '.join(values)})",
            "notin": lambda: f"{name} NOT IN ({', '.join(values)})",
            "null": lambda: f"{name} IS NULL",
            "notnull": lambda: f"{name} IS NOT NULL",
        }[atom.kind]()

    def _having(self, having: Having) -> str:
        left = "COUNT(*)" if having.kind.startswith("count") else self.aggregate
        return f"{left} {COMPARISONS[having.kind.rsplit('_', 1)[1]]} {having.value}"

    def _order_key(self, order: Order) -> str:
        if isinstance(order.by, Field):
            return self.name(order.by)
        return {"count": "COUNT(*)", "agg": self.aggregate, "key": self.name(self.fields[0])}[order.by]


def _literal(field: Field, value: str) -> str:
    return value if field.column.numeric else f"'{value}'"


def parts(ask: Ask) -> tuple[str, ...]:
    """The skeleton, for example ("from:one", "select:cols2", "where:gt", "where:eq", "and", "order:top")."""
    select = f"{ask.select}{len(ask.fields)}" if ask.select == "cols" else ask.select
    found = ["from:join" if ask.parent else "from:one", f"select:{select}"]
    for atom in ask.atoms:
        owner = "parent." if ask.parent and atom.field.table == ask.parent else ""
        found.append(f"where:{owner}{f'child.{atom.inner.kind}' if atom.inner else atom.kind}")
    if len(ask.atoms) > 1:
        found.append(ask.connector.lower())
    if ask.having:
        found.append(f"having:{ask.having.kind}")
    if ask.order:
        by = "" if isinstance(ask.order.by, Field) else f"{ask.order.by}."
        direction = "desc" if ask.order.descending else "asc"
        found.append(f"order:{by}{direction}{'.limit' if ask.order.limit else ''}")
    return tuple(found)


def corruptions(ask: Ask, schema: Schema) -> Iterator[tuple[str, Ask]]:
    """The same question answered with one mistake each: what a wrong model would write."""
    if ask.atoms:
        yield "where dropped", replace(ask, atoms=())
    for index, atom in enumerate(ask.atoms):
        others = (*ask.atoms[:index], *ask.atoms[index + 1 :])
        if others:
            yield "condition dropped", replace(ask, atoms=others)
        for name, wrong in _wrong_atoms(atom):
            yield name, replace(ask, atoms=(*ask.atoms[:index], wrong, *ask.atoms[index + 1 :]))
    if len(ask.atoms) > 1:
        yield "and/or swapped", replace(ask, connector="OR" if ask.connector == "AND" else "AND")
    if ask.having:
        yield "having dropped", replace(ask, having=None)
    yield from _wrong_orders(ask)
    yield from _wrong_selects(ask, schema)


def _wrong_atoms(atom: Atom) -> Iterator[tuple[str, Atom]]:
    for name, table in (("comparison reversed", OPPOSITES), ("bound moved", NEIGHBOURS)):
        for pair in table:
            if atom.kind in pair:
                yield name, replace(atom, kind=pair[1 - pair.index(atom.kind)])
    if atom.kind in ("in", "notin"):
        yield "value lost", replace(atom, values=atom.values[:-1])
    if atom.kind == "contains":
        yield "pattern narrowed", replace(atom, kind="prefix")
    if atom.inner:
        yield "inner condition dropped", replace(atom, kind="has_child", inner=None)
        for name, inner in _wrong_atoms(atom.inner):
            yield f"inner {name}", replace(atom, inner=inner)


def _wrong_orders(ask: Ask) -> Iterator[tuple[str, Ask]]:
    if ask.order is None:
        return
    yield "order reversed", replace(ask, order=replace(ask.order, descending=not ask.order.descending))
    yield "order dropped", replace(ask, order=None)
    if ask.order.limit:
        yield "limit dropped", replace(ask, order=replace(ask.order, limit=0))
        yield "limit moved", replace(ask, order=replace(ask.order, limit=ask.order.limit + 1))


def _wrong_selects(ask: Ask, schema: Schema) -> Iterator[tuple[str, Ask]]:
    if ask.select == "distinct":
        yield "distinct dropped", replace(ask, select="cols")
    if ask.select == "count_distinct":
        yield "distinct dropped", replace(ask, select="count")
    swaps = {"sum": "avg", "avg": "sum", "min": "max", "max": "min"}
    kind = ask.select.removeprefix("key_")
    if kind in swaps:
        yield "other aggregate", replace(ask, select=ask.select.replace(kind, swaps[kind]))
    if ask.select == "cols" and len(ask.fields) == 2:
        yield "column lost", replace(ask, fields=ask.fields[:1])
    for index, field in enumerate(ask.fields):
        same = [c for c in schema.table(field.table).columns if c.kind == field.column.kind and c != field.column]
        for column in same[:1]:
            wrong = Field(field.table, column)
            if wrong not in ask.fields:
                yield "other column", replace(ask, fields=(*ask.fields[:index], wrong, *ask.fields[index + 1 :]))
