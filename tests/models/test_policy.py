"""Our loss and LoRA gradients equal transformers' own logits with PEFT's LoRA, on every architecture, however it runs.

Every parameter of the models is drawn at random and every adapter tensor is moved: a bias, a gain, a cap, a window or a
scale that is forgotten shows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings
from tunesmith.data.pack import collate
from tunesmith.data.types import Example, Origin, Segment
from tunesmith.errors import ModelError
from tunesmith.kernels.native import library
from tunesmith.models import attention
from tunesmith.models.fuse import fuse, unfuse
from tunesmith.models.policy import Policy, flat_batch, probe
from tunesmith.models.tiny import ARCHITECTURES, randomise, tiny
from tunesmith.objectives.sft import SFT

pytestmark = pytest.mark.filterwarnings("ignore")
PADDED = {"falcon", "bloom", "stablelm", "gpt_oss"}
"""These bring their own attention: they run padded, and that is said."""


def build(arch: str):
    """`tiny`, and a model with attention sinks."""
    if arch == "gpt_oss":
        config = AutoConfig.for_model(
            "gpt_oss", vocab_size=96, num_hidden_layers=2, hidden_size=32, intermediate_size=24, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, sliding_window=12, num_local_experts=4, num_experts_per_tok=2,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomise(model, 0)
        return model
    return tiny(arch)


ALL = [*ARCHITECTURES, "gpt_oss"]


def examples(seed=0, lengths=(31, 5, 17, 2)):
    """Rows with a learned token anywhere but first, and weights that differ."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths):
        weights = (rng.random(length) < 0.6) * rng.choice([1.0, 0.5, 2.0], length)
        weights[-1] = 1.0
        rows.append(Example(rng.integers(3, 90, length), weights.astype(np.float32), Origin("rows", number + 1)))
    return rows


def adapted(arch: str, settings: Settings | None = None):
    model, switch = build(arch), Switch()
    attention.register()
    attention.install(model)
    adapter_set = add(model, switch, settings or Settings(r=3, alpha=5), name="a", seed=3)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.3 * torch.empty(parameter.shape).normal_(generator=generator)
    return model, switch, adapter_set


def ours(policy: Policy, adapter_set, rows):
    """(mean loss, {path.letter: gradient}) by the SFT objective over one packed batch."""
    policy.switch.name = "a"
    for parameter in adapter_set.parameters().values():
        parameter.grad = None
    objective = SFT(rows, (), batch_size=len(rows), seed=0)
    weight = sum(float(row.loss_weights[1:].sum()) for row in rows)
    loss = objective.loss(policy, collate(rows)).sums["loss"] / weight
    loss.backward()
    return loss.item(), {name: p.grad for name, p in adapter_set.parameters().items()}


def theirs(arch: str, adapter_set, rows):
    """The same by transformers and PEFT, row by row, from full logits."""
    model = build(arch)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=list(adapter_set.targets.adapted), lora_dropout=0.0)
    peft = get_peft_model(model, config)
    own = {}
    for path in adapter_set.targets.adapted:
        layer = peft.base_model.model.get_submodule(path)
        for letter, part in (("A", layer.lora_A), ("B", layer.lora_B)):
            parameter = part["default"].weight
            parameter.data.copy_(adapter_set.parameters()[f"{path}.{letter}"].data)
            own[f"{path}.{letter}"] = parameter
    weight = sum(float(row.loss_weights[1:].sum()) for row in rows)
    total = torch.zeros(())
    for row in rows:
        logits = peft(input_ids=torch.from_numpy(row.token_ids)[None], use_cache=False).logits[0].float()
        losses = nn.functional.cross_entropy(logits[:-1], torch.from_numpy(row.token_ids)[1:], reduction="none")
        total = total + (losses * torch.from_numpy(row.loss_weights[1:])).sum()
    (total / weight).backward()
    return (total / weight).item(), {name: parameter.grad for name, parameter in own.items()}


