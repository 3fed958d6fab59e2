"""Tables for the demo: parsed from `domains`, cut into variants, written for a prompt, and filled with rows.

domain --variant(random)--> Schema --prompt()--> "book(book_id,title,price,author_id)"
                                   --fill(seed)-> a script of CREATE and INSERT statements
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from tunesmith.demo import domains, vocabulary

POOLS = {
    "country": "France|Spain|Japan|Brazil|Canada|Egypt|Kenya|Norway|India|Chile|Poland|Greece",
    "city": "Paris|London|Berlin|Madrid|Rome|Vienna|Oslo|Lima|Cairo|Dublin|Tokyo|Boston",
    "color": "red|blue|green|black|white|silver",
    "region": "Bavaria|Tuscany|Texas|Ontario|Galicia|Normandy|Ohio|Bengal",
    "town": "Malang|Catania|Selfoss|Batangas|Kobe",
    "dye": "crimson|amber|violet|ivory|teal|bronze",
    "first_name": "Anna|Boris|Clara|David|Elena|Felix|Grace|Hugo|Irene|Jonas|Karin|Louis|Maria|Nadia|Oscar|Petra",
    "last_name": "Adler|Brown|Costa|Diaz|Evans|Fischer|Garcia|Hansen|Ivanov|Jensen|Keller|Lopez|Moreau|Novak",
    "front": "Silent|Golden|Lost|Broken|Hidden|Wild|Blue|Last|First|Bright|Dark|Little|Old|Frozen|Distant",
    "back": "River|Garden|Mirror|Forest|Storm|Bridge|Window|Island|Harbor|Shadow|Summer|Letter|Tower|Road",
}
FREE_TEXT = ("person", "title", "email", "site", "phone", "code")
LINK = "link"
RENAMED = 0.5
"""Share of a training schema's names and words that are drawn anew."""


@dataclass(frozen=True)
class Column:
    """`kind` is one of FREE_TEXT, "choice", "int", "real", "date" or LINK (then `parent` names the table meant)."""

    name: str
    kind: str
    low: int = 0
    high: int = 0
    words: tuple[str, ...] = ()
    nullable: bool = False
    parent: str = ""

    @property
    def phrase(self) -> str:
        return self.name.replace("_", " ")

    @property
    def numeric(self) -> bool:
        return self.kind in ("int", "real")


@dataclass(frozen=True)
class Table:
    name: str
    """In the singular, as a question about one of its rows says it: the parent of a join is copied, not inflected."""
    plural: str
    columns: tuple[Column, ...]
    """Without the key, which every table has; a link, where there is one, is called as its parent's key, and comes
    last."""

    @property
    def key(self) -> str:
        return f"{self.name}_id"

    @property
    def plural_phrase(self) -> str:
        return self.plural.replace("_", " ")

    @property
    def singular_phrase(self) -> str:
        return self.name.replace("_", " ")

    @property
    def link(self) -> Column | None:
        return next((column for column in self.columns if column.kind == LINK), None)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True)
class Schema:
    """Two or three tables. `domain` and `seed` are its whole recipe: variant(domain, seed) makes it again."""

    domain: str
    seed: int
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        return next(table for table in self.tables if table.name == name)

    def pairs(self) -> list[tuple[Table, Table]]:
        """(child, parent) for every link inside the schema."""
        return [(table, self.table(table.link.parent)) for table in self.tables if table.link]

    def prompt(self) -> str:
        lines = []
        for table in self.tables:
            lines.append(f"{table.name}({','.join([table.key, *(column.name for column in table.columns)])})")
        return "\n".join(lines)


def parse(text: str) -> dict[str, tuple[Table, ...]]:
    """The base schemas of `domains.TRAIN` or `domains.TEST` by the name of their first table."""
    schemas = {}
    for block in text.strip().split("\n\n"):
        tables = tuple(_parse_table(line) for line in block.splitlines())
        schemas[tables[0].plural] = tables
    return schemas


