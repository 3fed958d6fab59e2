"""Answers from any causal language model: token in, token out, batched over a preallocated cache (or, where layers keep
a state that padding would spoil, one at a time: models/alone.py).

    prompts --longest first, a shared prefix computed once--> rows of one cache (models/cache.py)
            --each step: one forward of one column, one choice per row (models/sampling.py)-->
            rows that end leave, waiting prompts take their places, answers come back in the callers' order

Greedy answers equal `transformers.generate`; a row's answer depends on neither its neighbours nor their adapters.
Text is never tokenised again: whoever needs text decodes the ids, `models/text_stream.py` piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tunesmith.adapters.attach import Switch, slots, virtuals
from tunesmith.errors import AdapterError
from tunesmith.models import attention
from tunesmith.models.alone import Alone, why_alone
from tunesmith.models.beams import Beams
from tunesmith.models.cache import RowCache
from tunesmith.models.rows import Batch, Ending, FinishReason, Prefix, Row, UnderWay
from tunesmith.models.sampling import Sampling, choose, uniforms

Decode = Callable[[list[int]], str]

MAX_ROWS = 128
"""Rows at a time, unless told otherwise."""
CACHE_BYTES = 2 << 30
"""Most that their cache takes, unless told otherwise or one row needs more."""
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
class _Answers:
    """What is made of the logits: a token for each row, and the answers of the rows that end."""

    made: list[Generated | None]
    sampling: Sampling
    want_logprobs: bool
    on_token: Callable[[int, int], object] | None
    on_answer: Callable[[int, Generated], object] | None
    memory: Memory | None

    def take(self, batch: UnderWay, rows: list[Row], logits: Tensor) -> None:
        """Choose a token for each of `rows` (the last of the batch), and let go of those that end with it."""
        u = None
        if self.sampling.temperature > 0:
            u = torch.stack([row.u[len(row.token_ids)] for row in rows if row.u is not None]).to(logits.device)
        tokens, logprobs = choose(logits, self.sampling, u, self.want_logprobs)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.token_ids.append(token)
            if self.on_token:
                self.on_token(row.index, token)
        if logprobs is not None:
            for row, value in zip(rows, logprobs.tolist(), strict=True):
                row.logprobs.append(value)
        offset = len(batch.rows) - len(rows)
        reasons = {offset + i: reason for i, row in enumerate(rows) if (reason := row.ending.reason(row.token_ids))}
        ended = [(batch.rows[i], reason) for i, reason in reasons.items()]
        if self.memory is not None and ended and isinstance(batch, Batch):
            _remember(self.memory, batch, ended[0][0])
        batch.drop(reasons.keys())
        for row, reason in ended:
            self.finish(row, reason)

    def finish(self, row: Row, reason: FinishReason) -> None:
        answer = Generated(row.token_ids, reason, row.logprobs if self.want_logprobs else None)
        self.made[row.index] = answer
        if self.on_answer:
            self.on_answer(row.index, answer)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    eos_ids: Collection[int] | Sequence[Collection[int]],
    num_samples: int = 1,
    num_beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stop_strings: Sequence[str] = (),
    decode: Decode | Sequence[Decode] | None = None,
    want_logprobs: bool = False,
    switch: Switch | None = None,
    adapters: Sequence[str | None] | None = None,
    on_token: Callable[[int, int], object] | None = None,
    on_answer: Callable[[int, Generated], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
    memory: Memory | None = None,
    row_ids: Sequence[int] | None = None,
    max_rows: int = MAX_ROWS,
    prefill_tokens: int = 4096,
    cache_bytes: int = CACHE_BYTES,
) -> list[Generated]:
    """Answers to `prompts`, `num_samples` for each, in the callers' order (prompt 0's samples first).

    max_new_tokens, eos_ids, decode   one for all prompts, or a list of one for each
    num_beams       above 1: the most probable whole answer by beam search (models/beams.py), told when it is there
    decode          ids -> text, needed for `stop_strings`
    adapters        one name (None: the base) per prompt; needs `switch`. Absent: the switch stays as it is set
    on_token        (answer's index, token id), as it is chosen; on_answer (index, answer), as it ends
    cancelled       asked between tokens; what is unfinished comes back as it is, "cancelled"
    row_ids         one number per prompt that, with `seed`, decides its draws; absent: its place in `prompts`
    memory          of a conversation of one prompt at a time: what it shares with the last call is not computed again
    max_rows, prefill_tokens, cache_bytes   bounds on rows at a time, tokens in a prefill pass, and the cache's size
    """
    sampling = Sampling(temperature, top_p, top_k, seed)
    endings = _endings(len(prompts), max_new_tokens, eos_ids, tuple(stop_strings), decode)
    names = _check(model, prompts, num_samples, num_beams, switch, adapters)
    leads = virtuals(model, names, switch)
    prompts = [prompt if lead is None else [*lead.ids, *prompt] for prompt, lead in zip(prompts, leads, strict=True)]
    answers = _Answers([None] * (len(prompts) * num_samples), sampling, want_logprobs, on_token, on_answer, memory)
    beams = None
    if num_beams > 1:
        _check_beams(num_samples, temperature, on_token, memory)
        beams = Beams(num_beams, answers.finish)
    ids = range(len(prompts)) if row_ids is None else row_ids
    waiting = _groups(prompts, names, ids, num_samples, sampling, endings, num_beams)
    chooser = answers if beams is None else beams
    with _for_generation(model, any(lead is not None and lead.gates for lead in leads)):
        batch: UnderWay
        if why_alone(model) is None:
            longest = max((len(p) + end.max_new_tokens for p, end in zip(prompts, endings, strict=True)), default=1)
            fit = cache_bytes // (longest * bytes_per_token(model.config, model.dtype))
            num_rows = max(num_beams, min(max_rows, len(answers.made) * num_beams, fit))
            prefix = _recall(memory, prompts, names) or _shared_prefix(model, prompts, names, switch, prefill_tokens)
            batch = Batch(model, num_rows, switch, prefix, prefill_tokens)
        else:
            largest = max(map(len, waiting), default=1)
            num_rows = max(num_beams, min(max_rows, largest))  # of one prompt, which is computed once
            batch = Alone(model, switch)
        while waiting or batch.rows:
            if cancelled and cancelled():
                break
            if groups := _next_groups(waiting, num_rows - len(batch.rows), num_rows, prefill_tokens, beams is None):
                logits = batch.admit(groups)
                chooser.take(batch, batch.rows[-sum(map(len, groups)) :], logits)
            elif batch.rows:
                chooser.take(batch, list(batch.rows), batch.step())
        if memory is not None and batch.rows and isinstance(batch, Batch):
            _remember(memory, batch, batch.rows[0])
    left = [*batch.rows, *(row for group in waiting for row in group)]
    for row in left if beams is None else beams.cancelled(left):
        answers.finish(row, "cancelled")
    return [made for made in answers.made if made is not None]


def _endings(
    count: int,
    max_new_tokens: int | Sequence[int],
    eos_ids: Collection[int] | Sequence[Collection[int]],
    stop_strings: tuple[str, ...],
    decode: Decode | Sequence[Decode] | None,
) -> list[Ending]:
    """When each of `count` answers ends."""
    if stop_strings and decode is None:
        raise ValueError("stop_strings needs `decode`, from token ids to text")
    mosts: Any = [max_new_tokens] * count if isinstance(max_new_tokens, int) else max_new_tokens
    ends: Any = [eos_ids] * count if all(isinstance(end, int) for end in eos_ids) else eos_ids
    decoders: Any = [decode] * count if decode is None or callable(decode) else decode
    if not len(mosts) == len(ends) == len(decoders) == count:
        raise ValueError("max_new_tokens, eos_ids and decode are one for all prompts, or one for each")
    if min(mosts, default=1) < 1:
        raise ValueError("max_new_tokens is at least 1")
    return [Ending(most, frozenset(end), stop_strings, d) for most, end, d in zip(mosts, ends, decoders, strict=True)]


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    num_beams: int,
    switch: Switch | None,
    adapters: Sequence[str | None] | None,
) -> list[str | None]:
    """The adapter's name for each prompt, or the reason why this cannot be run."""
    if num_samples < 1 or num_beams < 1:
        raise ValueError("num_samples and num_beams are at least 1")
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


def _check_beams(num_samples: int, temperature: float, on_token: Any, memory: Memory | None) -> None:
    if num_samples != 1 or temperature > 0:
        raise ValueError("num_beams looks for one most probable answer: num_samples is 1 and temperature 0 with it")
    if on_token is not None or memory is not None:
        raise ValueError("num_beams knows its answer at the end: no on_token and no memory with it")


@contextmanager
def _for_generation(model: PreTrainedModel, gated: bool) -> Iterator[None]:
    """Evaluation mode and an attention that knows padding and a cache (and gates), then both as they were."""
    training, implementation = model.training, model.config._attn_implementation
    other = implementation not in ("eager", "sdpa") or gated
    if gated:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    elif other:
        capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
        model.set_attn_implementation("sdpa" if model._supports_sdpa and not capped else "eager")
    if training:
        model.eval()
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(_contiguous) if isinstance(head, torch.nn.Module) else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        if other:
            model.set_attn_implementation(implementation)
        if training:
            model.train()


def _contiguous(_: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """The last column of many is a view with gaps, for which torch multiplies with one copy of the head per row."""
    return (inputs[0].contiguous(),)


def bytes_per_token(whole: PretrainedConfig, dtype: torch.dtype) -> int:
    """Of the cache, layer by layer from the config: an upper estimate where the model stores something smaller."""
    config: Any = whole.get_text_config()
    each = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    numbers = 0
    for layer in each:  # Gemma 4's are not alike, and its config as a whole has no width to ask for
        all_heads = getattr(layer, "num_attention_heads", None) or 1
        heads = getattr(layer, "num_key_value_heads", None) or all_heads
        width = getattr(layer, "head_dim", None) or layer.hidden_size // all_heads
        numbers += 2 * heads * width
    return int(numbers * dtype.itemsize)


def _groups(
    prompts: Sequence[Sequence[int]],
    names: list[str | None],
    ids: Sequence[int],
    num_samples: int,
    sampling: Sampling,
    endings: list[Ending],
    num_beams: int,
) -> list[list[Row]]:
    """The rows of each prompt, shortest prompt first (they are taken from the end); beams of one share its index.

    A prompt that is given several times (the first turn of a group's episodes) is computed once.
    """

    def row(i: int, j: int) -> Row:
        u = None
        if sampling.temperature > 0:
            u = torch.from_numpy(uniforms(sampling.seed, ids[i] * num_samples + j, endings[i].max_new_tokens))
        return Row(i * num_samples + j, prompts[i], names[i], u, endings[i])

    made: dict[Any, list[Row]] = {}
    for i, prompt in enumerate(prompts):
        own = i if num_beams > 1 else (names[i], tuple(prompt))
        made.setdefault(own, []).extend(row(i, j) for j in range(num_samples) for _ in range(num_beams))
    return sorted(made.values(), key=lambda group: len(group[0].prompt))


def _next_groups(
    waiting: list[list[Row]], free: int, num_rows: int, prefill_tokens: int, may_split: bool
) -> list[list[Row]]:
    """Groups off the end of `waiting` that fit into `free` rows and one prefill pass.

    Single rows are not let in one by one: a pass over a few prompts costs nearly as much as one over many.
    """
    if not waiting or free < min(max(1, num_rows // 4), sum(map(len, waiting))):
        return []
    taken: list[list[Row]] = []
    columns = len(waiting[-1][0].prompt)
    while waiting and free:
        if taken and (len(taken) + 1) * columns > prefill_tokens:
            break
        group = waiting.pop()
        if len(group) > free and not may_split:
            waiting.append(group)
            break
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
) -> Prefix | None:
    """Compute what all prompts begin with once per adapter, if it is long enough."""
    if len(prompts) < 2:
        return None
    length = min(_common(min(map(list, prompts)), max(map(list, prompts))), min(map(len, prompts)) - 1)
    adapters = list(dict.fromkeys(names))
    if length < SHORTEST_PREFIX or len(adapters) == len(prompts):
        return None
    batch = Batch(model, len(adapters), switch, None, prefill_tokens)
    batch.admit([[Row(0, list(prompts[0][:length]), name, None, Ending(1))] for name in adapters])
    return Prefix(length, adapters, batch.cache)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _recall(memory: Memory | None, prompts: Sequence[Sequence[int]], names: list[str | None]) -> Prefix | None:
    """What the conversation has computed of this prompt, if its adapter is the same."""
    if memory is None:
        return None
    if len(prompts) != 1:
        raise ValueError("a memory is of one conversation: one prompt at a time")
    length = min(_common(memory.token_ids, prompts[0]), len(prompts[0]) - 1)
    if memory.cache is None or memory.adapter != names[0] or length < 1:
        return None
    return Prefix(length, [names[0]], memory.cache)


def _remember(memory: Memory, batch: Batch, row: Row) -> None:
    """Keep the row's columns: its prompt and all of its answer but the last token, which no forward pass has seen."""
    memory.token_ids = [*row.prompt, *row.token_ids[:-1]]
    memory.adapter = row.adapter
    memory.cache = batch.cache
    width = batch.end - row.start
    batch.cache.relay(1, width, row.start, batch.end, 0)
