"""The whole way from a source to examples, with a count of everything that happened on it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from tunesmith.data.cache.digests import digest_of, fingerprint
from tunesmith.data.check.counts import Counts, Finding, OfSource, Tally, by_shape, told, total
from tunesmith.data.check.replaced import Replacing
from tunesmith.data.formats import IN_WORDS, LEARNABLE, Reading
from tunesmith.data.masking.fit import fit, measure, whole_pairs
from tunesmith.data.masking.unlearned import asked, classified
from tunesmith.data.mixture import Part, each, mixed, part_rows, read_parts, refuse_unseen_keys, unseen_roles
from tunesmith.data.problems import Problems, counted, listed
from tunesmith.data.reading.files import RawRow
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings
from tunesmith.data.split import group_of
from tunesmith.data.templating.templates import install
from tunesmith.data.types import (
    CHOSEN,
    Answer,
    Conversation,
    Document,
    Example,
    Judged,
    Labelled,
    Origin,
    Pieces,
    Preference,
    Prompt,
    Row,
    Text,
)
from tunesmith.errors import DataError, RecipeError


@dataclass(frozen=True)
class Prepared:
    """Examples, and how they came to be.

    Of a pair there are two, the chosen side right before the rejected one. `held_out_rows` are the held-out rows by
    their meaning, for answers that are generated and scored; of a pair, its chosen side.
    `fingerprint` changes whenever a token, a weight or the order changes: a resumed run must find it the same.
    """

    train: list[Example]
    held_out: list[Example]
    held_out_rows: Sequence[Row]
    counts: Counts
    held_out_counts: Counts
    format: str
    notes: tuple[str, ...]
    fingerprint: str
    renderer: Renderer
    sources: tuple[OfSource, ...] = ()
    """Of each of several sources."""
    shapes: Mapping[str, Mapping[tuple[str, ...], Tally]] = field(default_factory=dict)
    """Of each source whose rows do not all fill the same columns: the rows by those that they fill."""
    found: tuple[Finding, ...] | None = None
    """What is odd about them (check/findings.py), where that was looked for before."""


@dataclass
class Side:
    """What became of the rows of one source on one side."""

    part: Part
    format: str = ""
    notes: tuple[str, ...] = ()
    examples: list[Example] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    rows: list[Row] = field(default_factory=list)
    shapes: dict[tuple[str, ...], Tally] = field(default_factory=dict)


def prepare(
    settings: DataSettings,
    tokenizer: Any,
    *,
    seed: int,
    rows: Iterable[Mapping[str, Any]] | None = None,
    most_tokens: int | None = None,
    made_for: int | None = None,
    takes: tuple[type[Row], ...] = LEARNABLE,
    replaced: Any = None,
) -> Prepared:
    """All examples of a recipe's `data` section; `rows` stand in for `settings.train` where given.

    `takes`: what the objective learns from (formats.py).
    `most_tokens`: the model has no more positions, whatever `data.max_length` says. `made_for`: it goes on beyond
    these, but was not made for it; rows that do are counted in a note. `replaced`: the chat template that the
    tokenizer had before it was given another; what that changes is counted in a note.
    """
    task = Task.of(settings, seed, most_tokens, made_for, takes, replaced)
    settings = task.settings
    parts = read_parts(settings, rows)
    parted = part_rows(parts, settings, seed=seed)
    readings = _read(parted.train, takes), _read(parted.held_out, takes)
    read = [one for side in readings for one in side if one[0].raw]
    refuse_unseen_keys(read)
    worded = renderers(tokenizer, settings, [part.template for part in parts], replaced)
    of_train, of_held_out = (
        [side_of(part, reading, worded[part.template], task.advice) for part, reading in side] for side in readings
    )
    return joined(task, (parted.how, *unseen_roles(read)), of_train, of_held_out, worded)


@dataclass(frozen=True)
class Task:
    """What is to be prepared, whatever the rows. `bound`: the note that the model's positions are the limit;
    `replaced`: the chat template that the tokenizer's stands in place of."""

    settings: DataSettings
    seed: int
    made_for: int | None
    takes: tuple[type[Row], ...]
    bound: tuple[str, ...] = ()
    replaced: Any = None

    @classmethod
    def of(
        cls,
        settings: DataSettings,
        seed: int,
        most_tokens: int | None,
        made_for: int | None,
        takes: tuple[type[Row], ...],
        replaced: Any = None,
    ) -> Task:
        bound: tuple[str, ...] = ()
        if most_tokens is not None and most_tokens < settings.max_length:
            settings = settings.model_copy(update={"max_length": most_tokens})
            bound = (f"the model has {most_tokens:,} positions for a row: that is data.max_length here",)
        _refuse_unread(settings, takes)
        return cls(settings, seed, made_for, takes, bound, replaced)

    @property
    def advice(self) -> Mapping[str, str]:
        return _ADVICE | (_OF_TABLES if self.bound else {})


