"""One optimizer step on tensors without numbers: what it would hold, by part, and how much it would multiply.

The model, the adapter, the objective and the optimizer are those of the run, and so is their code: what is counted is
what they would do. The step is the one whose micro-batch is the largest of those looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.adapter_set import AdapterSet, Counts, add
from tunesmith.adapters.attach import Switch
from tunesmith.data.types import Batch, Example
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.ghost import Meter
from tunesmith.models.hollow import device_of, hollow_model, hollow_policy
from tunesmith.models.policy import Policy, flat_batch
from tunesmith.objectives.base import Objective, Step
from tunesmith.recipe import Recipe
from tunesmith.train.mode import recompute_blocks, train_mode
from tunesmith.train.noise import NEFTune
from tunesmith.train.optim import make_optimizer

LOOKED_AT = 20
"""Steps among which the largest micro-batch is sought, beside that of the longest row."""
NAME = "planned"
SMALL, BLOCK = 4096, 256
"""bitsandbytes' 8-bit AdamW: smaller tensors keep their moments in fp32; one fp32 scale for each so many numbers."""


@dataclass(frozen=True)
class Parts:
    """Bytes that one step holds, by what holds them."""

    weights: int
    """The frozen base."""
    adapter: int
    """What learns, and what the method keeps beside it."""
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass, without the loss."""
    loss: int
    """What reckoning the loss and the gradient of the last hidden states adds, at most."""
    peak: int
    """The most at once, of all."""
    answering: int
    """What answering one row of the micro-batch's longest length takes, base and adapter too."""

    @property
    def lasting(self) -> int:
        """What is held from step to step."""
        return self.weights + self.adapter + self.gradients + self.optimizer

    @property
    def saving(self) -> int:
        """While a checkpoint is written: what learns and its moments are there once more as bytes, and so is the
        adapter's own file. Gradients, which are as large as what learns, are gone by then."""
        return self.weights + self.adapter + 2 * self.gradients + 2 * self.optimizer

    @property
    def passing(self) -> int:
        """The most that is held beside that."""
        return max(0, self.peak - self.lasting)


@dataclass(frozen=True)
class Work:
    """What is done, however fast."""

    flops: float
    """Of matrix products, as run."""
    moved: float
    """Bytes that are written."""
    operations: float


@dataclass(frozen=True)
class Trial:
    """What one step holds and does."""

    parts: Parts
    counts: Counts
    tokens: int
    """Of the micro-batch."""
    rows: int
    longest: int
    work: Work
    """Of the micro-batch, forward and backward."""
    flat: bool
    mergeable: bool


def largest(
    objective: Objective, policy: Policy, micro_tokens: int, rows: Sequence[Example], longest: int | None = None
) -> tuple[Step, Batch, bool]:
    """The step that holds the largest micro-batch of the next ones, or of a step with the longest of `rows`; that
    micro-batch, and whether it is the step's only one. `longest`: none with a longer row, if there is another."""
    before = objective.state_dict()
    steps = list(islice(objective.steps(policy), min(LOOKED_AT, max(1, objective.steps_per_epoch))))
    objective.load_state_dict(before)
    if longest is None and rows:
        steps.append(replace(steps[0], examples=_with_siblings(rows)))
    best: tuple[tuple[bool, int, int], Step, Batch, bool] | None = None
    for step in steps:
        batches = objective.micro_batches(step, micro_tokens)
        widest = max(batches, key=lambda batch: _size(batch, policy, longest))
        size = _size(widest, policy, longest)
        if best is None or size > best[0]:
            best = size, step, widest, len(batches) == 1
    assert best is not None
    return best[1:]


def _with_siblings(rows: Sequence[Example]) -> list[Example]:
    """The longest row, and those that came of the same one: the sides of a pair stand side by side."""
    place = max(range(len(rows)), key=lambda index: len(rows[index]))
    first = last = place
    while first and rows[first - 1].origin == rows[place].origin:
        first -= 1
    while last + 1 < len(rows) and rows[last + 1].origin == rows[place].origin:
        last += 1
    return [rows[index] for index in range(first, last + 1)]


def _size(batch: Batch, policy: Policy, longest: int | None) -> tuple[bool, int, int]:
    """Whether it is allowed, the places that it takes (padding too), and its learned tokens."""
    rows = [len(segment) for segment in batch.segments]
    places = sum(rows) if policy.flat else len(rows) * max(rows) ** 2  # written-out attention grows with the square
    return longest is None or max(rows) <= longest, places, batch.num_learned


