"""An `Ask` in English, in one of several wordings. Each says which columns, which bound, which order."""

from __future__ import annotations

import random

from tunesmith.demo.forms import Ask, Atom, Field, Order
from tunesmith.demo.schemas import FREE_TEXT, Column, Schema

COMPARED = {
    "eq": ["is {0}"],
    "ne": ["is not {0}"],
    "gt": ["is above {0}", "is more than {0}"],
    "lt": ["is below {0}", "is less than {0}"],
    "ge": ["is at least {0}"],
    "le": ["is at most {0}"],
    "between": ["is between {0} and {1}"],
    "prefix": ["starts with '{0}'"],
    "contains": ["contains '{0}'"],
    "null": ["is missing"],
    "notnull": ["is known"],
    "above_avg": ["is above average", "is above the average {name}"],
    "is_max": ["is the highest of all", "equals the highest {name}"],
}
DATED = {
    "gt": ["is after {0}", "is later than {0}"],
    "lt": ["is before {0}", "is earlier than {0}"],
    "ge": ["is on or after {0}"],
    "le": ["is on or before {0}"],
}
AGGREGATE_WORDS = {
    "sum": ["total"],
    "avg": ["average", "mean"],
    "min": ["lowest", "minimum"],
    "max": ["highest", "maximum"],
}
DATE_AGGREGATE_WORDS = {"min": ["earliest"], "max": ["latest"]}
NO_WITH = ("ne", "null", "notnull", "is_max")
PLURAL_VERBS = {"is": "are", "equals": "equal", "exceeds": "exceed", "lies": "lie"}
VERBS = ["List", "Show", "Give"]


