"""Full fine-tuning is transformers' own, beside a base that stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import nn
from transformers import AutoModelForCausalLM

from tunesmith.adapters import merge as merging
from tunesmith.adapters.adapter_set import add, base_parameters
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.full import Full, Settings
from tunesmith.adapters.identity import identify
from tunesmith.adapters.lora import Settings as LoRASettings
from tunesmith.adapters.merge import merge, merge_to_folder
from tunesmith.adapters.store import load, save
from tunesmith.adapters.targets import anatomy, choose
from tunesmith.data.pack import collate
from tunesmith.data.types import Example, Origin
from tunesmith.errors import AdapterError
from tunesmith.models import attention
from tunesmith.models.policy import probe
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.objectives.sft import SFT

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(1))
ALL_WIDE = ("gpt2", "gpt_neox", "opt")
"""These compute in fp64 throughout; the norms, routers or softmax of others go by way of fp32."""
MIXTURES = ("mixtral", "qwen2_moe")
TIED = ("llama-tied", "gpt2", "opt", "bloom", "gemma2")


def rows():
    rng = np.random.default_rng(0)
    made = []
    for number, length in enumerate((31, 5, 17, 2)):
        weights = ((rng.random(length) < 0.6) * rng.choice([1.0, 0.5, 2.0], length)).astype(np.float32)
        weights[-1] = 1.0
        made.append(Example(rng.integers(3, 90, length), weights, Origin("rows", number + 1)))
    return made


def full(arch: str, dtype: torch.dtype = torch.float32, moved: bool = True, seed: int = 1, **settings):
    """A model with every weight of a full copy moved."""
    model, switch = tiny(arch, dtype=dtype), Switch()
    adapter_set = add(model, switch, Settings(**settings), name="a", seed=0)
    nudge(adapter_set, seed if moved else None)
    return model, switch, adapter_set


def nudge(adapter_set, seed: int | None) -> None:
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            parameter += (0.05 if seed is not None else 0.0) * noise.to(parameter.dtype)


def plain(arch: str, dtype: torch.dtype, adapter_set):
    """The model by transformers alone, with the weights of `adapter_set` written into it; all of them learn."""
    model = tiny(arch, dtype=dtype, attn_implementation="eager" if arch in ("bloom", "gemma2") else "sdpa")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for path, adapter in adapter_set.adapters.items():
            for name, value in adapter.replaces().items():
                if f"{path}.{name}" in own:  # of tied ones the first name
                    own[f"{path}.{name}"].copy_(value)
    return model.requires_grad_(True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_transformers_alone(arch, dtype):
    """Row by row from full logits there, in one packed batch here; every weight of the model."""
    if dtype == torch.float64 and arch in MIXTURES:
        pytest.skip("torch's grouped product takes no fp64")
    close = 1e-4 if dtype == torch.float32 else 1e-10 if arch in ALL_WIDE else 1e-6
    attention.register()
    model, switch, adapter_set = full(arch, dtype)
    attention.install(model)
    reference = plain(arch, dtype, adapter_set)
    weight, wanted = sum(float(row.loss_weights[1:].sum()) for row in rows()), 0.0
    for row in rows():
        ids = torch.from_numpy(row.token_ids)
        logits = reference(input_ids=ids[None], use_cache=False).logits[0].to(dtype)
        losses = nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        wanted = wanted + (losses * torch.from_numpy(row.loss_weights[1:])).sum() / weight
    wanted.backward()
    policy, _ = probe(model, switch)
    switch.name = "a"
    loss = SFT(rows(), (), batch_size=4, seed=0).loss(policy, collate(rows())).sums["loss"] / weight
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=close)
    mine = {name: parameter.grad for name, parameter in adapter_set.parameters().items()}
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert mine.keys() == theirs.keys()
    largest = max(grad.abs().max().item() for grad in theirs.values())
    for name, grad in theirs.items():
        assert (mine[name] - grad).abs().max().item() <= close * largest, name
        assert mine[name].abs().max() > 0, name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_weight_of_the_model_moves_and_the_base_is_bit_identical(arch):
    model, switch, adapter_set = full(arch, moved=False)
    frozen = {name: parameter.clone() for name, parameter in base_parameters(model).items()}
    with switch.set_to("a"):
        assert torch.equal(model(IDS).logits, tiny(arch)(IDS).logits)
    counts = adapter_set.counts()
    assert counts.trained == counts.total
    assert not adapter_set.targets.missed
    optimizer = torch.optim.AdamW(adapter_set.parameters().values(), lr=1e-2)
    for _ in range(2):
        with switch.set_to("a"):
            model(IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in base_parameters(model).items())
    assert adapter_set.parameters().keys() == frozen.keys()
    still = [name for name, parameter in adapter_set.parameters().items() if torch.equal(parameter, frozen[name])]
    assert not still


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_last_blocks_are_all_that_is_in_them_and_the_norm_behind(arch):
    model, _, adapter_set = full(arch, last_blocks=1)
    body = anatomy(model)
    inside = {name for name in base_parameters(model) if name.startswith(body.blocks[-1] + ".")}
    outside = set(adapter_set.parameters()) - inside
    assert inside <= set(adapter_set.parameters())
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in outside} <= {
        "norm", "ln_f", "final_layer_norm", "final_layernorm",
    }  # fmt: skip
    assert outside
    with_head = choose(model, Settings(last_blocks=1, train_in_full=("rest", "head")))
    ends = {body.head, body.embedding} if body.tied else {body.head}
    assert set(with_head.in_full) == set(adapter_set.targets.in_full) | ends


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_of_one_batch_with_different_copies_equal_each_alone(arch):
    model, switch, _ = full(arch)
    nudge(add(model, switch, Settings(), name="b", seed=0), 2)
    nudge(add(model, switch, LoRASettings(r=3), name="c", seed=0), 3)
    alone = {}
    for name in ("a", "b", "c", None):
        with switch.set_to(name):
            alone[name] = model(IDS).logits
    assert torch.equal(alone[None], tiny(arch)(IDS).logits)
    for names in (("b", None, "a"), ("a", "c", "b")):
        with switch.set_to(None, rows=names):
            mixed = model(IDS).logits
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"last_blocks": 1}, {"targets": "attention"}, {"targets": ("lm_head",)}])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_saved_and_loaded_it_computes_the_same_and_merged_it_is_a_plain_model(arch, settings, tmp_path):
    model, switch, adapter_set = full(arch, **settings)
    save(tmp_path / "a", adapter_set, identify(model))
    with switch.set_to("a"):
        wanted = model(IDS).logits
    assert not torch.equal(wanted, model(IDS).logits)
    fresh, switch = tiny(arch), Switch()
    loaded = load(tmp_path / "a", fresh, switch, "b")
    assert loaded.settings == adapter_set.settings
    assert loaded.parameters().keys() == adapter_set.parameters().keys()
    with switch.set_to("b"):
        assert torch.equal(fresh(IDS).logits, wanted)
    merged = merge(model, adapter_set)
    torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == anatomy(tiny(arch)).tied


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_merged_folder_is_transformers_own(arch, tmp_path):
    """Whatever its modules are asked: OPT's learned positions take an attention mask."""
    model, switch, adapter_set = full(arch)
    report = merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert report.gap <= 1e-4 * report.largest_logit
    with switch.set_to("a"):
        wanted = model(IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(IDS).logits, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_lora_leaves_is_trained_and_merged_beside_it(arch, tmp_path):
    model, switch = tiny(arch), Switch()
    adapter_set = add(model, switch, LoRASettings(r=2, train_in_full=("rest",)), name="a", seed=0)
    nudge(adapter_set, 1)
    report = merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert report.gap <= 1e-4 * report.largest_logit


@pytest.mark.parametrize("place", ["embed_positions.weight", "final_layer_norm.bias", "fc1.weight"])
def test_a_trained_tensor_that_the_merge_lost_is_caught(place, tmp_path, monkeypatch):
    """In the one merge that the proof looks at, by less than logits would show."""
    model, _, adapter_set = full("opt")

    def torn(*given):
        plain = merge(*given)
        name = next(name for name, _ in plain.named_parameters() if name.endswith(place))
        other = plain.get_parameter(name).clone()  # what was trained lies under it
        other.view(-1)[5] += 1e-6
        plain.get_submodule(name.rpartition(".")[0])._parameters[name.rpartition(".")[2]] = nn.Parameter(other)
        return plain

    monkeypatch.setattr(merging, "merge", torn)
    with pytest.raises(AdapterError, match="does not hold what was trained") as caught:
        merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert caught.value.found.endswith(place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{}, {"targets": ("lm_head",)}, {"train_in_full": ("rest", "head")}])
