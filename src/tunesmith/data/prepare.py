"""The whole way from a source to examples, with a count of everything that happened on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.data.counts import Counts, told
from tunesmith.data.files import RawRow
from tunesmith.data.formats import LEARNABLE, convert
from tunesmith.data.problems import Problems, counted
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings
from tunesmith.data.sources import read
from tunesmith.data.split import group_of, split
from tunesmith.data.types import (
    CHOSEN,
    Answer,
    Asked,
    Classified,
    Conversation,
    Document,
    Example,
    Judged,
    Labelled,
    Origin,
    Preference,
    Prompt,
    Row,
    Text,
)
from tunesmith.data.unlearned import asked, classified
from tunesmith.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """Examples, and how they came to be.

    Of a pair there are two, the chosen side right before the rejected one. `held_out_rows` are the held-out rows by
    their meaning, for answers that are generated and scored; of a pair, its chosen side.
    `fingerprint` changes whenever a token, a weight or the order changes: a resumed run must find it the same.
    """

    train: list[Example]
    held_out: list[Example]
    held_out_rows: list[Row]
    counts: Counts
    held_out_counts: Counts
    format: str
    notes: tuple[str, ...]
    fingerprint: str
    renderer: Renderer


def prepare(
    settings: DataSettings,
    tokenizer: Any,
    *,
    seed: int,
    rows: Iterable[Mapping[str, Any]] | None = None,
    most_tokens: int | None = None,
    made_for: int | None = None,
    takes: tuple[type[Row], ...] = LEARNABLE,
) -> Prepared:
    """All examples of a recipe's `data` section; `rows` stand in for `settings.train` where given.

    `takes`: what the objective learns from (formats.py).
    `most_tokens`: the model has no more positions, whatever `data.max_length` says. `made_for`: it goes on beyond
    these, but was not made for it; rows that do are counted in a note.
    """
    bound: tuple[str, ...] = ()
    if most_tokens is not None and most_tokens < settings.max_length:
        settings = settings.model_copy(update={"max_length": most_tokens})
        bound = (f"the model has {most_tokens:,} positions for a row: that is data.max_length here",)
    advice = _ADVICE | (_OF_TABLES if bound else {})
    source = settings.train if rows is None else rows
    raw = read(source, split=settings.split, subset=settings.subset, limit=settings.limit)
    parted = split(raw, settings, seed=seed)
    renderer = Renderer(tokenizer, system_turn=settings.system_turn)
    train, counts, _, form, notes = _side(parted.train, settings, takes, renderer, advice)
    if not train:
        raise DataError(
            "no row is left to train on",
            where=settings.train if rows is None else "rows",
            found=f"{counted(counts.read, 'row')}: " + "; ".join(told(counts)),
            fix=_advised(counts, advice),
        )
    held_out: list[Example] = []
    held_out_counts, held_out_rows = Counts(), list[Row]()
    if parted.held_out:
        held_out, held_out_counts, held_out_rows, _, _ = _side(parted.held_out, settings, takes, renderer, advice)
        _count_leaks(train, held_out, held_out_counts)
        if not held_out:
            raise DataError(
                "no held-out row is left",
                where="data.held_out",
                found=f"{counted(held_out_counts.read, 'row')}: " + "; ".join(told(held_out_counts)),
                fix=f"hold out more rows; {_advised(held_out_counts, advice)}",
            )
    return Prepared(
        train,
        held_out,
        held_out_rows,
        counts,
        held_out_counts,
        form,
        (parted.how, *bound, *_beyond([*train, *held_out], made_for), *notes, *renderer.notes),
        fingerprint(train, held_out),
        renderer,
    )


# What to do about a kind, where it left no row.
_ADVICE = {
    "overlong": "raise data.max_length",
    "truncated": "raise data.max_length: what is learned may have been cut off",
    "empty": "look whether data.format reads the column that holds the text: the rows are empty",
    "unlearnable": "give rows with a turn of the assistant, or with a turn marked to be learned",
    "identical": "give pairs whose answers differ within data.max_length",
}


# The same, where the model's table of positions is the limit.
_OF_TABLES = {
    "overlong": "shorten the rows, or take a model with more positions",
    "truncated": "shorten the rows, or take a model with more positions: what is learned may have been cut off",
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


def _side(
    raw: Sequence[RawRow],
    settings: DataSettings,
    takes: tuple[type[Row], ...],
    renderer: Renderer,
    advice: Mapping[str, str],
) -> tuple[list[Example], Counts, list[Row], str, tuple[str, ...]]:
    reading = convert(raw, settings.format, settings.columns, takes)
    counts = Counts(read=len(raw))
    full: list[Row] = []
    for row in reading.rows:
        if is_empty(row):
            counts.add("empty", row.origin)
        elif isinstance(row, Conversation) and not any(message.is_learned for message in row.messages):
            counts.add("unlearnable", row.origin)
        else:
            full.append(row)
    texts = [row for row in full if isinstance(row, Labelled)]
    if texts:
        return *classified(texts, settings, renderer, counts, advice), list(full), reading.format, reading.notes
    prompts = [row for row in full if isinstance(row, Prompt)]
    if prompts:
        return *asked(prompts, settings, renderer, counts), full, reading.format, reading.notes
    written = [part for row in full for part in written_as(row).values()]
    rendering = renderer.render_all(written)
    for kind in ("straddled", "unprompted", "hidden", "control"):
        for origin in dict.fromkeys(getattr(rendering, kind)):
            counts.add(kind, origin)
    rendered = _judged(full, rendering.examples)
    if settings.group_by is not None:
        groups = _groups(raw, settings.group_by)
        rendered = [replace(example, group=groups[example.origin]) for example in rendered]
    examples = _whole_pairs(full, _fit(written, rendered, settings, counts, advice), counts)
    counts.kept = sum(not isinstance(example, Answer) for example in examples)
    counts.kept += len({example.origin for example in examples if isinstance(example, Answer)})
    counts.tokens = sum(len(example) for example in examples)
    counts.learned = sum(example.num_learned for example in examples)
    return examples, counts, [answered(row) for row in full], reading.format, reading.notes


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
    return [
        Answer(example.token_ids, example.loss_weights, example.origin, side=side, margin=margin) if side else example
        for example, (side, margin) in zip(examples, sides, strict=True)
    ]


def _whole_pairs(rows: Sequence[Row], examples: list[Example], counts: Counts) -> list[Example]:
    """Without sides whose other side was left out, and without pairs that are no choice."""
    pairs: dict[Origin, list[Example]] = {row.origin: [] for row in rows if isinstance(row, Preference)}
    for example in examples:
        if example.origin in pairs:
            pairs[example.origin].append(example)
    for origin, sides in pairs.items():
        if len(sides) == 2 and np.array_equal(sides[0].token_ids, sides[1].token_ids):
            counts.add("identical", origin)
            sides.clear()
    return [example for example in examples if len(pairs.get(example.origin, "ok")) == 2]


def _groups(raw: Sequence[RawRow], column: str) -> dict[Origin, str]:
    """The group of each row by the value of its column."""
    problems = Problems(f"rows lack the column {column!r} of data.group_by")
    groups = {}
    for origin, row in raw:
        if column not in row:
            problems.add(DataError("the column is missing", where=str(origin), found=", ".join(row), expected=column))
        groups[origin] = group_of(row.get(column))
    problems.raise_if_any()
    return groups


def is_empty(row: Row) -> bool:
    """Nothing to say: no text, no turns, or no learned turn with anything in it; of a pair, on either side."""
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


def _fit(
    rows: Sequence[Row],
    examples: Sequence[Example],
    settings: DataSettings,
    counts: Counts,
    advice: Mapping[str, str],
) -> list[Example]:
    """Examples of at most `max_length` tokens, each with something to learn."""
    problems = Problems("rows are longer than data.max_length")
    fitted: list[Example] = []
    for row, example in zip(rows, examples, strict=True):
        pieces = [example]
        if len(example) > settings.max_length:
            pieces = _shortened(row, example, settings, counts, problems, advice)
        learnable = [piece for piece in pieces if piece.num_learned]
        if pieces and not learnable:
            counts.add("unlearnable", example.origin)
        fitted += learnable
    problems.raise_if_any()
    return fitted


def _shortened(
    row: Row,
    example: Example,
    settings: DataSettings,
    counts: Counts,
    problems: Problems,
    advice: Mapping[str, str],
) -> list[Example]:
    limit = settings.max_length
    if settings.overlong == "error":
        problems.add(
            DataError(
                "the row is longer than data.max_length",
                where=str(example.origin),
                found=f"{len(example)} tokens",
                expected=f"at most {limit}",
                fix=f"{advice['overlong']}; or set data.overlong to drop or truncate",
            )
        )
        return []
    if settings.overlong == "truncate":
        counts.add("truncated", example.origin)
        return [_piece(example, 0, limit)]
    if settings.overlong == "split" and isinstance(row, Document):
        counts.add("split", example.origin)
        # Each piece begins with the last token of the one before, so that every token is learned once.
        return [_piece(example, start, start + limit) for start in range(0, len(example) - 1, limit - 1)]
    counts.add("overlong", example.origin)
    return []


def _piece(example: Example, start: int, end: int) -> Example:
    weights = example.loss_weights[start:end].copy()
    weights[:1] = 0.0
    return replace(example, token_ids=example.token_ids[start:end], loss_weights=weights)


def _count_leaks(train: Sequence[Example], held_out: Sequence[Example], counts: Counts) -> None:
    known = {example.token_ids.tobytes() for example in train}
    for example in held_out:
        if example.token_ids.tobytes() in known:
            counts.add("leaked", example.origin)


def fingerprint(*sides: Sequence[Example]) -> str:
    """Digest of every token, weight and border of every side, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for side in sides:
        digest.update(np.array([len(side), *(len(example) for example in side)], dtype="<i8").tobytes())
        for example in side:
            digest.update(example.token_ids.astype("<i8").tobytes())
            digest.update(example.loss_weights.astype("<f4").tobytes())
            if isinstance(example, Answer):
                digest.update(
                    example.side.encode() if example.margin is None else f"{example.side} {example.margin}".encode()
                )
            elif isinstance(example, Classified):
                digest.update(json.dumps(example.labels).encode())
            elif isinstance(example, Asked):  # a reward reads the row's columns
                digest.update(json.dumps(example.prompt.columns, sort_keys=True, default=str).encode())
    return digest.hexdigest()
