"""What became of every key of another tool's file.

A dialect is a module with

    CALLED            the tool's name
    KEYS              every key it knows, with its fate: "special_tokens.bos_token", "datasets[].type"
    is_mine(values)   whether a file's keys are this tool's
    translate(said)   takes values of the file and puts settings of ours

A key is carried over, or without effect here (and why), or refused (and what to do). `Said` holds the dialect to that:
after `translate` each key of the file has exactly one fate, and one that nobody looked at is a fault of the dialect.
"""

from __future__ import annotations

import difflib
import enum
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Protocol, TypeVar, overload

from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.notation import Path, dotted, write_inline
from tunesmith.recipe_paths import DATA_SUFFIXES
from tunesmith.strict import unknown_key

T = TypeVar("T", bool, int, float, str)
LONGEST = 100
"""Letters of a value in the report; the recipe holds it whole."""
NO_SUBSET = "a subset is of a hub data set, and these rows lie here"
WALKED = "large sources are walked over row by row in any case"
NO_EMBEDDING = "no table of tokens is among the layers that are adapted"
EMPTY: tuple[Any, ...] = (None, "", [], {})
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")
_SUCH_AS: dict[type, str] = {bool: "true", int: "8", float: "0.1", str: "a word"}
_LISTED: dict[type, str] = {bool: "[true, false]", int: "[1, 2]", float: "[0.9, 0.99]", str: "[one, two]"}


class Fate(enum.Enum):
    CARRIED = "carried over"
    IDLE = "without effect here"
    REFUSED = "refused"


@dataclass(frozen=True)
class Key:
    """`text`: of a carried key our settings, of the others why, or what to do."""

    fate: Fate
    text: str


def carried(ours: str, *keys: str) -> dict[str, Key]:
    return {key: Key(Fate.CARRIED, ours) for key in keys}


def idle(why: str, *keys: str) -> dict[str, Key]:
    return {key: Key(Fate.IDLE, why) for key in keys}


def refused(fix: str, *keys: str) -> dict[str, Key]:
    return {key: Key(Fate.REFUSED, fix) for key in keys}


