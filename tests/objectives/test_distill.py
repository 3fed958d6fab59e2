"""Distillation: divergences by their formulas, the loss over the whole vocabulary by hand, and whole runs."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings as LoRA
from tunesmith.data.types import Example, Origin
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models import attention
from tunesmith.models.policy import Head, probe
from tunesmith.models.tiny import randomise, tiny
from tunesmith.objectives.distill import Distillation, DistillSettings
from tunesmith.objectives.divergences import CHUNK, divergence, weighed
from tunesmith.recipe import from_dict
from tunesmith.run import train

KINDS = ["forward_kl", "reverse_kl", "jsd"]


def log_probabilities(n=6, size=11, seed=0):
    return torch.log_softmax(
        2 * torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), -1
    )


def test_divergences_are_torch_s_and_the_paper_s():
    student, teacher = log_probabilities(seed=0), log_probabilities(seed=1)
    kl = lambda one, other: F.kl_div(other, one, log_target=True, reduction="none").sum(-1)  # noqa: E731 - KL(one | other)
    assert torch.allclose(divergence(student, teacher, "forward_kl", 0.5), kl(teacher, student))
    assert torch.allclose(divergence(student, teacher, "reverse_kl", 0.5), kl(student, teacher))
    beta = 0.3
    mixed = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
    wanted = beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)
    assert torch.allclose(divergence(student, teacher, "jsd", beta), wanted)
    for kind in KINDS:
        assert divergence(student, student, kind, 0.5).abs().max() < 1e-12
        assert (divergence(student, teacher, kind, 0.5) > 0).all()


def test_a_word_that_the_teacher_never_says_counts_nothing_forward():
    student, teacher = torch.log_softmax(torch.zeros(1, 3), -1), torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert divergence(student, teacher, "forward_kl", 0.5).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_and_gradients_are_autograd_s(kind):
    torch.manual_seed(0)
    n = CHUNK + 7
    hidden, weight = torch.randn(n, 6, requires_grad=True), torch.randn(13, 6, requires_grad=True)
    bias, taught, other = torch.randn(13, requires_grad=True), torch.randn(n, 5), torch.randn(15, 5)
    weights = torch.rand(n)
    made, _ = weighed(
        hidden, Head(weight, bias, 0.5, 4.0), taught, Head(other, None, 1.0, None), weights,
        kind=kind, beta=0.4, temperature=1.5,
    )  # fmt: skip
    found = torch.autograd.grad(made, (hidden, weight, bias))
    own = torch.tanh(((hidden @ weight.T + bias) * 0.5) / 4.0) * 4.0 / 1.5
    theirs = (taught @ other.T)[:, :13] / 1.5
    plain = (weights * divergence(torch.log_softmax(own, -1), torch.log_softmax(theirs, -1), kind, 0.4)).sum()
    wanted = torch.autograd.grad(plain, (hidden, weight, bias))
    assert torch.allclose(made, plain, rtol=1e-5)
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, atol=1e-5 * two.abs().max().item())


def policy_of(arch="llama", seed=0, adapter=True):
    model, switch = tiny(arch, seed), Switch()
    attention.register()
    attention.install(model)
    made = None
    if adapter:
        made = add(model, switch, LoRA(r=2), name="a", seed=0)
        for parameter in made.parameters().values():
            with torch.no_grad():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    policy, _ = probe(model, switch)
    switch.name = "a" if adapter else None
    return policy, made


def rows(count=5):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        n = int(rng.integers(5, 20))
        weights = (rng.random(n) < 0.6).astype(np.float32)
        weights[-1] = 1.0
        made.append(Example(rng.integers(3, 90, n), weights, Origin("rows", i + 1)))
    return made


@pytest.mark.parametrize(("student", "teacher"), [("llama", "qwen3"), ("bloom", "llama"), ("gemma2", "gpt2")])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_whole_logits(student, teacher, kind):
    policy, made = policy_of(student)
    taught, _ = policy_of(teacher, seed=5, adapter=False)
    train_rows = rows()
    objective = Distillation(train_rows, [], DistillSettings(teacher="x", divergence=kind), batch_size=5, seed=0)
    objective.teacher = taught
    totals = {}
    for max_tokens in (10**6, 1, 30):
        objective.load_state_dict({"steps_done": 0})
        step = next(objective.steps(policy))
        for parameter in made.parameters().values():
            parameter.grad = None
        total = 0.0
        for batch in objective.micro_batches(step, max_tokens):
            loss = objective.loss(policy, batch).sums["loss"] / step.denominators["loss"]
            loss.backward()
            total += loss.item()
        totals[max_tokens] = total, {name: p.grad.clone() for name, p in made.parameters().items()}
    for parameter in made.parameters().values():
        parameter.grad = None
    sums, count = 0.0, 0.0
    for row in train_rows:
        ids, weights = torch.from_numpy(row.token_ids)[None], torch.from_numpy(row.loss_weights[1:])
        own = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1].float(), -1)
        with torch.no_grad():
            theirs = torch.log_softmax(taught.model(input_ids=ids).logits[0, :-1].float(), -1)
        sums = sums + (weights * divergence(own, theirs, kind, 0.5)).sum()
        count += weights.sum().item()
    wanted = sums / count
    wanted.backward()
    largest = max(p.grad.abs().max() for p in made.parameters().values())
    for total, gradients in totals.values():
        assert total == pytest.approx(wanted.item(), rel=2e-5)
        for name, parameter in made.parameters().items():
            assert (gradients[name] - parameter.grad).abs().max() <= 5e-5 * largest, name


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="is of jsd alone"):
        DistillSettings(teacher="x", beta=0.3)
    with pytest.raises(ValueError, match="is of sampled answers alone"):
        DistillSettings(teacher="x", max_completion_length=4)
    assert DistillSettings(teacher="x").compared == "forward_kl"
    assert DistillSettings(teacher="x", answers="sampled").compared == "reverse_kl"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student, and a teacher of twice its width with the same tokenizer."""
    from small_run import make_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    student = make_model(tmp_path_factory.mktemp("student"))
    teacher = tmp_path_factory.mktemp("teacher")
    shape = AutoConfig.from_pretrained(student)
    shape.hidden_size, shape.intermediate_size = 64, 96
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 9)
    model.save_pretrained(teacher)
    AutoTokenizer.from_pretrained(student).save_pretrained(teacher)
    return student, teacher


