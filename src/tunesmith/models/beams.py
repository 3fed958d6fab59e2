"""Beam search: the most probable whole answer that a few answers at a time can find.

Maths   the answer y that maximises sum_t log p(y_t | x, y_<t), its end token included; no length penalty: short and
        long answers are compared by their probability alone
Ends    when the best ended answer is at least as probable as every one under way: these can only lose

Greedy choice takes the likeliest next token. Where much probability is spread over answers that begin differently, it
passes over one answer (say, a refusal) that is likelier than any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunesmith.models.rows import FinishReason, Row, UnderWay


@dataclass
class _Best:
    """The most probable ended answer of a prompt so far."""

    score: float = float("-inf")
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = "length"


class Beams:
    """Chooses for each prompt's `width` rows at once. Rows of one prompt share its `index`."""

    def __init__(
        self,
        width: int,
        finish: Callable[[Row, FinishReason], object],
    ) -> None:
        """`finish` takes a prompt's answer."""
        self.width, self.finish = width, finish
        self._best: dict[int, _Best] = {}

    def take(self, batch: UnderWay, rows: Sequence[Row], logits: Tensor) -> None:
        """logits [len(rows), V] of the batch's last rows: each goes on with a token, or its whole prompt ends."""
        logprobs = logits.float().log_softmax(-1)
        places: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            places.setdefault(row.index, []).append(at)
        offset = len(batch.rows) - len(rows)
        sources, targets, ended = [], [], []
        for mine in places.values():
            group = [rows[at] for at in mine]
            kept = self._next(group, logprobs[mine])
            before = [(list(row.token_ids), list(row.logprobs)) for row in group]
            for row, (source, token, logprob) in zip(group, kept, strict=True):
                row.token_ids = [*before[source][0], token]
                row.logprobs = [*before[source][1], logprob]
            if not self._over(group):
                moved = [
                    (mine[source], at) for (source, _, _), at in zip(kept, mine, strict=True) if mine[source] != at
                ]
                sources += [offset + source for source, _ in moved]
                targets += [offset + at for _, at in moved]
                continue
            ended += [offset + at for at in mine]
            self._end(group)
        batch.copy_rows(sources, targets)
        batch.drop(ended)

    def _next(self, group: list[Row], logprobs: Tensor) -> list[tuple[int, int, float]]:
        """(row that it goes on from, token, its log-probability) for each of `group`; what ends is kept apart."""
        fresh = not group[0].token_ids
        scores = torch.tensor([sum(row.logprobs) for row in group], dtype=torch.float64, device=logprobs.device)
        totals = scores[:, None] + logprobs.double()
        if fresh:  # all rows are alike: one of them stands for all
            totals = totals[:1]
        vocabulary = totals.shape[1]
        values, flat = totals.flatten().topk(min(2 * self.width, totals.numel()))
        best = self._best.setdefault(group[0].index, _Best())
        kept: list[tuple[int, int, float]] = []
        for value, at in zip(values.tolist(), flat.tolist(), strict=True):
            source, token = divmod(at, vocabulary)
            logprob = logprobs[source, token].item()
            made = [*group[source].token_ids, token]
            reason = group[source].ending.reason(made)
            if reason in ("eos", "stop"):
                if value > best.score:
                    self._best[group[0].index] = best = _Best(value, made, [*group[source].logprobs, logprob], reason)
            elif len(kept) < self.width:
                kept.append((source, token, logprob))
        while len(kept) < self.width:  # hardly any token is left that does not end: the last one again
            kept.append(kept[-1] if kept else (0, int(flat[0]) % vocabulary, float("-inf")))
        return kept

    def _over(self, group: list[Row]) -> bool:
        under_way = max(sum(row.logprobs) for row in group)
        at_length = group[0].ending.reason(group[0].token_ids) == "length"
        return at_length or self._best[group[0].index].score >= under_way

    def _end(self, group: list[Row]) -> None:
        best = self._best.pop(group[0].index)
        row = max(group, key=lambda row: sum(row.logprobs))
        if sum(row.logprobs) <= best.score:
            row.token_ids, row.logprobs = best.token_ids, best.logprobs
        else:
            best.reason = "length"
        self.finish(row, best.reason)

    def cancelled(self, rows: Sequence[Row]) -> list[Row]:
        """One row for each prompt under way: the most probable as it is."""
        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.index, []).append(row)
        return [max(group, key=lambda row: sum(row.logprobs)) for group in groups.values()]
