"""Law 6 and its neighbours: every method beside every storage of few bits.

An adapter sees the dequantised weight and nothing else: beside a quantised layer it computes what it computes beside a
plain one that holds the dequantised numbers, forward and gradients; switched off, the quantised layer is as it was.
"""

from __future__ import annotations

import copy

import pytest
import torch
from quantised_layers import MADE, plain_of
from test_adapter_laws import BUILDS, UNMERGEABLE, moved
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import refusal
from tunesmith.adapters.attach import Switch, attach, detach
from tunesmith.adapters.base import base_of
from tunesmith.quant import QUANTISED
from tunesmith.quant.dense import dense_weight, like, weight_shape
from tunesmith.quant.quantised import dequantise, storage_name

IN, OUT, TOKENS = 48, 24, 9
KINDS = ("linear", "linear-bias", "conv1d-bias")
STORAGES = tuple(MADE)


def layer_of(kind: str, storage: str, dtype: torch.dtype = torch.float32):
    """A Conv1D is read with its matrix turned, as transformers does, and remembered."""
    torch.manual_seed(0)
    old = Conv1D(OUT, IN) if kind.startswith("conv1d") else nn.Linear(IN, OUT, bias="bias" in kind)
    for parameter in old.parameters():
        nn.init.normal_(parameter)
    made = MADE[storage](dense_weight(old).detach(), None if old.bias is None else old.bias.detach(), dtype)
    made.turned = isinstance(old, Conv1D)
    return made


def in_its_form(layer) -> nn.Module:
    """What stands for `layer` in a plain model, copied by hand."""
    plain = plain_of(layer)
    if not layer.turned:
        return plain
    made = Conv1D(OUT, IN)
    with torch.no_grad():
        made.weight.copy_(plain.weight.t())
        made.bias.copy_(plain.bias)
    return made.requires_grad_(False)


def input_of(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, TOKENS, IN, generator=torch.Generator().manual_seed(1)).to(dtype)


CASES = [
    (method, storage, kind)
    for method in BUILDS
    for storage in STORAGES
    for kind in KINDS
    if (name := method.partition(",")[0]) not in METHODS or refusal(METHODS[name].Settings(), storage) is None
]
cases = pytest.mark.parametrize(("method", "storage", "kind"), CASES)


def beside(layer: nn.Module, method: str, names: tuple[str, ...] = ("a",)):
    model = nn.ModuleDict({"layer": layer})
    torch.manual_seed(3)  # a restart of ReLoRA draws from torch's own generator
    switch = Switch()
    slot = attach(model, ["layer"], switch)["layer"]
    for seed, name in enumerate(names):
        slot.adapters[name] = moved(BUILDS[method](slot.base, seed), seed)
    return model, slot, switch


def test_every_storage_of_the_table_is_made_here_and_says_its_name():
    assert set(MADE) == set(QUANTISED)
    for storage in STORAGES:
        layer = layer_of("linear", storage)
        assert layer.storage == storage_name(nn.ModuleDict({"layer": layer})) == storage
        assert weight_shape(layer) == (OUT, IN) == dense_weight(layer).shape
        for word in ("Paper", "arXiv:", "Maths", "Bits", "Name"):
            assert word in (QUANTISED[storage].__doc__ or "")


@pytest.mark.parametrize("storage", STORAGES)
def test_a_storage_costs_fewer_bytes_and_little_accuracy(storage):
    torch.manual_seed(0)
    weight = torch.randn(128, 256)
    layer = MADE[storage](weight, None, torch.float32)
    bits = 8 * layer.held_bytes() / weight.numel()
    most, gap = {"nf4": (4.6, 0.12), "nf4-double": (4.5, 0.12), "int8": (8.2, 0.01), "gptq": (9, 0.12)}[storage]
    assert bits < most  # GPTQ in groups of 8 here; of 128, as files have them, half of that
    assert 0 < (layer.dense() - weight).norm() / weight.norm() < gap


@cases
def test_6_beside_few_bits_is_beside_their_dequantised_numbers(method, storage, kind):
    layer = layer_of(kind, storage)
    results, state = [], None
    for base in (layer, in_its_form(layer)):
        _, slot, switch = beside(base, method)
        # The same tensors: a start from the weight's decomposition magnifies the last bits of how it was read.
        state = state or copy.deepcopy(slot.adapter("a").state_dict())
        slot.adapter("a").load_state_dict(state)
        x = input_of().requires_grad_()
        with switch.set_to("a"):
            y = slot(x)
            y.sin().sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in slot.adapter("a").parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


