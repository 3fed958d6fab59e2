"""What a row means: a table of functions from one raw row to what an objective takes.

To add a format, write one function that returns a row (or raises `Unreadable`), and one line in `FORMATS`. It is given
the row's columns, where the row came from, and what the rows call the keys and roles of messages.

In `rows/`, `conversation_rows.py` has the plainest ones, `preferences.py` those that hold answers under judgement, and
the files beside them what other tools write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.masking.learned import learned
from tunesmith.data.problems import Problems, listed
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.reading.files import INDEX, RawRow
from tunesmith.data.rows import unused
from tunesmith.data.rows.beside import SYSTEMS, TOOLS
from tunesmith.data.rows.conversation_rows import alpaca, messages, prompt, prompt_completion, text
from tunesmith.data.rows.labels import labelled
from tunesmith.data.rows.messages import Names, Unreadable, refuse_surrogates
from tunesmith.data.rows.other_rows import input_output, nectar, nemo, openpipe, verl
from tunesmith.data.rows.pieces import segments, tokens
from tunesmith.data.rows.preferences import (
    ANSWERS,
    openai_preference,
    passed_over,
    passed_over_of_one,
    preference,
    unpaired,
)
from tunesmith.data.rows.question_rows import (
    CONTEXTS,
    QUESTIONS,
    UNCLEAR,
    multiple_choice,
    passed_over_questions,
    question_answer,
    unanswerable,
)
from tunesmith.data.rows.repeated import spoken_apart
from tunesmith.data.rows.template_rows import columns_named, makes, template
from tunesmith.data.rows.unwanted import refuse_unwanted
from tunesmith.data.settings import Learn, MessageKey, TemplateFormat
from tunesmith.data.types import Conversation, Document, Judged, Labelled, Origin, Preference, Prompt, Row
from tunesmith.errors import DataError

RawColumns = Mapping[str, Any]


Reader = Callable[[RawColumns, Origin, Names], Row]


@dataclass(frozen=True)
class Format:
    """`needs`: any one of these sets of columns makes a row of this format; `reads`: all columns it looks at."""

    read: Reader
    makes: type[Row]
    needs: tuple[frozenset[str], ...]
    reads: frozenset[str]
    passed_over: Callable[[RawColumns], set[str]]
    """Of these, the columns that are not looked at in this row."""
    unless: frozenset[str] = frozenset()
    """Columns beside which a row is of another format."""


def _nothing(_: RawColumns) -> set[str]:
    return set()


def _format(
    read: Reader,
    makes: type[Row],
    needs: str,
    also: str = "",
    passed_over: Callable[[RawColumns], set[str]] = _nothing,
    unless: str = "",
) -> Format:
    """`needs` lists alternatives parted by |, each of columns parted by spaces."""
    alternatives = tuple(frozenset(names.split()) for names in needs.split("|"))
    reads = frozenset().union(*alternatives, also.split())
    return Format(read, makes, alternatives, reads, passed_over, frozenset(unless.split()))


_SYSTEMS, _BESIDE = " ".join(SYSTEMS), " ".join((*SYSTEMS, *TOOLS))
FORMATS: dict[str, Format] = {
    "text": _format(lambda row, origin, _: text(row, origin), Document, "text"),
    "messages": _format(messages, Conversation, "messages | conversations", _BESIDE),
    "prompt-completion": _format(prompt_completion, Conversation, "prompt completion", _BESIDE),
    "alpaca": _format(
        lambda row, origin, _: alpaca(row, origin), Conversation, "instruction output", f"input history {_SYSTEMS}"
    ),
    "preference": _format(
        preference,
        Preference,
        " | ".join(map(" ".join, ANSWERS)),
        f"prompt messages conversations instruction question query input margin {_BESIDE}",
        passed_over,
    ),
    "openai-preference": _format(openai_preference, Preference, "input preferred_output non_preferred_output"),
    "prompt": _format(prompt, Prompt, "prompt | messages | conversations | question", " ".join(TOOLS)),
    "labelled": _format(
        labelled,
        Labelled,
        "text label | text labels | messages label | messages labels | conversations label | conversations labels",
        _BESIDE,
    ),
    "input-output": _format(input_output, Conversation, "input output", _SYSTEMS, unless="instruction"),
    "openpipe": _format(openpipe, Preference, "messages rejected_message", f"split {' '.join(TOOLS)}"),
    "nemo": _format(nemo, Preference, "context completions", " ".join(TOOLS)),
    "verl": _format(verl, Prompt, "data_source prompt reward_model", "ability extra_info tools"),
    "nectar": _format(
        nectar,
        Preference,
        "prompt answers",
        f"messages conversations instruction question query input {_BESIDE}",
        passed_over,
        unless="chosen",
    ),
    "question-answer": _format(
        question_answer,
        Conversation,
        " | ".join(map(" ".join, QUESTIONS)),
        " ".join((*CONTEXTS, _BESIDE)),
        passed_over_questions,
        unless="messages conversations choices rejected rejected_response",
    ),
    "multiple-choice": _format(
        multiple_choice, Conversation, "question choices solution | question choices explanation", _SYSTEMS
    ),
    "unanswerable": _format(unanswerable, Conversation, "article unanswerable_question", _SYSTEMS),
    "segments": _format(segments, Document, "segments"),
    "tokens": _format(tokens, Document, "input_ids", "labels attention_mask token_type_ids position_ids length"),
    "unpaired": _format(
        unpaired,
        Judged,
        "prompt completion label | instruction completion label | question completion label | input completion label | "
        "messages label | conversations label | messages kto_tag | conversations kto_tag",
        f"input {_BESIDE}",
        passed_over_of_one,
    ),
}
LEARNABLE: tuple[type[Row], ...] = (Conversation, Document)
"""What supervised fine-tuning takes."""
IN_WORDS = {
    Conversation: "conversations",
    Document: "plain text",
    Preference: "pairs of a chosen and a rejected answer",
    Judged: "answers with a label that says whether each is wanted",
    Prompt: "prompts without an answer",
    Labelled: "texts with their labels",
}


@dataclass(frozen=True)
class Reading:
    """Rows by their meaning, and what was noticed on the way."""

    rows: list[Row]
    format: str
    notes: tuple[str, ...] = ()
    message_keys: frozenset[str] = frozenset()
    """All keys that stood in a message, where some are renamed."""
    roles: frozenset[str] = frozenset()
    """All roles that did, where some are."""


def convert(
    raw: Sequence[RawRow],
    format: str | TemplateFormat,
    columns: Mapping[str, str | None],
    takes: tuple[type[Row], ...] = LEARNABLE,
    or_else: tuple[type[Row], ...] = (),
    *,
    message_keys: Mapping[MessageKey, str | None] | None = None,
    roles: Mapping[str, str] | None = None,
    learn: Learn = "answers",
    also_read: Collection[str] = (),
) -> Reading:
    """Every raw row by its meaning. `columns` renames first: {wanted: yours}, or null.

    `takes`: what the objective learns from; rows that can be read so are, and others must be of `or_else`.
    `message_keys` {ours: theirs} and `roles` {theirs: ours} are the rows' own names; `learn`: whose turns are learned.
    `also_read`: columns that something else reads, and that are not told as unused.
    """
    names = Names(message_keys or {}, roles or {})
    left = dict.fromkeys(unused.taken_out(raw, columns))
    if columns:
        raw = _renamed(raw, columns)
    raw, notes = _without_index(raw)
    source = raw[0][0].source if raw else None
    reader: Reader
    passed: Callable[[RawColumns], set[str]]
    if isinstance(format, TemplateFormat):
        fill = template(format)
        name, reader = "template", lambda row, origin, _: fill(row, origin)
        kind, reads, passed = makes(format), columns_named(format), _nothing
    else:
        name = recognise(raw, takes, or_else) if format == "auto" else format
        reader = FORMATS[name].read
        kind, reads, passed = FORMATS[name].makes, FORMATS[name].reads, FORMATS[name].passed_over
    _refuse_others(name, kind, takes + or_else, source)
    if kind is not Prompt:  # of a prompt, every column is for the rewards
        left |= unused.unread(raw, reads.union(also_read), passed)
    notes += unused.told(left)
    if kind is not Prompt and name != "template":
        notes += unused.told_keys(raw, reads, names)
    own: Learn = learn
    if learn == "completions":
        own = "answers" if name == "prompt-completion" else "everything"
    problems = Problems(f"rows cannot be read as {name}", stage=2)
    rows: list[Row] = []
    for origin, row in raw:
        try:
            result = reader(row, origin, names)
            refuse_surrogates(result)
            if isinstance(result, Conversation) and name != "template":
                refuse_unwanted(row)
            rows.append(learned(result, own) if isinstance(result, Conversation) else result)
        except Unreadable as error:
            problems.add(
                DataError(
                    error.what,
                    where=str(origin),
                    found=error.found or f"columns {listed(row)}",
                    expected=_expectation(name, row),
                    fix=error.fix or "mend the rows, or set data.format or data.columns",
                )
            )
    problems.raise_if_any()
    return Reading(rows, name, tuple(notes), frozenset(names.seen), frozenset(names.said))


def _without_index(raw: Sequence[RawRow]) -> tuple[Sequence[RawRow], list[str]]:
    """The rows without a CSV's unnamed column of their numbers, and that it was left out."""
    if not any(INDEX in row for _, row in raw):
        return raw, []
    said = "a first column without a name that numbers the rows, as pandas writes its index, is left out"
    return [(origin, {name: row[name] for name in row if name != INDEX}) for origin, row in raw], [said]