class Dialect(Protocol):
    @property
    def CALLED(self) -> str: ...

    @property
    def KEYS(self) -> Mapping[str, Key]: ...

    def is_mine(self, values: Mapping[str, Any]) -> bool: ...

    def translate(self, said: Said) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One key of the file and what became of it."""

    key: str
    value: Any
    fate: Fate
    text: str
    where: str


@dataclass
class _Ledger:
    fates: dict[Path, tuple[Fate, list[str]]] = field(default_factory=dict)
    taken: set[Path] = field(default_factory=set)
    settings: dict[Path, tuple[Any, str]] = field(default_factory=dict)
    errors: list[TunesmithError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Said:
    """The values of a file (or of a mapping within it): read here, and their fates written down."""

    def __init__(
        self,
        values: Mapping[str, Any],
        where: Callable[[Path], str],
        dialect: Dialect,
        prefix: Path = (),
        ledger: _Ledger | None = None,
    ) -> None:
        self.values, self.where, self.dialect, self.prefix = values, where, dialect, prefix
        self.ledger = _Ledger() if ledger is None else ledger

    @property
    def folder(self) -> FilePath:
        """Where the file lies."""
        return FilePath(self.where(())).parent

    # ---- reading ------------------------------------------------------------------------------------------------

    def has(self, *keys: str) -> bool:
        """Whether any of these keys says something."""
        return any(self.values.get(key) not in EMPTY for key in keys)

    def raw(self, key: str) -> Any:
        """The value as the file has it; None where it says nothing."""
        value = self.values.get(key)
        self.ledger.taken.add((*self.prefix, key))
        return None if value in EMPTY else value

    @overload
    def take(self, key: str, kind: type[T]) -> T | None: ...
    @overload
    def take(self, key: str, kind: type[T], default: T) -> T: ...
    def take(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """The value as a bool, int, float or str, as forgiving as other tools are ("1e-4" is a number, yes is true)."""
        value = self.raw(key)
        if value is None:
            return default
        made = _as(value, kind)
        if made is None:
            expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
            example = _SUCH_AS[kind] if default in EMPTY else write_inline(default)
            fix = f"write it so: {key}: {example}; or take it out"
            self.refuse(key, f"cannot be {_short(write_inline(value))}", fix, expected=expected)
            return default
        return made

    def count(self, key: str, default: int) -> int:
        """A whole number, of 1 at least; another is refused."""
        number = self.take(key, int, default)
        if number < 1:
            self.refuse(key, f"is {number}", f"write it so: {key}: {default}; or take it out", expected="1 or more")
        return max(1, number)

    def share(self, key: str) -> float | None:
        """A share of the steps; one that is all of them, or more, is refused."""
        share = self.take(key, float)
        if share is not None and not 0 <= share < 1:
            fix = f"write it so: {key}: 0.1, for a tenth of the steps; steps themselves are said by warmup_steps"
            self.refuse(key, f"is {share:g}", fix, expected="a share of the steps, from 0 to below 1")
            return None
        return share

    def choose(self, key: str, choices: Sequence[str], default: str) -> str:
        """One of these words; another is refused."""
        value = self.take(key, str, default)
        if value not in choices:
            self.refuse(key, f"cannot be {value}", instead(key, value, choices, default), expected=", ".join(choices))
            return default
        return value

    def items(self, key: str, kind: type[T]) -> list[T]:
        """A list of such values; one alone counts as a list of it."""
        value = self.raw(key)
        items = [] if value is None else value if isinstance(value, list) else [value]
        made = [_as(item, kind) for item in items]
        if None in made:
            expected = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}[kind]
            fix = f"write it so: {key}: {_LISTED[kind]}; or take it out"
            self.refuse(key, f"cannot be {_short(write_inline(value))}", fix, expected=f"a list of {expected}")
            return []
        return [item for item in made if item is not None]

    def within(self, *path: str | int) -> Said:
        """The mapping below; of one that is not there, an empty one."""
        inner: Any = self.values
        for part in path:
            known = part in inner if isinstance(inner, dict) else isinstance(inner, list)
            inner = inner[part] if known else None
            self.ledger.taken.add((*self.prefix, part))
        values = inner if isinstance(inner, dict) else {}
        return Said(values, self.where, self.dialect, (*self.prefix, *path), self.ledger)

    def entries(self, key: str) -> list[Said]:
        """The mappings of a list; a single one counts as a list of it."""
        value = self.raw(key)
        if isinstance(value, dict):
            return [self.within(key)]
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            fix = f"begin each entry with a dash and its path: {key}: [{{path: rows.jsonl}}]"
            self.refuse(key, f"cannot be {_short(write_inline(value))}", fix, expected="a list of mappings")
            return []
        return [self.within(key, index) for index in range(len(value))]

    # ---- fates --------------------------------------------------------------------------------------------------

    def put(self, setting: str, value: Any, *keys: str) -> None:
        """`setting` of ours is `value`, since `keys` say so; without keys, since it is the tool's default."""
        paths = [(*self.prefix, key) for key in keys]
        there = [path for path, key in zip(paths, keys, strict=True) if key in self.values]
        for path in there:
            self._fate(path, Fate.CARRIED, f"{setting} = {_short(write_inline(value))}")
        own = tuple(setting.split("."))
        self.ledger.settings[own] = (value, self._source(there))

    def _source(self, paths: Sequence[Path]) -> str:
        if not paths:
            return f"{self.dialect.CALLED}'s default"
        places = [place.rpartition(", line ") for place in dict.fromkeys(map(self.where, paths))]
        by_file = {file: [line for other, _, line in places if other == file] for file, _, _ in places}
        said = [
            f"{file}, line{'s' if len(lines) > 1 else ''} {', '.join(lines)}" if file else lines[0]
            for file, lines in by_file.items()
        ]
        return f"{'; '.join(said)} ({', '.join(dotted(path) for path in paths)})"

    def carry(self, key: str, text: str) -> None:
        """`key` is carried over by what we do anyway."""
        self._fate((*self.prefix, key), Fate.CARRIED, text)

    def idle(self, key: str, why: str) -> None:
        if key in self.values:
            self._fate((*self.prefix, key), Fate.IDLE, why)

    def refuse(self, key: str, what: str, fix: str | None = None, *, expected: str | None = None) -> None:
        path = (*self.prefix, key)
        fix = fix or (f"give {key} what is expected" if expected else f"take {key} out")
        self._fate(path, Fate.REFUSED, fix)
        self.ledger.errors.append(
            RecipeError(f"{dotted(path)} {what}", where=self.where(path), expected=expected, fix=fix)
        )

    def note(self, text: str) -> None:
        """Something a person should know that no single key says."""
        self.ledger.notes.append(text)

    def _fate(self, path: Path, fate: Fate, text: str) -> None:
        self.ledger.taken.add(path)
        known, texts = self.ledger.fates.setdefault(path, (fate, []))
        if known is not fate:  # what is refused stays so; what is carried once is not without effect
            if known is Fate.REFUSED or fate is Fate.IDLE:
                return
            texts = []
            self.ledger.fates[path] = (fate, texts)
        same = text.partition(" = ")[0]  # of a setting that is put again the last value counts
        texts[:] = [*(old for old in texts if old.partition(" = ")[0] != same), text]

    # ---- the whole file -----------------------------------------------------------------------------------------

    def finish(self) -> list[Entry]:
        """The fate of every key, those too that `translate` left to the table; unknown ones join the errors."""
        entries = []
        for path, value in self._leaves(self.values, ()):
            pattern = _pattern(path)
            key = self.dialect.KEYS.get(pattern) or self.dialect.KEYS.get(pattern.replace(".", "[].", 1))
            if key is None and value in EMPTY:
                why = "empty" if self._is_section(pattern) else f"empty, and no key of {self.dialect.CALLED} known here"
                entries.append(Entry(dotted(path), value, Fate.IDLE, why, self.where(path)))
                continue
            if key is None and self._is_section(pattern):
                fix = f"write its keys below it: {path[-1]}: {{{self._first_of(pattern)}: …}}"
                what = f"{dotted(path)} cannot be {_short(write_inline(value))}"
                error = RecipeError(what, where=self.where(path), expected="a mapping", fix=fix)
                self.ledger.errors.append(error)
                continue
            if key is None:
                self._unknown(path)
                continue
            fate, text = self._settled(path, value, key)
            entries.append(Entry(dotted(path), value, fate, text, self.where(path)))
        return entries

    def _is_section(self, pattern: str) -> bool:
        return any(name.startswith(f"{pattern}.") for name in self.dialect.KEYS)

    def _first_of(self, pattern: str) -> str:
        """A key of a section, for an example."""
        names = (name.removeprefix(f"{pattern}.") for name in self.dialect.KEYS if name.startswith(f"{pattern}."))
        return next(names).partition(".")[0]

    def _settled(self, path: Path, value: Any, key: Key) -> tuple[Fate, str]:
        if path in self.ledger.fates:
            fate, texts = self.ledger.fates[path]
            return fate, "; ".join(texts)
        if value in EMPTY:
            return Fate.IDLE, "empty"
        if key.fate is Fate.CARRIED:
            if path not in self.ledger.taken:
                what = "stands beside keys that go before it, and is not read"
                self.ledger.errors.append(
                    RecipeError(f"{dotted(path)} {what}", where=self.where(path), fix="take it out, or the others")
                )
            return Fate.CARRIED, f"{key.text}, as it is anyway"
        if key.fate is Fate.REFUSED:
            if value is False:
                return Fate.IDLE, "off"
            what = f"is set to {write_inline(value)}: that is not done here"
            self.ledger.errors.append(RecipeError(f"{dotted(path)} {what}", where=self.where(path), fix=key.text))
        return key.fate, key.text

    def _unknown(self, path: Path) -> None:
        above = _pattern(path[:-1])
        start = f"{above}." if above else ""
        names = [name[len(start) :] for name in self.dialect.KEYS if name.startswith(start)]
        siblings = list(dict.fromkeys(re.split(r"[.\[]", name)[0] for name in names))
        elsewhere = {name.rpartition(".")[2]: name for name in self.dialect.KEYS if "." in name}
        error = unknown_key(
            str(path[-1]), path, self.where(path), called=self.dialect.CALLED, settings=siblings, elsewhere=elsewhere
        )
        error.notes.pop("settings", None)
        if not _alike(str(path[-1]), error.notes.get("did you mean", "")):
            error.notes.pop("did you mean", None)
        fix = "correct it, or take it out" if "did you mean" in error.notes else "take it out"
        self.ledger.errors.append(error if error.fix else error.to_do(fix))

    def _leaves(self, value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
        """Keys with their values; a mapping whose keys the table knows is walked into, any other is one value."""
        for key, inner in value.items():
            here = (*path, key)
            pattern = _pattern(here)
            below = [name for name in self.dialect.KEYS if name.startswith((f"{pattern}.", f"{pattern}[]"))]
            items = inner if isinstance(inner, list) else [inner]
            if below and inner not in EMPTY and all(isinstance(item, dict) for item in items):
                for index, item in enumerate(items):
                    yield from self._leaves(item, (*here, index) if isinstance(inner, list) else here)
            else:
                yield here, inner


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def _alike(key: str, meant: str) -> bool:
    """Whether a guess is worth making: alike letter by letter, or by a word of some length."""
    last = meant.rpartition(".")[2]
    shared = {word for word in key.split("_") if len(word) > 4} & set(last.split("_"))
    return bool(shared) or difflib.SequenceMatcher(None, key, last).ratio() >= 0.75


def _pattern(path: Path) -> str:
    """The key of the table that a place in a file belongs to: datasets[0].type -> datasets[].type."""
    return re.sub(r"\[\d+\]", "[]", dotted(path))


def _as(value: Any, kind: type[T]) -> T | None:
    """`value` as a `kind`, or None where it is none."""
    made: Any = None
    if kind is bool:
        word = str(value).lower()
        made = True if word in _YES else False if word in _NO else None
    elif kind is str:
        made = value if isinstance(value, str) else None if isinstance(value, bool | list | dict) else str(value)
    elif not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        made = number if kind is float else int(number) if number.is_integer() else None
    return made


def instead(key: str, given: str, choices: Iterable[str], usual: str) -> str:
    """What to do about a word that is none of `choices`: the one that was probably meant, or the usual one."""
    meant = difflib.get_close_matches(given.lower(), list(choices), n=1)
    return f"write it so: {key}: {meant[0] if meant else usual}; or another of these"


def there(said: Said, key: str) -> tuple[str, ...]:
    """The key, where the file gives it: what a setting comes from, and not the tool's default."""
    return (key,) if said.has(key) else ()


def left_over(said: Said, why: str, *keys: str) -> None:
    """Those of `keys` that the file gives, and of which nothing was made so far, are without effect."""
    for key in keys:
        if said.has(key) and (*said.prefix, key) not in said.ledger.fates:
            said.raw(key)
            said.idle(key, why)


def is_file(said: Said, path: str) -> bool:
    """Whether a source is one file, which has neither splits nor subsets. It may not be there yet."""
    return path.lower().endswith(DATA_SUFFIXES) or any(os.path.isfile(one) for one in (path, said.folder / path))


def of_a_file(said: Said, key: str, *, may_be_cut: bool = True) -> dict[str, Any]:
    """What a source of ours says for a split of one file: nothing, or `train[:100]`, its first so many rows."""
    split = said.take(key, str, "train")
    first = re.fullmatch(r"train\[:(\d+)\]", split)
    if split == "train":
        said.idle(key, "a file has no splits")
    elif first and may_be_cut:
        return {"limit": int(first[1])}
    else:
        said.refuse(key, f"is {split}, and the rows are one file", "take it out, or name a file that holds these rows")
    return {}


def of_one_process(said: Said, devices: Sequence[str], keys: Sequence[str]) -> None:
    """Says of a batch that was carried over from `keys` that it is of one process, where any of `devices` is given:
    keys of a tool that counts batches by device, and runs several."""
    named = " and ".join(key for key in devices if said.has(key))
    if not named:
        return
    setting = next(name for name in ("batch_size", "batch_tokens") if ("train", name) in said.ledger.settings)
    batch = f"train.{setting} {said.ledger.settings[('train', setting)][0]}"
    for key in keys:
        if said.has(key):
            said.carry(key, f"of one process, whatever the devices of {named}")
    said.note(
        f"{batch} is the whole batch of a step here, of one process; the file names {named}, and not how many devices: "
        "where there were N, gradient_accumulation_steps is to be N times as much"
    )


def clips(said: Said, *keys: str) -> bool:
    """Whether bounds on the ratio to the sampling policy have something to clip; if not, `keys` are without effect."""
    if said.take("num_iterations", int, 1) > 1:
        return True
    left_over(said, "num_iterations is 1: the ratio is 1, and there is nothing to clip", *keys)
    return False


def holds_to_reference(said: Said, beta: float, key: str) -> bool:
    """Whether a divergence from the reference is learned, for `key` to say how; if not, it is without effect."""
    if beta == 0:
        left_over(said, "beta is 0: no divergence from a reference is learned", key)
    return beta > 0