class Wording:
    """Words for one ask. Holds the random numbers and the schema's nouns, nothing else."""

    def __init__(self, ask: Ask, schema: Schema, random_: random.Random) -> None:
        self.ask, self.schema, self.random = ask, schema, random_
        self.plural = schema.table(ask.table).plural_phrase
        self.where = self._where()

    def text(self) -> str:
        select = self.ask.select
        if self.ask.grouped:
            return self._finish(self._group())
        if select in ("cols", "star", "distinct"):
            return self._finish(self._rows() + self._order())
        return self._finish(self._number())

    def _pick(self, options: list[str]) -> str:
        return self.random.choice(options)

    def _finish(self, text: str) -> str:
        question = text.split(" ", 1)[0] in ("What", "Which", "How")
        return text + ("?" if question else ".")

    def _phrase(self, field: Field) -> str:
        """The column; a parent's with its owner, as in "author's name"."""
        if field.table == self.ask.parent:
            return f"{self.schema.table(field.table).singular_phrase}'s {field.column.phrase}"
        return field.column.phrase

    def _rows(self) -> str:
        verb = self._pick(VERBS)
        if self.ask.select == "star":
            what = self._pick(["all columns", "every column"])
            return f"{verb} {what} of {self.plural}{self.where}"
        names = " and ".join(self._phrase(field) for field in self.ask.fields)
        if self.ask.select == "distinct":
            return f"{verb} the {self._pick(['distinct', 'different'])} {names} values of {self.plural}{self.where}"
        if not self.ask.order and self.random.random() < 0.2:
            verb = "are" if len(self.ask.fields) > 1 or _many(self.ask.fields[0].column) else "is"
            return f"What {verb} the {names} of {self.plural}{self.where}"
        return f"{verb} the {names} of {self._pick(['', 'all '])}{self.plural}{self.where}"

    def _number(self) -> str:
        select, verb = self.ask.select, self._pick(["Find", "Give"])
        if select == "count":
            return self._pick([f"How many {self.plural}{self.where} are there", f"Count the {self.plural}{self.where}"])
        words = f"{self._aggregate(select, self.ask.fields[0])} {self._phrase(self.ask.fields[0])}"
        opening = self._pick(["What is the", f"{verb} the"])
        return f"{opening} {words} of {self._pick(['', 'all '])}{self.plural}{self.where}"

    def _aggregate(self, kind: str, field: Field) -> str:
        words = DATE_AGGREGATE_WORDS if field.column.kind == "date" else AGGREGATE_WORDS
        if self.ask.grouped and self.ask.order:  # never "the highest highest price"
            return self._pick([word for word in words[kind] if word not in ("lowest", "highest")])
        return self._pick(words[kind])

    def _group(self) -> str:
        key, verb = self._phrase(self.ask.fields[0]), self._pick(["List", "Show", "Give"])
        words, of = "number", f"{self.plural}{self.where}"
        if self.ask.select != "key_count":
            words = f"{self._aggregate('avg', self.ask.fields[1])} {self._phrase(self.ask.fields[1])}"
        text = f"{verb} {self._pick([f'each {key} with the', f'every {key} and its'])} {words} of {of}"
        return text + self._having() + self._group_order(words)

    def _having(self) -> str:
        having = self.ask.having
        if having is None:
            return ""
        such = "such " if self.ask.atoms else ""
        return f", {self._pick(['but only', 'only'])} those with at least {having.value} {such}{self.plural}"

    def _group_order(self, words: str) -> str:
        order = self.ask.order
        if order is None:
            return ""
        return f", sorted by {words} {'descending' if order.descending else 'ascending'}"

    def _order(self) -> str:
        order = self.ask.order
        if order is None:
            return ""
        assert isinstance(order.by, Field)
        if order.limit:
            return self._limited(order.by, order)
        return self._sorted(order.by, order)

    def _limited(self, field: Field, order: Order) -> str:
        low, high = ("earliest", "latest") if field.column.kind == "date" else ("lowest", "highest")
        end = high if order.descending else low
        many = "one" if order.limit == 1 else str(order.limit)
        first = "" if order.limit == 1 else f", {end} first"
        return f", only the {many} with the {end} {self._phrase(field)}{first}"

    def _sorted(self, field: Field, order: Order) -> str:
        return f", sorted by {self._phrase(field)} {'descending' if order.descending else 'ascending'}"

    def _where(self) -> str:
        atoms = self.ask.atoms
        if not atoms:
            return ""
        if len(atoms) == 1:
            return f" {self._single(atoms[0])}"
        opening = self._pick(["whose", "where the"])
        again = self._pick([f" {opening}", ""])
        first, second = (f"{self._phrase(atom.field)} {self._predicate(atom)}" for atom in atoms)
        return f" {opening} {first} {self.ask.connector.lower()}{again} {second}"

    def _single(self, atom: Atom) -> str:
        if atom.kind in ("has_child", "no_child"):
            return self._child(atom)
        name, predicate = self._phrase(atom.field), self._predicate(atom)
        options = [f"whose {name} {predicate}", f"where the {name} {predicate}"]
        own = atom.field.table == self.ask.table
        verb, _, rest = predicate.partition(" ")
        if own and verb in ("is", "are") and atom.kind not in NO_WITH:
            options.append(f"with {name} {rest}")
        if own and atom.kind == "null":
            options += [f"with no {name}", f"without {name}"]
        if own and atom.kind == "notnull":
            options.append(f"with a known {name}")
        return self._pick(options)

    def _child(self, atom: Atom) -> str:
        child = self.schema.table(atom.field.table)
        if atom.kind == "no_child":
            return self._pick([f"without any {child.plural_phrase}", f"that have no {child.plural_phrase}"])
        return self._pick(
            [f"with at least one {child.singular_phrase}", f"that have at least one {child.singular_phrase}"]
        )

    def _predicate(self, atom: Atom) -> str:
        column, values = atom.field.column, atom.values
        if column.kind in (*FREE_TEXT, "choice") and atom.kind in ("eq", "ne", "in"):
            values = tuple(f"'{value}'" for value in values)
        if atom.kind == "in":
            return f"is {', '.join(values[:-1])} or {values[-1]}"
        table = DATED if column.kind == "date" and atom.kind in DATED else COMPARED
        predicate = self._pick(table[atom.kind]).format(*values, name=column.phrase)
        return _of_many(predicate) if _many(column) else predicate


def _many(column: Column) -> bool:
    """Whether the column's name is a plural, as in "pages"."""
    return column.numeric and column.name.endswith("s") and not column.name.endswith("ss")


def _of_many(predicate: str) -> str:
    verb, _, rest = predicate.partition(" ")
    return f"{PLURAL_VERBS[verb]} {rest}"


def question(ask: Ask, schema: Schema, random_: random.Random) -> str:
    return Wording(ask, schema, random_).text()
