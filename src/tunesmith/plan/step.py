"""One optimizer step on tensors without numbers: what it would hold, by part, and how much it would multiply.

The model, the adapter, the objective and the optimizer are those of the run, and so is their code: what is counted is
what they would do. The step is the one whose micro-batch is the largest of those looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.adapter_set import AdapterSet, Counts, add
from tunesmith.adapters.attach import Switch
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.ghost import Meter, NumbersNeededError
from tunesmith.models.generate import bytes_per_token
from tunesmith.models.hollow import again, hollow_policy
from tunesmith.models.policy import Policy, flat_batch
from tunesmith.plan.bench import Bench, Cut, Work
from tunesmith.plan.merging import merging
from tunesmith.plan.plain import EIGHT_BIT_MOMENTS
from tunesmith.recipe import Recipe
from tunesmith.train.mode import recompute_blocks, train_mode
from tunesmith.train.noise import NEFTune
from tunesmith.train.optim import make_optimizer

NAME = "planned"
SMALL = 4096
"""bitsandbytes' 8-bit AdamW: smaller tensors keep their moments in fp32."""


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
    merging: int = 0
    """What `tunesmith merge` holds at its most (plan/merging.py); 0 where the method cannot be merged."""

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
class Trial:
    """What one step holds and does."""

    parts: Parts
    counts: Counts
    tokens: int
    """Of the micro-batch."""
    rows: int
    longest: int
    squares: int
    """Of the rows' lengths, summed."""
    work: Work
    """Of the micro-batch, forward and backward."""
    flat: bool
    mergeable: bool
    share: float = 1.0
    """Tokens of micro-batches, of those of their rows."""


def try_step(
    recipe: Recipe, bench: Bench, micro_tokens: int, *, blocks: int | None = None, cut: Cut | None = None
) -> Trial:
    """Run one step of `recipe` without numbers. What needs a number to go on is a `ModelError` that says so.

    `blocks`: of a model of so many blocks. `cut`: on rows that are shorter.
    """
    try:
        kept, meter = bench.model(recipe.model, blocks), bench.meter()
        with meter.on():
            return _tried(recipe, bench, micro_tokens, meter, again(kept, meter), cut)
    except TunesmithError:
        raise
    except NumbersNeededError as error:
        raise ModelError(
            "what this model holds while training hangs on the numbers in it, not on its shapes alone",
            where=recipe.model.name,
            found=f"its code asks {str(error)[:200]}",
            expected="code whose shapes follow from the config and the rows",
            fix="tunesmith rehearse trains a few real steps and says what they took",
        ) from error
    except Exception as error:  # of transformers' own code, or of ours, which a ghost has no numbers for
        raise ModelError(
            "what this model holds while training cannot be told from shapes alone",
            where=recipe.model.name,
            found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
            fix="tunesmith rehearse trains a few real steps and says what they took",
        ) from error


def _tried(
    recipe: Recipe, bench: Bench, micro_tokens: int, meter: Meter, model: PreTrainedModel, cut: Cut | None
) -> Trial:
    weights = meter.bytes
    policy = hollow_policy(model, Switch(), bench.ways)
    adapter_set = prepared(recipe, bench.tokenizer, policy)
    adapter = meter.bytes - weights
    chosen = bench.chosen(policy, micro_tokens, cut)
    if chosen is None:
        raise ModelError("no row is left to learn from", where="data.max_length", fix="data.overlong=truncate")
    step, batch, objective = chosen.step, chosen.batch, bench.foreseen.objective
    learned = adapter_set.parameters()
    update = _updates(recipe, adapter_set)
    for parameter in learned.values():
        parameter.grad = torch.zeros_like(parameter)
    gradients = sum(parameter.nbytes for parameter in learned.values())
    update()  # the step that is looked at is as all but the first: the optimizer's state is there
    if chosen.is_only:  # else it is reckoned beside the gradients of those before it
        for parameter in learned.values():
            parameter.grad = None
    state = meter.bytes - weights - adapter - (0 if chosen.is_only else gradients)
    kept: list[int] = []
    backbone = model.base_model.register_forward_hook(lambda *_: kept.append(meter.bytes))
    held = meter.start()
    found = objective.loss(policy, batch)
    total = torch.stack([value / step.denominators[name] for name, value in found.sums.items()]).sum()
    last = max(kept, default=held)
    activations, loss = last - held, meter.peak - last
    total.backward()  # type: ignore[no-untyped-call]
    del found, total
    work = Work(meter.flops, meter.moved, meter.operations, meter.attended)
    update()
    backbone.remove()
    peak = meter.peak
    for parameter in learned.values():
        parameter.grad = None
    rows = [len(batch.examples[leaf]) for leaf in batch.leaves]
    answering = _answering(policy, max(rows), meter) - state
    mergeable = all(adapter.mergeable for adapter in adapter_set.adapters.values())
    merges = merging(model, adapter_set, bench.tokenizer) if mergeable else 0
    return Trial(
        Parts(weights, adapter, gradients, state, activations, loss, peak, answering, merges),
        adapter_set.counts(),
        len(batch),
        len(rows),
        max(rows),
        sum(length**2 for length in rows),
        work,
        policy.flat,
        mergeable,
        chosen.share,
    )


def prepared(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, policy: Policy) -> AdapterSet:
    """A fresh adapter of the recipe's in the policy's model, which is ready to learn, as a run makes it so."""
    adapter_set = _added(recipe, policy.model, tokenizer, policy.switch)
    policy.switch.name = NAME
    if recipe.train.neftune_alpha is not None:
        policy.noise = NEFTune(recipe.train.neftune_alpha)
    if recipe.train.recompute:
        recompute_blocks(policy.model)
    train_mode(policy, recipe.train.recompute)
    return adapter_set


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
    meter.reset()
    with policy.answering():
        policy.hidden(flat_batch([torch.zeros(length, dtype=torch.long)]))
    return meter.peak + length * bytes_per_token(policy.model.config, policy.model.dtype)


def _moments_bytes(parameter: nn.Parameter) -> int:
    """Of both moments of a tensor in bitsandbytes' 8-bit AdamW."""
    count = parameter.numel()
    return 8 * count if count < SMALL else round(count * EIGHT_BIT_MOMENTS)