def values(models, folder, rows, **objective):
    return {
        "model": {"name": str(models[0]), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(rows), "held_out": 3},
        "adapter": {"r": 4},
        "objective": {"kind": "distill", "teacher": str(models[1]), **objective},
        "train": {"steps": 8, "batch_size": 3, "learning_rate": 0.01, "save_every": 1},
        "output": {"folder": str(folder)},
    }


@pytest.mark.parametrize("answers", ["given", "sampled"])
def test_a_student_comes_nearer_to_its_teacher_and_resumes_bit_for_bit(models, tmp_path, answers):
    from small_run import make_rows

    from tunesmith.events import StepDone

    data = make_rows(tmp_path / "rows.jsonl", 12)
    if answers == "sampled":
        data.write_text("".join(json.dumps({"prompt": f"what is {i}"}) + "\n" for i in range(12)))
    more = {"answers": answers} | ({"max_completion_length": 6} if answers == "sampled" else {})
    train(from_dict(values(models, tmp_path / "a", data, **more)), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    held = [line["metrics"]["loss"] for line in lines if line["event"] == "evaluation"]
    if answers == "given":  # sampled answers are others each time
        assert held[-1] < 0.97 * held[0]
    assert all("agreement" in line["metrics"] for line in lines if line["event"] in ("step", "evaluation"))
    stopped = from_dict(values(models, tmp_path / "b", data, **more))
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 5 else None])
    train(stopped, resume=True, quiet=True)
    again = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    losses = lambda found: [line["loss"] for line in found if line["event"] == "step"]  # noqa: E731
    assert losses(lines) == losses(again)