def _parse_table(line: str) -> Table:
    head, _, body = line.partition(": ")
    names, _, parent = head.partition(" > ")
    plural, _, singular = names.partition("/")
    columns = [_parse_column(part) for part in body.split("; ")]
    if parent:
        columns.append(Column("", LINK, parent=parent))
    return Table(singular, plural, tuple(columns))


@cache
def _pool(name: str) -> tuple[str, ...]:
    return tuple(POOLS[name].split("|"))


def _parse_column(text: str) -> Column:
    name, _, kind = text.partition(" ")
    nullable, name = name.endswith("?"), name.removesuffix("?")
    if kind in FREE_TEXT:
        return Column(name, kind, nullable=nullable)
    if kind.startswith("$"):
        return Column(name, "choice", words=_pool(kind[1:]), nullable=nullable)
    if "|" in kind:
        return Column(name, "choice", words=tuple(kind.split("|")), nullable=nullable)
    letter, low, high = kind.split()
    return Column(name, {"i": "int", "r": "real", "d": "date"}[letter], int(low), int(high), nullable=nullable)


@cache
def base_schemas(split: str) -> dict[str, tuple[Table, ...]]:
    """ "train" or "test". Links get their names here, since they need the parent's singular."""
    named = {}
    for domain, tables in parse(domains.TRAIN if split == "train" else domains.TEST).items():
        singular = {table.plural: table.name for table in tables}
        named[domain] = tuple(
            replace(
                table,
                columns=tuple(
                    replace(column, name=f"{singular[column.parent]}_id", parent=singular[column.parent])
                    if column.kind == LINK
                    else column
                    for column in table.columns
                ),
            )
            for table in tables
        )
    return named


def variant(domain: str, seed: int) -> Schema:
    """A base schema with some of its columns, in some order: few tokens, and no two rows see the same tables."""
    random_ = random.Random(f"{domain}/{seed}")
    training = base_schemas("train").get(domain)
    tables = base_schemas("test")[domain] if training is None else _renamed(training, random_)
    if len(tables) == 3 and random_.random() < 0.6:
        tables = tables[:2] if random_.random() < 0.5 else _cut_loose(tables[1:])
    chosen: list[Table] = []
    used: set[str] = set()  # no column but the link stands in two tables: a join is natural, and needs no prefixes
    for table in tables:
        first, *rest = [column for column in table.columns if column.kind != LINK and column.name not in used]
        kept = random_.sample(rest, min(len(rest), random_.randint(3, 4)))
        columns = [first, *kept]
        used.update(column.name for column in columns)
        if random_.random() < 0.5:
            random_.shuffle(columns)
        chosen.append(replace(table, columns=tuple(columns + [c for c in table.columns if c.kind == LINK])))
    chosen.reverse()  # children first: a query starts from the child
    return Schema(domain, seed, tuple(chosen))


@cache
def _test_names() -> frozenset[str]:
    """Every name that a test table, or a column of one, has."""
    tables = [table for tables in parse(domains.TEST).values() for table in tables]
    return frozenset(
        name for table in tables for name in (table.name, table.plural, *(column.name for column in table.columns))
    )


