"""Preference tuning: TRL's numbers, closed forms, and laws that hold for every loss."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_case import BETA, SHARED, TARGETS, adapter_tensor, answers, case_model, pairs_of

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings as LoRA
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.types import Answer, Origin
from tunesmith.errors import RecipeError
from tunesmith.models import attention
from tunesmith.models.policy import probe
from tunesmith.models.tiny import tiny
from tunesmith.objectives import preference
from tunesmith.objectives.logprobs import row_logps
from tunesmith.objectives.preference import PreferenceTuning
from tunesmith.objectives.preference_losses import LOSSES, PreferenceSettings
from tunesmith.objectives.reference import precompute, row_digest
from tunesmith.recipe import from_dict

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "preference_trl.json").read_text())
SETTINGS = {"exo_pair": {"label_smoothing": 1e-3}, "robust": {"label_smoothing": 0.1}}


def policy_of(dtype=torch.float32, model=None, adapter=None, filled=True):
    """A policy with an adapter whose tensors are all moved, and its parameters by name."""
    model = case_model(dtype) if model is None else model
    switch = Switch()
    attention.register()
    attention.install(model)
    adapter_set = add(model, switch, adapter or LoRA(r=1, alpha=2, targets=TARGETS), name="a", seed=0)
    if filled:
        with torch.no_grad():
            for name, parameter in adapter_set.parameters().items():
                path, _, letter = name.rpartition(".")
                own = adapter_tensor(path, letter, parameter.shape)
                parameter.copy_(own) if filled == "formula" else parameter.add_(own.to(parameter))
    policy, _ = probe(model, switch)
    switch.name = "a"
    return policy, adapter_set.parameters()


def objective_of(name="sigmoid", rows=None, held_out=(), batch_size=6, share=True, **settings):
    loss = name.partition(",")[0]
    record = PreferenceSettings(loss=loss, **{"beta": BETA, **SETTINGS.get(loss, {}), **settings})
    rows = answers() if rows is None else rows
    return PreferenceTuning(rows, held_out, record, batch_size=batch_size, seed=0, shuffle=False, share=share)


def gradients(policy, parameters, objective, max_tokens=10**6):
    """(loss, {name: gradient}) of the first step, cut as `max_tokens` says."""
    step = next(objective.steps(policy))
    total = 0.0
    for parameter in parameters.values():
        parameter.data = parameter.data.to(policy.model.dtype)
        parameter.grad = None
    for batch in objective.micro_batches(step, max_tokens):
        found = objective.loss(policy, batch)
        part = sum(value / step.denominators[name] for name, value in found.sums.items())
        part.backward()
        total += part.item()
    return total, {name: parameter.grad.clone() for name, parameter in parameters.items()}


def same(mine, wanted, bound):
    """Within `bound` of the largest gradient. A norm of transformers sums in fp32 in a model of double numbers too."""
    assert mine.keys() == wanted.keys()
    largest = max(grad.abs().max().item() for grad in wanted.values())
    for name, grad in wanted.items():
        gap = (mine[name] - grad).abs().max().item()
        assert gap <= bound * largest, f"{name}: {gap:.3g} of {largest:.3g}"


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("share", [True, False])
def test_losses_and_gradients_are_trls(name, share):
    policy, parameters = policy_of(filled="formula")
    loss, grads = gradients(policy, parameters, objective_of(name, pairs_of(name), share=share, **SHARED[name][1]))
    golden = GOLDEN["made"][name]
    assert loss == pytest.approx(golden["loss"], rel=1e-5)
    wanted = {key: torch.tensor(values).view_as(grads[key]) for key, values in golden["gradients"].items()}
    same(grads, wanted, 3e-5)


AT_ZERO = {
    "sigmoid": math.log(2), "sigmoid_norm": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo_sum": 25.0,
    "ipo_mean": 25.0, "nca_pair": 2 * math.log(2), "sppo_hard": 50.0, "apo_zero": 1.0, "apo_down": 1.0,
    "discopop": 0.846574, "exo_pair": 2.761231, "cpo": math.log(2), "simpo": 0.974077,
    "orpo": 0.1 * math.log(2),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_ZERO)
def test_closed_form_where_both_answers_score_alike(name):
    same_score = torch.tensor([-1.0 if name == "orpo" else 0.0], dtype=torch.float64)
    settings = PreferenceSettings(loss=name, beta=0.1, **SETTINGS.get(name, {}))
    found = LOSSES[name].function(same_score, same_score, settings)
    assert found.item() == pytest.approx(AT_ZERO[name], abs=1e-6)
    assert set(AT_ZERO) == set(LOSSES) - {"kto"}


def test_closed_forms_with_other_settings():
    zero = torch.zeros(1, dtype=torch.float64)
    simpo = PreferenceSettings(loss="simpo", beta=0.1, gamma=1.375)
    assert LOSSES["simpo"].function(zero, zero, simpo).item() == pytest.approx(1.600413, abs=1e-6)
    kto = PreferenceSettings(loss="kto")
    wanted = torch.tensor([True, False])
    assert LOSSES["kto"].function(torch.zeros(2), wanted, 0.0, kto).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "kto"])
def test_gradients_by_finite_differences(name, divergence):
    if divergence != "reverse_kl" and "f_divergence" not in LOSSES[name].reads:
        pytest.skip("reads no divergence")
    own = {} if divergence == "reverse_kl" else {"f_divergence": divergence}
    settings = PreferenceSettings(loss=name, beta=0.4, **SETTINGS.get(name, {}), **own)
    c = torch.tensor([-0.7, -2.1, -0.2], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([-1.9, -0.4, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, r: LOSSES[name].function(c, r, settings), (c, r))


@pytest.mark.parametrize("name", LOSSES)
def test_no_cut_of_a_step_and_no_sharing_changes_the_gradient(name):
    own = SETTINGS.get(name, {})
    policy, parameters = policy_of(torch.float64)
    assert policy.flat
    whole = gradients(policy, parameters, objective_of(name, share=True, **own))
    for share, max_tokens in ((True, 1), (True, 45), (False, 1), (False, 10**6)):
        loss, grads = gradients(policy, parameters, objective_of(name, share=share, **own), max_tokens)
        assert loss == pytest.approx(whole[0], rel=1e-6)
        same(grads, whole[1], 1e-6)


@pytest.mark.parametrize(("loss", "weight"), [("orpo", 1.0), ("cpo", 1.0), ("sigmoid", 0.25), ("simpo", 0.0)])
def test_the_chosen_answers_own_loss_is_by_token(loss, weight):
    policy, parameters = policy_of(torch.float64)
    own = {} if loss in ("orpo", "cpo", "simpo") else {"nll_weight": weight}
    whole, _ = gradients(policy, parameters, objective_of(loss, **own))
    without, _ = gradients(policy, parameters, objective_of(loss, nll_weight=0.0))
    total = count = 0.0
    for row in answers()[::2]:
        ids = torch.from_numpy(row.token_ids)
        logs = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        weights = torch.from_numpy(row.loss_weights[1:]).double()
        total, count = total - (logs * weights).sum().item(), count + weights.sum().item()
    assert whole - without == pytest.approx(weight * total / count, rel=1e-5, abs=1e-9)


def test_an_answer_that_is_certain_has_a_finite_odds_ratio():
    sure, unsure = torch.zeros(1, requires_grad=True), torch.full((1,), -2.0)
    for c, r in ((sure, unsure), (unsure, sure)):
        loss = LOSSES["orpo"].function(c, r, PreferenceSettings(loss="orpo"))
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), sure)[0].isfinite().all()


def test_what_a_pair_shares_is_there_once():
    objective = objective_of()
    step = next(objective.steps(None))
    batch = objective.micro_batches(step, 10**6)[0]
    # 17 + 1 of the first pair (both answers begin alike), 18 of the second; 2 are too few to share
    assert len(batch) == (17 + 1 + 3 + 2) + (18 + 3 + 5) + (2 + 6 + 2 + 2)
    assert [batch.examples[leaf].side for leaf in batch.leaves] == ["chosen", "rejected"] * 3


def test_a_token_that_two_rows_share_counts_in_each():
    policy, _ = policy_of(torch.float64)
    objective = objective_of()
    batch = objective.micro_batches(next(objective.steps(policy)), 10**6)[0]
    found = row_logps(policy, batch)
    for value, count, leaf in zip(found.sums, found.counts, batch.leaves, strict=True):
        row = batch.examples[leaf]
        ids = torch.from_numpy(row.token_ids)
        logs = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        weights = torch.from_numpy(row.loss_weights[1:]).double()
        assert value.item() == pytest.approx((logs * weights).sum().item(), rel=1e-6)
        assert count.item() == weights.sum().item()


@pytest.mark.parametrize("arch", ["gemma2", "gpt2", "falcon", "bloom", "mistral"])
def test_other_architectures_and_those_that_run_padded(arch):
    model = tiny(arch).double()
    policy, parameters = policy_of(model=model, adapter=LoRA(r=2))
    objective = objective_of("sigmoid", share=policy.flat)
    loss, grads = gradients(policy, parameters, objective)
    scores = []
    for row in answers():
        ids = torch.from_numpy(row.token_ids)
        logps = []
        for name in ("a", None):
            with policy.switch.set_to(name):
                logits = model(ids[None], attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits[0, :-1]
            logs = logits.log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
            logps.append((logs * torch.from_numpy(row.loss_weights[1:])).sum())
        scores.append(logps[0] - logps[1].detach())
    margins = torch.stack(scores[::2]) - torch.stack(scores[1::2])
    wanted = -torch.nn.functional.logsigmoid(BETA * margins).mean()
    for parameter in parameters.values():
        parameter.grad = None
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    same(grads, {name: parameter.grad for name, parameter in parameters.items()}, 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_pairs(method):
    record = METHODS[method].Settings()
    policy, parameters = policy_of(model=tiny("llama"), adapter=record)
    loss, grads = gradients(policy, parameters, objective_of("sigmoid"))
    assert math.isfinite(loss)
    assert any(grad.abs().max() > 0 for grad in grads.values())
    _, plain = gradients(policy, parameters, objective_of("sigmoid", share=False))
    same(grads, plain, 2e-4 if isinstance(record, VirtualSettings) else 5e-5)


def test_the_first_step_is_ln_2_and_moves_the_margin_up():
    policy, parameters = policy_of(filled=False)
    loss, grads = gradients(policy, parameters, objective_of("sigmoid"))
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter -= 0.01 * grads[name]
    objective = objective_of("sigmoid")
    batch = objective.micro_batches(next(objective.steps(policy)), 10**6)[0]
    assert objective.loss(policy, batch).metrics["rewards/margins"] > 0


def test_precomputed_is_online(tmp_path):
    policy, _ = policy_of(torch.float64)
    units = [answers()[i : i + 2] for i in (0, 2, 4)]
    shares = []
    first, there = precompute(policy, units, max_tokens=40, share=True, root=tmp_path, told=shares.append)
    assert not there
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    with policy.reference():
        for unit in units:
            for row in unit:
                ids = torch.from_numpy(row.token_ids)
                logs = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
                wanted = (logs * torch.from_numpy(row.loss_weights[1:])).sum().item()
                assert first.sums[row_digest(row)] == pytest.approx(wanted, rel=1e-6)
    again, there = precompute(policy, units, max_tokens=40, share=True, root=tmp_path, told=shares.append)
    assert there
    assert again.sums == first.sums


def test_the_cache_knows_weights_rows_and_spoilt_files(tmp_path):
    policy, parameters = policy_of()
    units = [answers()[:2]]

    def known(units=units, max_tokens=40):
        return precompute(policy, units, max_tokens=max_tokens, share=True, root=tmp_path, told=lambda share: None)[1]

    assert not known()
    assert known()
    with torch.no_grad():
        next(iter(parameters.values())).add_(1)
    assert known()  # the adapter that learns is not the reference
    assert not known([answers()[2:4]])
    assert not known(max_tokens=50)
    policy.reference_name, policy.reference_digest = "a", "of a"
    assert not known()
    policy.reference_name = policy.reference_digest = None
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    assert not known()
    assert known()
    with torch.no_grad():
        policy.model.model.norm.weight.add_(0.5)
    assert not known()


def test_kto_takes_pairs_as_two_answers_and_its_kl_from_other_prompts():
    policy, _ = policy_of(torch.float64)
    objective = objective_of("kto")
    assert objective.steps_per_epoch == 1
    step = next(objective.steps(policy))
    rows = list(step.examples)
    total = 0.0
    for place, one in enumerate(rows):
        other = rows[2 * (place // 2 + 1) % len(rows)]  # the chosen answer of the pair behind: another prompt's
        start, end = (int(row.loss_weights.argmax()) for row in (other, one))
        made = np.concatenate([one.token_ids[:end], other.token_ids[start:]])[: max(len(one), len(other))]
        ids = torch.from_numpy(made)
        for name, sign in (("a", 1), (None, -1)):
            with policy.switch.set_to(name), torch.no_grad():
                logs = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
            total += sign * logs[end - 1 :].sum().item()
    assert objective._kl == pytest.approx(max(0.0, total / len(rows)), rel=1e-5)


def test_kto_needs_other_prompts():
    with pytest.raises(RecipeError, match="batch_size"):
        objective_of("kto", batch_size=1)


def test_the_metrics_are_means_over_the_step():
    policy, _ = policy_of(torch.float64)
    objective = objective_of("sigmoid", held_out=answers())
    found = objective.evaluate(policy, 10**6)
    assert found == pytest.approx(objective.evaluate(policy, 1), rel=1e-5)
    assert found["rewards/margins"] == pytest.approx(found["rewards/chosen"] - found["rewards/rejected"])
    assert found["rewards/accuracies"] in (0, 1 / 3, 2 / 3, 1)
    step = next(objective.steps(policy))
    loss = objective.loss(policy, objective.micro_batches(step, 10**6)[0])
    means = {name: value.item() / step.denominators[name] for name, value in loss.metrics.items()}
    assert found == pytest.approx({"loss": loss.sums["loss"].item() / 3, **means}, rel=1e-5)


@pytest.mark.parametrize("left_out", [[], [1, 5], [1, 3, 5]])
def test_kto_tells_how_far_the_means_of_its_sides_lie_apart(left_out):
    """TRL's KTO: the mean reward of what is wanted less that of what is not; nothing where one side has no rows. And of
    held-out rows with both sides, how often the chosen one scores higher."""
    policy, _ = policy_of(torch.float64)
    rows = [row for place, row in enumerate(answers()) if place not in left_out]
    objective = objective_of("kto", rows, held_out=rows, batch_size=len(rows))
    found = objective.evaluate(policy, 10**6)
    assert found == pytest.approx(objective.evaluate(policy, 1), rel=1e-5)
    assert ("rewards/margins" in found) == (len(left_out) < 3)
    if "rewards/margins" in found:
        assert found["rewards/margins"] == pytest.approx(found["rewards/chosen"] - found["rewards/rejected"], rel=1e-9)
    step = next(objective.steps(policy))
    parts = [objective.loss(policy, batch).metrics for batch in objective.micro_batches(step, 1)]
    if step.denominators["rewards/margins"]:
        mean = sum(part["rewards/margins"].item() for part in parts) / step.denominators["rewards/margins"]
        assert mean == pytest.approx(found["rewards/margins"], rel=1e-5)
    assert not step.denominators["rewards/accuracies"]
    whole = [number for number in (1, 2, 3) if {2 * number - 2, 2 * number - 1}.isdisjoint(left_out)]
    if not whole:
        assert "rewards/accuracies" not in found
        return
    pairs = [row for row in answers() if row.origin.row in whole]
    wanted = objective_of("sigmoid", pairs, held_out=pairs).evaluate(policy, 10**6)["rewards/accuracies"]
    assert found["rewards/accuracies"] == pytest.approx(wanted)


def test_chosen_answers_that_become_less_likely_are_told(tmp_path):
    policy, _ = policy_of(torch.float64)
    objective = objective_of("sigmoid", held_out=answers())
    stage = lambda name: nullcontext(lambda share: None)  # noqa: E731
    objective.begin(policy, num_steps=1, max_tokens=100, cache=tmp_path, stage=stage)
    objective.evaluate(policy, 100)
    objective._last["logps/chosen"] = 1.05 * objective_reference(objective) - 1
    assert "less likely" in objective.conclude(policy, 100, tmp_path)[0]
    objective._last["logps/chosen"] = objective_reference(objective) + 1
    assert objective.conclude(policy, 100, tmp_path) == []


def test_what_is_told_at_the_end_is_of_the_adapter_that_is_published(tmp_path):
    policy, parameters = policy_of(torch.float64)
    objective = objective_of("sigmoid", held_out=answers())
    stage = lambda name: nullcontext(lambda share: None)  # noqa: E731
    objective.begin(policy, num_steps=1, max_tokens=100, cache=tmp_path, stage=stage)
    published = {name: -4 * parameter.detach() for name, parameter in parameters.items()}
    for factor in (-4, 0.5):
        for name, parameter in parameters.items():
            parameter.data = published[name] * (factor / -4)
        objective.evaluate(policy, 100)
    for name, parameter in parameters.items():
        parameter.data = published[name]
    (told,) = objective.conclude(policy, 100, tmp_path)
    assert f"{objective.evaluate(policy, 100)['logps/chosen']:.1f} now" in told


def begun(objective, policy, folder, num_steps=1):
    stage = lambda name: nullcontext(lambda share: None)  # noqa: E731
    return objective.begin(policy, num_steps=num_steps, max_tokens=100, cache=folder, stage=stage)


def moved(parameters, factor):
    for parameter in parameters.values():
        parameter.data = factor * parameter.detach()


WITHOUT_NUMBERS = [
    {"name": "simpo"}, {"name": "orpo"}, {"name": "cpo"}, {"name": "sigmoid", "reference": "online"},
    {"name": "kto", "reference": "online"},
]  # fmt: skip


@pytest.mark.parametrize("settings", WITHOUT_NUMBERS, ids=lambda settings: settings["name"])
def test_chosen_answers_are_watched_where_no_reference_is_kept(settings, tmp_path):
    """What they were is measured once, before the first step; a run that goes on does not take its middle for it."""
    policy, parameters = policy_of(torch.float64)
    objective = objective_of(held_out=answers(), **settings)
    begun(objective, policy, tmp_path)
    before = objective.evaluate(policy, 100)["logps/chosen"]
    assert objective._before["chosen"] == pytest.approx(before, rel=1e-6)
    assert objective.conclude(policy, 100, tmp_path) == []
    saved = json.loads(json.dumps(objective.state_dict() | {"steps_done": 4}))
    moved(parameters, -4)
    after = objective.evaluate(policy, 100)["logps/chosen"]
    assert after < before - 0.5
    says = f"log p {before:.1f} before, {after:.1f} now"
    (told,) = objective.conclude(policy, 100, tmp_path)
    assert says in told
    assert ("nll_weight above 1" in told) == (settings["name"] in ("orpo", "cpo"))
    later = objective_of(held_out=answers(), **settings)
    begun(later, policy, tmp_path)  # from the middle, if it were not for what the checkpoint says
    later.load_state_dict(saved)
    assert later.conclude(policy, 100, tmp_path) == [told]  # also where nothing was evaluated any more


def test_why_the_margin_grew_is_said_where_the_rejected_answers_fell_further(tmp_path):
    policy, _ = policy_of(torch.float64)
    objective = objective_of("simpo", held_out=answers())
    begun(objective, policy, tmp_path)
    before = objective.evaluate(policy, 100)
    for fell, is_said in ((5.0, True), (1.0, False)):
        objective._last = before | {
            "logps/chosen": before["logps/chosen"] - 3, "logps/rejected": before["logps/rejected"] - fell
        }  # fmt: skip
        (told,) = objective.conclude(policy, 100, tmp_path)
        assert ("the rejected ones fell further" in told) == is_said


def test_rows_that_are_only_scored_are_not_measured_twice(tmp_path):
    policy, _ = policy_of(torch.float64)
    rows = answers()
    objective = objective_of("simpo", rows, held_out=rows)
    begun(objective, policy, tmp_path)
    assert objective._before == {}


def test_without_chosen_answers_held_out_nothing_is_known_of_them(tmp_path):
    policy, _ = policy_of(torch.float64)
    for held_out in ((), answers()[1::2]):
        (told,) = objective_of("kto", held_out=held_out).conclude(policy, 100, tmp_path)
        assert "is not known" in told


def singles(count, wanted=lambda row: row % 2 == 0, prompts=9):
    made = []
    for row in range(count):
        ids = np.array([5 + row % prompts, 9, 20, 30 + row])
        weights = np.array([0, 0, 0, 1], dtype=np.float32)
        side = "chosen" if wanted(row) else "rejected"
        made.append(Answer(ids, weights, Origin("rows", row + 1), side=side))
    return made


@pytest.mark.parametrize(("rows", "batch", "prompts", "steps", "says"), [
    (5, 2, 9, 7, "in 1 of the first 3 steps"),
    (5, 2, 9, 2, None),
    (6, 2, 9, None, None),
    (4, 2, 1, None, "in 2 of the first 2 steps"),
])  # fmt: skip
def test_steps_of_kto_that_hold_one_prompt_alone_are_counted(rows, batch, prompts, steps, says, tmp_path):
    policy, _ = policy_of()
    objective = objective_of("kto", singles(rows, prompts=prompts), batch_size=batch, reference="online")
    told = begun(objective, policy, tmp_path, steps)
    assert len(told) == (says is not None)
    if says is not None:
        assert says in told[0]
        assert ("rows of other prompts mend" in told[0]) == (prompts == 1)
        assert objective._order.done == 0
        made = [objective._kl for step in islice(objective.steps(policy), 3)]
        assert made[-1] == 0.0


@pytest.mark.parametrize("side", ["wanted", "unwanted"])
def test_rows_of_one_kind_are_told_and_refused_where_they_weigh_nothing(side, tmp_path):
    policy, _ = policy_of()
    rows = singles(4, wanted=lambda row: side == "wanted")
    (told,) = begun(objective_of("kto", rows, batch_size=2, reference="online"), policy, tmp_path)
    assert f"every training row is {side}" in told
    own = "desirable_weight" if side == "wanted" else "undesirable_weight"
    with pytest.raises(RecipeError, match=f"every training row is {side}, which weighs 0"):
        objective_of("kto", rows, batch_size=2, **{own: 0.0})
    objective_of("kto", singles(4), batch_size=2, **{own: 0.0})
    objective_of("kto", rows, held_out=rows, batch_size=2, **{own: 0.0})  # scored, not learned


def objective_reference(objective):
    chosen = [pair[0] for pair in objective.held_out]
    return float(np.mean([objective._references.sums[row_digest(row)] for row in chosen]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing is not read by loss hinge"),
        ({"loss": "sigmoid", "gamma": 1.0}, "gamma is not read by loss sigmoid"),
        ({"loss": "kto", "nll_weight": 1.0}, "nll_weight is not read by loss kto"),
        ({"loss": "simpo", "reference": "online"}, "reference is not read by loss simpo"),
        ({"loss": "sigmoid", "alpha": 0.3}, "alpha_divergence alone"),
        ({"loss": "exo_pair"}, "label_smoothing is 0"),
        ({"loss": "ipo"}, "ipo_mean"),
        ({"loss": "sigmoid", "beta": 0}, "above 0"),
    ],
)
def test_a_setting_that_the_loss_does_not_read_is_refused(settings, says):
    values = {"model": {"name": "a/b"}, "data": {"train": "c/d"}, "objective": {"kind": "preference", **settings}}
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    assert says in str(caught.value)


ALSO_CALLED = [("dpo", "preference"), ("ipo", "ipo_mean or ipo_sum"), ("stf", "sft"), ("kto", "loss: kto")]


@pytest.mark.parametrize(("kind", "says"), ALSO_CALLED)
def test_an_objective_by_another_name_is_told_ours(kind, says):
    with pytest.raises(RecipeError) as caught:
        from_dict({"model": {"name": "a/b"}, "data": {"train": "c/d"}, "objective": {"kind": kind}})
    assert f"there is no objective '{kind}'" in str(caught.value)
    assert says in caught.value.notes["did you mean"]


def test_the_learning_rate_is_the_objectives_where_none_is_given():
    values = {"model": {"name": "a/b"}, "data": {"train": "c/d"}}
    pairs = values | {"objective": {"kind": "preference"}}
    assert from_dict(values).recipe.train.learning_rate == 2e-4
    assert from_dict(pairs).recipe.train.learning_rate == 1e-5
    assert from_dict(pairs).recipe.explicit().get("train") is None
    assert from_dict(pairs | {"train": {"learning_rate": 3e-4}}).recipe.train.learning_rate == 3e-4
    assert from_dict(pairs).recipe.with_changes({"objective.kind": "sft"}).train.learning_rate == 2e-4


def test_all_that_is_said_reads_back():
    for loss in LOSSES:
        own = SETTINGS.get(loss, {})
        values = {"model": {"name": "a/b"}, "data": {"train": "c/d"}}
        resolved = from_dict(values | {"objective": {"kind": "preference", "loss": loss, **own}})
        assert from_dict(resolved.plain).recipe.objective == resolved.recipe.objective
    assert preference.takes(PreferenceSettings()) != preference.takes(PreferenceSettings(loss="kto"))
