"""A plan as a person reads it, and as a program does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.data.problems import counted
from tunesmith.plan.advice import Change
from tunesmith.plan.memory import SPREAD, Memory
from tunesmith.plan.methods import Candidate
from tunesmith.plan.planner import Need
from tunesmith.plan.speed import Pace
from tunesmith.progress import seconds as in_words
from tunesmith.progress import size


@dataclass(frozen=True)
class Plan:
    """What a recipe will need, before any of its weights is read."""

    name: str
    model: str
    """Its class, dtype, storage and blocks."""
    method: str
    need: Need
    memory: Memory
    pace: Pace | None
    """How fast this machine was seen to work."""
    rows: int
    unit: str
    """What `rows` counts: rows, or pairs of them."""
    batch: str
    """Of an optimizer step."""
    changes: Sequence[Change] = ()
    """Each by itself, cheapest first."""
    cheapest: Change | None = None
    """The one that fits, where the recipe does not."""
    methods: Sequence[Candidate] = ()
    elsewhere: dict[str, dict[str, int]] = field(default_factory=dict)
    """Plain transformers and PEFT on a GPU: bytes by part, by way."""
    elsewhere_at: str = ""
    price: float | None = None
    """Of an hour."""
    minutes: float | None = None
    """Where the clock ends the run."""
    notes: Sequence[str] = ()

    @property
    def fits(self) -> bool | None:
        """None: nobody says how much memory there is."""
        room = self.memory.room
        return None if room is None else self.need.memory <= room

    @property
    def is_close(self) -> bool:
        room = self.memory.room
        return room is not None and self.need.memory <= room < self.need.memory * SPREAD

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        told |= {"fits": self.fits, "is_close": self.is_close, "room": self.memory.room}
        return told


def lines(plan: Plan) -> list[str]:
    """The whole plan, a line each."""
    need, parts = plan.need, plan.need.trial.parts
    trial, counts = need.trial, need.trial.counts
    told = [
        f"model      {plan.model}",
        f"trained    {counts.trained:,} of {counts.total:,} parameters ({counts.share:.2%}) by {plan.method}",
        f"data       {counted(plan.rows, plan.unit)}; {plan.batch} a step, {need.step_tokens:,.0f} tokens in the mean",
        f"           the largest micro-batch seen: {trial.tokens:,} tokens in {trial.rows}, the longest of "
        f"{trial.longest:,}, {'without padding' if trial.flat else 'padded'}",
        "",
        "memory",
    ]
    base = plan.memory.held
    held = [("this process with its libraries and rows", base)] if base else []
    held += [("the teacher, and what it holds of a batch", need.teacher)] if need.teacher else []
    held += [
        ("weights of the base", parts.weights),
        ("adapter", parts.adapter),
        ("gradients", parts.gradients),
        ("optimizer", parts.optimizer),
        ("activations kept for the backward pass", parts.activations),
        (
            "loss, gradients under way, what libraries keep",
            need.memory - base - need.teacher - parts.lasting - parts.activations,
        ),
    ]
    told += [f"  {size(max(0, number)):>9}  {what}" for what, number in held]
    told += [f"  {size(need.memory):>9}  peak of training{_verdict(plan)}"]
    told += [f"  {size(need.serving):>9}  answering one row of {trial.longest:,} tokens, base and adapter apart"]
    if need.merging is not None:
        told += [f"  {size(need.merging):>9}  merging, with its proof in fp32"]
    told += ["", *_time(plan)]
    if plan.changes:
        told += ["", "what takes less"]
        told += [f"  {size(change.memory):>9}  {change.typed}: {change.cost}" for change in plan.changes]
    if plan.fits is False:
        told += ["", _remedy(plan)]
    if plan.methods:
        told += ["", *_methods(plan)]
    if plan.elsewhere:
        told += ["", f"beside it, plain transformers and PEFT on one GPU, {plan.elsewhere_at}"]
        told += [f"  {size(by_part['peak']):>9}  {way}" for way, by_part in plan.elsewhere.items()]
    if plan.notes:
        told += ["", *plan.notes]
    return told


def _verdict(plan: Plan) -> str:
    room = plan.memory.room
    if room is None:
        return ""
    whose = "given" if plan.memory.given else "free here"
    if not plan.fits:
        return f": does not fit into the {size(room)} {whose}"
    return f": {'just fits' if plan.is_close else 'fits'} into the {size(room)} {whose}"


def _remedy(plan: Plan) -> str:
    if plan.cheapest is None:
        return "no change of these fits, nor all of them together: take a smaller model, or a machine with more memory"
    return f"the cheapest that fits ({size(plan.cheapest.memory)}): {plan.cheapest.typed}\n  {plan.cheapest.cost}"


def _time(plan: Plan) -> list[str]:
    need = plan.need
    if need.step_seconds is None or plan.pace is None:
        return ["time       not measured"]
    told = (
        f"time       {in_words(need.step_seconds)} a step, {need.step_tokens / need.step_seconds:,.0f} tokens a second"
    )
    rough = f"a guess from products, which run at {plan.pace.rate / 1e9:,.0f} Gflop/s here"
    told += f" ({rough if plan.pace.factor == 1 else 'as a part of the model was just seen to learn'})"
    if need.seconds is None or need.num_steps is None:
        minutes = plan.minutes or 0.0
        cost = "" if plan.price is None else f", {plan.price * minutes / 60:.2f} at {plan.price:g} an hour"
        return [told, f"           the clock ends the run after {in_words(60 * minutes)}{cost}"]
    total = f"           {need.num_steps:,} steps: {in_words(need.seconds)}"
    if plan.price is not None:
        total += f", {plan.price * need.seconds / 3600:.2f} at {plan.price:g} an hour"
    return [told, total]


def _methods(plan: Plan) -> list[str]:
    told = ["methods side by side, all else as in the recipe", f"  {'':<14}{'trained':>12}{'memory':>10}{'a step':>10}"]
    for one in plan.methods:
        if one.need is None:
            told.append(f"  {one.method:<14}cannot: {one.reason}")
            continue
        step = "" if one.need.step_seconds is None else in_words(one.need.step_seconds)
        mark = "  (the recipe's)" if one.method == plan.method else ""
        trained = f"{one.need.trial.counts.trained:,}"
        told.append(f"  {one.method:<14}{trained:>12}{size(one.need.memory):>10}{step:>10}{mark}")
    return told
