"""Targets are chosen by structure on any architecture, and what was not reached is listed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import lora
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings
from tunesmith.adapters.targets import anatomy, choose
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import ARCHITECTURES, tiny

MIXTURES = ("mixtral", "qwen2_moe")
ATTENTION = {
    "phi": {"q_proj", "k_proj", "v_proj", "dense"},
    "phi3": {"qkv_proj", "o_proj"},
    "falcon": {"query_key_value", "dense"},
    "bloom": {"query_key_value", "dense"},
    "gpt_neox": {"query_key_value", "dense"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj"},
    "gpt2": {"c_attn", "c_proj"},
}
MLP = {
    "phi": {"fc1", "fc2"},
    "phi3": {"gate_up_proj", "down_proj"},
    "falcon": {"dense_h_to_4h", "dense_4h_to_h"},
    "bloom": {"dense_h_to_4h", "dense_4h_to_h"},
    "gpt_neox": {"dense_h_to_4h", "dense_4h_to_h"},
    "opt": {"fc1", "fc2"},
    "gpt2": {"c_fc", "c_proj"},
    "qwen2_moe": {"gate_proj", "up_proj", "down_proj", "shared_expert_gate"},
}


def leaves(paths) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_and_mlp_part_all_linear_between_them(arch):
    model = tiny(arch)
    everything = choose(model, Settings()).adapted
    attention = choose(model, Settings(targets="attention")).adapted
    assert leaves(attention) == ATTENTION.get(arch, {"q_proj", "k_proj", "v_proj", "o_proj"})
    if arch == "mixtral":
        with pytest.raises(AdapterError, match="experts"):
            choose(model, Settings(targets="mlp"))
        assert everything == attention
        return
    mlp = choose(model, Settings(targets="mlp")).adapted
    assert leaves(mlp) == MLP.get(arch, {"gate_proj", "up_proj", "down_proj"})
    assert not set(attention) & set(mlp)
    assert set(attention) | set(mlp) == set(everything)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_linear_is_every_matrix_of_the_blocks_and_the_rest_is_listed(arch):
    model = tiny(arch)
    targets = choose(model, Settings())
    wanted = {
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not model.get_output_embeddings()
    }
    assert set(targets.adapted) == wanted
    reached = {id(model.get_submodule(path).weight) for path in targets.adapted}
    missed = {name for name, p in model.named_parameters() if p.dim() >= 2 and id(p) not in reached}
    listed = {path if path in missed else f"{path}.weight" for path in targets.missed}
    assert listed - {"lm_head.weight"} == missed - {"lm_head.weight"}
    assert any("experts" in path for path in targets.missed) == (arch in MIXTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_last_blocks_and_the_norms(arch):
    model = tiny(arch)
    body = anatomy(model)
    targets = choose(model, Settings(last_blocks=1, train_in_full=("norms",)))
    assert {body.block_of(path) for path in targets.adapted} == {1}
    assert {body.block_of(path) for path in targets.in_full} == {1, None}
    for path in choose(model, Settings(train_in_full=("norms",))).in_full:
        assert "norm" in type(model.get_submodule(path)).__name__.lower()
    with pytest.raises(AdapterError, match="2 blocks"):
        choose(model, Settings(last_blocks=3))


def test_a_choice_does_not_change_once_adapters_are_attached():
    model = tiny("qwen3")
    chosen = Settings(train_in_full=("norms", "embeddings"))
    before = choose(model, chosen)
    add(model, Switch(), chosen, name="a", seed=0)
    assert choose(model, chosen) == before


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("q_proj",), {"0.self_attn.q_proj", "1.self_attn.q_proj"}),
        (("0.self_attn.q_proj",), {"0.self_attn.q_proj"}),
        (
            ("self_attn.k_proj", "re:.*layers[.]1[.]mlp[.]up_proj"),
            {"0.self_attn.k_proj", "1.self_attn.k_proj", "1.mlp.up_proj"},
        ),
        ("re:model[.]layers[.]1[.].*[qv]_proj", {"1.self_attn.q_proj", "1.self_attn.v_proj"}),
        (("embed_tokens", "lm_head"), {"embed_tokens", "lm_head"}),
        ("lm_head", {"lm_head"}),
    ],
)
def test_names_suffixes_and_regular_expressions(targets, wanted):
    found = choose(tiny("llama"), Settings(targets=targets)).adapted
    assert {path.removeprefix("model.").removeprefix("layers.") for path in found} == wanted


def test_names_that_match_nothing_come_with_near_ones_all_at_once():
    with pytest.raises(AdapterError) as caught:
        choose(tiny("llama"), Settings(targets=("q_pro", "k_proj"), train_in_full=("nroms",)))
    text = str(caught.value)
    assert all(word in text for word in ("q_pro", "q_proj", "nroms", "norms"))


@pytest.mark.parametrize(
    ("arch", "name"), [("mixtral", "gate_up_proj"), ("qwen2_moe", "down_proj"), ("mixtral", "experts")]
)
def test_stacks_of_experts_are_refused_by_name(arch, name):
    with pytest.raises(AdapterError, match="experts"):
        choose(tiny(arch), Settings(targets=("q_proj", name)))
    choose(tiny("qwen2_moe"), Settings(targets=("shared_expert.down_proj",)))


def test_adapted_by_name_and_in_full_at_once_is_refused():
    with pytest.raises(AdapterError, match="in full at once"):
        choose(tiny("llama"), Settings(targets=("q_proj",), train_in_full=("q_proj",)))
    whole = choose(tiny("llama"), Settings(train_in_full=("mlp",)))
    assert leaves(whole.in_full) == {"gate_proj", "up_proj", "down_proj"}
    assert leaves(whole.adapted) == {"q_proj", "k_proj", "v_proj", "o_proj"}


ENCODERS = {  # attention, its keys and values, what it ends in, the MLP, what that ends in
    "bert": ("query key value dense", "key value", "dense", "intermediate.dense output.dense", "output.dense"),
    "mpnet": ("q k v o", "k v", "o", "intermediate.dense output.dense", "output.dense"),
    "deberta-v2": ("query_proj key_proj value_proj dense", "key_proj value_proj", "dense",
                   "intermediate.dense output.dense", "output.dense"),
    "albert": ("query key value dense", "key value", "dense", "ffn ffn_output", "ffn_output"),
    "distilbert": ("q_lin k_lin v_lin out_lin", "k_lin v_lin", "out_lin", "lin1 lin2", "lin2"),
    "modernbert": ("Wqkv Wo", "Wqkv", "Wo", "Wi Wo", "Wo"),
}  # fmt: skip


@pytest.mark.parametrize("arch", ENCODERS)
def test_the_words_mean_the_same_in_encoders(arch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
    if arch == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 56}
    config = AutoConfig.for_model(arch, vocab_size=96, max_position_embeddings=64, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    attention, key_value, attention_out, mlp, mlp_out = (names.split() for names in ENCODERS[arch])

    def ends(targets):
        found = set()
        for path in choose(model, Settings(targets=targets)).adapted:
            *_, parent, leaf = path.split(".")
            found.add(f"{parent}.{leaf}" if parent in ("intermediate", "output") and "attention" not in path else leaf)
        return found

    assert ends("attention") == set(attention)
    assert ends("key-value") == set(key_value)
    assert ends("mlp") == set(mlp)
    assert ends("mlp-down") == set(mlp_out)
    assert ends("outputs") == {*attention_out, *mlp_out}


def test_a_tied_table_is_trained_on_both_sides():
    for part in ("embeddings", "head"):
        assert choose(tiny("gpt2"), Settings(train_in_full=(part,))).in_full == ("transformer.wte", "lm_head")
    assert choose(tiny("llama"), Settings(train_in_full=("embeddings",))).in_full == ("model.embed_tokens",)


@given(st.text(alphabet="abcq_.proj", max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_name_is_found_or_refused(name):
    model = MODEL
    try:
        found = choose(model, Settings(targets=(name,) if name else ("x",))).adapted
    except AdapterError:
        return
    assert all(path == name or path.endswith("." + name) for path in found)


MODEL = tiny("llama")


def test_rank_10_beside_5000_by_1000_is_60000():
    with torch.device("meta"):
        layer = nn.Linear(1000, 5000)
    adapter = lora.build(Settings(r=10), lora.Base(layer))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 60_000


def test_bloom_3b_at_rank_8_on_query_key_value_is_2457600():
    config = AutoConfig.for_model("bloom", hidden_size=2560, n_layer=30, n_head=32, vocab_size=250880)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    adapter_set = add(model, Switch(), Settings(r=8, targets=("query_key_value",)), name="a", seed=0)
    counts = adapter_set.counts()
    assert counts.trained == 2_457_600
    assert counts.total == 3_002_557_440
    assert counts.share == pytest.approx(0.000818, abs=1e-6)