def _renamed(tables: tuple[Table, ...], random_: random.Random) -> tuple[Table, ...]:
    """Most names and listed words of a training schema drawn anew; none is a test's, none stands twice."""
    taken = set(_test_names())

    def fresh(old: str, share: float, draw: Callable[[random.Random], str]) -> str:
        name = old
        while name in taken or (name == old and share > 0 and random_.random() < share):
            name, share = draw(random_), 0.0
        taken.add(name)
        return name

    names = {table.name: fresh(table.name, RENAMED, vocabulary.table_name) for table in tables}
    plurals = {t.name: t.plural if names[t.name] == t.name else vocabulary.plural(names[t.name]) for t in tables}
    taken.update(plurals.values())
    made = []
    for table in tables:
        columns = []
        for column in table.columns:
            if column.kind == LINK:
                parent = names[column.parent]
                columns.append(replace(column, name=f"{parent}_id", parent=parent))
                continue
            words = column.words
            if words and random_.random() < RENAMED:
                words = vocabulary.listed_words(random_, len(words))
            keep = 0.0 if column.name in ("name", "title") else RENAMED
            taken.discard(column.name if keep == 0.0 else "")
            columns.append(replace(column, name=fresh(column.name, keep, vocabulary.column_name), words=words))
        made.append(Table(names[table.name], plurals[table.name], tuple(columns)))
    return tuple(made)


def _cut_loose(tables: tuple[Table, ...]) -> tuple[Table, ...]:
    """The last two of three tables: the first of them loses its link to the table left out."""
    head, tail = tables
    return (replace(head, columns=tuple(column for column in head.columns if column.kind != LINK)), tail)


def fill(schema: Schema, seed: int, num_rows: int = 40) -> str:
    """A script that creates and fills the tables. About a quarter of the nullable values are NULL, and some parents
    have no child."""
    random_ = random.Random(f"{schema.domain}/{schema.seed}/{seed}")
    statements = []
    sizes = {table.name: num_rows + random_.randint(-6, 6) for table in schema.tables}
    for table in sorted(schema.tables, key=lambda table: table.link is not None):
        names = ", ".join(f"{c.name}{_declared(c)}" for c in table.columns)
        statements.append(f"CREATE TABLE {table.name} ({table.key} INTEGER PRIMARY KEY, {names});")
        parents = {c.name: _parent_ids(random_, sizes[c.parent]) for c in table.columns if c.kind == LINK}
        rows = []
        for number in range(1, sizes[table.name] + 1):
            values = [
                str(random_.choice(parents[c.name])) if c.kind == LINK else _value(c, random_) for c in table.columns
            ]
            rows.append(f"({', '.join([str(number), *values])})")
        statements.append(f"INSERT INTO {table.name} VALUES {', '.join(rows)};")
    return "\n".join(statements)


def _parent_ids(random_: random.Random, size: int) -> list[int]:
    return random_.sample(range(1, size + 1), max(1, size * 2 // 3))


def _declared(column: Column) -> str:
    if column.kind == LINK:
        return f" INTEGER NOT NULL REFERENCES {column.parent}({column.name})"
    kind = {"int": "INTEGER", "real": "REAL"}.get(column.kind, "TEXT")
    return f" {kind}" if column.nullable else f" {kind} NOT NULL"


def _value(column: Column, random_: random.Random) -> str:
    """An SQL literal."""
    if column.nullable and random_.random() < 0.25:
        return "NULL"
    if column.kind == "int":
        return str(random_.randint(column.low, column.high))
    if column.kind == "real":
        return f"{random_.randint(column.low * 10, column.high * 10) / 10}"
    return f"'{_text(column, random_)}'"


def _text(column: Column, random_: random.Random) -> str:
    first, last, front, back = (random_.choice(_pool(name)) for name in ("first_name", "last_name", "front", "back"))
    person, title = f"{first} {last}", f"{front} {back}"
    if column.kind == "choice":
        return random_.choice(column.words)
    if column.kind == "date":
        year = random_.randint(column.low, column.high)
        return f"{year}-{random_.randint(1, 12):02d}-{random_.randint(1, 28):02d}"
    return {
        "person": person,
        "title": title,
        "email": f"{person.replace(' ', '.').lower()}@mail.com",
        "site": f"www.{title.replace(' ', '').lower()}.com",
        "phone": f"555-{random_.randint(1000, 9999)}",
        "code": f"{random_.choice('ABCDEFGHKLM')}{random_.choice('NPQRSTUVW')}{random_.randint(10, 99)}",
    }[column.kind]
