"""What is odd about prepared rows: nothing that stops a run, but what a person would want to have known before it.

Looked for in tokens, as the model sees them, after everything that cuts and masks. Rows that stop a run, and those that
are left out, are counted on their way (counts.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.prepare import Prepared
from tunesmith.data.problems import counted
from tunesmith.data.types import Answer, Classified, Example, Origin

FIRST = 5
SMALL_EFFECT = 0.2
"""Cohen's word for the least effect size that matters."""


@dataclass(frozen=True)
class Finding:
    """`kind` for programs, `text` for people; `rows`: how many, and the first of them."""

    kind: str
    text: str
    rows: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", …" if self.rows > len(self.first) else ""
        return f"{self.text} ({', '.join(self.first)}{more})" if self.first else self.text


def findings(prepared: Prepared) -> list[Finding]:
    """All of them, the most telling first."""
    train = _once(prepared.train)
    found = [
        *_ends(prepared, train),
        *_empty(prepared, train),
        *_doubled_bos(prepared, train),
        *_duplicates(train),
        *_asked_before(train, _once(prepared.held_out)),
        *_of_pairs(train),
    ]
    return [finding for finding in found if finding.rows]


def _once(examples: Sequence[Example]) -> list[Example]:
    """Without the copies that the weight of a source makes."""
    return list({id(example): example for example in examples}.values())


def learned_runs(example: Example) -> list[tuple[int, int]]:
    """[start, end) of each run of learned tokens."""
    edges = np.diff(np.concatenate([[0], example.loss_weights > 0, [0]]).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _answers(example: Example) -> list[tuple[int, int]]:
    """The learned runs that answer something: of plain text, which is learned from its second token on, none."""
    runs = learned_runs(example)
    return [] if not runs or runs[0][0] <= 1 else runs


def _counted(
    kind: str, examples: Sequence[Example], odd: Callable[[Example], bool], what: str, advice: str
) -> Iterator[Finding]:
    places = dict.fromkeys(example.origin for example in examples if odd(example))
    if places:
        yield Finding(kind, f"{counted(len(places), 'row')} with {what}: {advice}", len(places), _first(places))


def _first(places: Sequence[Origin] | dict[Origin, None]) -> tuple[str, ...]:
    return tuple(str(place) for place in list(places)[:FIRST])


def _ends(prepared: Prepared, train: Sequence[Example]) -> Iterator[Finding]:
    """Answers whose last learned token ends nothing: a model that learns them does not learn to stop."""
    ends = set(prepared.renderer.end_ids)

    def endless(example: Example) -> bool:
        runs = _answers(example)
        return bool(runs) and int(example.token_ids[runs[-1][1] - 1]) not in ends

    advice = "the model does not learn from them where to stop"
    yield from _counted("endless", train, endless, "an answer whose end token is not learned", advice)


def _empty(prepared: Prepared, train: Sequence[Example]) -> Iterator[Finding]:
    ends = set(prepared.renderer.end_ids)
    tokenizer = prepared.renderer.tokenizer

    def empty(example: Example) -> bool:
        for start, end in _answers(example):
            words = [int(token) for token in example.token_ids[start:end] if int(token) not in ends]
            if len(words) < 3 and not tokenizer.decode(words).strip():
                return True
        return False

    advice = "the model learns to say nothing there"
    yield from _counted("empty_answer", train, empty, "an empty answer", advice)


def _doubled_bos(prepared: Prepared, train: Sequence[Example]) -> Iterator[Finding]:
    bos = prepared.renderer.bos_id

    def doubled(example: Example) -> bool:
        ids = example.token_ids
        return bos is not None and len(ids) > 1 and int(ids[0]) == int(ids[1]) == bos

    yield from _counted("doubled_bos", train, doubled, "BOS twice at the start", "the text itself writes it")


def _duplicates(train: Sequence[Example]) -> Iterator[Finding]:
    seen: set[bytes] = set()
    again: dict[Origin, None] = {}
    units: Sequence[Sequence[Example]] = _pairs(train) or [[example] for example in train]
    for parts in units:
        key = b"|".join(_bytes(part) for part in parts)
        if key in seen:
            again[parts[0].origin] = None
        seen.add(key)
    if again:
        text = f"{counted(len(again), 'row')} like an earlier one: what is said twice weighs twice"
        yield Finding("duplicate", text, len(again), _first(again))


def _bytes(example: Example) -> bytes:
    labels = ",".join(example.labels).encode() if isinstance(example, Classified) else b""
    return example.token_ids.tobytes() + example.loss_weights.tobytes() + labels


def _asked_before(train: Sequence[Example], held_out: Sequence[Example]) -> Iterator[Finding]:
    """Held-out rows that training asks the same, and answers otherwise: copies are counted as they are prepared."""
    known = {_question(example) for example in train}
    whole = {example.token_ids.tobytes() for example in train}
    same = dict.fromkeys(
        example.origin
        for example in held_out
        if (question := _question(example)) and question in known and example.token_ids.tobytes() not in whole
    )
    if same:
        what = f"{counted(len(same), 'held-out row')} with the question of a training row, and another answer"
        text = f"{what}: held-out scores say less about new questions"
        yield Finding("same_question", text, len(same), _first(same))


def _question(example: Example) -> bytes | None:
    runs = _answers(example)
    return example.token_ids[: runs[-1][0]].tobytes() if runs else None


def _pairs(examples: Sequence[Example]) -> list[tuple[Answer, Answer]]:
    sides = [example for example in examples if isinstance(example, Answer)]
    pairs = list(zip(sides[::2], sides[1::2], strict=False))
    return pairs if all(one.origin == other.origin for one, other in pairs) else []


def _of_pairs(train: Sequence[Example]) -> Iterator[Finding]:
    pairs = _pairs(train)
    if len(pairs) < 2:
        return
    differences = np.array([chosen.num_learned - rejected.num_learned for chosen, rejected in pairs], dtype=float)
    spread = float(differences.std(ddof=1))
    mean = float(differences.mean())
    effect = mean / spread if spread else math.copysign(math.inf, mean) if mean else 0.0
    if abs(effect) >= SMALL_EFFECT:
        longer = float((differences > 0).mean())
        text = (
            f"chosen answers are longer than rejected ones in {longer:.0%} of {counted(len(pairs), 'pair')}, by "
            f"{mean:+.0f} tokens in the mean (effect size {effect:.2f}): "
            "the model may learn the length instead"
        )
        yield Finding("length_bias", text, len(pairs))
    shared = [_in_common(chosen, rejected) for chosen, rejected in pairs]
    lengths = [len(chosen) for chosen, _ in pairs]
    text = (
        f"what chosen and rejected begin with in common makes up {np.median(shared):.0f} tokens of a median pair, "
        f"{sum(shared) / max(1, sum(lengths)):.0%} of the chosen side"
    )
    yield Finding("shared_prefix", text, len(pairs))


def _in_common(chosen: Example, rejected: Example) -> int:
    most = min(len(chosen), len(rejected))
    apart = np.flatnonzero(chosen.token_ids[:most] != rejected.token_ids[:most])
    return int(apart[0]) if len(apart) else most
