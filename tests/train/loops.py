"""A loop over a tiny model and rows made here, for the tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tunesmith.adapters.adapter_set import AdapterSet, add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings
from tunesmith.data.types import Example, Origin
from tunesmith.events import Event, StepDone
from tunesmith.models import attention
from tunesmith.models.policy import Policy, probe
from tunesmith.models.tiny import tiny
from tunesmith.objectives.sft import SFT
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.loop import Job, Loop
from tunesmith.train.mode import train_mode
from tunesmith.train.noise import NEFTune
from tunesmith.train.settings import TrainSettings
from tunesmith.train.signals import Signals

SCALE = 2.0
"""Of `Settings(r=2, alpha=4)`."""


def rows(count: int, seed: int = 0, first: int = 1) -> list[Example]:
    """Rows of 2 to 30 tokens; some learn one token, some nearly all."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(rng.integers(2, 31))
        weights = (rng.random(length) < rng.choice([0.05, 0.5, 1.0])).astype(np.float32)
        weights[-1] = 1.0
        made.append(Example(rng.integers(3, 90, length), weights, Origin("rows.jsonl", first + number)))
    return made


@dataclass
class Bench:
    loop: Loop
    policy: Policy
    adapter_set: AdapterSet
    events: list[Event]

    def kinds(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.adapter_set.parameters().items()}


def bench(
    folder: Path,
    *,
    arch: str = "llama",
    dtype: torch.dtype = torch.float32,
    train: Sequence[Example] | None = None,
    held_out: Sequence[Example] = (),
    dropout: float = 0.0,
    moved: bool = True,
    flat: bool = True,
    adapter: Settings | None = None,
    objective: Callable[..., SFT] = SFT,
    listeners: Sequence[Callable[[Event], object]] = (),
    shuffle: bool = True,
    signals: Signals | None = None,
    **settings: Any,
) -> Bench:
    """A loop as run.py builds it. `moved`: every adapter tensor perturbed, so that all of them learn at once."""
    attention.register()
    model, switch = tiny(arch, dtype=dtype), Switch()
    attention.install(model)
    adapter_set = add(model, switch, adapter or Settings(r=2, alpha=4, dropout=dropout), name="a", seed=3)
    generator = torch.Generator().manual_seed(11)
    for parameter in adapter_set.parameters().values():
        if moved:
            parameter.data += 0.3 * torch.empty(parameter.shape).normal_(generator=generator)
        if dtype == torch.float64:
            parameter.data = parameter.data.double()
    policy, _ = probe(model, switch)
    policy.flat = policy.flat and flat
    switch.name = "a"
    batch = {} if "batch_tokens" in settings else {"batch_size": 4}
    options = TrainSettings(**{"learning_rate": 1e-2, **batch, "warmup": 0.0, **settings})
    if options.neftune_alpha is not None:
        policy.noise = NEFTune(options.neftune_alpha)
    if options.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    train_mode(policy, options.recompute)
    events: list[Event] = []

    def write(into: Path) -> None:
        save_file(
            {name: p.detach().clone() for name, p in adapter_set.parameters().items()}, into / "adapter.safetensors"
        )

    chosen = rows(8) if train is None else train
    in_tokens = {} if options.batch_tokens is None else {"batch_tokens": options.batch_tokens}
    made = objective(chosen, held_out, batch_size=options.batch_size, seed=options.seed, shuffle=shuffle, **in_tokens)
    loop = Loop(
        policy,
        made,
        Job.of(adapter_set, write),
        options,
        Checkpoints(folder / "checkpoints", options.keep_checkpoints),
        signals or Signals(),
        [events.append, *listeners],
    )
    return Bench(loop, policy, adapter_set, events)


class Clock:
    """Every look at it takes `tick` seconds."""

    def __init__(self, monkeypatch, tick: float) -> None:
        self.now, self.tick = 0.0, tick
        monkeypatch.setattr(time, "perf_counter", self.look)

    def look(self) -> float:
        self.now += self.tick
        return self.now


def rates(made) -> list[float]:
    return [event.learning_rate / made.loop.settings.learning_rate for event in made.kinds(StepDone)]


def whole_and_resumed(folder: Path, cut: int, **options: Any) -> tuple[Bench, Bench]:
    """A run left alone, and the same one stopped after step `cut` and gone on with by another loop: one state."""
    whole = bench(folder / "whole", **options)
    whole.loop.run()

    def stop(event: Event) -> str | None:
        return "stop" if getattr(event, "step", 0) == cut else None

    bench(folder / "cut", listeners=[stop], **options).loop.run()
    again = bench(folder / "cut", **options)
    saved = again.loop.checkpoints.latest(print)
    assert saved is not None
    again.loop.restore(saved)
    again.loop.run()
    states = whole.adapter_set.state(), again.adapter_set.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    return whole, again
