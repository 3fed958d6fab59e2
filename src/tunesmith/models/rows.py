"""The rows under way: one forward pass for new prompts, one for each further column; rows leave and others come.

Rows [0, n) of the cache are alive and all write the same column next; a prompt that comes later stands right-aligned at
that column, and the mask hides what was there before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Switch, virtuals
from tunesmith.adapters.virtual import FIRST, Virtual
from tunesmith.models.cache import COLUMN_BLOCK, RowCache

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(frozen=True)
class Ending:
    """When an answer ends."""

    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    decode: Callable[[list[int]], str] | None = None

    def reason(self, token_ids: list[int]) -> FinishReason | None:
        if token_ids[-1] in self.eos_ids:
            return "eos"
        if self.strings and self.decode is not None:
            # a token may be a fraction of a character, never more than four make one
            tail = self.decode(token_ids[-4 * max(map(len, self.strings)) - 4 :])
            if any(string in tail for string in self.strings):
                return "stop"
        return "length" if len(token_ids) >= self.max_new_tokens else None


@dataclass
class Row:
    """One answer under way."""

    index: int
    prompt: Sequence[int]
    adapter: str | None
    u: Tensor | None
    ending: Ending
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    start: int = 0
    """Column of its first token."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.token_ids)


@dataclass
class Prefix:
    """Tokens that every prompt begins with: their keys and values, one row per adapter."""

    length: int
    adapters: list[str | None]
    cache: RowCache


class UnderWay(Protocol):
    """Rows that are answered, however they are run: in one batch, or each alone (models/alone.py)."""

    rows: list[Row]

    def admit(self, groups: list[list[Row]]) -> Tensor: ...

    def step(self) -> Tensor: ...

    def drop(self, ended: Collection[int]) -> None: ...

    def copy_rows(self, sources: list[int], targets: list[int]) -> None: ...


