"""A tensor without numbers goes through everything as one with numbers does, and is counted as that one would be."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from held_bytes import Counter
from thinned import thinned
from torch import Tensor

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import AdapterSet, add
from tunesmith.adapters.attach import Switch
from tunesmith.ghost import Ghost, Meter, NumbersNeededError, haunt, is_ghost, numbers
from tunesmith.kernels.flat_attention import flat_attention, num_seen
from tunesmith.kernels.linear_ce import linear_ce
from tunesmith.models import attention
from tunesmith.models.fuse import fuse
from tunesmith.models.hollow import hollow_policy
from tunesmith.models.policy import Policy, flat_batch, probe
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.train.mode import recompute_blocks, train_mode

CPU = torch.device("cpu")
UNLIKE = ("llama-tied", "gemma2", "gpt2", "bloom", "mixtral", "phi")
"""Of the architectures, those whose blocks have little in common."""


def prepared(arch: str, method: str, recompute: bool, meter: Meter | None, **values: Any) -> tuple[Policy, AdapterSet]:
    """A tiny model with an adapter, ready to learn; without numbers where there is a `meter`."""
    attention.register()
    model = tiny(arch)
    if meter is not None:
        model = model.to("meta")
        haunt(model, meter)
    attention.install(model)
    fuse(model)
    switch = Switch()
    adapter_set = add(model, switch, METHODS[method].Settings(**values), name="a", seed=0)
    policy = hollow_policy(model, switch) if meter is not None else probe(model, switch)[0]
    switch.name = "a"
    if recompute:
        recompute_blocks(model)
    train_mode(policy, recompute)
    return policy, adapter_set


def learn(policy: Policy) -> None:
    batch = flat_batch([torch.arange(1, 40), torch.arange(3, 28)])
    hidden = policy.hidden(batch)
    head = policy.head()
    targets, weights = torch.arange(len(batch)) % 90, torch.ones(len(batch))
    linear_ce(hidden, head.weight, head.bias, targets, weights, head.scale, head.softcap).backward()


def held(arch: str, method: str, recompute: bool, real: bool, **values: Any) -> tuple[int, int, int]:
    """(kept after the forward and backward pass, the most meanwhile beyond the model, parameters that learn)."""
    meter = Meter(CPU)
    counter: Any = Counter() if real else meter
    if real:
        policy, adapter_set = prepared(arch, method, recompute, None, **values)
        for tensor in (*policy.model.parameters(), *policy.model.buffers(), *adapter_set.state().values()):
            counter.take(tensor.detach())
        with counter:
            before = counter.bytes
            learn(policy)
    else:
        with meter.on():
            policy, adapter_set = prepared(arch, method, recompute, meter, **values)
            before = meter.reset()
            learn(policy)
    gc.collect()
    return counter.bytes - before, counter.peak - before, adapter_set.counts().trained


@pytest.mark.parametrize("arch", thinned(ARCHITECTURES, lambda arch: arch in UNLIKE))
def test_ghosts_hold_what_tensors_would_hold(arch: str) -> None:
    real, ghosts = held(arch, "lora", False, True), held(arch, "lora", False, False)
    assert ghosts[2] == real[2]
    assert ghosts[0] == pytest.approx(real[0], rel=0.01), "gradients stay"
    assert ghosts[1] == pytest.approx(real[1], rel=0.02)


@pytest.mark.parametrize("method", thinned(METHODS, lambda method: method in ("dora", "full", "prefix", "bottleneck")))
def test_whatever_the_method(method: str) -> None:
    real, ghosts = held("llama", method, False, True), held("llama", method, False, False)
    assert ghosts[2] == real[2]
    assert ghosts[1] == pytest.approx(real[1], rel=0.02)


@pytest.mark.parametrize("method", ["lora", "lora-fa", "dora", "vera"])
def test_dropout_is_counted_too(method: str) -> None:
    real, ghosts = (held("llama", method, False, is_real, dropout=0.1) for is_real in (True, False))
    assert ghosts[1] == pytest.approx(real[1], rel=0.02)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_recomputed_or_not(method: str) -> None:
    real, ghosts = held("llama", method, True, True), held("llama", method, True, False)
    assert ghosts[1] == pytest.approx(real[1], rel=0.02)
    assert ghosts[1] < held("llama", method, False, False)[1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_without_numbers_is_fused_and_run_as_the_real_one(arch: str) -> None:
    attention.register()
    real, hollow = tiny(arch), tiny(arch).to("meta")
    attention.install(real)
    fuse(real)
    with Meter(CPU).on() as meter:
        haunt(hollow, meter)
        attention.install(hollow)
        fuse(hollow)
    kinds = [[type(module).__name__ for module in model.modules()] for model in (real, hollow)]
    assert kinds[0] == kinds[1]
    assert hollow_policy(hollow, Switch()).flat == probe(real, Switch())[0].flat


def test_shapes_dtypes_and_views_are_those_of_real_tensors() -> None:
    def both(x: Tensor, index: Tensor) -> list[Tensor]:
        y = x @ x.T
        y[0] = 1.0
        mask = index > 2
        part = x[mask]
        part += 1
        return [y, y.t(), x.view(-1), part, x.bfloat16().sum(-1), x[index], torch.cat([x, x]), x.new_zeros(3)]

    x, index = torch.randn(6, 4), torch.arange(6)
    real = both(x, index)
    with Meter(CPU).on() as meter:
        found = both(meter.ghost(torch.empty(6, 4, device="meta")), index)
    assert all(is_ghost(item) for item in found)
    assert [(item.shape, item.stride(), item.dtype, item.device) for item in found] == [
        (item.shape, item.stride(), item.dtype, item.device) for item in real
    ]


def test_bytes_come_and_go_with_the_tensors() -> None:
    with Meter(CPU).on() as meter:
        x = torch.zeros(1000)
        assert isinstance(x, Ghost)
        assert meter.bytes == 4000
        view = x[:10]
        y = x.double()
        assert meter.bytes == 12000
        del y
        assert (meter.bytes, meter.peak) == (4000, 12000)
        del x
        assert meter.bytes == 4000, "the view holds it"
        del view
        assert meter.bytes == 0
        with numbers():
            assert torch.zeros(3).tolist() == [0.0, 0.0, 0.0]


def test_products_are_counted() -> None:
    with Meter(CPU).on() as meter:
        torch.zeros(3, 5) @ torch.zeros(5, 7)
        assert meter.flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize("window", [0, 3])
def test_what_attention_multiplies_is_counted_by_document(window: int) -> None:
    bounds, heads, dim = torch.tensor([0, 5, 12]), 4, 32
    pairs = sum(min(place + 1, window or 99) for length in (5, 7) for place in range(length))
    with Meter(CPU).on() as meter:
        q, k, v = (torch.zeros(12, count, dim).requires_grad_() for count in (heads, 2, 2))
        out = flat_attention(q, k, v, bounds, 1.0, window)
        assert meter.flops == meter.attended == 4 * heads * dim * pairs
        out.sum().backward()
        assert meter.flops == 3.5 * 4 * heads * dim * pairs


def test_a_branch_attends_to_what_it_shares_and_to_its_own() -> None:
    see = torch.tensor([[0, 0, 2, 2, 2], [0, 0, 2, 2, 4], [5, 5, 4, 4, 5]])  # two shared rows; branches of two and one
    assert num_seen(torch.tensor([0, 5]), see, 0) == 1 + 2 + 3 + 4 + 3


def test_torchs_own_attention_is_counted_too() -> None:
    with Meter(CPU).on() as meter:
        q = torch.zeros(2, 4, 6, 8)
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        whole = meter.flops
        assert whole >= 0.5 * 4 * 2 * 4 * 6 * 6 * 8


def test_what_was_worked_out_once_is_counted_the_same_again() -> None:
    def work(x: Tensor) -> list[Tensor]:
        return [x @ x.T, x.softmax(-1), *x.split(2), torch.cat([x, x]), torch.var_mean(x, 1)[0], x.t().contiguous()]

    shared: dict[Any, Any] = {}
    told = []
    for _ in range(2):
        with Meter(CPU, shared).on() as meter:
            x = torch.zeros(4, 6)
            found = work(x)
            told.append(
                (meter.bytes, meter.peak, meter.flops, meter.moved, meter.operations, [one.stride() for one in found])
            )
            del x, found
            assert meter.bytes == 0
    assert shared
    assert told[0] == told[1]


def test_a_shape_that_hangs_on_numbers_is_refused() -> None:
    with Meter(CPU).on():
        x = torch.zeros(4)
        with pytest.raises(NumbersNeededError):
            x[x > 0]
