"""GPTQ's files mean what the formula that made them says, and what is not read is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from quantised_layers import gptq_tensors, less_each, make_gptq_checkpoint, packed
from small_run import make_model

from tunesmith.errors import ModelError
from tunesmith.models.load import load_config, load_model, load_tokenizer, settle
from tunesmith.models.settings import ModelSettings
from tunesmith.quant.gptq import GPTQLinear, in_files, plus_each, unpacked
from tunesmith.quant.quantised import storage_name

WEIGHT = torch.randn(48, 32, generator=torch.Generator().manual_seed(3))
KINDS = {
    "4 bits": {},
    "8 bits": {"bits": 8},
    "2 bits": {"bits": 2, "group": 16},
    "one group": {"group": -1},
    "symmetric": {"sym": True},
    "in the order of activations": {"act_order": True, "group": 16},
    "second format": {"zero_less": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_dense_is_what_the_formula_meant(kind):
    how = {"bits": 4, "group": 8, **KINDS[kind]}
    tensors, meant = gptq_tensors(WEIGHT, **how)
    layer = GPTQLinear((48, 32), how["bits"], how["group"], how.get("zero_less", 1), None, torch.float32)
    for name, tensor in tensors.items():
        assert getattr(layer, name).shape == tensor.shape
        getattr(layer, name).copy_(tensor)
    torch.testing.assert_close(layer.dense(), meant, rtol=0, atol=0)
    assert (layer.dense() - WEIGHT).abs().max() < {2: 2.0, 4: 0.4, 8: 0.02}[how["bits"]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_unpacked_undoes_packed_with_the_highest_bit_in_use(bits, dim):
    numbers = torch.randint(0, 2**bits, (32, 64), generator=torch.Generator().manual_seed(bits))
    numbers[-1], numbers[:, -1] = 2**bits - 1, 2**bits - 1
    assert torch.equal(unpacked(packed(numbers, bits, dim), bits, dim), numbers.int())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_less_one_come_back_through_borrow_and_carry(bits):
    """A writer that takes one off the packed word borrows from the neighbour where a zero point is 0."""
    zeros = torch.randint(0, 2**bits, (3, 64), generator=torch.Generator().manual_seed(1))
    zeros[0, :4] = 0
    less = less_each(packed(zeros, bits, dim=1), bits, 1)
    assert torch.equal(unpacked(plus_each(less, bits, 1), bits, dim=1), zeros.int())


@pytest.mark.parametrize("kind", ["4 bits", "8 bits", "in the order of activations", "second format"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_read_without_gptqmodel(tmp_path, kind, dtype):
    plain = make_model(tmp_path / "plain")
    meant = make_gptq_checkpoint(plain, tmp_path / "gptq", **KINDS[kind])
    settings = ModelSettings(name=str(tmp_path / "gptq"), dtype=dtype, device="cpu")
    model = load_model(settings, load_tokenizer(settings)).model
    assert storage_name(model) == "gptq"
    assert not hasattr(model.config, "quantization_config")
    for path, weight in meant.items():
        layer = model.get_submodule(path)
        assert layer.scales.dtype == torch.float32
        assert torch.equal(layer.dense(), weight.to(getattr(torch, dtype)))
    as_plain = load_model(settings.model_copy(update={"storage": "plain"}), load_tokenizer(settings)).model
    assert storage_name(as_plain) == "plain"
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(model(ids).logits, as_plain(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_bias_that_only_the_files_have_is_read(tmp_path):
    from safetensors.torch import load_file, save_file

    make_gptq_checkpoint(make_model(tmp_path / "plain"), tmp_path / "gptq")
    file = tmp_path / "gptq" / "model.safetensors"
    path = "model.layers.0.self_attn.q_proj"
    tensors = load_file(file)
    tensors[f"{path}.bias"] = torch.arange(32.0)
    save_file(tensors, file, metadata={"format": "pt"})
    settings = ModelSettings(name=str(tmp_path / "gptq"), dtype="float32", device="cpu")
    model = load_model(settings, load_tokenizer(settings)).model
    assert torch.equal(model.get_submodule(path).bias, torch.arange(32.0))


def test_a_tensor_that_is_missing_is_an_error(tmp_path):
    from safetensors.torch import load_file, save_file

    make_gptq_checkpoint(make_model(tmp_path / "plain"), tmp_path / "gptq")
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.g_idx"]
    save_file(tensors, file, metadata={"format": "pt"})
    settings = ModelSettings(name=str(tmp_path / "gptq"), device="cpu")
    with pytest.raises(ModelError, match="tensors are missing"):
        load_model(settings, load_tokenizer(settings))


@pytest.mark.parametrize(
    "values", [{"bits": 3}, {"checkpoint_format": "marlin"}, {"dynamic": {"x": {"bits": 8}}}, {"group_size": 0}]
)
def test_other_kinds_are_refused_by_name(values):
    with pytest.raises(ModelError, match="not read"):
        in_files({"quant_method": "gptq", "bits": 4, "group_size": 128, **values})


@pytest.mark.parametrize("method", ["awq", "aqlm", "hqq", "fp8", "compressed-tensors"])
def test_other_quantisations_are_refused_by_name_before_any_weight_is_read(tmp_path, method):
    folder = make_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    settings = ModelSettings(name=str(folder), device="cpu")
    with pytest.raises(ModelError, match=method):
        settle(settings, load_config(settings))


def test_gptq_is_not_quantised_again(tmp_path):
    make_gptq_checkpoint(make_model(tmp_path / "plain"), tmp_path / "gptq")
    settings = ModelSettings(name=str(tmp_path / "gptq"), storage="nf4", device="cpu")
    with pytest.raises(ModelError, match="second time"):
        settle(settings, load_config(settings))