@cases
def test_1_a_neutral_method_starts_as_the_quantised_base(method, storage, kind):
    layer = layer_of(kind, storage)
    adapter = BUILDS[method](base_of(layer), 0)
    assert adapter.neutral
    torch.testing.assert_close(adapter(input_of(), base_of(layer)), layer(input_of()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "storage", "kind"), [case for case in CASES if case[0] not in UNMERGEABLE])
def test_2_merged_from_the_numbers_that_the_adapter_saw(method, storage, kind):
    _, slot, switch = beside(layer_of(kind, storage), method)
    x = input_of()
    weight, bias = slot.adapter("a").merged(dense_weight(slot.layer), slot.base.bias)
    with switch.set_to("a"):
        y = slot(x)
    wanted = x @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=2e-6 * wanted.abs().max().item())
    assert (y - slot.layer(x)).abs().max() > 0.1


@cases
def test_3_and_4_only_the_adapter_learns_and_off_is_the_quantised_layer_bit_for_bit(method, storage, kind):
    model, slot, switch = beside(layer_of(kind, storage), method, names=("a", "b"))
    x, wanted = input_of(), layer_of(kind, storage)(input_of())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(slot.adapter("a").parameters(), lr=1e-2)
    for recompute in (False, True):
        with switch.set_to("a"):
            y = checkpoint(slot, x, use_reentrant=False) if recompute else slot(x)
            (y.sin() ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = {f"layer.adapters.a.{name}" for name, _ in slot.adapter("a").named_parameters()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in learned), name
    assert torch.equal(slot(x), wanted)
    detach(model)
    assert torch.equal(model["layer"](x), wanted)


@cases
def test_adapters_side_by_side_share_a_batch(method, storage, kind):
    _, slot, switch = beside(layer_of(kind, storage), method, names=("a", "b"))
    x, alone = input_of(), {}
    for name in ("a", "b", None):
        with switch.set_to(name):
            alone[name] = slot(x)
    assert not torch.allclose(alone["a"], alone["b"])
    with switch.set_to(None, rows=("b", None, "a")):
        mixed = slot(x)
    for row, name in enumerate(("b", None, "a")):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(storage, dtype):
    """One outlier among the inputs changes what bitsandbytes' own int8 product gives for all other rows."""
    layer, x = layer_of("linear-bias", storage, dtype), input_of(dtype)
    before = layer(x)
    x[0, 0, 5] = 1000.0
    after = layer(x)
    assert torch.equal(after[1:], before[1:])
    assert torch.equal(after[0, 1:], before[0, 1:])
    assert not torch.equal(after[0, 0], before[0, 0])
    assert after.dtype == dtype


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("method", [*BUILDS, None])
def test_nothing_dense_is_kept_for_the_backward_pass(method, storage):
    if method == "full":
        pytest.skip("a copy trained in full is dense and keeps itself")
    layer = layer_of("linear-bias", storage)
    kept = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    _, slot, switch = beside(layer, method or "lora")
    with switch.set_to("a" if method else None), torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        slot(input_of().requires_grad_()).sum().backward()
    weight = layer.dense()
    dense = [k for k in kept if k.shape in (weight.shape, weight.T.shape) and k.is_floating_point()]
    assert not [k for k in dense if torch.equal(k if k.shape == weight.shape else k.T, weight)]


@pytest.mark.parametrize("storage", STORAGES)
def test_casting_changes_what_products_run_in_and_nothing_held(storage):
    layer = layer_of("linear-bias", storage)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers() if name != "like"}
    wanted = layer.dense().to(torch.bfloat16)
    layer.to(torch.bfloat16)
    assert like(layer).dtype == layer.bias.dtype == torch.bfloat16
    for name, buffer in layer.named_buffers():
        assert name == "like" or (buffer.dtype == before[name].dtype and torch.equal(buffer, before[name]))
    torch.testing.assert_close(layer.dense(), wanted, rtol=2**-7, atol=0)


@pytest.mark.parametrize("storage", STORAGES)
def test_dequantised_for_good_is_a_plain_layer_with_the_same_numbers(storage):
    for kind, plain in (("linear-bias", nn.Linear), ("conv1d-bias", Conv1D)):
        model = nn.ModuleDict({"layer": layer_of(kind, storage)})
        wanted = model["layer"](input_of())
        assert dequantise(model) == 1
        assert type(model["layer"]) is plain
        torch.testing.assert_close(model["layer"](input_of()), wanted, rtol=1e-6, atol=1e-5)
