"""An adapter is loaded whole, on its own base, or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.adapters.adapter_set import add, unload
from tunesmith.adapters.attach import Switch, slots
from tunesmith.adapters.identity import fingerprint, identify, public_name
from tunesmith.adapters.lora import Settings
from tunesmith.adapters.store import CONFIG, PREFIX, SIDE, TENSORS, load, save
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import tiny

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path) -> Path:
    """An adapter of tiny llama, every tensor moved."""
    return made(tmp_path / "a", Settings(r=3, train_in_full=("norms",)))


def made(folder: Path, settings: Settings, arch: str = "llama", added_tokens: int = 0) -> Path:
    model, switch = tiny(arch), Switch()
    adapter_set = add(model, switch, settings, name="a", seed=0, added_tokens=added_tokens)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.2 * torch.empty(parameter.shape).normal_(generator=generator)
    adapter_set.added_tokens = tuple(f"<{i}>" for i in range(added_tokens))
    return save(folder, adapter_set, identify(model))


def refused(folder: Path, *words: str, arch: str = "llama", **options) -> str:
    """Loading fails with all `words` in its message and leaves the model as it was."""
    model = tiny(arch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError) as caught:
        load(folder, model, Switch(), "a", **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not slots(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    return str(caught.value)


def edit_tensors(folder: Path, change) -> None:
    """Change the stored tensors as PEFT's folder would have them: without our side file."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    (folder / SIDE).unlink(missing_ok=True)


def edit_config(folder: Path, **keys) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | keys))
    (folder / SIDE).unlink(missing_ok=True)


FIRST = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"


def test_saved_and_loaded_gives_the_same_bits(folder):
    model, switch = tiny("llama"), Switch()
    first = load(folder, model, switch, "one")
    second = load(folder, model, switch, "two")
    assert first.settings == Settings(r=3, train_in_full=("norms",))
    assert first.state().keys() == second.state().keys()
    assert all(torch.equal(first.state()[name], second.state()[name]) for name in first.state())
    with switch.set_to("one"):
        one = model(IDS).logits
    with switch.set_to("two"):
        assert torch.equal(model(IDS).logits, one)
    assert (model(IDS).logits - one).abs().max() > 1e-2
    unload(model, "one")
    with switch.set_to("two"):
        assert torch.equal(model(IDS).logits, one)
    unload(model, "two")
    assert not slots(model)
    with pytest.raises(AdapterError):
        unload(model, "two")


def test_nothing_learns_unless_training_goes_on(folder):
    model = tiny("llama")
    assert not any(p.requires_grad for p in load(folder, model, Switch(), "a").parameters().values())
    model = tiny("llama")
    adapter_set = load(folder, model, Switch(), "a", trainable=True)
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert learning == {id(p) for p in adapter_set.parameters().values()}


def test_a_missing_tensor_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(FIRST))
    refused(folder, "q_proj.lora_A.weight is missing")


def test_an_unused_tensor_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors.update({f"{PREFIX}model.layers.9.x.lora_A.weight": torch.zeros(3, 4)}))
    refused(folder, "layers.9.x.lora_A.weight", "used by no layer")


def test_a_misshapen_tensor_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors.update({FIRST: torch.zeros(3, 31)}))
    refused(folder, "misshapen", "[3, 31]", "[3, 32]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(folder, value):
    edit_tensors(folder, lambda tensors: tensors[FIRST].view(-1)[3:4].fill_(value))
    refused(folder, "NaN or infinity", "q_proj")


def test_another_base_is_refused_by_its_fingerprint(folder):
    refused(folder, "another base model", arch="mistral")
    model = tiny("llama", seed=1)
    with pytest.raises(AdapterError, match="another base model"):
        load(folder, model, Switch(), "a")


def test_peft_s_folder_of_another_name_is_refused_until_it_is_vouched_for(folder):
    edit_config(folder, base_model_name_or_path="somebody/another")
    model = tiny("llama")
    model.config._name_or_path = "/models/this-one"
    with pytest.raises(AdapterError, match="another base model"):
        load(folder, model, Switch(), "a")
    load(folder, model, Switch(), "a", same_base=True)


def test_a_flipped_byte_is_refused(folder):
    data = bytearray((folder / TENSORS).read_bytes())
    data[-5] ^= 1
    (folder / TENSORS).write_bytes(data)
    refused(folder, "sha256")


def test_a_cut_file_is_refused(folder):
    edit_tensors(folder, lambda tensors: None)
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-100])
    refused(folder, "damaged")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"),
        ("lora_bias", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts.down_proj"]),
        ("init_lora_weights", "pissa_niter_4"),
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("use_qalora", True),
        ("some_new_switch", True),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(folder, key, value):
    edit_config(folder, **{key: value})
    refused(folder, key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", 5),
        ("target_modules", "(("),
        ("target_modules", [1]),
        ("exclude_modules", "(("),
        ("modules_to_save", "embed_tokens"),
        ("layers_to_transform", "x"),
        ("layers_to_transform", ["0"]),
        ("trainable_token_indices", 7),
        ("trainable_token_indices", {"embed_tokens": 7}),
        ("rank_pattern", [1]),
        ("rank_pattern", {"((": 3}),
        ("alpha_pattern", [2]),
        ("r", 0),
        ("r", None),
    ],
)
def test_what_peft_does_not_write_is_refused_by_name(folder, key, value):
    edit_config(folder, **{key: value})
    refused(folder, key)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"lora_alpha": 0}, "alpha"),
        ({"lora_dropout": 1.5}, "dropout"),
        ({"rank_pattern": {"q_proj": "many"}}, "r of"),
    ],
)
def test_a_number_of_peft_s_that_cannot_be_is_refused(folder, keys, name):
    edit_config(folder, **keys)
    refused(folder, f"{name}")


