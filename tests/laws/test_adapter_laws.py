"""The seven laws of the house, for every adapter method, on every kind of layer, non-square, with and without bias.

1 neutral start · 2 merge is exact · 3 only the adapter learns, and all of it does · 4 off or detached is the original,
bit for bit · 5 save, load, same outputs (PEFT's part: tests/adapters/test_peft.py) · 6 storage-blind · 7 the docstring
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import generator_of
from tunesmith.adapters.attach import Slot, Switch, attach, detach, slots
from tunesmith.adapters.base import Adapter, base_of
from tunesmith.adapters.full import Full
from tunesmith.adapters.tokens import Tokens
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.errors import AdapterError
from tunesmith.kernels.dropout import KeepMask
from tunesmith.quant.dense import dense_weight

IN, OUT, TOKENS = 12, 7, 20
LAYERS = ("linear", "linear-bias", "conv1d-bias", "embedding")
STORAGES = {"fp32": (torch.float32, 2e-6), "bf16": (torch.bfloat16, 3e-2), "fp64": (torch.float64, 1e-12)}


def layer_of(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module
    if kind == "embedding":
        layer = nn.Embedding(IN, OUT)
    elif kind.startswith("conv1d"):
        layer = Conv1D(OUT, IN)
    else:
        layer = nn.Linear(IN, OUT, bias="bias" in kind)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.to(dtype).requires_grad_(False)


def input_of(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "embedding":
        return torch.randint(0, IN, (3, TOKENS), generator=generator)
    return torch.randn(3, TOKENS, IN, generator=generator).to(dtype)


def _of_method(name: str, **values):
    method = METHODS[name]
    settings = method.Settings(**values)

    def build(base, seed):
        shapes = [(base.out_features, base.in_features + 3)]
        shared = getattr(method, "shared", lambda *_: None)(settings, shapes, generator_of(seed, "shared"))
        return method.build(settings, base, generator_of(seed, "here"), *([shared] if shared else []))

    return build


def _restarted(times: int, **values):
    """ReLoRA that has merged so often already."""
    build = _of_method("relora", **values)

    def restarted(base, seed):
        adapter = build(base, seed)
        for _ in range(times):
            adapter.restart()
        return adapter

    return restarted


BESIDE = [name for name, module in METHODS.items() if not issubclass(module.Settings, VirtualSettings)]
"""Virtual tokens stand beside no layer: their laws are in test_virtual_laws.py."""
METHOD_BUILDS = {name: _of_method(name) for name in BESIDE}
METHOD_BUILDS |= {
    "lora, pissa": _of_method("lora", r=3, start="pissa"),
    "lora, pissa by iteration": _of_method("lora", r=3, start="pissa", svd_iterations=4, rank_stabilised=True),
    "lora, olora": _of_method("lora", r=3, start="olora"),
    "ia3, feed-forward": _of_method("ia3", feedforward=("here",)),
    "delta-lora, rank-stabilised": _of_method("delta-lora", r=3, update_ratio=2.0, rank_stabilised=True),
    "relora, factors side by side": _restarted(2, r=3),
    "relora, multiplied out": _restarted(3, r=3),
}
BUILDS = dict(METHOD_BUILDS)
BUILDS |= {"tokens": lambda base, seed: Tokens(base, [5, 0, 2])}
CASES = [(method, kind) for method in BUILDS for kind in LAYERS if not (method == "tokens" and "conv1d" in kind)]
UNMERGEABLE = {"bottleneck"}
"""Those that declare law 2 to be impossible: what they compute instead is written out in tests/adapters."""
MERGEABLE = [(method, kind) for method, kind in CASES if method not in UNMERGEABLE]


def moved(adapter: Adapter, seed: int) -> Adapter:
    """Every tensor perturbed, frozen ones too: a fresh adapter hides all faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter.state_dict().values():
            tensor += 0.3 * torch.empty(tensor.shape).normal_(generator=generator).to(tensor.dtype)
    return adapter


