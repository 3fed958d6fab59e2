"""An `Ask` in English, in one of several wordings. Each says which columns, which bound, which order."""

from __future__ import annotations

import random

from tunesmith.demo.forms import Ask, Atom, Field, Having, Order
from tunesmith.demo.schemas import Column, Schema

COMPARED = {
    "eq": ["is {0}", "equals {0}"],
    "ne": ["is not {0}", "is other than {0}"],
    "gt": ["is above {0}", "is greater than {0}", "is more than {0}", "is over {0}", "exceeds {0}"],
    "lt": ["is below {0}", "is less than {0}", "is under {0}"],
    "ge": ["is at least {0}", "is {0} or more"],
    "le": ["is at most {0}", "is {0} or less"],
    "between": ["is between {0} and {1}", "lies between {0} and {1}", "is from {0} to {1}"],
    "prefix": ["starts with '{0}'", "begins with '{0}'"],
    "contains": ["contains '{0}'", "includes '{0}'"],
    "suffix": ["ends with '{0}'", "ends in '{0}'"],
    "null": ["is missing", "is unknown", "is not recorded"],
    "notnull": ["is known", "is recorded", "is not missing"],
    "above_avg": ["is above average", "is above the average {name}", "is greater than the average {name}"],
    "below_avg": ["is below average", "is below the average {name}", "is less than the average {name}"],
    "is_max": ["is the highest of all", "equals the highest {name}", "equals the maximum {name}"],
    "is_min": ["is the lowest of all", "equals the lowest {name}", "equals the minimum {name}"],
}
DATED = {
    "gt": ["is after {0}", "is later than {0}"],
    "lt": ["is before {0}", "is earlier than {0}"],
    "ge": ["is on or after {0}", "is {0} or later"],
    "le": ["is on or before {0}", "is {0} or earlier"],
}
AGGREGATE_WORDS = {
    "sum": ["total", "summed"],
    "avg": ["average", "mean"],
    "min": ["lowest", "minimum", "smallest"],
    "max": ["highest", "maximum", "largest"],
}
DATE_AGGREGATE_WORDS = {"min": ["earliest"], "max": ["latest"]}
NO_WITH = ("ne", "null", "notnull", "notin", "is_max", "is_min")
PLURAL_VERBS = {"is": "are", "equals": "equal", "exceeds": "exceed", "lies": "lie"}
VERBS = ["List", "Show", "Give", "Find", "Return", "Get"]


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
            what = self._pick(["all columns", "every column", "all details"])
            return f"{verb} {what} of {self._pick(['', 'all '])}{self.plural}{self.where}"
        names = " and ".join(self._phrase(field) for field in self.ask.fields)
        if self.ask.select == "distinct":
            which = self._pick(["distinct", "different", "unique"])
            if not self.ask.order and self._pick(["verb", "which"]) == "which":
                return f"Which {which} {names} values are there among {self.plural}{self.where}"
            return f"{verb} the {which} {names} values of {self.plural}{self.where}"
        if not self.ask.order and self.random.random() < 0.2:
            verb = "are" if len(self.ask.fields) > 1 or _many(self.ask.fields[0].column) else "is"
            return f"What {verb} the {names} of {self._pick(['the ', 'all '])}{self.plural}{self.where}"
        return f"{verb} the {names} of {self._pick(['', 'all ', 'the '])}{self.plural}{self.where}"

    def _number(self) -> str:
        select, verb = self.ask.select, self._pick(["Find", "Give", "Return"])
        if select == "count":
            return self._pick(
                [
                    f"How many {self.plural}{self.where} are there",
                    f"Count the {self.plural}{self.where}",
                    f"{verb} the number of {self.plural}{self.where}",
                ]
            )
        field = self.ask.fields[0]
        name = self._phrase(field)
        if select == "count_distinct":
            which = self._pick(["different", "distinct", "unique"])
            return self._pick(
                [
                    f"How many {which} {name} values do {self.plural}{self.where} have",
                    f"Count the {which} {name} values of {self.plural}{self.where}",
                    f"{verb} the number of {which} {name} values among {self.plural}{self.where}",
                ]
            )
        if select == "minmax":
            low, high = self._aggregate("min", field), self._aggregate("max", field)
            words = f"{low} and the {high} {name}"
        else:
            words = f"{self._aggregate(select, field)} {name}"
        opening = self._pick([f"What {'are' if select == 'minmax' else 'is'} the", f"{verb} the"])
        return f"{opening} {words} of {self._pick(['', 'all ', 'the '])}{self.plural}{self.where}"

    def _aggregate(self, kind: str, field: Field) -> str:
        words = DATE_AGGREGATE_WORDS if field.column.kind == "date" else AGGREGATE_WORDS
        if self.ask.grouped and self.ask.order:  # never "the highest highest price"
            return self._pick([word for word in words[kind] if word not in ("lowest", "highest")])
        return self._pick(words[kind])

    def _group(self) -> str:
        key, verb = self._phrase(self.ask.fields[0]), self._pick(["List", "Show", "Give"])
        kind = self.ask.select.removeprefix("key").removeprefix("_")
        if not kind:
            return self._bare_key(key, verb)
        if kind == "count":
            words, of = self._pick(["number", "count"]), f"{self.plural}{self.where}"
        else:
            field = self.ask.fields[1]
            words, of = f"{self._aggregate(kind, field)} {self._phrase(field)}", f"{self.plural}{self.where}"
        text = self._pick(
            [
                f"{verb} each {key} with the {words} of {of}",
                f"{verb} every {key} and its {words} of {of}",
                f"For each {key}, {verb.lower()} the {key} and the {words} of {of}",
            ]
        )
        return text + self._having(words) + self._group_order(words)

    def _bare_key(self, key: str, verb: str) -> str:
        """Only the key is asked for; the group's size decides which."""
        having, order = self.ask.having, self.ask.order
        if having:
            size = f"{'more than' if having.kind == 'count_gt' else 'at least'} {having.value}"
            text = self._pick(
                ["Which {key} values have", "{verb} each {key} with", "{verb} the {key} values that have"]
            )
            return f"{text.format(key=key, verb=verb)} {size} {self.plural}{self.where}"
        assert order is not None
        most = "most" if order.descending else "fewest"
        if order.limit == 1:
            text = self._pick(["Which {key} has the", "{verb} the {key} with the"])
            return f"{text.format(key=key, verb=verb)} {most} {self.plural}{self.where}"
        return f"{verb} the {order.limit} {key} values with the {most} {self.plural}{self.where}, {most} first"

    def _having(self, words: str) -> str:
        having = self.ask.having
        if having is None:
            return ""
        keep = self._pick([", keeping only those with", ", but only those with", ", only for those with"])
        return f"{keep} {self._threshold(having, words)}"

    def _threshold(self, having: Having, words: str) -> str:
        such = "such " if self.ask.atoms else ""
        if having.kind == "count_gt":
            return f"more than {having.value} {such}{self.plural}"
        if having.kind == "count_ge":
            return f"at least {having.value} {such}{self.plural}"
        sign = self._pick(["above", "greater than"] if having.kind == "agg_gt" else ["below", "less than"])
        return f"{'an' if words[0] in 'ae' else 'a'} {words} {sign} {having.value}"

    def _group_order(self, words: str) -> str:
        order = self.ask.order
        if order is None:
            return ""
        if order.by == "key":
            return self._sorted(self.ask.fields[0], order)
        if order.by == "count":
            most = f"most {self.plural}" if order.descending else f"fewest {self.plural}"
            first = most.split(" ", 1)[0]
        else:
            first = "highest" if order.descending else "lowest"
            most = f"{first} {words}"
        if order.limit:
            return f", only the {order.limit} with the {most}, {first} first"
        direction = "descending" if order.descending else "ascending"
        sorted_by = "number" if order.by == "count" else words
        return self._pick([f", {most} first", f", sorted by {sorted_by} {direction}"])

    def _order(self) -> str:
        order = self.ask.order
        if order is None:
            return ""
        assert isinstance(order.by, Field)
        if order.limit:
            return self._limited(order.by, order)
        return self._sorted(order.by, order)

    def _limited(self, field: Field, order: Order) -> str:
        name = self._phrase(field)
        low, high = ("earliest", "latest") if field.column.kind == "date" else ("lowest", "highest")
        end = high if order.descending else low
        if order.limit == 1:
            return self._pick([f", only the one with the {end} {name}", f", just the one with the {end} {name}"])
        return self._pick(
            [
                f", only the {order.limit} with the {end} {name}, {end} first",
                f", just the {order.limit} of {end} {name}, {end} first",
            ]
        )

    def _sorted(self, field: Field, order: Order) -> str:
        name, down = self._phrase(field), order.descending
        options = [f", sorted by {name} {'descending' if down else 'ascending'}"]
        options.append(f", in {'descending' if down else 'ascending'} order of {name}")
        if field.column.kind == "date":
            options.append(f", {'latest' if down else 'earliest'} {name} first")
        elif field.column.numeric:
            options.append(f", {'highest' if down else 'lowest'} {name} first")
        else:
            options.append(f", in {'reverse ' if down else ''}alphabetical order of {name}")
        return self._pick(options)

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
        if atom.kind in ("has_child", "no_child", "child_where"):
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
        text = self._pick(
            [f"with at least one {child.singular_phrase}", f"that have at least one {child.singular_phrase}"]
        )
        if atom.inner is None:
            return text
        return f"{text} whose {atom.inner.field.column.phrase} {self._predicate(atom.inner)}"

    def _predicate(self, atom: Atom) -> str:
        column, values = atom.field.column, atom.values
        if atom.kind in ("in", "notin"):
            several = ", ".join(values[:-1])
            if atom.kind == "in":
                options = [f"is {several} or {values[-1]}", f"is one of {several} or {values[-1]}"]
            else:
                neither = f"neither {several}" if len(values) == 2 else f"none of {several}"
                last = f"nor {values[-1]}" if len(values) == 2 else f"and {values[-1]}"
                options = [f"is {neither} {last}", f"is not one of {several} or {values[-1]}"]
            return self._pick(options)
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