@pytest.mark.parametrize("arch", TIED)
def test_tied_tables_stay_tied(arch, settings):
    model, _, adapter_set = full(arch, **settings)
    body = anatomy(model)
    assert body.tied
    ends = [adapter_set.adapters[path] for path in (body.embedding, body.head)]
    assert all(isinstance(end, Full) for end in ends)
    assert ends[0].weight is ends[1].weight
    assert len({id(parameter) for parameter in adapter_set.parameters().values()}) == len(adapter_set.parameters())


def test_peft_has_no_such_type_and_says_so(tmp_path):
    model, _, adapter_set = full("llama")
    save(tmp_path / "a", adapter_set, identify(model))
    with pytest.raises((KeyError, ValueError), match="FULL"):
        PeftModel.from_pretrained(tiny("llama"), str(tmp_path / "a"))


def test_chosen_targets_are_all_that_is_trained_unless_more_is_named():
    assert Settings().train_in_full == ("rest",)
    assert Settings(targets="attention").train_in_full == ()
    assert Settings.model_validate(Settings(targets="attention").model_dump()) == Settings(targets="attention")
    targets = choose(tiny("llama"), Settings(targets="attention", train_in_full=("norms",)))
    leaves = {path.rpartition(".")[2] for path in (*targets.adapted, *targets.in_full)}
    assert leaves == {
        "q_proj", "k_proj", "v_proj", "o_proj", "input_layernorm", "post_attention_layernorm", "norm",
    }  # fmt: skip
    with pytest.raises(ValidationError, match="would change nothing"):
        Settings(targets="attention", train_in_full=("rest",))