def joined(
    task: Task,
    notes: Sequence[str],
    of_train: Sequence[Side],
    of_held_out: Sequence[Side],
    worded: Mapping[str | None, Renderer],
) -> Prepared:
    """All sides as one; `notes`: how they were parted, and what is to be said of the rows of all."""
    advice, seed = task.advice, task.seed
    for side in (*of_train, *of_held_out):
        side.counts = total([side.counts])
    for side in of_train:
        _refuse_nothing_left(side.examples, side.counts, side.part.path, advice)
        side.counts.visited = side.counts.kept
        if side.part.weight != 1:
            side.examples, side.counts.visited = mixed(side.examples, side.part, seed=seed)
            _count_tokens(side.examples, side.counts)
    train = [example for side in of_train for example in side.examples]
    held_out = [example for side in of_held_out for example in side.examples]
    leaked = _in_both(train, held_out)
    for side in of_held_out:
        side.counts.visited = side.counts.kept
        _count_leaks(leaked, side.examples, side.counts)
    held_out_counts = total(side.counts for side in of_held_out)
    if held_out_counts.read and not held_out:
        raise DataError(
            "no held-out row is left",
            where="data.held_out",
            found=f"{counted(held_out_counts.read, 'row')}: " + "; ".join(told(held_out_counts)),
            fix=f"hold out more rows; {_advised(held_out_counts, advice)}",
        )
    return Prepared(
        train,
        held_out,
        [row for side in of_held_out for row in side.rows],
        total(side.counts for side in of_train),
        held_out_counts,
        " and ".join(dict.fromkeys(side.format for side in of_train if side.format)),
        (*notes, *task.bound, *_beyond([*train, *held_out], task.made_for), *_noted(of_train), *_rendered(worded)),
        fingerprint(train, held_out),
        worded[None],
        _by_source(of_train, of_held_out),
        {side.part.path: side.shapes for side in of_train if len(side.shapes) > 1},
    )


def renderers(
    tokenizer: Any, settings: DataSettings, templates: Sequence[str | None], replaced: Any = None
) -> dict[str | None, Renderer]:
    """The model's own renderer, and one for each template that only some rows are worded by. `replaced`: the template
    that the tokenizer had before its own."""
    how: dict[str, Any] = {"system_turn": settings.system_turn, "learn_ends": settings.learn_ends}

    def renderer(own: Any, before: Any, names: tuple[str, str], note: str | None = None) -> Renderer:
        before = before.get("default") if isinstance(before, dict) else before
        return Replacing(own, before, names, note, **how) if before else Renderer(own, **how)

    names = "model.template", "the tokenizer's own chat template"
    made: dict[str | None, Renderer] = {None: renderer(tokenizer, replaced, names)}
    for template in dict.fromkeys(template for template in templates if template is not None):
        own = copy.deepcopy(tokenizer)
        where = listed(f"data.train[{place}].template" for place, one in enumerate(templates) if one == template)
        note = install(template, own, f"{where} replaces the model's chat template")
        made[template] = renderer(own, tokenizer.chat_template, (where, "the model's chat template"), note)
    return made


def _rendered(worded: Mapping[str | None, Renderer]) -> list[str]:
    """Where templates needed help."""
    return list(dict.fromkeys(note for renderer in worded.values() for note in renderer.notes))