def test_given_answers_may_be_counted_in_tokens():
    given = rows(9)
    made = Distillation(given, [], DistillSettings(teacher="x"), batch_size=None, seed=0, batch_tokens=40)
    steps = [next(stream) for stream in [made.steps(None)] for _ in range(made.steps_per_epoch)]
    assert made.steps_per_epoch == math.ceil(sum(map(len, given)) / 40)
    assert sorted(row.origin.row for step in steps for row in step.examples) == list(range(1, 10))


def test_a_teacher_of_other_tokens_or_none_is_refused_before_loading(models, tmp_path):
    from small_run import make_rows
    from transformers import AutoTokenizer

    data = make_rows(tmp_path / "rows.jsonl", 8)
    made = values(models, tmp_path / "a", data)
    made["objective"]["teacher"] = str(tmp_path / "nobody")
    with pytest.raises(ModelError, match="nobody"):
        train(from_dict(made), quiet=True)
    other = AutoTokenizer.from_pretrained(models[1])
    other.add_tokens(["<odd>"])
    other.save_pretrained(tmp_path / "odd")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "odd" / name).write_bytes((models[1] / name).read_bytes())
    made["objective"]["teacher"] = str(tmp_path / "odd")
    with pytest.raises(RecipeError, match=r"other tokens(.|\n)*<odd>"):
        train(from_dict(made), quiet=True)


def test_another_teacher_is_noticed_at_resume_and_evaluation_asks_the_teacher(models, tmp_path, capsys):
    import shutil

    from small_run import make_rows
    from transformers import AutoModelForCausalLM

    from tunesmith import inference
    from tunesmith.errors import CheckpointError
    from tunesmith.events import StepDone

    teacher = shutil.copytree(models[1], tmp_path / "teacher")
    data = make_rows(tmp_path / "rows.jsonl", 12)
    made = from_dict(values((models[0], teacher), tmp_path / "a", data))
    ended = train(made, quiet=True).ended
    found = inference.evaluate(tmp_path / "a")
    assert found["loss"] == pytest.approx(ended.best_metrics["loss"], abs=1e-5)
    stopped = from_dict(values((models[0], teacher), tmp_path / "b", data))
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 3 else None])
    other = AutoModelForCausalLM.from_pretrained(teacher)
    randomise(other, 77)
    other.save_pretrained(teacher)
    with pytest.raises(CheckpointError, match="the teacher is not what the run began with"):
        train(stopped, resume=True, quiet=True)
    capsys.readouterr()


def test_evaluation_needs_no_step(tmp_path):
    policy, _ = policy_of()
    objective = Distillation(rows(), rows(), DistillSettings(teacher="x"), batch_size=5, seed=0, shuffle=False)
    objective.teacher = policy_of("qwen3", 5, adapter=False)[0]
    stage = lambda name: nullcontext(lambda share: None)  # noqa: E731
    assert objective.begin(policy, num_steps=1, max_tokens=99, cache=tmp_path, stage=stage) == []
    step = next(objective.steps(policy))
    loss = objective.loss(policy, objective.micro_batches(step, 10**6)[0])
    assert objective.evaluate(policy, 20)["loss"] == pytest.approx(
        loss.sums["loss"].item() / step.denominators["loss"], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_gradients_of_every_divergence_by_finite_differences(kind):
    draw = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(3, 7, dtype=torch.float64, generator=draw) for _ in range(2))
    teacher = torch.log_softmax(taught, -1)

    def loss(student: torch.Tensor) -> torch.Tensor:
        return divergence(torch.log_softmax(student, -1), teacher, kind, 0.3)

    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),))