class Batch:
    """The rows under way and their cache. Rows [0, n) are alive; all write column `end` next."""

    def __init__(
        self, model: PreTrainedModel, num_rows: int, switch: Switch | None, prefix: Prefix | None, prefill_tokens: int
    ) -> None:
        self.model, self.switch, self.prefix, self.prefill_tokens = model, switch, prefix, prefill_tokens
        self.device = model.device
        self.rows: list[Row] = []
        self.cache = RowCache(num_rows, 0)
        self.mask = torch.zeros(num_rows, 0, dtype=torch.bool, device=self.device)
        self.end = 0
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    @property
    def first(self) -> int:
        return min((row.start for row in self.rows), default=self.end)

    def _room(self, columns_before: int, columns_after: int) -> None:
        """Make sure that `columns_before` columns precede `end`, and `columns_after` follow it."""
        if columns_before <= self.end and self.end + columns_after <= self.cache.num_columns:
            return
        first, used = self.first, self.end - self.first
        to = max(0, columns_before - used)
        num_columns = -(-(to + used + columns_after) // COLUMN_BLOCK) * COLUMN_BLOCK
        self.cache.relay(self.cache.num_rows, num_columns, first, self.end, to)
        mask = self.mask.new_zeros(self.cache.num_rows, num_columns)
        mask[:, to : to + used] = self.mask[:, first : self.end]
        for row in self.rows:
            row.start += to - first
        self.mask, self.end = mask, to + used

    def _forward(self, tokens: Tensor, rows: slice, first: int, end: int, adapters: list[str | None]) -> Tensor:
        """tokens [B, Q] into columns [end, end + Q) of `rows` -> logits of the last column [B, V]."""
        mask = self.mask[rows, first : end + tokens.shape[1]]
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask.long(), **self.last_only}
        if self.takes_positions:
            inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp_(min=0)[:, -tokens.shape[1] :]
        self.cache.look_at(rows, first, end)
        leads = virtuals(self.model, adapters, self.switch)
        self.cache.given = _given(tokens, leads)
        gated = {lead for lead in leads if lead is not None and lead.gates}
        if gated:
            inputs["gated"] = [([row for row, own in enumerate(leads) if own is lead], lead) for lead in gated]
        with adapters_set(self.switch, adapters):
            logits = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits
        return logits[:, -1]

    def admit(self, groups: list[list[Row]]) -> Tensor:
        """Prefill one row per group, copy it to the group's other rows -> logits [rows admitted, V].

        A group's rows have one prompt; the order of the result is that of `self.rows[n:]`.
        """
        heads = [group[0] for group in groups]
        longest = max(len(head.prompt) for head in heads)
        self._room(longest, 1)
        n, end = len(self.rows), self.end
        rows = slice(n, n + len(heads))
        tokens = torch.zeros(len(heads), longest, dtype=torch.long)
        self.mask[n : n + sum(map(len, groups))] = False
        for i, head in enumerate(heads):
            tokens[i, longest - len(head.prompt) :] = torch.tensor(head.prompt)
            self.mask[n + i, end - len(head.prompt) : end] = True
        tokens = tokens.to(self.device)
        done = self._take_prefix(heads, rows, end - longest)
        adapters = [head.adapter for head in heads]
        width = max(1, self.prefill_tokens // len(heads))
        for column in range(done, longest, width):
            piece = tokens[:, column : column + width]
            logits = self._forward(piece, rows, end - longest, end - longest + column, adapters)
        sources = [i for i, group in enumerate(groups) for _ in group[1:]]
        targets = list(range(n + len(heads), n + len(heads) + len(sources)))
        self.cache.copy_rows([n + i for i in sources], targets, end - longest, end)
        self.mask[targets] = self.mask[[n + i for i in sources]]
        admitted = heads + [row for group in groups for row in group[1:]]
        for row in admitted:
            row.start = end - len(row.prompt)
        self.rows += admitted
        return logits[[*range(len(heads)), *sources]]

    def _take_prefix(self, heads: list[Row], rows: slice, first: int) -> int:
        """Fill the first columns from the shared prefix -> how many. A shorter prompt's row holds less of it: the
        rest of its prefix is computed again, within columns that the longest prompt needs anyway."""
        if self.prefix is None:
            return 0
        longest = max(len(head.prompt) for head in heads)
        padding = torch.tensor([longest - len(head.prompt) for head in heads])
        columns = (torch.arange(self.prefix.length) - padding[:, None]).clamp_(min=0)
        sources = torch.tensor([self.prefix.adapters.index(head.adapter) for head in heads])
        self.cache.take_prefix(self.prefix.cache, rows, sources.to(self.device), columns.to(self.device), first)
        return self.prefix.length

    def step(self) -> Tensor:
        """One more column of every row -> logits [n, V]."""
        self._room(0, 1)
        n = len(self.rows)
        tokens = torch.tensor([row.token_ids[-1] for row in self.rows], device=self.device)[:, None]
        self.mask[:n, self.end] = True
        logits = self._forward(tokens, slice(0, n), self.first, self.end, [row.adapter for row in self.rows])
        self.end += 1
        return logits

    def drop(self, ended: Collection[int]) -> None:
        """Rows `ended` leave; those from the back take their places."""
        kept = len(self.rows) - len(ended)
        targets = [i for i in sorted(ended) if i < kept]
        sources = [i for i in range(kept, len(self.rows)) if i not in ended]
        self.cache.copy_rows(sources, targets, self.first, self.end)
        self.mask[targets] = self.mask[sources]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[kept:]
        self.mask[kept:] = False

    def copy_rows(self, sources: list[int], targets: list[int]) -> None:
        """What row `sources[i]` has computed of its answer becomes that of row `targets[i]`, which has its prompt."""
        first = min((self.rows[at].start + len(self.rows[at].prompt) for at in sources), default=self.end)
        if first < self.end:
            self.cache.copy_rows(sources, targets, first, self.end)


def _given(
    tokens: Tensor, leads: list[Virtual | None]
) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Puts the learned keys and values of virtual tokens in place of what the model computes for them."""
    if not any(leads) or not bool((tokens >= FIRST).any()):
        return None
    learned: dict[int, Any] = {}
    parts = []
    for row, lead in enumerate(leads):
        columns = (tokens[row] >= FIRST).nonzero()[:, 0] if lead is not None else ()
        if lead is None or not len(columns):
            continue
        if id(lead) not in learned:
            learned[id(lead)] = lead.keys_values()
        if learned[id(lead)] is not None:
            parts.append((row, columns, tokens[row, columns] - FIRST, learned[id(lead)]))
    if not parts:
        return None

    def given(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        made = keys.clone(), values.clone()
        for row, columns, place, each in parts:
            for own, known in zip(made, each[layer], strict=True):
                own[row, :, columns] = known[:, place].to(own.dtype)
        return made

    return given


@contextmanager
def adapters_set(switch: Switch | None, adapters: list[str | None]) -> Iterator[None]:
    """The rows' adapters for the length of a forward pass; one for all where they agree."""
    with nullcontext() if switch is None else switch.set_to(*_setting(adapters)):
        yield


def _setting(adapters: list[str | None]) -> tuple[str | None, list[str | None] | None]:
    return (adapters[0], None) if len(set(adapters)) == 1 else (None, adapters)