def test_rest_beside_lora_is_what_lora_leaves():
    model, switch = tiny("mixtral"), Switch()
    adapter_set = add(model, switch, LoRASettings(r=2, train_in_full=("rest",)), name="a", seed=0)
    assert not adapter_set.targets.missed
    body = anatomy(model)
    assert set(adapter_set.targets.adapted) == {path for path in body.matrices if body.block_of(path) is not None}
    assert any("experts" in path for path in adapter_set.targets.in_full)


def test_a_quantised_weight_is_refused():
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    model, switch = tiny("llama"), Switch()
    model.model.layers[0].self_attn.q_proj = layer
    with pytest.raises(AdapterError, match="quantised"):
        add(model, switch, Settings(), name="a", seed=0)


def test_modules_by_a_regular_expression_are_those_of_their_names():
    model = tiny("llama")
    named = choose(model, Settings(targets="none", train_in_full=("lm_head", "layers.1.mlp")))
    matched = choose(model, Settings(targets="none", train_in_full=("re:lm_head", r"re:(?:.*layers\.1\.mlp).*")))
    assert matched.in_full == named.in_full
    assert "lm_head" in matched.in_full
    with pytest.raises(AdapterError, match="matches nothing"):
        choose(model, Settings(targets="none", train_in_full=("re:nothing",)))
    with pytest.raises(ValidationError, match="broken regular expression"):
        Settings(train_in_full=("re:(",))