def _expectation(name: str, row: RawColumns) -> str | None:
    """The columns that the format needs, where they are not there."""
    if name not in FORMATS or any(names <= row.keys() for names in FORMATS[name].needs):
        return None
    return f"columns {_needs_in_words(FORMATS[name])}"


def _needs_in_words(kind: Format) -> str:
    return " or ".join(" and ".join(sorted(names)) for names in kind.needs)


def _refuse_others(name: str, makes: type[Row], takes: tuple[type[Row], ...], where: str | None) -> None:
    """Rows that the objective cannot learn from."""
    if makes in takes:
        return
    learns = " or ".join(IN_WORDS[kind] for kind in takes)
    raise DataError(
        f"the objective learns from {learns}; these rows are {IN_WORDS[makes]}",
        where=where,
        found=name if name != "template" else "a template that writes " + IN_WORDS[makes],
        expected=" or ".join(form for form, kind in FORMATS.items() if kind.makes in takes),
        fix=_ADVICE[makes],
    )


_ADVICE = {
    Conversation: "take objective.kind sft, or give rows of that kind",
    Document: "take objective.kind sft, or give rows of that kind",
    Preference: "set objective.kind=preference; to learn the better answers alone, data.columns={completion: chosen}, "
    "or where they stand in a column response data.format=question-answer",
    Judged: "set objective.kind=preference objective.loss=kto",
    Prompt: "set objective.kind=policy and objective.rewards, or say what the answer is",
    Labelled: "set objective.kind=classify",
}