def agree(mine, wanted, tolerance=1e-4):
    assert abs(mine[0] - wanted[0]) <= tolerance * abs(wanted[0])
    assert mine[1].keys() == wanted[1].keys()
    largest = max(grad.abs().max().item() for grad in wanted[1].values() if grad is not None)
    for name, grad in wanted[1].items():
        assert grad is not None, name
        assert (mine[1][name] - grad).abs().max().item() <= tolerance * largest, name
        assert mine[1][name].abs().max() > 0, name


@pytest.mark.parametrize("arch", ALL)
def test_loss_and_gradients_are_those_of_transformers_and_peft(arch):
    rows = examples()
    model, switch, adapter_set = adapted(arch)
    wanted = theirs(arch, adapter_set, rows)
    policy, reason = probe(model, switch)
    assert policy.flat == (arch not in PADDED)
    assert (reason is None) == policy.flat
    agree(ours(policy, adapter_set, rows), wanted)
    agree(ours(Policy(model, switch, flat=False), adapter_set, rows), wanted)
    fuse(model)
    fused, _ = probe(model, switch)
    assert fused.flat == policy.flat
    agree(ours(fused, adapter_set, rows), wanted)
    agree(ours(Policy(model, switch, flat=False), adapter_set, rows), wanted)


@pytest.mark.parametrize("arch", ["mistral", "gemma2", "gemma3", "qwen2", "mixtral"])
def test_a_window_and_a_cap_far_above_any_trial_are_kept(arch):
    """The window that a real model has is longer than any trial: fused layers must ask for it all the same."""
    model = build(arch)
    attention.register()
    attention.install(model)
    fuse(model)
    holders = [model.config, *(module for module in model.modules() if vars(module).get("sliding_window"))]
    unfused = build(arch)
    attention.install(unfused)
    for config, modules in ((model.config, model.modules()), (unfused.config, unfused.modules())):
        for holder in (config, *modules):
            if vars(holder).get("sliding_window"):
                holder.sliding_window = 4096
            if vars(holder).get("attn_logit_softcapping"):
                holder.attn_logit_softcapping = 50.0
    assert holders
    layouts = []
    for one in (model, unfused):
        batch = flat_batch([torch.arange(3, 20), torch.arange(5, 9)])
        layout = attention.Layout(batch.segments, batch.token_ids.device, asked=[])
        with torch.no_grad():
            one.base_model(
                input_ids=batch.token_ids[None], position_ids=batch.positions[None], layout=layout, use_cache=False,
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
            )  # fmt: skip
        layouts.append(layout.asked)
    assert layouts[0] == layouts[1]
    if arch in ("mistral", "gemma2", "gemma3"):
        assert any(window == 4096 for _, window, _ in layouts[0])
    if arch == "gemma2":
        assert all(softcap == 50.0 for _, _, softcap in layouts[0])


def test_the_probe_sees_a_window_that_only_the_mask_knows():
    """A model whose attention never says its window: alone it is masked, flat it would see everything."""

    model = tiny("gemma3")
    attention.register()
    attention.install(model)
    kind = type(model.model.layers[0].self_attn)

    def forward(self, *args, **named):
        before, self.sliding_window = self.sliding_window, None
        try:
            return kind.forward(self, *args, **named)
        finally:
            self.sliding_window = before

    forgetful = type("Forgetful", (kind,), {"forward": forward})
    for layer in model.model.layers:
        layer.self_attn.__class__ = forgetful
        if layer.self_attn.sliding_window:
            layer.self_attn.sliding_window = 4096
    model.config.sliding_window = 4096
    policy, reason = probe(model, Switch())
    assert not policy.flat
    assert "disturb" in reason
    assert model.config.sliding_window == 4096


