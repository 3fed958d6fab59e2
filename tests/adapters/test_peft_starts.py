"""PiSSA and OLoRA begin where PEFT's own begin, and learn the same: there the start is taken off the frozen weight."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings
from tunesmith.models.tiny import tiny
from tunesmith.quant.dense import dense_weight

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))
TARGETS = {"llama": ("q_proj", "k_proj", "up_proj", "down_proj"), "gpt2": ("c_attn", "c_fc")}
CASES = [
    ("pissa", "llama", False),
    ("pissa", "llama", True),
    ("pissa", "gpt2", False),
    ("olora", "llama", False),
    ("olora", "llama", True),
]
"""Of a Conv1D PEFT decomposes the matrix as it lies for OLoRA, turned: no case."""


def both(start: str, arch: str, rank_stabilised: bool):
    """Our model and adapters by path; PEFT's model and layers by path."""
    model, switch = tiny(arch), Switch()
    settings = Settings(r=3, alpha=7.0, start=start, rank_stabilised=rank_stabilised, targets=TARGETS[arch])
    adapter_set = add(model, switch, settings, name="a", seed=0)
    switch.name = "a"
    config = LoraConfig(
        r=3, lora_alpha=7, init_lora_weights=start, use_rslora=rank_stabilised, target_modules=list(TARGETS[arch]),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_peft_model(tiny(arch), config).eval()
    layers = {path: theirs.base_model.model.get_submodule(path) for path in adapter_set.targets.adapted}
    return model, adapter_set.adapters, theirs, layers


def factors(layer):
    """PEFT's A, B."""
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def same(one: torch.Tensor, other: torch.Tensor, close: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=close, atol=close * other.abs().max().item())


def logits_and_gradients(model) -> torch.Tensor:
    output = model(IDS, labels=IDS)
    output.loss.backward()
    return output.logits.detach()


def whole(layer) -> torch.Tensor:
    """What PEFT's layer multiplies by, [out, in]."""
    A, B = factors(layer)
    return (dense_weight(layer.base_layer) + layer.scaling["default"] * B @ A).detach()


@pytest.mark.parametrize(("start", "arch", "rank_stabilised"), CASES)
def test_start_outputs_gradients_and_the_first_step_are_peft_s(start, arch, rank_stabilised):
    model, adapters, theirs, layers = both(start, arch, rank_stabilised)
    plain = {path: dense_weight(tiny(arch).get_submodule(path)) for path in adapters}
    optimizers = [
        torch.optim.SGD([tensor for A, B in pairs for tensor in (A, B)], lr=0.02)
        for pairs in ([(a.A, a.B) for a in adapters.values()], [factors(layer) for layer in layers.values()])
    ]
    for path, adapter in adapters.items():
        A, B = factors(layers[path])
        same(adapter.B @ adapter.A, B @ A)
        signs = (adapter.A * A).sum(1).sign()
        same(signs[:, None] * adapter.A, A, 1e-4)
        same(adapter.B * signs, B, 1e-4)
        assert adapter.scale == pytest.approx(layers[path].scaling["default"])
    for _ in range(2):  # at the start, and after a step
        same(logits_and_gradients(model), logits_and_gradients(theirs), 1e-4)
        for path, adapter in adapters.items():
            A, B = factors(layers[path])
            for mine, wanted in (
                (adapter.B.grad @ adapter.A, B.grad @ A),  # no sign of a direction counts in these
                (adapter.B @ adapter.A.grad, B @ A.grad),
            ):
                same(mine, wanted, 1e-3)
            merged = adapter.merged(plain[path], None)[0]
            same(merged, whole(layers[path]))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for path, adapter in adapters.items():
        change, wanted = (
            weight - plain[path] for weight in (adapter.merged(plain[path], None)[0], whole(layers[path]))
        )
        assert wanted.abs().max() > 1e-5
        assert (change - wanted).norm() < 0.02 * wanted.norm()