def _refuse_unread(settings: DataSettings, takes: tuple[type[Row], ...]) -> None:
    """What turns are learned is a question of conversations alone."""
    if Conversation in takes:
        return
    for name, usual in (("learn", "answers"), ("learn_ends", "turn")):
        if (given := getattr(settings, name)) != usual:
            kinds = " or ".join(IN_WORDS[kind] for kind in takes)
            raise RecipeError(
                f"it says what is learned of conversations, and the objective learns from {kinds}",
                where=f"data.{name}",
                found=given if isinstance(given, str) else ", ".join(given),
                fix=f"take data.{name} out",
            )


def _read(parts: Sequence[Part], takes: tuple[type[Row], ...]) -> list[tuple[Part, Reading]]:
    """Every part with its rows by their meaning; of one without rows, nothing."""

    def reading(part: Part) -> tuple[Part, Reading]:
        return part, part.converted(takes, learn=part.settings.learn) if part.raw else Reading([], "")

    return each(parts, reading)


def _refuse_nothing_left(examples: Sequence[Example], counts: Counts, where: str, advice: Mapping[str, str]) -> None:
    """A source all of whose rows are held out has nothing to lose."""
    if counts.read and not examples:
        raise DataError(
            "no row is left to train on",
            where=where,
            found=f"{counted(counts.read, 'row')}: " + "; ".join(told(counts)),
            fix=_advised(counts, advice),
        )


def _noted(sides: Sequence[Side]) -> list[str]:
    """What was noticed in reading, of several sources with the source's name."""
    return [f"{side.part.path}: {note}" if len(sides) > 1 else note for side in sides for note in side.notes]


def _by_source(train: Sequence[Side], held_out: Sequence[Side]) -> tuple[OfSource, ...]:
    """The counts of each of several sources; held-out rows of a file are of none."""
    if len(train) < 2:
        return ()
    beside = held_out if len(held_out) == len(train) else [Side(side.part) for side in train]
    starts = accumulate((len(side.examples) for side in train), initial=0)
    return tuple(
        OfSource(side.part.path, side.format or other.format, side.part.weight, side.counts, other.counts, start)
        for side, other, start in zip(train, beside, starts, strict=False)
    )


# What to do about a kind, where it left no row.
_ADVICE = {
    "overlong": "raise data.max_length",
    "truncated": "raise data.max_length: what is learned may have been cut off",
    "empty": "look whether data.format reads the column that holds the text: the rows are empty",
    "unlearnable": "give rows with a turn of the assistant (or of another role, named in data.learn), or with a turn "
    "marked to be learned",
    "identical": "give pairs whose answers differ",
    "cut_alike": "raise data.max_length: the answers differ behind it",
}


# The same, where the model's table of positions is the limit.
_OF_TABLES = {
    "overlong": "shorten the rows, or take a model with more positions",
    "truncated": "shorten the rows, or take a model with more positions: what is learned may have been cut off",
    "cut_alike": "shorten the rows, or take a model with more positions: the answers differ behind them",
}


def _advised(counts: Counts, advice: Mapping[str, str]) -> str:
    return "; ".join(text for kind, text in advice.items() if counts[kind]) or "look at the rows that are named"


def _beyond(examples: Sequence[Example], made_for: int | None) -> tuple[str, ...]:
    """The note on rows longer than the model was made for."""
    lengths = [len(example) for example in examples if made_for is not None and len(example) > made_for]
    if not lengths:
        return ()
    what = f"{counted(len(lengths), 'row')} of up to {max(lengths):,} tokens"
    return (f"{what}: the model was made for {made_for:,}, and may learn worse beyond them",)


