"""PEFT reads our folders and computes the same; we read PEFT's and compute the same."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model

from tunesmith.adapters.adapter_set import AdapterSet, add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.delta_lora import Settings as DeltaLoRASettings
from tunesmith.adapters.dora import Settings as DoRASettings
from tunesmith.adapters.ia3 import Settings as IA3Settings
from tunesmith.adapters.identity import identify
from tunesmith.adapters.lora import Settings
from tunesmith.adapters.lora_fa import Settings as LoRAFASettings
from tunesmith.adapters.merge import merge
from tunesmith.adapters.peft_config import left_out_by_peft
from tunesmith.adapters.relora import Settings as ReLoRASettings
from tunesmith.adapters.store import load, save
from tunesmith.adapters.vera import Settings as VeRASettings
from tunesmith.models.tiny import ARCHITECTURES, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))


def perturb(adapter_set: AdapterSet, seed: int = 5) -> None:
    """Move every tensor: a fresh adapter has B = 0 and hides all faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_set.state().values():
            tensor += 0.2 * torch.empty(tensor.shape).normal_(generator=generator)


def ours(arch: str, settings: Settings, added_tokens: int = 0):
    model, switch = tiny(arch), Switch()
    adapter_set = add(model, switch, settings, name="a", seed=3, added_tokens=added_tokens)
    for step in (1, 2, 3):
        adapter_set.on_step(step, None)
    perturb(adapter_set)
    switch.name = "a"
    return model, adapter_set


def peft_loads(arch: str, folder, trainable: bool = False) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(tiny(arch), str(folder), is_trainable=trainable).eval()


def loss(model) -> torch.Tensor:
    return model(IDS, labels=IDS).loss


CHOICES = {
    "all-linear": (Settings(r=4), 0),
    "rank-stabilised, attention, last block": (
        Settings(r=4, alpha=3, rank_stabilised=True, targets="attention", last_blocks=1),
        0,
    ),
    "norms": (Settings(r=2, train_in_full=("norms",)), 0),
    "embeddings and norms": (Settings(r=2, train_in_full=("embeddings", "norms")), 0),
    "embeddings and head": (Settings(r=2, train_in_full=("embeddings", "head")), 0),
    "added tokens": (Settings(r=2), 4),
    "dora": (DoRASettings(r=4), 0),
    "pissa": (Settings(r=3, start="pissa", targets="attention"), 0),
    "olora, rank-stabilised": (Settings(r=3, start="olora", rank_stabilised=True, targets="attention"), 0),
    "vera": (VeRASettings(r=24), 0),
    "lora-fa": (LoRAFASettings(r=4, targets="attention"), 0),
    "ia3": (IA3Settings(targets="all-linear", train_in_full=("norms",)), 0),
    "ia3, attention fed forward": (IA3Settings(targets="all-linear", feedforward=("attention",)), 0),
    "delta-lora": (DeltaLoRASettings(r=4, alpha=4, update_ratio=1.5, start_step=0), 0),
    "relora, side by side": (ReLoRASettings(r=4, alpha=1, restart_every=1, rewarm=0), 0),
    "relora, some multiplied out": (ReLoRASettings(r=7, alpha=1, restart_every=1, rewarm=0, rank_stabilised=True), 0),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_peft_computes_the_same_from_our_folder(arch, choice, tmp_path):
    settings, added = CHOICES[choice]
    if arch == "phi" and added:
        pytest.skip("PEFT's trainable tokens drop the bias of Phi's head")
    model, adapter_set = ours(arch, settings, added)
    save(tmp_path / "a", adapter_set, identify(model))
    theirs = peft_loads(arch, tmp_path / "a", trainable=True)
    wanted = model(IDS).logits
    own_start = getattr(settings, "start", "zero") != "zero"
    close = 2e-4 if own_start else 1e-5  # what is added and subtracted again is as large as the weight
    torch.testing.assert_close(theirs(IDS).logits, wanted, rtol=close, atol=close * wanted.abs().max().item())

    loss(model).backward()
    loss(theirs).backward()
    grads = {name: parameter.grad for name, parameter in theirs.base_model.model.named_parameters()}
    learned = {id(parameter) for parameter in adapter_set.parameters().values()}
    compared = 0
    for path in adapter_set.targets.adapted:
        for name, stored in adapter_set.adapters[path].stored().items():
            first, _, rest = name.partition(".")
            full = f"{path}.{first}.default"
            grad = grads[full] if full in grads else grads[f"{full}.{rest or 'weight'}"]
            piece = stored.pieces[0]  # what follows it in a file of PEFT's is frozen here
            if id(piece) in learned:
                wanted = grad.narrow(stored.dim, 0, piece.shape[stored.dim])
                if settings.method == "delta-lora":  # its W is a number within a step, whatever the factors
                    wanted = wanted / (1 + settings.update_ratio)
                torch.testing.assert_close(piece.grad, wanted, rtol=1e-4, atol=5 * close * wanted.abs().max().item())
                compared += 1
    assert compared
    if not own_start:
        own = sum(t.numel() for name, t in adapter_set.state().items() if not name.startswith("shared."))
        frozen = own - adapter_set.counts().trained
        assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == adapter_set.counts().trained + frozen


@pytest.mark.parametrize("settings", [Settings(r=2), DoRASettings(r=2), VeRASettings(r=3), IA3Settings()])
def test_what_peft_would_leave_out_is_told(settings, tmp_path):
    model, adapter_set = ours("llama", settings, added_tokens=4)
    save(tmp_path / "a", adapter_set, identify(model))
    ids = torch.tensor([[5, 92, 93, 94, 95, 7]])
    same = torch.allclose(peft_loads("llama", tmp_path / "a")(ids).logits, model(ids).logits, atol=1e-3)
    assert same == (not left_out_by_peft(adapter_set))


MERGED = ("all-linear", "rank-stabilised, attention, last block", "embeddings and head", "dora", "pissa", "vera")
MERGED += ("olora, rank-stabilised", "lora-fa", "ia3", "ia3, attention fed forward", "delta-lora")
MERGED += ("relora, some multiplied out",)


@pytest.mark.parametrize("choice", MERGED)
@pytest.mark.parametrize("arch", ["llama-tied", "gpt2", "falcon", "opt", "mixtral"])
def test_peft_merges_our_folder_into_the_same_weights(arch, choice, tmp_path):
    model, adapter_set = ours(arch, *CHOICES[choice])
    save(tmp_path / "a", adapter_set, identify(model))
    wanted = peft_loads(arch, tmp_path / "a").merge_and_unload().state_dict()
    merged, base = merge(model, adapter_set).state_dict(), tiny(arch).state_dict()
    assert merged.keys() == wanted.keys()
    changed = 0
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5 * max(1.0, tensor.abs().max().item()))
        changed += not torch.equal(tensor, base[name])
    assert changed >= len(adapter_set.targets.adapted)