BESIDE_TEXT = {name: kind.needs for name, kind in FORMATS.items() if kind.makes is Conversation}
"""The columns of the formats that a `text` may merely word, as tatsu-lab/alpaca's does."""
LOOKED_AT = 100
"""Rows whose columns are named where no format has them."""


def recognise(
    raw: Sequence[RawRow],
    takes: tuple[type[Row], ...] = LEARNABLE,
    or_else: tuple[type[Row], ...] = (),
    *,
    first: Sequence[RawRow] | None = None,
    apart: Container[str] | None = None,
) -> str:
    """The one format whose columns most rows have: filled, or else there at all, so that the nulls can be named.

    Of those that make something the objective takes, or else something of `or_else`; where there is none, of the
    others, to be refused by name. `first` and `apart` (rows/repeated.py): the first rows, and the formats beside whose
    columns `text` says something of its own, where `raw` only stands in for the rows.
    """
    filled = [frozenset(name for name, value in row.items() if is_filled(value)) for _, row in raw]
    ways = [_candidates(filled), _candidates([frozenset(row) for _, row in raw])]
    wanted = (_of(kinds, there) for kinds in (takes, or_else) for there in ways)
    candidates = _widest(next((names for names in wanted if names), [])) or _most_telling(ways[0] or ways[1])
    if "text" in candidates and len(candidates) == 2:  # where it says nothing but what the others' columns do
        apart = spoken_apart([row for _, row in raw], BESIDE_TEXT) if apart is None else apart
        (other,) = set(candidates) - {"text"}
        candidates = [other] if other in BESIDE_TEXT and other not in apart else candidates
    first = (raw if first is None else first)[:LOOKED_AT]
    if len(candidates) == 1:
        if Conversation in takes + or_else:
            _refuse_unclear(candidates[0], filled, first)
        return candidates[0]
    seen = listed(dict.fromkeys(name for _, row in first for name in row))
    known = "; ".join(f"{name}: {_needs_in_words(kind)}" for name, kind in FORMATS.items() if kind.makes in takes)
    raise DataError(
        f"the rows could be any of {listed(candidates)}" if candidates else "no format has these columns",
        where=first[0][0].source if first else None,
        found=f"columns {seen}",
        expected=known,
        fix=f"set data.format to {' or '.join(candidates)}"
        if candidates
        else _advice_on({name for _, row in first for name in row}),
    )


