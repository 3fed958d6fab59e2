"""What is odd about prepared rows: nothing that stops a run, but what a person would want to have known before it.

Looked for in tokens, as the model sees them, after everything that cuts and masks, in one walk over the rows. Rows that
stop a run, and those that are left out, are counted on their way (counts.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from tunesmith.data.check.counts import Finding
from tunesmith.data.masking.answering import answers_of
from tunesmith.data.prepare import Prepared, digest_of
from tunesmith.data.problems import counted
from tunesmith.data.types import Answer, Classified, Example, Origin, Runs
from tunesmith.errors import DataError

FIRST = 5
SHAPES = 3
"""How many shapes of rows are named."""
SAYS_SOMETHING = 5
"""An answer of so many tokens, its end among them, is not looked at for being empty."""
SMALL_EFFECT = 0.2
"""Cohen's word for the least effect size that matters."""


def findings(prepared: Prepared) -> list[Finding]:
    """All of them, the most telling first; of held-out rows behind those of training."""
    if prepared.found is not None:
        return list(prepared.found)
    end_ids, has_held_out = _end_ids(prepared), bool(prepared.held_out)
    train = _Walk(prepared, end_ids, remembers=has_held_out)
    for unit in _units(prepared.train):
        train.look(unit)
    found = [*train.found(_OF_TRAINING), *_mixed(prepared)]
    held_out = _Walk(prepared, end_ids, asked=train)
    for unit in _units(prepared.held_out):
        held_out.look(unit)
    return [*found, *_asked_before(held_out), *held_out.found(_OF_HELD_OUT, "held_out_"), *_of_pairs(train)]


_OF_TRAINING = {
    "endless": "with an answer whose end token is not learned{some}: the model does not learn from them where to stop; "
    "raise data.max_length where rows are cut, and leave data.learn_ends at turn",
    "empty_answer": "with an empty answer: the model learns to say nothing there; fill it, or take the row out",
    "doubled_bos": "with BOS twice at the start: the text itself writes it; take it out of the text",
    "duplicate": "like an earlier one: what is said twice weighs twice; take the copies out if that is not meant",
}
_OF_HELD_OUT = _OF_TRAINING | {
    "endless": "with an answer whose end token is not measured{some}: the held-out loss does not say whether the model "
    "stops; raise data.max_length where rows are cut, and leave data.learn_ends at turn",
    "empty_answer": "with an empty answer: what is measured there is whether the model says nothing; fill it, or take "
    "the row out",
    "duplicate": "like an earlier one: what is asked twice weighs twice in the measure; take the copies out",
}


@dataclass
class _Walk:
    """What one walk over the rows of a side gathers. Rows are remembered by digests of their tokens.

    `remembers`: whole rows and their questions too, for the walk over held-out rows; `asked`: that walk's, of training.
    """

    prepared: Prepared
    end_ids: frozenset[int]
    remembers: bool = False
    asked: _Walk | None = None
    places: dict[str, dict[Origin, None]] = field(default_factory=lambda: {kind: {} for kind in _OF_TRAINING})
    num_answers: int = 0
    num_endless: int = 0
    units: set[bytes] = field(default_factory=set)
    whole: set[bytes] = field(default_factory=set)
    questions: set[bytes] = field(default_factory=set)
    asked_before: dict[Origin, None] = field(default_factory=dict)
    pairs: list[_Pair] = field(default_factory=list)

    def look(self, unit: tuple[Example, ...]) -> None:
        unit = tuple(replace(example) for example in unit)  # a kept row makes its arrays each time they are asked for
        for example in unit:
            answers = answers_of(example)
            for start, end in answers:
                self._answer(example, start, end)
            if self._begins_twice(example):
                self.places["doubled_bos"][example.origin] = None
            self._question(example, answers)
        known = digest_of(*(part for example in unit for part in _parts(example)))
        if known in self.units:
            self.places["duplicate"][unit[0].origin] = None
        self.units.add(known)
        if len(unit) == 2:
            self.pairs.append(_pair(*unit))

    def _answer(self, example: Example, start: int, end: int) -> None:
        self.num_answers += 1
        if not example.loss_weights[end - 1] or int(example.token_ids[end - 1]) not in self.end_ids:
            self.num_endless += 1
            self.places["endless"][example.origin] = None
        if end - start < SAYS_SOMETHING:
            words = [token for token in example.token_ids[start:end].tolist() if token not in self.end_ids]
            if not self.prepared.renderer.tokenizer.decode(words).strip():
                self.places["empty_answer"][example.origin] = None

    def _begins_twice(self, example: Example) -> bool:
        bos, ids = self.prepared.renderer.bos_id, example.token_ids
        return bos is not None and len(ids) > 1 and int(ids[0]) == int(ids[1]) == bos

    def _question(self, example: Example, answers: Runs) -> None:
        """What the last answer of a row answers. Rows of training that held-out ones copy are counted as they are
        prepared: here are those that are answered otherwise."""
        if self.remembers:
            self.whole.add(digest_of(example.token_ids))
        if not answers or not (self.remembers or self.asked):
            return
        question = digest_of(example.token_ids[: answers[-1][0]])
        if self.remembers:
            self.questions.add(question)
        elif self.asked and question in self.asked.questions and digest_of(example.token_ids) not in self.asked.whole:
            self.asked_before[example.origin] = None

    def found(self, words: Mapping[str, str], side: str = "") -> Iterator[Finding]:
        is_some = self.num_endless > len(self.places["endless"])
        some = f" ({self.num_endless:,} of {self.num_answers:,} answers)" if is_some else ""
        for kind, what in words.items():
            start = "held out: " if side else ""
            yield from _told(side + kind, self.places[kind], what.format(some=some), start=start)


