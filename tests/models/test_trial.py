"""What a model's code cannot do is said by name before it is trained; what it can, is what transformers and PEFT do."""

from __future__ import annotations

import pytest
import torch
from test_policy import agree, examples, ours
from test_policy import build as build_known
from test_policy import theirs as theirs_of
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch, slots
from tunesmith.adapters.dora import Settings as DoRA
from tunesmith.adapters.lora import Settings
from tunesmith.errors import ModelError
from tunesmith.models import attention
from tunesmith.models.policy import probe
from tunesmith.models.tiny import VOCABULARY, randomise, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
ROUTED = {"phimoe": "model.layers.0.mlp.router", "llama4_text": "model.layers.0.feed_forward.router"}


def build(arch):
    if arch not in ROUTED:
        return build_known(arch)
    config = AutoConfig.for_model(
        arch, vocab_size=VOCABULARY, hidden_size=32, intermediate_size=56, intermediate_size_mlp=56,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, 0)
    return model


def adapted(arch, settings):
    model, switch = build(arch), Switch()
    attention.register()
    attention.install(model)
    return model, switch, add(model, switch, settings, name="a", seed=3)


@pytest.mark.parametrize("arch", ROUTED)
def test_a_word_leaves_a_router_out_and_says_so(arch):
    model, switch, adapter_set = adapted(arch, Settings(r=3, alpha=5))
    probe(model, switch)
    assert adapter_set.targets.adapted
    assert not any("router" in path for path in adapter_set.targets.adapted)
    assert ROUTED[arch] in adapter_set.targets.missed


@pytest.mark.parametrize("arch", ROUTED)
def test_a_router_is_refused_by_name_and_the_layers_that_are_offered_are_learned_as_elsewhere(arch, monkeypatch):
    model, switch, _ = adapted(arch, Settings(r=3, alpha=5, targets="re:.*(proj|router)"))
    with pytest.raises(ModelError, match="hand out more than a product") as caught:
        probe(model, switch)
    assert ROUTED[arch] in str(caught.value)
    offered = caught.value.fix.partition("adapter.targets=[")[2].partition("]")[0].split(",")
    assert not any("router" in name for name in offered)
    model, switch, adapter_set = adapted(arch, Settings(r=3, alpha=5, targets=tuple(offered)))
    policy, _ = probe(model, switch)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.3 * torch.empty(parameter.shape).normal_(generator=generator)
    rows = examples()
    monkeypatch.setattr("test_policy.build", build)
    agree(ours(policy, adapter_set, rows), theirs_of(arch, adapter_set, rows))


@pytest.mark.parametrize("settings", [Settings(r=2), DoRA(r=2)])
def test_the_trial_leaves_no_trace(settings):
    model, switch, _ = adapted("llama", settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    probe(model, switch)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert switch.name is None
    assert all(slot.base.left_alone is None for slot in slots(model).values())


class _Backless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise IndexError("no way back")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: 1 // 0, "does not run"),
        (_Backless.apply, "cannot be trained"),
        (lambda x: x.detach(), "cannot be trained"),
    ],
    ids=["forward", "backward", "cut off"],
)
def test_whatever_the_code_raises_names_the_model_and_the_cause(spoil, says):
    model, switch, _ = adapted("llama", Settings(r=2))
    model.model.norm.register_forward_hook(lambda module, inputs, output: spoil(output))
    with pytest.raises(ModelError, match=f"LlamaForCausalLM {says}") as caught:
        probe(model, switch)
    assert caught.value.found
    assert caught.value.fix


def test_memory_that_runs_out_is_not_blamed_on_the_model():
    model, switch, _ = adapted("llama", Settings(r=2))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.norm.register_forward_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        probe(model, switch)


def test_a_model_without_adapters_is_not_tried():
    policy, _ = probe(tiny("llama"), Switch())
    assert not any(parameter.grad_fn for parameter in policy.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_whose_weights_are_not_finite_is_named(value):
    model, switch, _ = adapted("llama", Settings(r=2))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[2, 3] = value
    with pytest.raises(
        ModelError, match=r"(?s)not all finite numbers.*NaN or infinity in 1:.*layers\.1\.mlp\.down_proj"
    ):
        probe(model, switch)