def side_of(part: Part, reading: Reading, renderer: Renderer, advice: Mapping[str, str]) -> Side:
    settings, counts = part.settings, Counts(read=len(part.raw))
    shapes = by_shape(part.raw, reading.format, settings.columns)
    side = Side(part, reading.format, reading.notes, counts=counts, shapes=shapes)
    full: list[Row] = []
    for row in reading.rows:
        if is_empty(row):
            counts.add("empty", row.origin)
        elif isinstance(row, Conversation) and not any(message.is_learned for message in row.messages):
            counts.add("unlearnable", row.origin)
        else:
            full.append(row)
    side.rows = [row if isinstance(row, Labelled | Prompt) else answered(row) for row in full]
    if texts := [row for row in full if isinstance(row, Labelled)]:
        side.examples, _ = classified(texts, settings, renderer, counts, advice)
        measure(texts, side.examples, settings, counts, lambda row: len(renderer.classified_ids(row.text)[0]))
        return side
    if prompts := [row for row in full if isinstance(row, Prompt)]:
        side.examples, _ = asked(prompts, settings, renderer, counts)
        measure(prompts, side.examples, settings, counts, lambda row: len(renderer.prompt_ids(row.messages, row.tools)))
        return side
    written = [part for row in full for part in written_as(row).values()]
    rendering = renderer.render_all(written)
    for kind in ("straddled", "unprompted", "hidden", "control"):
        for origin in dict.fromkeys(getattr(rendering, kind)):
            counts.add(kind, origin)
    rendered = _judged(full, rendering.examples)
    if settings.group_by is not None:
        groups = _groups(part.raw, settings.group_by)
        rendered = [replace(example, group=groups[example.origin]) for example in rendered]
    side.examples = whole_pairs(full, rendered, fit(written, rendered, settings, counts, advice), counts)
    counts.kept = sum(not isinstance(example, Answer) for example in side.examples)
    counts.kept += len({example.origin for example in side.examples if isinstance(example, Answer)})
    _count_tokens(side.examples, counts)
    return side


def _count_tokens(examples: Sequence[Example], counts: Counts) -> None:
    counts.tokens = sum(len(example) for example in examples)
    counts.learned = sum(example.num_learned for example in examples)


def written_as(row: Row) -> Mapping[str, Text]:
    """What the model reads of a row: itself, or each of its sides by name."""
    if isinstance(row, Preference | Judged):
        return row.sides
    return {} if isinstance(row, Prompt | Labelled) else {"": row}


def answered(row: Row) -> Row:
    """A row as a question with its right answer: of a pair, the chosen side; of one answer that is not wanted, all."""
    if isinstance(row, Prompt):
        return Conversation(row.messages, row.origin, row.tools)
    if isinstance(row, Labelled):
        return row.text
    return row.sides.get(CHOSEN, row) if isinstance(row, Preference | Judged) else row


def _judged(rows: Sequence[Row], examples: Sequence[Example]) -> list[Example]:
    """`examples`, in the order of `written_as`, with the side that each of them is."""
    sides = [(side, getattr(row, "margin", None)) for row in rows for side in written_as(row)]
    made: list[Example] = []
    for one, (side, margin) in zip(examples, sides, strict=True):
        said = (one.token_ids, one.loss_weights, one.origin)
        made.append(Answer(*said, side=side, margin=margin, answers=one.answers) if side else one)
    return made


def _groups(raw: Sequence[RawRow], column: str) -> dict[Origin, str]:
    """The group of each row by the value of its column."""
    problems = Problems(f"rows lack the column {column!r} of data.group_by", stage=1)
    groups = {}
    for origin, row in raw:
        if column not in row:
            problems.add(DataError("the column is missing", where=str(origin), found=", ".join(row), expected=column))
        groups[origin] = group_of(row.get(column))
    problems.raise_if_any()
    return groups


def is_empty(row: Row) -> bool:
    """Nothing to say: no text, no turns, or no learned turn with anything in it; of a pair, on either side."""
    if isinstance(row, Pieces):
        return not any(piece.content for piece in row.pieces)
    if isinstance(row, Document):
        return not row.text.strip()
    if isinstance(row, Preference | Judged):
        return any(is_empty(side) for side in row.sides.values())
    if isinstance(row, Prompt):
        return not any(turn.content.strip() for turn in row.messages)
    if isinstance(row, Labelled):
        return is_empty(row.text) if isinstance(row.text, Document) else not row.text.messages
    learned = [turn for turn in row.messages if turn.is_learned]
    return not row.messages or (
        bool(learned) and not any(turn.content.strip() or turn.tool_calls or turn.reasoning for turn in learned)
    )


def _in_both(train: Sequence[Example], held_out: Sequence[Example]) -> set[bytes]:
    """Digests of the tokens of held-out rows that training has too."""
    known = {digest_of(example.token_ids) for example in held_out}
    return {digest for example in train if (digest := digest_of(example.token_ids)) in known} if known else set()


def _count_leaks(leaked: set[bytes], held_out: Sequence[Example], counts: Counts) -> None:
    for example in held_out if leaked else ():
        if digest_of(example.token_ids) in leaked:
            counts.add("leaked", example.origin)