def try_step(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    micro_tokens: int,
    rows: Sequence[Example] = (),
    *,
    trust_remote_code: bool = False,
    blocks: int | None = None,
    longest: int | None = None,
) -> Trial:
    """Run one step of `recipe` without numbers. What needs a number to go on is a `ModelError` that says so.

    `blocks`: of a model of so many blocks. `longest`: among micro-batches with no longer row.
    """
    meter = Meter(device_of(recipe.model))
    with meter.on():
        try:
            model = hollow_model(
                recipe.model,
                tokenizer,
                meter,
                trust_remote_code=trust_remote_code,
                head=objective.head,
                blocks=blocks,
            )
            return _tried(recipe, tokenizer, objective, micro_tokens, rows, longest, meter, model)
        except TunesmithError:
            raise
        except Exception as error:  # of transformers' own code, or of ours, which a ghost has no numbers for
            raise ModelError(
                "what this model holds while training cannot be told from shapes alone",
                found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
                fix="tunesmith rehearse trains a few real steps and says what they took",
            ) from error


def _tried(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    micro_tokens: int,
    rows: Sequence[Example],
    longest: int | None,
    meter: Meter,
    model: PreTrainedModel,
) -> Trial:
    weights, switch = meter.bytes, Switch()
    adapter_set = _added(recipe, model, tokenizer, switch)
    switch.name = NAME
    policy = hollow_policy(model, switch)
    if recipe.train.neftune_alpha is not None:
        policy.noise = NEFTune(recipe.train.neftune_alpha)
    if recipe.train.recompute:
        recompute_blocks(model)
    train_mode(policy, recipe.train.recompute)
    adapter = meter.bytes - weights
    step, batch, is_only = largest(objective, policy, micro_tokens, rows, longest)
    kept = _watch_hidden(policy, meter)
    learned = adapter_set.parameters()
    update = _updates(recipe, adapter_set)
    for _ in range(2):  # the second step is as all that follow: the optimizer's state is there
        if not is_only:  # reckoned beside the gradients of those before it
            for parameter in learned.values():
                parameter.grad = torch.zeros_like(parameter)
        kept.clear()
        held = meter.reset()
        meter.flops, meter.moved, meter.operations = 0.0, 0.0, 0
        found = objective.loss(policy, batch)
        total = torch.stack([value / step.denominators[name] for name, value in found.sums.items()]).sum()
        last = max(kept, default=held)
        activations, loss = last - held, meter.peak - last
        total.backward()  # type: ignore[no-untyped-call]
        del found, total
        work = Work(meter.flops, meter.moved, meter.operations)
        gradients = sum(parameter.grad.nbytes for parameter in learned.values() if parameter.grad is not None)
        update()
        for parameter in learned.values():
            parameter.grad = None
    state = meter.bytes - weights - adapter
    peak = meter.peak
    lengths = [len(segment) for segment in batch.segments]
    answering = _answering(policy, max(lengths), meter) - state
    parts = Parts(weights, adapter, gradients, state, activations, loss, peak, answering)
    mergeable = all(adapter.mergeable for adapter in adapter_set.adapters.values())
    return Trial(
        parts,
        adapter_set.counts(),
        sum(lengths),
        len(lengths),
        max(lengths),
        work,
        policy.flat,
        mergeable,
    )


def _updates(recipe: Recipe, adapter_set: AdapterSet) -> Callable[[], object]:
    """What an update does. An optimizer in 8 bits works in place, in compiled code that knows no ghosts: what it keeps
    is made instead."""
    learned = adapter_set.parameters()
    if recipe.train.optimizer == "adamw":
        return make_optimizer(recipe.train, learned, adapter_set.groups()).step
    held: list[Tensor] = []

    def keep() -> None:
        if not held:
            held.extend(torch.zeros(_moments_bytes(parameter), dtype=torch.uint8) for parameter in learned.values())

    return keep


def _watch_hidden(policy: Policy, meter: Meter) -> list[int]:
    """Bytes held after each pass through the blocks, as they are made."""
    kept: list[int] = []
    hidden = policy.hidden

    def watched(batch: Batch) -> Tensor:
        made = hidden(batch)
        kept.append(meter.bytes)
        return made

    policy.hidden = watched  # type: ignore[method-assign]
    return kept


def _added(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, switch: Switch) -> AdapterSet:
    known = tokenizer.get_vocab()
    return add(
        model, switch, recipe.adapter,
        name=NAME, seed=recipe.train.seed,
        added_tokens=tuple(known[token] for token in recipe.model.add_tokens),
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    )  # fmt: skip


def _answering(policy: Policy, length: int, meter: Meter) -> int:
    """Bytes at the peak of reading one text of `length` tokens, and of its keys and values."""
    config = policy.model.config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    meter.reset()
    with policy.answering():
        policy.hidden(flat_batch([torch.zeros(length, dtype=torch.long)]))
    return meter.peak + 2 * config.num_hidden_layers * heads * dim * length * policy.model.dtype.itemsize


def _moments_bytes(parameter: nn.Parameter) -> int:
    """Of both moments of a tensor in bitsandbytes' 8-bit AdamW."""
    count = parameter.numel()
    return 8 * count if count < SMALL else round(count * 2 * (1 + 4 / BLOCK))
