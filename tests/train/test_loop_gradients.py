"""However a step is cut, its gradients are those of a plain loop written here without any code of ours."""

from __future__ import annotations

import math

import pytest
import torch
from loops import SCALE, bench, rows
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.lora import Settings
from tunesmith.data.pack import collate
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.objectives.sft import SFT

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain:
    """A transformers model with hand-written LoRA, and mean cross entropy per learned token, one row at a time."""

    def __init__(self, arch: str, dtype: torch.dtype, start: dict[str, torch.Tensor]) -> None:
        self.model = tiny(arch, dtype=dtype, attn_implementation="sdpa" if arch not in ("bloom", "gemma2") else "eager")
        self.model.requires_grad_(False)
        self.parameters = {name: value.clone().requires_grad_(True) for name, value in start.items()}
        for path in {name.rpartition(".")[0] for name in start}:
            A, B = self.parameters[f"{path}.A"], self.parameters[f"{path}.B"]
            layer = self.model.get_submodule(path)
            assert isinstance(layer, (nn.Linear, Conv1D))
            layer.register_forward_hook(
                lambda _, inputs, out, A=A, B=B: out + SCALE * (inputs[0] @ A.to(out.dtype).T) @ B.to(out.dtype).T
            )

    def loss(self, examples) -> torch.Tensor:
        total, count = 0.0, 0.0
        for example in examples:
            ids = torch.from_numpy(example.token_ids)
            logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
            losses = nn.functional.cross_entropy(logits[:-1].double(), ids[1:], reduction="none")
            weights = torch.from_numpy(example.loss_weights[1:])
            total, count = total + (losses * weights).sum(), count + float(weights.sum())
        return total / count

    def gradients(self, examples) -> dict[str, torch.Tensor]:
        loss = self.loss(examples)
        return dict(zip(self.parameters, torch.autograd.grad(loss, list(self.parameters.values())), strict=True))


class Cut(SFT):
    """Micro-batches of `size` rows each."""

    size = 1

    def micro_batches(self, step, max_tokens):
        examples = list(step.examples)
        return [collate(examples[i : i + self.size]) for i in range(0, len(examples), self.size)]


def cut(size: int) -> type[SFT]:
    return type("Cut", (Cut,), {"size": size})


SPLITS = {
    "8x1": {"objective": cut(1)},
    "4x2": {"objective": cut(2)},
    "1x8": {"objective": cut(8)},
    "packed by tokens": {"micro_batch_tokens": 40},
    "padded 4x2": {"objective": cut(2), "flat": False},
    "padded 1x8": {"objective": cut(8), "flat": False},
}


def gradients(made) -> dict[str, torch.Tensor]:
    step = next(made.loop.objective.steps(made.policy))
    result = made.loop._gradients(step)
    assert result.num_tokens == sum(map(len, step.examples))
    assert result.num_learned == sum(example.num_learned for example in step.examples)
    return {name: p.grad for name, p in made.adapter_set.parameters().items()}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("arch", "dtype", "tolerance"),
    [
        ("gpt_neox", torch.float64, 1e-10),
        ("gpt2", torch.float64, 1e-10),
        ("llama", torch.float32, 1e-5),
        ("gemma2", torch.float32, 1e-5),
        ("mistral", torch.float32, 1e-5),
    ],
)
def test_every_split_gives_the_gradients_of_a_plain_loop(tmp_path, arch, dtype, tolerance, split):
    examples = rows(8)
    assert len({example.num_learned for example in examples}) > 3
    made = bench(tmp_path, arch=arch, dtype=dtype, train=examples, batch_size=8, **SPLITS[split])
    wanted = Plain(arch, dtype, made.weights()).gradients(examples)
    mine = gradients(made)
    largest = max(grad.abs().max().item() for grad in wanted.values())
    for name, grad in wanted.items():
        assert grad.abs().max() > 0
        assert (mine[name] - grad).abs().max().item() <= tolerance * largest, name