@pytest.mark.parametrize("arch", ALL)
def test_unfuse_restores(arch):
    model = build(arch)
    attention.register()
    attention.install(model)
    before = {path: (type(module), set(vars(module))) for path, module in model.named_modules()}
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        wanted = model(ids).logits
        state = torch.random.get_rng_state()
        count = fuse(model)
        assert torch.equal(state, torch.random.get_rng_state())
        assert (count > 0) == any(type(module) is not before[path][0] for path, module in model.named_modules())
        unfuse(model)
        assert {path: (type(module), set(vars(module))) for path, module in model.named_modules()} == before
        assert torch.equal(model(ids).logits, wanted)


@pytest.mark.skipif(library() is None, reason="no C compiler here")
@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral"])
def test_fusing_reaches_the_common_architectures(arch):
    model = tiny(arch)
    attention.register()
    attention.install(model)
    assert fuse(model) >= 5


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_editing_one_document_leaves_its_neighbours_gradient_bit_for_bit(arch, dtype):
    model = tiny(arch, dtype=dtype)
    attention.register()
    attention.install(model)
    fuse(model)
    policy, _ = probe(model, Switch())
    documents = [torch.arange(3, 12), torch.arange(40, 54), torch.arange(20, 27)]
    results = []
    for edited in (documents[1], documents[1].flip(0)):
        batch = flat_batch([documents[0], edited, documents[2]])
        embeddings = {}
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _, __, out, kept=embeddings: kept.setdefault("x", out.detach().requires_grad_(True))
        )
        hidden = policy.hidden(batch)
        hook.remove()
        keep = [*range(9), *range(23, 30)]
        (hidden[keep].float() ** 3).sum().backward()
        grad = embeddings["x"].grad
        rows = [grad[0, keep]] if policy.flat else [grad[0, :9], grad[2, :7]]
        results.append([hidden[keep].detach(), *rows])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)
        assert after.abs().max() > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_policy_is_the_base_where_the_adapter_is_off(arch):
    model, switch, _ = adapted(arch)
    batch = flat_batch([torch.arange(3, 12), torch.arange(40, 54)])
    plain = build(arch)
    attention.install(plain)
    policy, _ = probe(model, switch)
    base, _ = probe(plain, Switch())
    with torch.no_grad():
        wanted = base.head().logits(base.hidden(batch))
        policy.switch.name = "a"
        with policy.reference():
            assert torch.equal(policy.head().logits(policy.hidden(batch)), wanted)
        assert not torch.equal(policy.head().logits(policy.hidden(batch)), wanted)


def test_a_model_whose_logits_are_not_its_heads_is_refused():
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda _, __, out: out * 2)
    with pytest.raises(ModelError, match="not its head"):
        probe(model, Switch())


def test_a_padded_model_refuses_two_branches_of_one_prompt():
    model = tiny("bloom")
    policy, _ = probe(model, Switch())
    batch = flat_batch([torch.arange(3, 12), torch.arange(3, 7)])
    batch.segments = (Segment(0, 9), Segment(9, 13, parent=0))
    with pytest.raises(ModelError, match="branches"):
        policy.hidden(batch)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox", "opt", "mistral"])
def test_a_child_sees_its_parent_and_itself(arch):
    model = tiny(arch)
    attention.register()
    attention.install(model)
    fuse(model)
    policy, _ = probe(model, Switch())
    prompt, first, second = torch.arange(3, 8), torch.arange(40, 44), torch.arange(60, 66)
    batch = flat_batch([prompt, first, second])
    batch.segments = (Segment(0, 5), Segment(5, 9, parent=0), Segment(9, 15, parent=0))
    batch.positions = torch.cat([torch.arange(5), torch.arange(5, 9), torch.arange(5, 11)])
    with torch.no_grad():
        got = policy.hidden(batch)
        for branch, place in ((first, slice(5, 9)), (second, slice(9, 15))):
            alone = policy.hidden(flat_batch([torch.cat([prompt, branch])]))
            assert (got[place] - alone[5:]).abs().max() < 1e-4
            assert (got[:5] - alone[:5]).abs().max() < 1e-4