def theirs_saved(arch: str, folder, kind=LoraConfig, **config):
    """An adapter made and saved by PEFT itself, every tensor moved, and its logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny(arch), kind(task_type="CAUSAL_LM", **config)).eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.empty(parameter.shape).normal_(generator=generator)
        model.save_pretrained(folder)
    return model


THEIRS = {
    "lora": {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"},
    "vera": {"r": 24, "target_modules": ["UP", "DOWN"], "d_initial": 0.3},
    "ia3": {"target_modules": ["V", "UP", "DOWN"], "feedforward_modules": ["DOWN"]},
    "ia3 by pattern": {"target_modules": r".*\.(UP|DOWN)", "feedforward_modules": r".*\.0\..*(UP|DOWN)"},
    "ia3 of outputs": {"target_modules": ["V", "UP"], "feedforward_modules": [], "modules_to_save": ["NORM"]},
    "dora": {"r": 4, "use_dora": True, "target_modules": "all-linear"},
    "dora of embeddings": {"r": 4, "use_dora": True, "target_modules": ["EMBED", "UP"]},
    "rslora": {"r": 4, "use_rslora": True, "target_modules": "all-linear"},
    "norms in full": {"r": 2, "target_modules": "all-linear", "modules_to_save": ["NORM"]},
    "embeddings and head in full": {"r": 2, "target_modules": "all-linear", "modules_to_save": ["EMBED", "HEAD"]},
    "tied in full": {
        "r": 2,
        "target_modules": "all-linear",
        "modules_to_save": ["EMBED", "HEAD"],
        "ensure_weight_tying": True,
    },
    "one end in full, tying asked for": {
        "r": 2,
        "target_modules": "all-linear",
        "modules_to_save": ["EMBED"],
        "ensure_weight_tying": True,
    },
    "rows of the head": {"r": 2, "target_modules": ["UP"], "trainable_token_indices": {"HEAD": [91, 5]}},
    "embeddings by LoRA": {"r": 2, "target_modules": ["EMBED", "UP"]},
    "head by LoRA": {"r": 2, "target_modules": ["HEAD", "UP"]},
    "patterns": {
        "r": 2,
        "target_modules": r".*\.(UP|DOWN)",
        "rank_pattern": {"UP": 5},
        "alpha_pattern": {r"0\..*DOWN": 11},
    },
    "layers": {"r": 2, "target_modules": ["UP", "DOWN"], "layers_to_transform": [1]},
    "excluded": {"r": 2, "target_modules": "all-linear", "exclude_modules": ["UP"]},
    "token rows": {"r": 2, "target_modules": ["UP"], "trainable_token_indices": {"EMBED": [91, 5, 40]}},
}
NAMES = {
    "llama": {
        "NORM": "input_layernorm",
        "EMBED": "embed_tokens",
        "HEAD": "lm_head",
        "UP": "up_proj",
        "DOWN": "down_proj",
        '"V"': '"v_proj"',
    },
    "gpt2": {
        "NORM": "ln_1",
        "EMBED": "wte",
        "HEAD": "lm_head",
        "UP": "c_fc",
        "DOWN": "c_proj",
        '"V"': '"c_attn"',
    },
}
NAMES |= {"llama-tied": NAMES["llama"], "gemma2": NAMES["llama"]}


def named(value, names: dict[str, str]):
    """`value` with EMBED, UP, … replaced by an architecture's own names."""
    text = json.dumps(value)
    for word, name in names.items():
        text = text.replace(word, name)
    return json.loads(text)


@pytest.mark.parametrize("choice", THEIRS)
@pytest.mark.parametrize("arch", NAMES)
def test_we_compute_the_same_from_peft_s_folder(arch, choice, tmp_path):
    kind = {"vera": VeraConfig, "ia3": IA3Config}.get(choice.split()[0], LoraConfig)
    theirs = theirs_saved(arch, tmp_path / "a", kind, **named(THEIRS[choice], NAMES[arch]))
    model, switch = tiny(arch), Switch()
    adapter_set = load(tmp_path / "a", model, switch, "a", trainable=True)
    wanted = theirs(IDS).logits
    base = model(IDS).logits
    switch.name = "a"
    mine = model(IDS).logits
    assert (mine - base).abs().max() > 1e-2
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    assert adapter_set.counts().trained == sum(p.numel() for p in theirs.parameters() if p.requires_grad)

    again = tmp_path / "b"
    save(again, adapter_set, identify(model))
    fresh, switch = tiny(arch), Switch()
    load(again, fresh, switch, "b")
    switch.name = "b"
    assert torch.equal(fresh(IDS).logits, mine)
