"""Reward modelling: TRL's loss by its formula, what a pair shares computed once, margins and centring."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from preference_case import TARGETS, adapter_tensor, answers
from reward_case import SETTINGS, case_classifier, head_tensor
from test_classify import adapted, gradients

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.lora import Settings as LoRA
from tunesmith.data.types import Answer, Origin
from tunesmith.errors import DataError
from tunesmith.models import attention
from tunesmith.models.policy import probe
from tunesmith.objectives.reward import RewardModelling, RewardSettings, bradley_terry


def pairs(count=5, shared=20, margin=None, seed=0):
    generator = np.random.default_rng(seed)
    made = []
    for i in range(count):
        prompt = generator.integers(3, 90, shared)
        for side in ("chosen", "rejected"):
            ids = np.concatenate([prompt, generator.integers(3, 90, generator.integers(2, 9))])
            weights = np.r_[np.zeros(shared), np.ones(len(ids) - shared)].astype(np.float32)
            made.append(Answer(ids, weights, Origin("pairs", i + 1), side=side, margin=margin))
    return made


def run(policy, objective, share, max_tokens=10**6):
    objective.share = share
    objective.load_state_dict({"steps_done": 0})
    step = next(objective.steps(policy))
    for parameter in policy.parameters():
        parameter.grad = None
    total, metrics = 0.0, dict[str, float]()
    for batch in objective.micro_batches(step, max_tokens):
        found = objective.loss(policy, batch)
        loss = found.sums["loss"] / step.denominators["loss"]
        loss.backward()
        total += loss.item()
        for name, value in found.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value.item() / step.denominators[name]
    return total, metrics, step


def objective_of(examples, settings=None, **options):
    return RewardModelling(examples, options.pop("held_out", []), settings or RewardSettings(), batch_size=3, seed=0)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize("settings", [{}, {"margin": 0.7, "centring": 0.01}])
def test_loss_and_gradients_are_those_of_each_answer_alone(arch, settings):
    policy, made, model = adapted(arch, ClassHead("reward"), dtype=torch.float64)
    objective = objective_of(pairs(), RewardSettings(**settings))
    found, metrics, step = run(policy, objective, share=True)
    ours = gradients(made)
    for parameter in made.parameters().values():
        parameter.grad = None
    rewards = [model(input_ids=torch.from_numpy(e.token_ids)[None]).logits[0, 0] for e in step.examples]
    chosen, rejected = torch.stack(rewards[::2]), torch.stack(rewards[1::2])
    wanted = -F.logsigmoid(chosen - rejected - settings.get("margin", 0.0)).mean()
    wanted = wanted + settings.get("centring", 0.0) * ((chosen + rejected) ** 2).mean()
    wanted.backward()
    assert found == pytest.approx(wanted.item(), abs=1e-9)
    largest = max(gradient.abs().max() for gradient in gradients(made).values())
    for name, gradient in gradients(made).items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * largest, name
    assert metrics["rewards/margins"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    assert metrics["rewards/accuracies"] == pytest.approx((chosen > rejected).double().mean().item())


def test_a_shared_prompt_and_a_cut_step_change_nothing():
    policy, made, _ = adapted("llama", ClassHead("reward"), dtype=torch.float64)
    objective = objective_of(pairs())
    plain, metrics, _ = run(policy, objective, share=False)
    wanted = gradients(made)
    for share, max_tokens in ((True, 10**6), (True, 1), (False, 60)):
        found, others, _ = run(policy, objective, share, max_tokens)
        assert found == pytest.approx(plain, abs=1e-10)
        assert others == pytest.approx(metrics, abs=1e-6)
        for name, gradient in gradients(made).items():
            largest = wanted[name].abs().max().item()
            assert (gradient - wanted[name]).abs().max() <= (1e-6 if share else 1e-12) * largest, name


def test_closed_forms():
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.allclose(bradley_terry(zero, zero, zero, 0.5), torch.full_like(zero, math.log(2)))
    two = torch.full_like(zero, 2.0)
    assert torch.allclose(bradley_terry(two, zero, two, 0.0), torch.full_like(zero, math.log(2)))
    assert torch.allclose(bradley_terry(two, two, zero, 0.01), torch.full_like(zero, math.log(2) + 0.16))


def test_a_row_s_own_margin_goes_before_the_setting():
    policy, _, _ = adapted("llama", ClassHead("reward"))
    plain, _, _ = run(policy, objective_of(pairs(), RewardSettings(margin=3.0)), share=False)
    own, _, _ = run(policy, objective_of(pairs(margin=0.0), RewardSettings(margin=3.0)), share=False)
    none, _, _ = run(policy, objective_of(pairs()), share=False)
    assert own == pytest.approx(none)
    assert plain > own


@pytest.mark.parametrize("margin", ["much", float("nan"), float("inf")])
def test_a_margin_that_is_no_finite_number_is_named_with_its_row(margin):
    with pytest.raises(DataError, match=r"(?s)row 2.*no finite number"):
        objective_of([*pairs(1), *(replace(row, origin=Origin("pairs", 2)) for row in pairs(1, margin=margin))])


def test_evaluation_gives_the_metrics_of_training():
    policy, _, _ = adapted("llama", ClassHead("reward"))
    objective = RewardModelling(pairs(4), pairs(4), RewardSettings(), batch_size=4, seed=0, shuffle=False)
    total, metrics, _ = run(policy, objective, share=False)
    assert objective.evaluate(policy, 50) == pytest.approx({"loss": total, **metrics}, abs=1e-5)


GOLDENS = json.loads((Path(__file__).parent / "goldens" / "reward_trl.json").read_text())["made"]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_trls(name, share):
    model, switch = case_classifier(), Switch()
    model.requires_grad_(False)
    attention.register()
    attention.install(model)
    made = add(model, switch, LoRA(r=1, alpha=2, targets=TARGETS), name="a", seed=0)
    with torch.no_grad():
        for key, parameter in made.parameters().items():
            path, _, letter = key.rpartition(".")
            wanted = head_tensor(parameter.shape) if path == "score" else adapter_tensor(path, letter, parameter.shape)
            parameter.copy_(wanted)
    policy, _ = probe(model, switch)
    switch.name = "a"
    train = answers()
    objective = RewardModelling(train, [], RewardSettings(**SETTINGS[name]), batch_size=len(train) // 2, seed=0)
    loss, metrics, _ = run(policy, objective, share)
    golden = GOLDENS[name]
    assert loss == pytest.approx(golden["loss"], abs=1e-5)
    assert metrics["rewards/accuracies"] == pytest.approx(golden["metrics"]["accuracy"])
    assert metrics["rewards/margins"] == pytest.approx(golden["metrics"]["margin"], abs=1e-5)
    found = gradients(made)
    assert set(found) == set(golden["gradients"])
    largest = max(max(map(abs, values)) for values in golden["gradients"].values())
    for key, values in golden["gradients"].items():
        assert (found[key].flatten() - torch.tensor(values)).abs().max() <= 1e-5 * largest, key


@pytest.mark.parametrize("centring", [0.0, 0.1])
def test_gradients_by_finite_differences(centring):
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(6, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    margins = torch.rand(6, dtype=torch.float64, generator=draw)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, margins, centring), (chosen, rejected))