def host(
    kind: str, method: str, dtype: torch.dtype = torch.float32, names: tuple[str, ...] = ("a",), move: bool = True
):
    """A model of one layer, its slot, and adapters side by side under `names`."""
    model = nn.ModuleDict({"layer": layer_of(kind, dtype)})
    switch = Switch()
    slot = attach(model, ["layer"], switch)["layer"]
    for seed, name in enumerate(names):
        adapter = BUILDS[method](slot.base, seed)
        slot.adapters[name] = moved(adapter, seed) if move else adapter
    return model, slot, switch


def plain(kind: str, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """What a dense layer with `weight` [out, in] computes, written out."""
    if kind == "embedding":
        return weight.t()[x]
    return x @ weight.t() + (0 if bias is None else bias)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_1_a_neutral_method_starts_as_the_base_bit_for_bit(method, kind, storage):
    """What is added is 0 and what is multiplied by is 1, in whatever dtype, a start of W's own not excepted.

    Beside a base in fp64 DoRA's m, held in fp32, is the norm to within its rounding alone. The head's rows of a few
    tokens are a product of their own, which on some processors is rounded otherwise than among all rows.
    """
    dtype, _ = STORAGES[storage]
    _, slot, switch = host(kind, method, dtype, move=False)
    x = input_of(kind, dtype)
    assert slot.adapter("a").neutral
    with switch.set_to("a"):
        y, wanted = slot(x), layer_of(kind, dtype)(x)
    if (method, dtype) == ("dora", torch.float64):
        torch.testing.assert_close(y, wanted, rtol=1e-7, atol=1e-7 * wanted.abs().max().item())
    elif (method, kind.startswith("linear")) == ("tokens", True):
        bound = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(y, wanted, rtol=bound, atol=bound * wanted.abs().max().item())
    else:
        assert torch.equal(y, wanted)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("method", "kind"), MERGEABLE)
def test_2_and_6_merged_weights_compute_the_same_on_every_storage(method, kind, storage):
    dtype, bound = STORAGES[storage]
    _, slot, switch = host(kind, method, dtype)
    x = input_of(kind, dtype)
    adapter = slot.adapter("a")
    weight, bias = adapter.merged(dense_weight(slot.layer), slot.base.bias)
    assert weight.dtype == dtype
    assert weight.shape == (OUT, IN)
    with switch.set_to("a"):
        adapted = slot(x)
    assert adapted.dtype == dtype
    wanted = plain(kind, weight, bias, x)
    torch.testing.assert_close(adapted, wanted, rtol=bound, atol=bound * wanted.abs().max().item())
    assert (adapted - layer_of(kind, dtype)(x)).abs().max() > 0.1