def test_a_whole_run_is_that_of_a_plain_loop(tmp_path):
    """Order of rows, denominators, clipping, AdamW, warm-up and cosine: five epochs, weights equal to 1e-10."""
    examples, held_out = rows(10), rows(5, seed=1)
    options = {"epochs": 5.0, "batch_size": 4, "warmup": 3.0, "weight_decay": 0.1, "max_grad_norm": 2.6, "seed": 5}
    made = bench(
        tmp_path, arch="gpt2", dtype=torch.float64, train=examples, held_out=held_out, micro_batch_tokens=40, **options
    )
    plain = Plain("gpt2", torch.float64, made.weights())
    optimizer = torch.optim.AdamW(list(plain.parameters.values()), lr=1e-2, weight_decay=0.1)
    orders = [made.loop.objective.order(epoch) for epoch in range(5)]
    ended = made.loop.run()
    losses, norms = [], []
    for epoch in range(5):
        for start in (0, 4, 8):
            step = len(losses)
            chosen = [examples[i] for i in orders[epoch][start : start + 4]]
            loss = plain.loss(chosen)
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(list(plain.parameters.values()), 2.6).item())
            rate = (step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 12))
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * rate
            optimizer.step()
            losses.append(loss.item())
    from tunesmith.events import StepDone

    done = made.kinds(StepDone)
    assert len({tuple(order) for order in orders}) == 5
    assert ended.step == 15
    assert [event.loss for event in done] == pytest.approx(losses, rel=1e-10)
    assert [event.grad_norm for event in done] == pytest.approx(norms, rel=1e-9)
    assert min(norms) < 2.6 < max(norms)
    for name, value in plain.parameters.items():
        torch.testing.assert_close(made.weights()[name], value.detach(), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert ended.best_metrics["loss"] <= plain.loss(held_out).item() + 1e-10


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("arch", "dtype"),
    [(arch, torch.float32) for arch in ARCHITECTURES]
    + [(arch, dtype) for arch in ("llama", "gpt2") for dtype in (torch.bfloat16, torch.float16, torch.float64)],
)
def test_every_adapter_tensor_moves_and_every_frozen_one_stays(tmp_path, arch, dtype, recompute):
    settings = Settings(r=2, train_in_full=("norms",)) if arch in ("llama", "qwen3") else Settings(r=2)
    made = bench(tmp_path, arch=arch, dtype=dtype, moved=False, recompute=recompute, steps=3, adapter=settings)
    learned = {id(p) for p in made.adapter_set.parameters().values()}
    frozen = {name: p.detach().clone() for name, p in made.policy.named_parameters() if id(p) not in learned}
    buffers = {name: b.clone() for name, b in made.policy.named_buffers()}
    before = made.weights()
    made.loop.run()
    for name, value in made.weights().items():
        assert not torch.equal(value, before[name]), name
        assert torch.isfinite(value).all()
    now = dict(made.policy.named_parameters())
    assert frozen
    for name, value in frozen.items():
        assert torch.equal(now[name], value), name
        assert now[name].grad is None
    for name, value in made.policy.named_buffers():
        assert torch.equal(buffers[name], value), name


@pytest.mark.parametrize("arch", ["llama", "opt", "falcon", "gpt2", "bloom"])
@pytest.mark.parametrize("flat", [True, False])
def test_recomputing_changes_no_bit_and_wakes_no_dropout_of_the_base(tmp_path, arch, flat):
    """With dropout in the adapter (drawn again alike) and dropout in the frozen base's config (never drawn)."""
    results = []
    for recompute in (False, True):
        made = bench(tmp_path, arch=arch, dropout=0.3, recompute=recompute, batch_size=8, flat=flat)
        for name in ("dropout", "hidden_dropout", "attention_dropout", "resid_pdrop"):
            for holder in (made.policy.model.config, *made.policy.model.modules()):
                if isinstance(vars(holder).get(name), float):
                    setattr(holder, name, 0.5)
        blocks = next(m for m in made.policy.model.base_model.modules() if isinstance(m, nn.ModuleList))
        norm = next(m for m in blocks[0].modules() if "Norm" in type(m).__name__)
        ran = []
        norm.register_forward_hook(lambda *_, c=ran: c.append(2))
        results.append((gradients(made), ran.count(2)))
    for name, grad in results[0][0].items():
        assert torch.equal(grad, results[1][0][name]), name
    assert results[1][1] == 2 * results[0][1]