def test_a_mark_before_the_config_is_no_matter(folder):
    edit_config(folder)
    (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())
    load(folder, tiny("llama"), Switch(), "a")


def test_an_unknown_key_that_is_off_is_no_matter(folder):
    edit_config(folder, some_new_switch=False, another=None)
    load(folder, tiny("llama"), Switch(), "a")


def test_names_that_match_nothing_are_refused_together(folder):
    edit_config(folder, target_modules=["qq_proj"], modules_to_save=["nowhere"])
    refused(folder, "qq_proj", "nowhere")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff\xfe"])
def test_broken_json_is_refused(folder, text):
    (folder / SIDE).unlink()
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    refused(folder, CONFIG)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    (folder / TENSORS).rename(outside)
    (folder / TENSORS).symlink_to(outside)
    refused(folder, "link out of the folder")


def test_pickles_are_not_read(folder):
    (folder / TENSORS).unlink()
    (folder / SIDE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refused(folder, "safetensors", "pickled")


def test_a_folder_that_is_not_there_asks_no_hub():
    refused(Path("nobody/adapter"), "no adapter folder")


def test_a_taken_name_is_refused(folder):
    model, switch = tiny("llama"), Switch()
    load(folder, model, switch, "a")
    with pytest.raises(AdapterError, match="called a already"):
        load(folder, model, switch, "a")


@pytest.mark.parametrize("arch", ["llama", "llama-tied", "gpt2", "gemma2"])
@pytest.mark.parametrize("in_full", [(), ("embeddings",)])
def test_added_tokens_travel_with_the_adapter(arch, in_full, tmp_path):
    """Trained on a resized model, loaded on the original: the rows come along."""
    model, switch = tiny(arch), Switch()
    torch.manual_seed(0)
    model.resize_token_embeddings(99)
    adapter_set = add(model, switch, Settings(r=2, train_in_full=in_full), name="a", seed=0, added_tokens=3)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.1
    adapter_set.added_tokens = ("<x>", "<y>", "<z>")
    save(tmp_path / "a", adapter_set, identify(model))
    ids = torch.tensor([[5, 96, 97, 98, 7]])
    with switch.set_to("a"):
        wanted = model(ids).logits

    fresh, switch = tiny(arch), Switch()
    loaded = load(tmp_path / "a", fresh, switch, "a")
    assert loaded.added_tokens == ("<x>", "<y>", "<z>")
    with switch.set_to("a"):
        assert torch.equal(fresh(ids).logits, wanted)


def test_a_refused_adapter_with_added_tokens_leaves_the_rows_as_they_were(tmp_path):
    model = tiny("llama")
    model.resize_token_embeddings(99)
    adapter_set = add(model, Switch(), Settings(r=2), name="a", seed=0, added_tokens=3)
    save(tmp_path / "a", adapter_set, identify(model))
    edit_tensors(tmp_path / "a", lambda tensors: tensors.pop(FIRST))
    refused(tmp_path / "a", "missing")


def test_the_fingerprint_is_of_the_numbers_not_of_dtype_process_or_vocabulary():
    model = tiny("llama-tied")
    wanted = fingerprint(model)
    assert fingerprint(tiny("llama-tied", dtype=torch.bfloat16)) == wanted
    script = "from tunesmith.models.tiny import tiny; from tunesmith.adapters.identity import fingerprint as f"
    told = subprocess.run(
        [sys.executable, "-c", f"{script}; print(f(tiny('llama-tied')))"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == wanted
    add(model, Switch(), Settings(train_in_full=("norms", "embeddings")), name="a", seed=0)
    assert fingerprint(model) == wanted
    resized = tiny("llama-tied")
    resized.resize_token_embeddings(104)
    assert fingerprint(resized) == wanted
    with torch.no_grad():
        resized.model.layers[1].mlp.down_proj.weight.add_(0.5)
    assert fingerprint(resized) != wanted


@pytest.mark.parametrize(("then", "now"), [
    (torch.float16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16), (torch.float16, torch.float16),
])  # fmt: skip
def test_a_base_in_fp16_is_the_same_base(tmp_path, then, now):
    model = tiny("llama", dtype=then)
    adapter_set = add(model, Switch(), Settings(r=2), name="a", seed=0)
    folder = save(tmp_path / "a", adapter_set, identify(model))
    load(folder, tiny("llama", dtype=now), Switch(), "a")
    tuned = tiny("llama", dtype=torch.float32)
    with torch.no_grad():
        for number, parameter in enumerate(tuned.parameters()):
            noise = torch.empty(parameter.shape).normal_(generator=torch.Generator().manual_seed(number))
            parameter += 0.02 * parameter.std() * noise
    with pytest.raises(AdapterError, match="another base model"):
        load(folder, tuned.to(now), Switch(), "a")


def test_no_path_of_this_machine_is_written(tmp_path):
    (tmp_path / "my-model").mkdir()
    assert public_name(str(tmp_path / "my-model")) == "my-model"
    assert public_name("org/model") == "org/model"
    model = tiny("llama")
    adapter_set = add(model, Switch(), Settings(), name="a", seed=0)
    folder = save(tmp_path / "a", adapter_set, identify(model, str(tmp_path / "my-model")))
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_digests_are_those_of_the_files(folder):
    side = json.loads((folder / SIDE).read_text())
    for name, digest in side["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