def _advice_on(columns: set[str]) -> str:
    """What to do about rows that no format has."""
    if columns >= {"prompt", "completions", "labels"}:
        return (
            "a reward for each step of an answer is not learned here: judge whole answers, by rows of prompt, "
            "completion and label with objective.kind=preference objective.loss=kto"
        )
    return "rename with data.columns {wanted: yours}, or set data.format to {prompt: …, answer: …} over your columns"


def _refuse_unclear(guess: str, filled: Sequence[frozenset[str]], first: Sequence[RawRow]) -> None:
    """Columns that most rows fill, and of which nobody can tell which is the answer."""
    for what, unclear in UNCLEAR.items():
        if guess == unclear.guess and 2 * sum(unclear.names <= there for there in filled) > len(filled):
            raise DataError(
                f"the rows could be read in several ways: they hold {what}",
                where=first[0][0].source if first else None,
                found=f"columns {listed(sorted(unclear.names))}",
                expected="data.format, to say which is meant",
                fix=f"set data.format to {' or '.join(unclear.ways)}",
            )


def _of(kinds: tuple[type[Row], ...], names: Sequence[str]) -> list[str]:
    return [name for name in names if FORMATS[name].makes in kinds]


def _widest(names: Sequence[str]) -> list[str]:
    """Without formats that need less than another of them that makes the same."""
    return [
        name
        for name in names
        if not any(FORMATS[other].makes is FORMATS[name].makes and _says_less(name, other) for other in names)
    ]


def _says_less(one: str, other: str) -> bool:
    return any(own < more for own in FORMATS[one].needs for more in FORMATS[other].needs)


def _most_telling(names: Sequence[str]) -> list[str]:
    """Without formats that need less than another of them: a label beside prompt and completion says more, and a prompt
    alone says nothing."""
    names = [name for name in names if FORMATS[name].makes is not Prompt]
    return [name for name in names if not any(_says_less(name, other) for other in names)]


def _candidates(columns: Sequence[frozenset[str]]) -> list[str]:
    return [
        name
        for name, kind in FORMATS.items()
        if 2 * sum(any(names <= present for names in kind.needs) and not kind.unless & present for present in columns)
        > len(columns)
    ]


def _renamed(raw: Sequence[RawRow], columns: Mapping[str, str | None]) -> list[RawRow]:
    """The rows by our names of columns; what another column is renamed to is replaced."""
    problems = Problems("rows lack a column that data.columns renames")
    given = {wanted: yours for wanted, yours in columns.items() if yours is not None}
    gone = {*given.values(), *(columns.keys() - given.keys())}
    renamed: list[RawRow] = []
    for origin, row in raw:
        missing = [yours for yours in given.values() if yours not in row]
        if missing:
            problems.add(
                DataError(
                    f"data.columns names {listed(missing)}, which the row does not have",
                    where=str(origin),
                    found=f"columns {listed(row)}",
                    fix="write data.columns as {wanted: yours}",
                )
            )
            continue
        kept = {name: value for name, value in row.items() if name not in gone}
        renamed.append((origin, kept | {wanted: row[yours] for wanted, yours in given.items()}))
    problems.raise_if_any()
    return renamed