@pytest.mark.parametrize(("method", "kind"), MERGEABLE)
def test_merged_is_differentiable_and_agrees_with_the_forward(method, kind):
    _, slot, switch = host(kind, method, torch.float64)
    x = input_of(kind, torch.float64)
    adapter = slot.adapter("a")
    probe = torch.randn(3, TOKENS, OUT, dtype=torch.float64)
    with switch.set_to("a"):
        (slot(x) * probe).sum().backward()
    direct = {name: parameter.grad.clone() for name, parameter in adapter.named_parameters()}
    adapter.zero_grad()
    (plain(kind, *adapter.merged(dense_weight(slot.layer), slot.base.bias), x) * probe).sum().backward()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, direct[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", BUILDS)
def test_2_a_method_says_truly_whether_it_can_be_merged(method):
    _, slot, switch = host("linear", method)
    adapter = slot.adapter("a")
    module = METHODS.get(method)
    assert adapter.mergeable == (method not in UNMERGEABLE)
    assert (getattr(module, "UNMERGEABLE", None) is None) == adapter.mergeable
    if adapter.mergeable:
        return
    with pytest.raises(AdapterError):
        adapter.merged(dense_weight(slot.layer), slot.base.bias)
    one, other = input_of("linear"), input_of("linear").flip(1)
    with switch.set_to("a"):  # an affine map would keep the middle of two points the middle
        middle = slot((one + other) / 2) - (slot(one) + slot(other)) / 2
    assert middle.abs().max() > 1e-2


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_3_only_the_adapter_learns_and_all_of_it_does(method, kind, recompute):
    model, slot, switch = host(kind, method, names=("a", "b"))
    x = input_of(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(slot.adapter("a").parameters(), lr=1e-2)
    for _ in range(3):
        with switch.set_to("a"):
            y = checkpoint(slot, x, use_reentrant=False) if recompute else slot(x)
            (y.sin() ** 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = {f"layer.adapters.a.{name}" for name, _ in slot.adapter("a").named_parameters()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in learned), name


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHOD_BUILDS)
def test_3_gradients_do_not_depend_on_recomputation(method, kind):
    grads = []
    for recompute in (False, True):
        _, slot, switch = host(kind, method)
        with switch.set_to("a"):
            x = input_of(kind)
            y = checkpoint(slot, x, use_reentrant=False) if recompute else slot(x)
            y.sin().sum().backward()
        grads.append([parameter.grad for parameter in slot.adapter("a").parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_4_off_or_detached_is_the_original_bit_for_bit(method, kind):
    model, slot, switch = host(kind, method, names=("a", "b"))
    x = input_of(kind)
    original = layer_of(kind)
    wanted = original(x)
    assert torch.equal(slot(x), wanted)
    with switch.set_to("nobody"):
        assert torch.equal(slot(x), wanted)
    with switch.set_to("a"):
        assert not torch.equal(slot(x), wanted)
    assert torch.equal(slot(x), wanted)
    detach(model)
    assert not slots(model)
    assert torch.equal(model["layer"](x), wanted)
    assert all(torch.equal(a, b) for a, b in zip(model["layer"].parameters(), original.parameters(), strict=True))


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_adapters_side_by_side_are_each_alone_and_may_share_a_batch(method, kind):
    _, slot, switch = host(kind, method, names=("a", "b"))
    x = input_of(kind)
    alone = {}
    for name in ("a", "b", None):
        with switch.set_to(name):
            alone[name] = slot(x)
    assert not torch.allclose(alone["a"], alone["b"])
    with switch.set_to(None, rows=("b", None, "a")):
        mixed = slot(x)
        flat = slot(x.reshape(3 * TOKENS, *x.shape[2:]))
    for row, name in enumerate(("b", None, "a")):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flat.view_as(mixed), mixed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHOD_BUILDS)
def test_mixed_rows_give_each_adapter_the_gradients_of_its_own_rows(method, kind):
    _, slot, switch = host(kind, method, names=("a", "b"))
    x = input_of(kind)
    with switch.set_to(None, rows=("b", None, "a")):
        slot(x).sin().sum().backward()
    together = {name: [p.grad.clone() for p in slot.adapter(name).parameters()] for name in ("a", "b")}
    for name, row in (("a", 2), ("b", 0)):
        slot.adapter(name).zero_grad()
        with switch.set_to(name):
            slot(x[row : row + 1]).sin().sum().backward()
        for parameter, grad in zip(slot.adapter(name).parameters(), together[name], strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-5)


DROPPING = {name: _of_method(name, dropout=0.4) for name in ("lora", "lora-fa", "dora", "relora", "vera")}
DROPPING |= {
    "lora, pissa": _of_method("lora", r=3, start="pissa", dropout=0.4),
    "relora, factors side by side": _restarted(2, r=3, dropout=0.4),
}


def undropped(method: str, adapter: Adapter, base) -> torch.Tensor:
    """The part of the merged weight [out, in] whose input is never dropped out."""
    weight = base.weight()
    if method == "dora":
        return adapter.gain(base)[:, None] * weight
    return weight + adapter.scale * adapter.B1 @ adapter.A1 if method.startswith("relora") else weight


def test_dropout_s_law_leaves_no_method_out():
    assert {name for name in BESIDE if "dropout" in METHODS[name].Settings.model_fields} <= DROPPING.keys()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["linear", "linear-bias", "conv1d-bias"])
@pytest.mark.parametrize("method", DROPPING)
def test_dropout_is_of_what_the_learned_change_is_given_and_of_nothing_else(method, kind, dtype, recompute):
    """y = F x + (M - F) drop(x) + b, M the merged weight and F its frozen part, with all gradients.

    In fp32 the mask is the compiled form's, in fp64 torch's; recomputed, it is the same.
    """
    _, slot, switch = host(kind, "lora", dtype)
    adapter = slot.adapters["a"] = moved(DROPPING[method](slot.base, 0), 0).to(dtype).train()
    x, probe = input_of(kind, dtype).requires_grad_(), torch.randn(3, TOKENS, OUT, dtype=dtype)
    parameters = dict(adapter.named_parameters())
    torch.manual_seed(11)
    keep = KeepMask.fresh(0.4)
    torch.manual_seed(11)
    with switch.set_to("a"):
        y = checkpoint(slot, x, use_reentrant=False) if recompute else slot(x)
        found = torch.autograd.grad((y * probe).sum(), [x, *parameters.values()])

    whole, bias = adapter.merged(slot.base.weight(), slot.base.bias)
    frozen = undropped(method, adapter, slot.base)
    wanted = x @ frozen.T + (x * keep.like(x)) @ (whole - frozen).T + (0 if bias is None else bias)
    close = {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]
    torch.testing.assert_close(y, wanted, rtol=close, atol=close * wanted.abs().max().item())
    expected = torch.autograd.grad((wanted * probe).sum(), [x, *parameters.values()])
    for name, mine, own in zip(["x", *parameters], found, expected, strict=True):
        scale = close * own.abs().max().item()
        torch.testing.assert_close(mine, own, rtol=close, atol=scale, msg=lambda text, name=name: f"{name}: {text}")
    adapter.eval()
    with switch.set_to("a"):
        assert not torch.allclose(slot(x), y, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", DROPPING)
def test_an_embedding_s_tokens_are_not_dropped_out(method):
    _, slot, switch = host("embedding", "lora")
    slot.adapters["a"] = moved(DROPPING[method](slot.base, 0), 0)
    with switch.set_to("a"):
        assert torch.equal(slot.train()(input_of("embedding")), slot.eval()(input_of("embedding")))


@pytest.mark.parametrize("method", [name for name in METHOD_BUILDS if name not in UNMERGEABLE])
def test_the_input_s_gradient_flows_through_frozen_and_adapted_parts(method):
    for kind in ("linear", "linear-bias", "conv1d-bias"):
        _, slot, switch = host(kind, method, torch.float64)
        x = input_of(kind, torch.float64).requires_grad_()
        with switch.set_to("a"):
            slot(x).sin().sum().backward()
        weight, bias = slot.adapter("a").merged(dense_weight(slot.layer), slot.base.bias)
        (wanted,) = torch.autograd.grad(plain(kind, weight, bias, x).sin().sum(), x)
        torch.testing.assert_close(x.grad, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_7_the_docstring_gives_paper_use_maths_shapes_init_and_merge(method):
    text = inspect.getdoc(METHODS[method]) or ""
    for word in ("Paper", "arXiv:", "When", "Maths", "Shapes", "Init", "Merge"):
        assert word in text


def test_a_slot_of_a_norm_has_its_own_trained_copy():
    norm = nn.LayerNorm(IN).requires_grad_(False)
    slot = Slot(norm, switch := Switch())
    slot.adapters["a"] = moved(Full(slot.base), 1)
    x = input_of("linear")
    with switch.set_to("a"):
        wanted = nn.functional.layer_norm(x, (IN,), *slot.adapter("a").replaces().values())
        torch.testing.assert_close(slot(x), wanted)
    assert torch.equal(slot(x), norm(x))


def test_the_base_of_an_unknown_layer_is_whole():
    assert base_of(nn.LayerNorm(4)).out_features == 0
