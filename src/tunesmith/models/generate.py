"""Answers from any causal language model: token in, token out, batched over a preallocated cache.

    prompts --longest first, a shared prefix computed once--> rows of one cache (models/cache.py)
            --each step: one forward of one column, one choice per row (models/sampling.py)-->
            rows that end leave, waiting prompts take their places, answers come back in the callers' order

Greedy answers equal `transformers.generate`; a row's answer depends on neither its neighbours nor their adapters.
Text is never tokenised again: whoever needs text decodes the ids, `TextStream` piece by piece.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Switch, slots
from tunesmith.errors import AdapterError, ModelError
from tunesmith.models.cache import COLUMN_BLOCK, RowCache
from tunesmith.models.sampling import Sampling, choose, uniforms

FinishReason = Literal["eos", "stop", "length", "cancelled"]

SHORTEST_PREFIX = 16
"""A shorter common beginning is not worth a pass of its own."""


@dataclass(frozen=True)
class Generated:
    """One answer. `token_ids` holds the end token where there is one (a policy chose it too)."""

    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    """Of each token under softmax(logits / temperature), if asked for."""

    @property
    def content_ids(self) -> list[int]:
        """Without the end token."""
        return self.token_ids[:-1] if self.finish_reason == "eos" else self.token_ids


@dataclass
class Memory:
    """What one conversation has computed so far, so that its next turn computes the new tokens alone."""

    token_ids: list[int] = field(default_factory=list)
    adapter: str | None = None
    cache: RowCache | None = None


@dataclass
class _Row:
    """One answer under way."""

    index: int
    prompt: Sequence[int]
    adapter: str | None
    u: Tensor | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    start: int = 0
    """Column of its first token."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.token_ids)


@dataclass
class _Prefix:
    """Tokens that every prompt begins with: their keys and values, one row per adapter."""

    length: int
    adapters: list[str | None]
    cache: RowCache


@dataclass(frozen=True)
class _Stop:
    """When an answer ends."""

    max_new_tokens: int
    eos_ids: frozenset[int]
    strings: tuple[str, ...]
    decode: Callable[[list[int]], str] | None

    def reason(self, row: _Row) -> FinishReason | None:
        if row.token_ids[-1] in self.eos_ids:
            return "eos"
        if self.strings and self.decode is not None:
            # a token may be a fraction of a character, never more than four make one
            tail = self.decode(row.token_ids[-4 * max(map(len, self.strings)) - 4 :])
            if any(string in tail for string in self.strings):
                return "stop"
        return "length" if len(row.token_ids) >= self.max_new_tokens else None


