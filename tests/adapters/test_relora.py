"""ReLoRA against the paper's own loop, which merges into W; and what becomes of its restarts in a run and in files."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.adapter_set import add, check, generator_of
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.base import ResetMoments, Rewarm, base_of
from tunesmith.adapters.identity import identify
from tunesmith.adapters.merge import merge
from tunesmith.adapters.relora import Settings, build, on_step
from tunesmith.adapters.store import SIDE, TENSORS, load, save
from tunesmith.data.pack import collate
from tunesmith.errors import AdapterError
from tunesmith.events import Noted, StepDone
from tunesmith.models.tiny import tiny
from tunesmith.train.optim import reset_moments
from tunesmith.train.publish import take

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))
from loops import bench, rows, whole_and_resumed

pytestmark = pytest.mark.filterwarnings("ignore")
IN, MIDDLE, OUT = 9, 13, 7
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


class Literal(nn.Module):
    """A layer by the paper: at a restart the product goes into W, and A and B begin anew."""

    def __init__(self, weight, bias, adapter) -> None:
        super().__init__()
        self.W, self.bias, self.scale = weight.clone(), bias, adapter.scale
        self.A, self.B = nn.Parameter(adapter.A.detach().clone()), nn.Parameter(adapter.B.detach().clone())

    def forward(self, x):
        y = x @ self.W.T + self.scale * (x @ self.A.T) @ self.B.T
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def restart(self) -> None:
        self.W += self.scale * self.B @ self.A
        bound = 1 / math.sqrt(self.A.shape[1])
        self.A.copy_(torch.empty(self.A.shape).uniform_(-bound, bound))
        self.B.zero_()


def layers():
    torch.manual_seed(0)
    made = [nn.Linear(IN, MIDDLE).double(), Conv1D(OUT, MIDDLE).double()]
    nn.init.normal_(made[1].bias)
    return [layer.requires_grad_(False) for layer in made]


def pruned_by_hand(optimizer, parameters, kept):
    """Both moments of the same numbers, one by one."""
    for parameter in parameters:
        first, second = (optimizer.state[parameter][key].view(-1) for key in ("exp_avg", "exp_avg_sq"))
        order = sorted(range(len(first)), key=lambda i, m=first: -abs(m[i].item()))
        for i in order[math.ceil(kept * len(first)) :]:
            first[i] = second[i] = 0.0


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("r", [2, 4])
def test_it_is_the_paper_s_loop_of_merges_and_restarts(r, kept):
    """With r = 4 the merged products are multiplied out from the first or second restart on."""
    every, steps = 4, 18
    settings = Settings(r=r, alpha=3.0, restart_every=every, rewarm=2, moments_kept=kept)
    bases = [base_of(layer) for layer in layers()]
    ours = {str(i): build(settings, base, generator_of(0, str(i))).double() for i, base in enumerate(bases)}
    theirs = [Literal(base.weight(), base.bias, own) for base, own in zip(bases, ours.values(), strict=True)]
    named = {f"{path}.{letter}": p for path, adapter in ours.items() for letter, p in adapter.named_parameters()}
    literal = [p for layer in theirs for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW(named.values(), lr=0.02)
    plain = torch.optim.AdamW(literal, lr=0.02)
    generator = torch.Generator().manual_seed(3)
    restarts = 0
    for step in range(1, steps + 1):
        x = torch.randn(20, IN, generator=generator, dtype=torch.float64)
        target = torch.randn(20, OUT, generator=generator, dtype=torch.float64)
        mine = ours["1"](ours["0"](x, bases[0]).tanh(), bases[1])
        wanted = theirs[1](theirs[0](x).tanh())
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)
        (mine - target).pow(2).sum().backward()
        (wanted - target).pow(2).sum().backward()
        for one, other in zip(named.values(), literal, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)
        for own in (optimizer, plain):
            own.step()
            own.zero_grad()
        torch.manual_seed(step)
        requests = on_step(ours, step, steps)
        for request in requests:
            if isinstance(request, ResetMoments):
                assert set(request.names) == set(named)
                reset_moments(optimizer, [named[name] for name in request.names], request.kept)
            else:
                assert request == Rewarm(2)
        if step % every == 0:
            restarts += 1
            assert len(requests) == 2
            torch.manual_seed(step)
            for layer in theirs:
                layer.restart()
            if kept:
                pruned_by_hand(plain, literal, kept)
            else:
                plain = torch.optim.AdamW(literal, lr=0.02)
        else:
            assert not requests
    assert restarts == 4
    for layer, adapter, base in zip(theirs, ours.values(), bases, strict=True):
        weight, _ = adapter.merged(base.weight(), base.bias)
        torch.testing.assert_close(weight, layer.W + layer.scale * layer.B @ layer.A, rtol=1e-9, atol=1e-9)
        assert len(adapter.A1) == min(restarts * r, min(base.in_features, base.out_features)) or r == 2
        assert len(adapter.A1) <= min(base.in_features, base.out_features)
        change = torch.linalg.matrix_rank(weight - base.weight())
        assert change > r, "more than one LoRA's rank"


def test_no_restart_comes_after_the_last_step():
    settings = Settings(r=2, restart_every=3, rewarm=0)
    adapters = {"x": build(settings, base_of(nn.Linear(IN, OUT)), generator_of(0, "x"))}
    assert len(on_step(adapters, 3, 6)) == 1, "without a renewed warm-up the moments alone"
    assert not on_step(adapters, 6, 6)
    assert len(on_step(adapters, 6, None)) == 1


def test_settings_and_runs_that_make_no_sense_are_refused():
    with pytest.raises(ValidationError, match="not over before the next restart"):
        Settings(restart_every=5, rewarm=5)
    check(Settings(restart_every=20, rewarm=2), 21, "adamw")
    check(Settings(moments_kept=0), None, "adamw-8bit")
    with pytest.raises(AdapterError, match="restart_every 200 is not reached"):
        check(Settings(), 200, "adamw")
    with pytest.raises(AdapterError, match="8-bit"):
        check(Settings(), None, "adamw-8bit")


def restarted(r: int, times: int, arch: str = "llama", dtype: torch.dtype = torch.float32):
    """A model, and an adapter that has learned and been merged so often."""
    model, switch = tiny(arch, dtype=dtype), Switch()
    settings = Settings(r=r, restart_every=1, rewarm=0, targets=("q_proj", "k_proj", "down_proj", "embed_tokens"))
    adapter_set = add(model, switch, settings, name="a", seed=0)
    generator = torch.Generator().manual_seed(4)
    for step in range(1, times + 1):
        nudge(adapter_set, generator)
        adapter_set.on_step(step, None)
    nudge(adapter_set, generator)
    switch.name = "a"
    return model, adapter_set


def nudge(adapter_set, generator) -> None:
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.05 * torch.empty(parameter.shape).normal_(generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("r", [3, 9])
def test_a_restart_changes_no_number_that_the_model_computes(r, dtype):
    """r = 9: some layers are multiplied out by it, some are not."""
    bound = {torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    model, adapter_set = restarted(r, 1, dtype=dtype)
    before = model(IDS, labels=IDS)
    weights = {name: tensor.double() for name, tensor in merge(model, adapter_set).state_dict().items()}
    adapter_set.on_step(2, None)
    assert all(
        not p.any() for name, p in adapter_set.parameters().items() if name.endswith(".B") and "embed" not in name
    )
    after = model(IDS, labels=IDS)
    torch.testing.assert_close(after.loss, before.loss, rtol=bound, atol=bound)
    largest = before.logits.abs().max().item()
    torch.testing.assert_close(after.logits, before.logits, rtol=bound, atol=10 * bound * largest)
    for name, tensor in merge(model, adapter_set).state_dict().items():
        torch.testing.assert_close(tensor.double(), weights[name], rtol=bound, atol=bound)


def test_small_updates_are_not_lost_beside_a_weight_in_bf16():
    """A thousand merges, each far below what bf16 can add to a weight of 1."""
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    nn.init.ones_(layer.weight)
    adapter = build(Settings(r=1, alpha=1.0, restart_every=1, rewarm=0), base_of(layer), generator_of(0, "x"))
    for _ in range(1000):
        with torch.no_grad():
            adapter.A.fill_(1.0)
            adapter.B.fill_(1e-4)
        adapter.restart()
    weight, _ = adapter.merged(layer.weight.double(), None)
    torch.testing.assert_close(weight, torch.full((4, 4), 1.1, dtype=torch.float64), rtol=1e-5, atol=0)
    merged_into_bf16 = layer.weight.clone()
    for _ in range(1000):
        merged_into_bf16 += 1e-4
    assert torch.equal(merged_into_bf16, layer.weight)


@pytest.mark.parametrize(("r", "times"), [(3, 0), (3, 2), (9, 3)])
def test_a_file_with_any_number_of_merges_is_read_back_and_trained_on(r, times, tmp_path):
    model, adapter_set = restarted(r, times)
    save(tmp_path / "a", adapter_set, identify(model))
    again, switch = tiny("llama"), Switch()
    loaded = load(tmp_path / "a", again, switch, "a", trainable=True)
    switch.name = "a"
    assert loaded.settings == adapter_set.settings
    assert loaded.state().keys() == adapter_set.state().keys()
    assert all(torch.equal(loaded.state()[name], tensor) for name, tensor in adapter_set.state().items())
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    loaded.on_step(1, None)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_without_our_side_file_it_is_one_lora_of_a_higher_rank(tmp_path):
    model, adapter_set = restarted(9, 3)
    save(tmp_path / "a", adapter_set, identify(model))
    (tmp_path / "a" / SIDE).unlink()
    again, switch = tiny("llama"), Switch()
    loaded = load(tmp_path / "a", again, switch, "a")
    switch.name = "a"
    ranks = {path.rpartition(".")[2]: own.r for path, own in loaded.layer_settings.items()}
    assert ranks == {"q_proj": 9 + 27, "k_proj": 9 + 16, "down_proj": 9 + 27, "embed_tokens": 9 + 27}
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_file_that_cannot_be_of_this_adapter_is_refused(tmp_path):
    model, adapter_set = restarted(3, 2)
    save(tmp_path / "a", adapter_set, identify(model))
    side = json.loads((tmp_path / "a" / SIDE).read_text())
    tensors = load_file(tmp_path / "a" / TENSORS)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    for wrong in (tensors[name][:, :-1], tensors[name][:2]):  # another width; narrower than A itself
        save_file({**tensors, name: wrong.contiguous()}, tmp_path / "a" / TENSORS)
        side["sha256"][TENSORS] = hashlib.sha256((tmp_path / "a" / TENSORS).read_bytes()).hexdigest()
        (tmp_path / "a" / SIDE).write_text(json.dumps(side))
        with pytest.raises(AdapterError, match="misshapen"):
            load(tmp_path / "a", tiny("llama"), Switch(), "a")


def test_state_goes_out_and_in_whole_or_not_at_all():
    _, one = restarted(3, 2)
    _, other = restarted(3, 0)
    before = {name: tensor.clone() for name, tensor in other.state().items()}
    broken = {name: tensor.clone() for name, tensor in one.state().items()}
    broken[next(name for name in broken if name.endswith(".A1"))] = torch.zeros(6, 5)
    with pytest.raises(AdapterError, match="misshapen"):
        other.load_state(broken)
    assert all(torch.equal(other.state()[name], tensor) for name, tensor in before.items())
    other.load_state(one.state())
    assert all(torch.equal(other.state()[name], tensor) for name, tensor in one.state().items())
    _, fresh = restarted(3, 0)
    one.load_state(fresh.state())
    assert all(torch.equal(one.state()[name], tensor) for name, tensor in fresh.state().items())


RUN = {"steps": 11, "warmup": 2, "schedule": "cosine", "moved": False, "dropout": 0.0}
RELORA = Settings(r=2, restart_every=4, rewarm=3, moments_kept=0.1, dropout=0.2)


def test_a_run_restarts_its_moments_and_its_learning_rate(tmp_path):
    made = bench(tmp_path / "relora", adapter=RELORA, **RUN)
    plain = bench(tmp_path / "plain", adapter=RELORA.model_copy(update={"restart_every": 100}), **RUN)
    made.loop.run()
    plain.loop.run()
    rates = [event.learning_rate for event in made.kinds(StepDone)]
    envelope = [event.learning_rate for event in plain.kinds(StepDone)]
    shares = [rate / full for rate, full in zip(rates, envelope, strict=True)]
    assert shares == pytest.approx([1] * 4 + [1 / 3, 2 / 3, 1, 1] + [1 / 3, 2 / 3, 1])
    notes = [event.text for event in made.kinds(Noted)]
    assert [note.partition(":")[0] for note in notes] == ["after step 4"] * 2 + ["after step 8"] * 2
    assert "pruned to the largest 0.1" in notes[0]
    assert "warms up again over 3 steps" in notes[1]
    adapter = next(iter(made.adapter_set.adapters.values()))
    assert len(adapter.A1) == 4


@pytest.mark.parametrize("kept", [0.0, 0.1])
def test_the_loss_after_a_restart_is_the_loss_before_it_and_the_moments_are_gone(tmp_path, kept):
    settings = RELORA.model_copy(update={"moments_kept": kept, "dropout": 0.0})
    made = bench(tmp_path, adapter=settings, **RUN)
    batch = collate(rows(6, seed=9))
    seen = {}
    hook = made.loop.job.on_step

    def measured(step, num_steps):
        losses = [made.loop.objective.loss(made.policy, batch).sums["loss"].item()]
        requests = hook(step, num_steps)
        losses.append(made.loop.objective.loss(made.policy, batch).sums["loss"].item())
        seen[step] = losses
        return requests

    object.__setattr__(made.loop.job, "on_step", measured)

    def moments(event):
        if isinstance(event, StepDone) and event.step in (4, 8):
            for parameter in made.adapter_set.parameters().values():
                state = made.loop.optimizer.state.get(parameter, {})
                if kept:
                    for moment in (state["exp_avg"], state["exp_avg_sq"]):
                        assert 0 < moment.count_nonzero() <= math.ceil(kept * parameter.numel())
                else:
                    assert not state

    made.loop.listeners = [*made.loop.listeners, moments]
    made.loop.run()
    for step, (before, after) in seen.items():
        assert after == pytest.approx(before, rel=1e-6), step
    assert len({round(before, 4) for before, _ in seen.values()}) > 8, "it learned all the while"


@pytest.mark.parametrize("cut", [2, 4, 5, 9])
@pytest.mark.parametrize("kept", [0.0, 0.1])
def test_a_run_broken_off_before_at_or_after_a_restart_resumes_bit_for_bit(tmp_path, cut, kept):
    options = {**RUN, "adapter": RELORA.model_copy(update={"moments_kept": kept}), "held_out": rows(3, seed=4)}
    whole, again = whole_and_resumed(tmp_path, cut, **options)
    rates = [[event.learning_rate for event in made.kinds(StepDone)] for made in (whole, again)]
    assert rates[0][cut:] == rates[1]


def test_the_best_checkpoint_is_taken_back_though_it_had_fewer_merges(tmp_path):
    made = bench(tmp_path, adapter=RELORA, save_every=1, keep_checkpoints=20, **RUN)
    ended = made.loop.run()
    saved = made.loop.checkpoints.path(5)
    take(made.adapter_set, saved.parent, ended, 5)
    wanted = load_file(saved / "trainer.safetensors")
    for name, tensor in made.adapter_set.state().items():
        assert torch.equal(tensor, wanted[f"weights/{name}"]), name
    assert {len(adapter.A1) for adapter in made.adapter_set.adapters.values()} == {2}


def test_a_budget_in_minutes_restarts_too(tmp_path):
    def stop(event):
        return "stop" if getattr(event, "step", 0) == 9 else None

    options = {key: value for key, value in RUN.items() if key != "steps"}
    made = bench(tmp_path, adapter=RELORA, minutes=5.0, listeners=[stop], **options)
    made.loop.run()
    assert len(made.kinds(Noted)) == 4
    assert {len(adapter.A1) for adapter in made.adapter_set.adapters.values()} == {4}