def _told(kind: str, places: dict[Origin, None], what: str, noun: str = "row", start: str = "") -> Iterator[Finding]:
    if places:
        first = tuple(str(place) for place in list(places)[:FIRST])
        yield Finding(kind, f"{start}{counted(len(places), noun)} {what}", len(places), first)


def _end_ids(prepared: Prepared) -> frozenset[int]:
    """Tokens that end something: those at which generation stops, and special ones, with which a call may end."""
    added = prepared.renderer.tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special}
    with suppress(DataError):  # a template that cannot write one question and one answer, beside plain text
        special.update(prepared.renderer.end_ids)
    return frozenset(special)


def _units(examples: Sequence[Example]) -> Iterator[tuple[Example, ...]]:
    """Each row, of a pair both sides; without the copies that the weight of a source makes."""
    known: set[int] = set()
    place = 0
    while place < len(examples):
        unit: tuple[Example, ...] = tuple(examples[place : place + 2])
        if not _is_pair(unit):
            unit = unit[:1]
        place += len(unit)
        if id(unit[0]) not in known:
            known.add(id(unit[0]))
            yield unit


def _is_pair(unit: tuple[Example, ...]) -> bool:
    sides = {example.side for example in unit if isinstance(example, Answer)}
    return len(sides) == 2 and unit[0].origin == unit[1].origin


def _parts(example: Example) -> Iterator[np.ndarray | bytes]:
    """What makes a row the same as another."""
    yield example.token_ids
    yield example.loss_weights
    yield ",".join(example.labels).encode() if isinstance(example, Classified) else b"|"


def _mixed(prepared: Prepared) -> Iterator[Finding]:
    """Rows of one source that fill other columns than most, of those that say what a row is."""
    for path, shapes in prepared.shapes.items():
        most = [f"{tally.count:,} {' + '.join(columns) or 'none'}" for columns, tally in shapes.items()]
        more = f", and {len(most) - SHAPES} more" if len(most) > SHAPES else ""
        others = list(shapes.values())[1:]
        first = tuple(str(place) for tally in others for place in tally.first)[:FIRST]
        text = (
            f"{path}: not all rows fill the same columns: {'; '.join(most[:SHAPES])}{more}; "
            "mend the few, or put them into a file and an entry of data.train of their own"
        )
        yield Finding("mixed_columns", text, sum(tally.count for tally in others), first)


def _asked_before(held_out: _Walk) -> Iterator[Finding]:
    """Held-out rows that training asks the same, and answers otherwise."""
    what = (
        "with the question of a training row, and another answer: held-out scores say less about new questions; "
        "hold whole groups out, by data.held_out={key: COLUMN}"
    )
    yield from _told("same_question", held_out.asked_before, what, "held-out row")


@dataclass(frozen=True)
class _Pair:
    """`longer`: learned tokens of the chosen side more than of the rejected; `shared`: those that both begin with."""

    longer: int
    shared: int
    chosen: int


def _pair(chosen: Example, rejected: Example) -> _Pair:
    most = min(len(chosen), len(rejected))
    apart = np.flatnonzero(chosen.token_ids[:most] != rejected.token_ids[:most])
    shared = int(apart[0]) if len(apart) else most
    return _Pair(chosen.num_learned - rejected.num_learned, shared, len(chosen))


def _of_pairs(walk: _Walk) -> Iterator[Finding]:
    pairs = walk.pairs
    if len(pairs) < 2:
        return
    differences = np.array([pair.longer for pair in pairs], dtype=float)
    spread, mean = float(differences.std(ddof=1)), float(differences.mean())
    effect = mean / spread if spread else math.copysign(math.inf, mean) if mean else 0.0
    if abs(effect) >= SMALL_EFFECT:
        longer = float((differences > 0).mean())
        text = (
            f"chosen answers are longer than rejected ones in {longer:.0%} of {counted(len(pairs), 'pair')}, by "
            f"{mean:+.0f} tokens in the mean (effect size {effect:.2f}): "
            "the model may learn the length instead; balance the lengths, or take a loss that goes by the token "
            "(objective.loss=sigmoid_norm, ipo_mean or simpo)"
        )
        yield Finding("length_bias", text, len(pairs))
    shared = [pair.shared for pair in pairs]
    text = (
        f"what chosen and rejected begin with in common makes up {np.median(shared):.0f} tokens of a median pair, "
        f"{sum(shared) / max(1, sum(pair.chosen for pair in pairs)):.0%} of the chosen side"
    )
    yield Finding("shared_prefix", text, len(pairs))