class _Batch:
    """The rows under way and their cache. Rows [0, n) are alive; all write column `end` next."""

    def __init__(
        self, model: PreTrainedModel, num_rows: int, switch: Switch | None, prefix: _Prefix | None, prefill_tokens: int
    ) -> None:
        self.model, self.switch, self.prefix, self.prefill_tokens = model, switch, prefix, prefill_tokens
        self.device = model.device
        self.rows: list[_Row] = []
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
        with _adapters_set(self.switch, adapters):
            logits = self.model(**inputs, past_key_values=self.cache, use_cache=True).logits
        return logits[:, -1]

    def admit(self, groups: list[list[_Row]]) -> Tensor:
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

    def _take_prefix(self, heads: list[_Row], rows: slice, first: int) -> int:
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


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Collection[int],
    num_samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    want_logprobs: bool = False,
    switch: Switch | None = None,
    adapters: Sequence[str | None] | None = None,
    on_token: Callable[[int, int], object] | None = None,
    on_answer: Callable[[int, Generated], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
    memory: Memory | None = None,
    row_ids: Sequence[int] | None = None,
    max_rows: int = 128,
    prefill_tokens: int = 4096,
    cache_bytes: int = 2 << 30,
) -> list[Generated]:
    """Answers to `prompts`, `num_samples` for each, in the callers' order (prompt 0's samples first).

    adapters        one name (None: the base) per prompt; needs `switch`. Absent: the switch stays as it is set
    decode          ids -> text, needed for `stop_strings`
    on_token        (answer's index, token id), as it is chosen; on_answer (index, answer), as it ends
    cancelled       asked between tokens; what is unfinished comes back as it is, "cancelled"
    row_ids         one number per prompt that, with `seed`, decides its draws; absent: its place in `prompts`
    memory          of a conversation of one prompt at a time: what it shares with the last call is not computed again
    max_rows, prefill_tokens, cache_bytes   bounds on rows at a time, tokens in a prefill pass, and the cache's size
    """
    sampling = Sampling(temperature, top_p, top_k, seed)
    names = _check(model, prompts, num_samples, max_new_tokens, switch, adapters, stop_strings, decode)
    stop = _Stop(max_new_tokens, frozenset(eos_ids), tuple(stop_strings), decode)
    results: list[Generated | None] = [None] * (len(prompts) * num_samples)

    def finish(row: _Row, reason: FinishReason) -> None:
        answer = Generated(row.token_ids, reason, row.logprobs if want_logprobs else None)
        results[row.index] = answer
        if on_answer:
            on_answer(row.index, answer)

    def take(batch: _Batch, rows: list[_Row], logits: Tensor) -> None:
        """Choose a token for each of `rows` (the last of the batch), and let go of those that end with it."""
        u = None
        if temperature > 0:
            u = torch.stack([row.u[len(row.token_ids)] for row in rows if row.u is not None]).to(logits.device)
        tokens, logprobs = choose(logits, sampling, u, want_logprobs)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.token_ids.append(token)
            if on_token:
                on_token(row.index, token)
        if logprobs is not None:
            for row, value in zip(rows, logprobs.tolist(), strict=True):
                row.logprobs.append(value)
        offset = len(batch.rows) - len(rows)
        reasons = {offset + i: reason for i, row in enumerate(rows) if (reason := stop.reason(row))}
        ended = [(batch.rows[i], reason) for i, reason in reasons.items()]
        if memory is not None and ended:
            _remember(memory, batch, ended[0][0])
        batch.drop(reasons.keys())
        for row, reason in ended:
            finish(row, reason)

    ids = range(len(prompts)) if row_ids is None else row_ids
    waiting = _groups(prompts, names, ids, num_samples, sampling, max_new_tokens)
    with _for_generation(model):
        longest = max((len(prompt) for prompt in prompts), default=1) + max_new_tokens
        num_rows = max(1, min(max_rows, len(results), cache_bytes // (longest * _bytes_per_token(model))))
        prefix = _recall(memory, prompts, names) or _shared_prefix(model, prompts, names, switch, prefill_tokens)
        batch = _Batch(model, num_rows, switch, prefix, prefill_tokens)
        while waiting or batch.rows:
            if cancelled and cancelled():
                break
            if groups := _next_groups(waiting, num_rows - len(batch.rows), num_rows, prefill_tokens):
                logits = batch.admit(groups)
                take(batch, batch.rows[-sum(map(len, groups)) :], logits)
            elif batch.rows:
                take(batch, list(batch.rows), batch.step())
        if memory is not None and batch.rows:
            _remember(memory, batch, batch.rows[0])
    for row in [*batch.rows, *(row for group in waiting for row in group)]:
        finish(row, "cancelled")
    return [result for result in results if result is not None]


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    max_new_tokens: int,
    switch: Switch | None,
    adapters: Sequence[str | None] | None,
    stop_strings: Sequence[str],
    decode: Callable[[list[int]], str] | None,
) -> list[str | None]:
    """The adapter's name for each prompt, or the reason why this cannot be run."""
    if max_new_tokens < 1 or num_samples < 1:
        raise ValueError("max_new_tokens and num_samples are at least 1")
    if stop_strings and decode is None:
        raise ValueError("stop_strings needs `decode`, from token ids to text")
    if memory_types := _unknown_layers(model):
        raise ModelError(
            f"{type(model).__name__} cannot answer in batches",
            found=f"layers of the kind {', '.join(sorted(memory_types))}",
            expected="attention alone: padding would run through such a layer's state",
        )
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} is empty; a model without a BOS token needs at least one token")
    if adapters is None:
        return [None] * len(prompts)
    if switch is None or len(adapters) != len(prompts):
        raise ValueError("adapters needs a switch, and one name (or None) per prompt")
    here = {name for slot in slots(model).values() for name in slot.adapters}
    if missing := sorted({name for name in adapters if name is not None} - here):
        raise AdapterError(
            f"no adapter is called {', '.join(missing)}", expected=", ".join(sorted(here)) or "none is loaded"
        )
    return list(adapters)


def _unknown_layers(model: PreTrainedModel) -> set[str]:
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    known = {"full_attention", "sliding_attention", "chunked_attention", "moe", "mlp"}
    stateful = {"recurrent"} if getattr(model, "_is_stateful", False) else set()
    return (set(kinds) - known) | stateful


@contextmanager
def _adapters_set(switch: Switch | None, adapters: list[str | None]) -> Iterator[None]:
    """The rows' adapters for the length of a forward pass; one for all where they agree."""
    with nullcontext() if switch is None else switch.set_to(*_setting(adapters)):
        yield


