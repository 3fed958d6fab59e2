"""A checkpoint that does not hold the whole model is refused by name, however it is opened; what it holds beyond is
said."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith import open_session
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.lora import Settings
from tunesmith.errors import ModelError
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.settings import ModelSettings
from tunesmith.models.tiny import config, randomise

LAST = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def changed(whole, tmp_path):
    """A copy of the model with `change` made to its tensors (and `settings` to its config)."""

    def make(change, folder=whole, **settings):
        copied = tmp_path / "model"
        shutil.copytree(folder, copied)
        tensors = load_file(copied / "model.safetensors")
        change(tensors)
        save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
        if settings:
            held = json.loads((copied / "config.json").read_text())
            (copied / "config.json").write_text(json.dumps({**held, **settings}))
        return copied

    return make


def opened(folder, say=None, head=None, **settings):
    settings = ModelSettings(name=str(folder), device="cpu", **{"dtype": "float32", **settings})
    told = [] if say is None else say
    return load_model(settings, load_tokenizer(settings), head=head, say=told.append).model


def without(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def every_tensor():
    """Names of a Llama's tensors, of one block."""
    model = AutoModelForCausalLM.from_config(config("llama"))
    return [name for name in model.state_dict() if "layers.0" not in name]


@pytest.mark.parametrize("name", every_tensor())
def test_any_tensor_that_is_missing_is_refused_by_name(changed, name, capfd):
    with pytest.raises(ModelError, match="do not hold the whole of LlamaForCausalLM") as caught:
        opened(changed(without(name)))
    assert f"1 tensor missing: {name}" in str(caught.value)
    assert "fetch the files again" in str(caught.value)
    assert capfd.readouterr() == ("", ""), "transformers' own table is not shown as well"


def test_many_are_counted_and_few_are_named(changed):
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in (0, 1) for part in ("up", "down", "gate")]
    with pytest.raises(ModelError) as caught:
        opened(changed(without(*names)))
    assert "6 tensors missing" in str(caught.value)
    assert str(caught.value).count("_proj.weight") == 3


def test_a_session_is_refused_as_a_run_is(changed):
    with pytest.raises(ModelError, match=LAST):
        open_session(str(changed(without(LAST))))


def test_a_tensor_under_another_name_is_shown_beside_the_one_that_is_missing(changed):
    def rename(tensors):
        tensors["model.layers.1.mlp.up.weight"] = tensors.pop(LAST)

    with pytest.raises(ModelError) as caught:
        opened(changed(rename))
    assert f"1 tensor missing: {LAST}" in str(caught.value)
    assert "model.layers.1.mlp.up.weight" in str(caught.value)


def test_a_head_that_is_the_embedding_need_not_be_there(changed):
    model = opened(changed(without("lm_head.weight"), tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_new_head_is_drawn_and_a_body_is_not(changed):
    said, head = [], ClassHead(labels=("a", "b", "c"), meaning="one")
    model = opened(changed(lambda tensors: None), said, head)
    assert model.score.weight.shape[0] == 3
    assert said == [], "the causal model's own head gives way to the new one"


def test_a_body_that_is_not_whole_gets_no_new_head(changed):
    head = ClassHead(labels=("a", "b"), meaning="one")
    with pytest.raises(ModelError, match="the whole body of LlamaForSequenceClassification"):
        opened(changed(without(LAST)), head=head)


def test_what_is_no_part_of_the_model_is_said_once(changed):
    said = []

    def more(tensors):
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    opened(changed(more), said)
    assert len(said) == 1
    assert "1 tensor, model.layers.0.self_attn.q_proj.bias" in said[0]


def test_another_shape_is_refused_with_both(changed, capfd):
    def cut(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    with pytest.raises(ModelError, match="of other shapes") as caught:
        opened(changed(cut))
    assert "model.norm.weight [31] for [32]" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_mixture_that_lacks_an_expert_is_refused(changed, whole, tmp_path):
    shape = config("qwen2_moe")
    shape.vocab_size = AutoConfig.from_pretrained(whole).vocab_size
    folder = tmp_path / "mixture"
    shutil.copytree(whole, folder)
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 0)
    model.save_pretrained(folder)
    opened(folder)
    expert = "model.layers.0.mlp.experts.2.gate_proj.weight"
    with pytest.raises(ModelError, match="do not fit together"):
        opened(changed(without(expert), folder))


@pytest.mark.parametrize("storage", ["nf4", "int8"])
def test_a_base_of_few_bits_is_whole_too(changed, whole, storage):
    pytest.importorskip("bitsandbytes")
    said = []
    opened(whole, said, storage=storage)
    assert not said
    with pytest.raises(ModelError, match=LAST):
        opened(changed(without(LAST)), storage=storage)


def test_a_deep_rwkv_answers_with_its_adapter_as_it_was_trained(whole, tmp_path):
    """Its blocks are halved again and again where it answers; an adapter's product is not: so none are."""
    folder = tmp_path / "rwkv"
    shutil.copytree(whole, folder)
    shape = AutoConfig.for_model(
        "rwkv", vocab_size=AutoConfig.from_pretrained(whole).vocab_size, num_hidden_layers=7, hidden_size=32,
        attention_hidden_size=32, context_length=64, rescale_every=6, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 0)
    model.save_pretrained(folder)
    model, switch = opened(folder), Switch()
    for parameter in add(model, switch, Settings(r=2, alpha=8), name="a", seed=0).parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)
    switch.name, ids = "a", torch.arange(1, 9)[None]
    with torch.no_grad():
        learning = model.train()(ids, use_cache=False).logits
        answering = model.eval()(ids, use_cache=False).logits
    torch.testing.assert_close(answering, learning)
