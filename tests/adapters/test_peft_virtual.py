"""Prompt tuning, prefix tuning and LLaMA-Adapter: PEFT computes the same from our files, and we from PEFT's."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import AdaptionPromptConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.identity import identify
from tunesmith.adapters.store import load, save
from tunesmith.errors import AdapterError
from tunesmith.models import attention
from tunesmith.models.generate import generate
from tunesmith.models.policy import Policy, flat_batch, probe
from tunesmith.models.tiny import ARCHITECTURES, tiny

pytestmark = pytest.mark.filterwarnings("ignore")
P = 5
LENGTHS = (17, 9)
DOCUMENTS = [torch.randint(3, 90, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
CASES = [(method, arch) for method in ("prompt", "prefix") for arch in ARCHITECTURES]
CASES += [("llama-adapter", "llama"), ("llama-adapter", "mistral")]
"""PEFT knows LLaMA-Adapter on Llama, Mistral and GPT-2; on GPT-2 it leaves out the output projection."""


def move(parameters, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.3 * torch.empty(parameter.shape).normal_(generator=generator)


def policy_of(model, switch, name: str, flat: bool | None) -> Policy:
    attention.register()
    attention.install(model)
    policy = probe(model, switch)[0] if flat is None else Policy(model, switch, flat=flat)
    switch.name = name
    return policy


def ours(policy: Policy) -> list[torch.Tensor]:
    return list(policy.head().logits(policy.hidden(flat_batch(DOCUMENTS))).split(LENGTHS))


def theirs(model) -> list[torch.Tensor]:
    """Row by row, as PEFT does it."""
    made = []
    for document in DOCUMENTS:
        ids = document[None]
        made.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0])
    return [logits[-len(document) :] for logits, document in zip(made, DOCUMENTS, strict=True)]


def close(found, wanted, by: float = 2e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=by, atol=by * other.abs().max().item())


def peft_loads(arch: str, folder) -> PeftModel:
    """PEFT loads no prompt to be trained: its tensors are made to learn here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(tiny(arch), str(folder)).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt_encoder" in name or "adaption_" in name)
    return model


def learned(model) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("method", "arch"), CASES)
def test_peft_computes_the_same_from_our_folder_gradients_and_answers_too(method, arch, tmp_path):
    model, switch = tiny(arch), Switch()
    settings = METHODS[method].Settings(num_tokens=P)
    adapter_set = add(model, switch, settings, name="a", seed=3)
    move(adapter_set.parameters().values())
    save(tmp_path / "a", adapter_set, identify(model))
    other = peft_loads(arch, tmp_path / "a")
    wanted = theirs(other)
    with torch.no_grad():
        base = tiny(arch)(DOCUMENTS[0][None]).logits[0]
    assert (wanted[0] - base).abs().max() > 1e-2
    sum((part.float().log_softmax(-1)[:, 3]).sum() for part in wanted).backward()
    theirs_grads = [parameter.grad for parameter in learned(other)]
    for flat in (None, False):
        policy = policy_of(model, switch, "a", flat)
        close(ours(policy), wanted)
        for parameter in adapter_set.parameters().values():
            parameter.grad = None
        sum((part.log_softmax(-1)[:, 3]).sum() for part in ours(policy)).backward()
        mine = {id(p): p.grad for p in adapter_set.parameters().values()}
        stored = next(iter(adapter_set.adapters.values())).stored()
        assert len(stored) == len(theirs_grads)
        close([mine[id(piece.pieces[0])] for piece in stored.values()], theirs_grads, 1e-4)
    assert adapter_set.counts().trained == sum(parameter.numel() for parameter in learned(other))

    answers = generate(
        model, [d.tolist() for d in DOCUMENTS], max_new_tokens=8, eos_ids=[2], switch=switch, adapters=["a", "a"]
    )
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
    for document, answer in zip(DOCUMENTS, answers, strict=True):
        ids = document[None]
        made = other.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert made[0, len(document) :].tolist() == answer.token_ids


CONFIGS = {
    "prompt": (PromptTuningConfig, {"num_virtual_tokens": P}),
    "prompt of the vocabulary": (PromptTuningConfig, {"num_virtual_tokens": P, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    "prefix": (PrefixTuningConfig, {"num_virtual_tokens": P}),
    "prefix, projected": (
        PrefixTuningConfig,
        {"num_virtual_tokens": P, "prefix_projection": True, "encoder_hidden_size": 7},
    ),
    "llama-adapter": (AdaptionPromptConfig, {"adapter_len": P, "adapter_layers": 1}),
}
THEIRS = [(choice, arch) for choice in CONFIGS for arch in ("llama", "mistral", "gpt2", "falcon", "gemma3")]
THEIRS = [case for case in THEIRS if case[0] != "llama-adapter" or case[1] in ("llama", "mistral")]


@pytest.mark.parametrize(("choice", "arch"), THEIRS)
def test_we_compute_the_same_from_peft_s_folder(choice, arch, tmp_path):
    kind, values = CONFIGS[choice]
    torch.manual_seed(0)
    other = get_peft_model(tiny(arch), kind(task_type="CAUSAL_LM", **values)).eval()
    move(learned(other))
    other.save_pretrained(tmp_path / "a")
    wanted = theirs(other)
    model, switch = tiny(arch), Switch()
    adapter_set = load(tmp_path / "a", model, switch, "a", trainable=True)
    policy = policy_of(model, switch, "a", None)
    close(ours(policy), wanted)
    again = tmp_path / "b"
    save(again, adapter_set, identify(model))
    fresh, other_switch = tiny(arch), Switch()
    load(again, fresh, other_switch, "b")
    assert all(
        torch.equal(*pair) for pair in zip(ours(policy_of(fresh, other_switch, "b", None)), ours(policy), strict=True)
    )


def test_files_of_another_shape_or_with_trained_modules_are_refused(tmp_path):
    model = tiny("llama")
    save(tmp_path, add(model, Switch(), METHODS["prefix"].Settings(num_tokens=P), name="a", seed=0), identify(model))
    (tmp_path / "tunesmith.json").unlink()
    with pytest.raises(AdapterError, match="misshapen"):
        load(tmp_path, tiny("qwen3"), Switch(), "a", same_base=True)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace("{", '{"modules_to_save": ["norm"],', 1))
    with pytest.raises(AdapterError, match="modules trained beside"):
        load(tmp_path, tiny("llama"), Switch(), "a")