def _setting(adapters: list[str | None]) -> tuple[str | None, list[str | None] | None]:
    return (adapters[0], None) if len(set(adapters)) == 1 else (None, adapters)


@contextmanager
def _for_generation(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and an attention that knows padding and a cache, then both as they were."""
    training, implementation = model.training, model.config._attn_implementation
    other = implementation not in ("eager", "sdpa")
    if other:
        capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
        model.set_attn_implementation("sdpa" if model._supports_sdpa and not capped else "eager")
    if training:
        model.eval()
    try:
        yield
    finally:
        if other:
            model.set_attn_implementation(implementation)
        if training:
            model.train()


def _bytes_per_token(model: PreTrainedModel) -> int:
    """Of the cache, from the config: an upper estimate where the model stores something smaller."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


def _groups(
    prompts: Sequence[Sequence[int]],
    names: list[str | None],
    ids: Sequence[int],
    num_samples: int,
    sampling: Sampling,
    max_new_tokens: int,
) -> list[list[_Row]]:
    """The rows of each prompt, shortest prompt first (they are taken from the end)."""

    def row(i: int, j: int) -> _Row:
        u = None
        if sampling.temperature > 0:
            u = torch.from_numpy(uniforms(sampling.seed, ids[i] * num_samples + j, max_new_tokens))
        return _Row(i * num_samples + j, prompts[i], names[i], u)

    made = [[row(i, j) for j in range(num_samples)] for i in range(len(prompts))]
    return sorted(made, key=lambda group: len(group[0].prompt))


def _next_groups(waiting: list[list[_Row]], free: int, num_rows: int, prefill_tokens: int) -> list[list[_Row]]:
    """Groups off the end of `waiting` that fit into `free` rows and one prefill pass.

    Single rows are not let in one by one: a pass over a few prompts costs nearly as much as one over many.
    """
    if not waiting or free < min(max(1, num_rows // 4), sum(map(len, waiting))):
        return []
    taken: list[list[_Row]] = []
    columns = len(waiting[-1][0].prompt)
    while waiting and free:
        if taken and (len(taken) + 1) * columns > prefill_tokens:
            break
        group = waiting.pop()
        if len(group) > free:
            # a group larger than the room: the rest of it is prefilled again later
            waiting.append(group[free:])
            group = group[:free]
        taken.append(group)
        free -= len(group)
    return taken


def _shared_prefix(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    names: list[str | None],
    switch: Switch | None,
    prefill_tokens: int,
) -> _Prefix | None:
    """Compute what all prompts begin with once per adapter, if it is long enough."""
    if len(prompts) < 2:
        return None
    length = min(_common(min(map(list, prompts)), max(map(list, prompts))), min(map(len, prompts)) - 1)
    adapters = list(dict.fromkeys(names))
    if length < SHORTEST_PREFIX or len(adapters) == len(prompts):
        return None
    batch = _Batch(model, len(adapters), switch, None, prefill_tokens)
    batch.admit([[_Row(0, list(prompts[0][:length]), name, None)] for name in adapters])
    return _Prefix(length, adapters, batch.cache)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _recall(memory: Memory | None, prompts: Sequence[Sequence[int]], names: list[str | None]) -> _Prefix | None:
    """What the conversation has computed of this prompt, if its adapter is the same."""
    if memory is None:
        return None
    if len(prompts) != 1:
        raise ValueError("a memory is of one conversation: one prompt at a time")
    length = min(_common(memory.token_ids, prompts[0]), len(prompts[0]) - 1)
    if memory.cache is None or memory.adapter != names[0] or length < 1:
        return None
    return _Prefix(length, [names[0]], memory.cache)


def _remember(memory: Memory, batch: _Batch, row: _Row) -> None:
    """Keep the row's columns: its prompt and all of its answer but the last token, which no forward pass has seen."""
    memory.token_ids = [*row.prompt, *row.token_ids[:-1]]
    memory.adapter = row.adapter
    memory.cache = batch.cache
    width = batch.end - row.start
    batch.cache.relay(1, width, row.start, batch.end, 0)


class TextStream:
    """Token ids in, text out, piece by piece, never half a character.

    Some decoders drop a leading space or join what follows, so each piece is the difference between two decodings
    that begin at the same token.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown_from = 0
        self._shown_to = 0

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; "" while a character is incomplete."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._shown_from : self._shown_to])
        now = self._decode(self._ids[self._shown_from :])
        if len(now) <= len(before) or now.endswith("�"):
            return ""
        self._shown_from, self._shown_to = self._shown_to, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left at the end, incomplete characters as they decode."""
        before = self._decode(self._ids[self._shown_from : self._shown_to])
        return self._decode(self._ids[self._shown_from :])[len(before) :]
