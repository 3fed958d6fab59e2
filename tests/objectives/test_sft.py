"""Supervised fine-tuning: the shift by one, the denominator, the order of rows and its cursor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunesmith.adapters.attach import Switch
from tunesmith.data.pack import collate
from tunesmith.data.types import Example, Origin
from tunesmith.models.policy import Policy
from tunesmith.models.tiny import tiny
from tunesmith.objectives.sft import SFT, num_targets, targets_of


def example(ids, weights, row=1):
    return Example(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32), Origin("rows", row))


def rows(count):
    return [example([3, 4, 5], [0, 0, 1], row) for row in range(1, count + 1)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6), min_size=1, max_size=5))
def test_targets_are_the_learned_tokens_but_never_a_first_one(weights):
    examples = [example(range(10 * i, 10 * i + len(w)), w, i + 1) for i, w in enumerate(weights)]
    batch = collate(examples)
    before = batch.loss_weights.clone()
    where, targets, found = targets_of(batch)
    wanted = sorted((10 * i + t, w[t]) for i, w in enumerate(weights) for t in range(1, len(w)) if w[t])
    assert sorted(zip(targets.tolist(), found.tolist(), strict=True)) == wanted
    assert torch.equal(batch.token_ids[where + 1], targets)
    assert torch.equal(batch.loss_weights, before)
    assert batch.num_learned == len(targets)
    assert sum(map(num_targets, examples)) == pytest.approx(float(found.sum()))


def test_the_loss_is_the_sum_of_weighted_cross_entropies():
    model = tiny("llama")
    made = [example([5, 9, 20, 7], [1, 0, 0.5, 1]), example([8, 3], [0, 1], 2)]
    policy = Policy(model, Switch(), flat=False)
    mine = SFT(made, (), batch_size=2, seed=0).loss(policy, collate(made)).sums["loss"]
    wanted = torch.zeros(())
    for row in made:
        ids = torch.from_numpy(row.token_ids)
        losses = nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        wanted = wanted + (losses * torch.from_numpy(row.loss_weights[1:])).sum()
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), size=st.integers(1, 7), seed=st.integers(0, 5), done=st.integers(0, 30))
def test_a_cursor_goes_on_where_it_stood(count, size, seed, done):
    def stream(objective, number):
        steps = objective.steps(None)
        return [[e.origin.row for e in next(steps).examples] for _ in range(number)]

    whole = stream(SFT(rows(count), (), batch_size=size, seed=seed), done + 5)
    first = SFT(rows(count), (), batch_size=size, seed=seed)
    stream(first, done)
    again = SFT(rows(count), (), batch_size=size, seed=seed)
    again.load_state_dict(first.state_dict())
    assert stream(again, 5) == whole[done:]
    per_epoch = again.steps_per_epoch
    for start in range(0, len(whole) - per_epoch + 1, per_epoch):
        assert sorted(row for step in whole[start : start + per_epoch] for row in step) == list(range(1, count + 1))


def test_another_seed_and_another_epoch_give_another_order():
    objective = SFT(rows(30), (), batch_size=4, seed=1)
    assert not np.array_equal(objective.order(0), objective.order(1))
    assert not np.array_equal(objective.order(0), SFT(rows(30), (), batch_size=4, seed=2).order(0))
    assert np.array_equal(SFT(rows(30), (), batch_size=4, seed=1, shuffle=False).order(3), np.arange(30))


def test_nothing_held_out_evaluates_to_nothing():
    assert SFT(rows(3), (), batch_size=1, seed=0).evaluate(Policy(tiny("llama"), Switch(), flat=False), 100) == {}


def test_a_micro_batch_without_a_learned_token_adds_nothing():
    model = tiny("llama")
    policy = Policy(model, Switch(), flat=False)
    loss = SFT(rows(1), (), batch_size=1, seed=0).loss(policy, collate([example([5, 6, 7], [1, 0, 0])])).sums["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def grouped(groups):
    return [
        Example(np.arange(3, 6), np.ones(3, dtype=np.float32), Origin("rows", row), group)
        for row, group in enumerate(groups)
    ]


def test_rows_of_one_group_stay_together_in_an_order_of_their_own():
    made = grouped(["a", "b", "a", None, "b", "a", None, "c"] * 5)
    orders = [SFT(made, (), batch_size=4, seed=1).order(epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(len(made)))
        groups = [made[row].group or f"alone {row}" for row in order]
        assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(groups)) - 1
    assert not np.array_equal(orders[0], orders[1])


def branching(rows_of_each=3):
    """Rows that begin alike, learned in the shared part too, one of them nothing but the beginning and a token."""
    rng = np.random.default_rng(0)
    made = []
    for stem in range(2):
        shared = rng.integers(3, 90, 24 + 9 * stem)
        for _ in range(rows_of_each):
            ids = np.concatenate([shared, rng.integers(3, 90, rng.integers(1, 12))])
            weights = rng.choice([0.0, 0.5, 1.0], len(ids)).astype(np.float32)
            made.append(Example(ids.astype(np.int64), weights, Origin("rows", len(made) + 1)))
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("arch", ["llama", "llama-tied", "mistral", "qwen3", "gemma2", "gemma3", "phi", "gpt2", "opt"])
def test_a_shared_beginning_gives_the_loss_and_gradients_of_whole_rows(arch, dtype):
    from tunesmith.adapters.adapter_set import add
    from tunesmith.adapters.lora import Settings
    from tunesmith.models.attention import register
    from tunesmith.models.policy import probe

    register()
    made, found = branching(), []
    for share in (False, True):
        model, switch = tiny(arch).to(dtype), Switch()
        model.set_attn_implementation("tunesmith")
        adapter_set = add(model, switch, Settings(r=3), name="a", seed=0)
        with torch.no_grad():
            for number, parameter in enumerate(adapter_set.parameters().values()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter += 0.1 * noise.to(parameter.dtype)
        policy, reason = probe(model, switch)
        assert policy.flat, reason
        switch.name = "a"
        objective = SFT(made, made, batch_size=6, seed=0, share=share)
        step = next(objective.steps(policy))
        losses = [objective.loss(policy, batch).sums["loss"] for batch in objective.micro_batches(step, 10_000)]
        torch.stack(losses).sum().backward()
        grads = {name: parameter.grad for name, parameter in adapter_set.parameters().items()}
        found.append((torch.stack(losses).sum().detach(), grads, objective.evaluate(policy, 10_000)["loss"]))
    bound = 1e-5  # transformers' norms and rotary angles are in fp32 whatever the model is held in
    torch.testing.assert_close(found[1][0], found[0][0], rtol=bound, atol=bound)
    assert found[1][2] == pytest.approx(found[0][2], rel=bound)
    for name, wanted in found[0][1].items():
        most = wanted.abs().max().item()
        torch.testing.assert_close(found[1][1][name], wanted, rtol=bound, atol=3 * bound * most)
