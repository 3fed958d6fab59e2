"""(IA)³ finds keys, values and the MLP's last matrix on any architecture, and acts on the side that is asked for."""

from __future__ import annotations

import pytest
import torch
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS,
)
from pydantic import ValidationError

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.ia3 import Settings
from tunesmith.adapters.identity import identify
from tunesmith.adapters.store import load, save
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import ARCHITECTURES, tiny

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))
NOT_KEYS_AND_VALUES = {"opt", "phi", "gemma2", "gemma3_text", "qwen2", "qwen3"}
"""Of these PEFT adapts queries in the place of keys or values; the paper's are keys and values."""
OTHERS = {"phi3": ("qkv_proj", "down_proj"), "stablelm": ("k_proj v_proj", "down_proj")}
OTHERS["qwen2_moe"] = ("k_proj v_proj", "mlp.shared_expert.down_proj")


def ends(paths, names) -> bool:
    """Every path ends in one of `names`, and every name is the end of one."""
    hits = {path: [name for name in names if path.endswith("." + name)] for path in paths}
    return all(hits.values()) and {name for found in hits.values() for name in found} == set(names)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "mixtral"])
def test_keys_values_and_the_last_matrix_are_found_on_any_architecture(arch):
    model = tiny(arch)
    adapter_set = add(model, Switch(), Settings(), name="a", seed=0)
    inputs = {path for path, adapter in adapter_set.adapters.items() if adapter.changes_input}
    outputs = adapter_set.adapters.keys() - inputs
    kind = model.config.model_type
    if kind in OTHERS:
        wanted_out, wanted_in = OTHERS[kind]
        assert ends(outputs, wanted_out.split())
        assert ends(inputs, wanted_in.split())
        return
    assert ends(inputs, FEEDFORWARD[kind])
    if kind in NOT_KEYS_AND_VALUES:
        assert ends(outputs, ["k_proj", "v_proj"])
        assert len(outputs) == 2 * model.config.num_hidden_layers
    else:
        assert ends(outputs, set(TARGETS[kind]) - set(FEEDFORWARD[kind]))
    hidden = model.get_input_embeddings().embedding_dim
    for path, adapter in adapter_set.adapters.items():
        base = model.get_submodule(path).base
        assert base.out_features == hidden or not adapter.changes_input
        shape = (1, base.in_features) if adapter.changes_input else (base.out_features, 1)
        assert adapter.l.shape == shape
        assert torch.equal(adapter.l, torch.ones(shape))


def test_experts_in_stacks_are_refused_by_name_and_attention_alone_is_not():
    with pytest.raises(AdapterError, match="mlp-down"):
        add(tiny("mixtral"), Switch(), Settings(), name="a", seed=0)
    adapter_set = add(tiny("mixtral"), Switch(), Settings(targets=("key-value",)), name="a", seed=0)
    assert ends(adapter_set.adapters, ["k_proj", "v_proj"])


@pytest.mark.parametrize(
    ("feedforward", "wanted"),
    [
        ("mlp-down", ["down_proj"]),
        ((), []),
        (("up_proj", "q_proj"), ["up_proj", "q_proj"]),
        (("attention", "model.layers.1.mlp.up_proj"), ["q_proj", "k_proj", "v_proj", "o_proj", "1.mlp.up_proj"]),
        ("re:.*0.*(gate|v)_proj", ["0.mlp.gate_proj", "0.self_attn.v_proj"]),
    ],
)
def test_which_layers_have_the_factor_on_their_input_is_a_choice_that_travels(feedforward, wanted, tmp_path):
    settings = Settings(targets="all-linear", feedforward=feedforward)
    model = tiny("llama")
    adapter_set = add(model, Switch(), settings, name="a", seed=0)
    inputs = {path for path, adapter in adapter_set.adapters.items() if adapter.changes_input}
    assert ends(inputs, wanted)
    save(tmp_path / "a", adapter_set, identify(model))
    again = load(tmp_path / "a", tiny("llama"), Switch(), "a")
    assert again.settings == settings
    assert again.layer_settings == adapter_set.layer_settings
    assert {path for path, adapter in again.adapters.items() if adapter.changes_input} == inputs


def test_names_that_cannot_be_feed_forward_are_refused():
    with pytest.raises(AdapterError, match=r"feedforward names up_proj, which is none of the adapted") as caught:
        add(tiny("llama"), Switch(), Settings(feedforward=("up_proj",)), name="a", seed=0)
    assert "k_proj, v_proj, down_proj" in str(caught.value)
    with pytest.raises(ValidationError, match="broken regular expression"):
        Settings(feedforward="re:(")


def test_rows_of_one_batch_do_not_share_the_product_of_another_input():
    """A layer whose input is rescaled cannot use the frozen product that its neighbours in the batch use."""
    model, switch = tiny("llama"), Switch()
    for seed, name in enumerate(("a", "b")):
        adapter_set = add(model, switch, Settings(targets="all-linear", feedforward="mlp"), name=name, seed=0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in adapter_set.state().values():
                tensor += 0.3 * torch.empty(tensor.shape).normal_(generator=generator)
    alone = {}
    for name in ("a", "b", None):
        with switch.set_to(name):
            alone[name] = model(IDS[:1]).logits
    with switch.set_to(None, rows=("b", None, "a")):
        mixed = model(IDS[:1].expand(3, -1)).logits
    for row, name in enumerate(("b", None, "a")):
        torch.testing.assert_close(mixed[row : row + 1], alone[name], rtol=1e-4, atol=1e-4)
