"""The laws of the second contract: methods that put learned tokens before each document.

1 start: as declared, the base's own or not; from a text, exactly as behind that text · 2 no merge, and that is said
before work · 3 only the adapter learns, and all of it does, however the batch is run · 4 off or taken out is the
original, bit for bit · 5 save, load, same outputs (PEFT's: tests/adapters/test_peft_virtual.py) · 6 storage-blind ·
7 the docstring (test_adapter_laws.py) · and: no document of a row knows of its neighbours
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantised_layers import MADE
from thinned import in_turn, thinned
from torch import nn

from tunesmith import inference
from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import AdapterSet, add, base_parameters, unload
from tunesmith.adapters.attach import Switch, replace, slots, virtual
from tunesmith.adapters.identity import identify
from tunesmith.adapters.lora import Settings as LoRASettings
from tunesmith.adapters.merge import merge
from tunesmith.adapters.store import load, save
from tunesmith.adapters.virtual import FIRST, VirtualSettings
from tunesmith.data.pack import collate
from tunesmith.data.types import Example, Origin
from tunesmith.errors import AdapterError, ModelError, RecipeError
from tunesmith.models import attention
from tunesmith.models.fuse import fuse
from tunesmith.models.generate import generate
from tunesmith.models.policy import Policy, flat_batch, probe
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.objectives.sft import SFT
from tunesmith.quant.quantised import dequantise
from tunesmith.recipe import from_dict
from tunesmith.train.mode import train_mode
from tunesmith.train.noise import NEFTune

pytestmark = pytest.mark.filterwarnings("ignore")
METHODS_HERE = [name for name, module in METHODS.items() if issubclass(module.Settings, VirtualSettings)]
CHOICES = {name: METHODS[name].Settings(num_tokens=5) for name in METHODS_HERE}
CHOICES |= {"prefix, projected": METHODS["prefix"].Settings(num_tokens=5, projection=6)}
NEUTRAL = {"llama-adapter"}
"""All others declare that they do not start as the base."""
PADDED = ("bloom", "falcon", "stablelm")
GATED = {"llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "opt", "mixtral", "qwen2_moe"}
"""Where attention has k_proj and v_proj and can be chosen."""
CASES = [(choice, arch) for choice in CHOICES for arch in ARCHITECTURES if "llama-" not in choice or arch in GATED]
FEW = [(choice, arch) for choice, arch in CASES if arch in ("llama", "gemma2", "bloom")]
LENGTHS = (23, 4, 15)
DOCUMENTS = [torch.randint(3, 90, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    rows = []
    for number, document in enumerate(DOCUMENTS):
        weights = (rng.random(len(document)) < 0.6).astype(np.float32)
        weights[-1] = 1.0
        rows.append(Example(document.numpy(), weights, Origin("rows", number)))
    return rows


def moved(adapter_set: AdapterSet, seed: int = 5, by: float = 0.3) -> AdapterSet:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += by * torch.empty(parameter.shape).normal_(generator=generator)
    return adapter_set


def adapted(choice: str, arch: str, *, move: bool = True, dtype=torch.float32, flat: bool | None = None, **more):
    """(policy with the adapter on, adapter set); `flat` False: padded."""
    model, switch = tiny(arch, dtype=dtype), Switch()
    attention.register()
    attention.install(model)
    adapter_set = add(model, switch, CHOICES.get(choice, choice), name="a", seed=3, **more)
    if move:
        moved(adapter_set)
    policy, _ = probe(model, switch)
    assert policy.flat == (arch not in PADDED)
    if flat is not None:
        policy = Policy(model, switch, flat=flat)
    switch.name = "a"
    return policy, adapter_set


def logits(policy: Policy, documents=tuple(DOCUMENTS)) -> list[torch.Tensor]:
    """Of each document, all in one batch."""
    return list(policy.head().logits(policy.hidden(flat_batch(list(documents)))).split([len(d) for d in documents]))


def close(found, wanted, by: float = 1e-4):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=by, atol=by * other.abs().max().item())


def loss_and_gradients(policy: Policy, adapter_set: AdapterSet, *, share: bool = False, rows=None):
    for parameter in adapter_set.parameters().values():
        parameter.grad = None
    rows = examples() if rows is None else rows
    objective = SFT(rows, (), batch_size=len(rows), seed=0)
    loss = objective.loss(policy, collate(rows, share=share)).sums["loss"]
    loss.backward()
    return [loss, *(parameter.grad for parameter in adapter_set.parameters().values())]


@pytest.mark.parametrize(("choice", "arch"), CASES)
def test_1_it_starts_as_the_base_or_says_that_it_does_not(choice, arch):
    policy, _ = adapted(choice, arch, move=False)
    lead = virtual(policy.model, "a")
    assert lead.neutral == (choice in NEUTRAL)
    fresh = logits(policy)
    policy.switch.name = None
    base = logits(policy)
    if lead.neutral:
        close(fresh, base, 1e-6)
    else:
        assert all((one - other).abs().max() > 1e-2 for one, other in zip(fresh, base, strict=True))


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_1_begun_as_a_text_it_is_the_base_behind_that_text(method, arch):
    text = [7, 30, 12, 55]
    settings = METHODS[method].Settings(num_tokens=6, init_text="x")
    for flat in (None, False):
        policy, _ = adapted(settings, arch, move=False, encode=lambda _: text, flat=flat)
        found = logits(policy)
        policy.switch.name = None
        repeated = torch.tensor([*text, *text[:2]])
        close(found, [part[6:] for part in logits(policy, [torch.cat([repeated, d]) for d in DOCUMENTS])])
    with pytest.raises(AdapterError, match="no tokens"):
        adapted(settings, arch, encode=lambda _: [])


@pytest.mark.parametrize("choice", CHOICES)
def test_2_it_is_not_merged_and_that_is_said_before_any_work(choice, tmp_path, monkeypatch):
    policy, adapter_set = adapted(choice, "llama")
    assert not virtual(policy.model, "a").mergeable
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge(policy.model, adapter_set)
    save(tmp_path / "a", adapter_set, identify(policy.model))
    monkeypatch.setattr(inference, "_open", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(AdapterError, match=r"cannot be merged: virtual tokens(.|\n)*to do"):
        inference.merge(tmp_path / "a", tmp_path / "merged")


@pytest.mark.parametrize(("choice", "arch"), CASES)
def test_3_only_the_adapter_learns_and_all_of_it_does(choice, arch):
    policy, adapter_set = adapted(choice, arch)
    frozen = {name: p.clone() for name, p in base_parameters(policy.model).items()}
    start = {name: p.detach().clone() for name, p in adapter_set.parameters().items()}
    optimizer = torch.optim.AdamW(adapter_set.parameters().values(), lr=1e-2)
    for _ in range(2):
        loss_and_gradients(policy, adapter_set)
        optimizer.step()
    assert all(torch.equal(p, frozen[name]) for name, p in base_parameters(policy.model).items())
    assert all(not torch.equal(p, start[name]) for name, p in adapter_set.parameters().items())


@pytest.mark.parametrize(("choice", "arch"), CASES)
def test_3_loss_and_gradients_do_not_depend_on_how_the_batch_is_run(choice, arch):
    """Flat, padded, fused, recomputed: documents of one batch as each alone."""
    policy, adapter_set = adapted(choice, arch)
    wanted = loss_and_gradients(policy, adapter_set)
    wanted = [tensor.detach().clone() for tensor in wanted]
    alone = [loss_and_gradients(policy, adapter_set, rows=[row]) for row in examples()]
    close([sum(parts) for parts in zip(*alone, strict=True)], wanted)
    close(loss_and_gradients(Policy(policy.model, policy.switch, flat=False), adapter_set), wanted)
    fuse(policy.model)
    close(loss_and_gradients(policy, adapter_set), wanted)
    if policy.model.supports_gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        train_mode(policy, True)
        if arch in PADDED and choice.startswith("prefix"):
            with pytest.raises(ModelError, match=r"cannot recompute(.|\n)*train.recompute: false"):
                policy.refuse_lead()
            with pytest.raises(ModelError, match="cannot recompute"):
                loss_and_gradients(policy, adapter_set)
        else:
            policy.refuse_lead()
            close(loss_and_gradients(policy, adapter_set), wanted)


@pytest.mark.parametrize(("choice", "arch"), [case for case in CASES if case[1] in ("llama", "mistral", "gpt2")])
def test_3_what_rows_share_is_shared_behind_the_virtual_tokens_too(choice, arch):
    policy, adapter_set = adapted(choice, arch)
    common = list(range(3, 23))
    rows = [
        Example(np.array(common + [30 + i] * (3 + i)), np.ones(23 + i, dtype=np.float32), Origin("x", i))
        for i in range(3)
    ]
    assert any(segment.parent is not None for segment in collate(rows, share=True).segments)
    wanted = [tensor.detach().clone() for tensor in loss_and_gradients(policy, adapter_set, rows=rows)]
    close(loss_and_gradients(policy, adapter_set, share=True, rows=rows), wanted)


@pytest.mark.parametrize(("choice", "arch"), CASES)
def test_4_off_or_taken_out_is_the_original_bit_for_bit(choice, arch):
    policy, _ = adapted(choice, arch)
    original = tiny(arch)
    attention.install(original)
    wanted = logits(Policy(original, Switch(), flat=policy.flat))
    assert not torch.equal(logits(policy)[0], wanted[0])
    with policy.reference():
        assert all(torch.equal(*pair) for pair in zip(logits(policy), wanted, strict=True))
    unload(policy.model, "a")
    assert not slots(policy.model)
    assert all(torch.equal(*pair) for pair in zip(logits(policy), wanted, strict=True))


@pytest.mark.parametrize(("choice", "arch"), CASES)
def test_5_saved_and_loaded_it_computes_the_same_with_our_note_and_without(choice, arch, tmp_path):
    policy, adapter_set = adapted(choice, arch)
    wanted = logits(policy)
    save(tmp_path / "a", adapter_set, identify(policy.model))
    for note in (True, False):
        if not note:
            (tmp_path / "a" / "tunesmith.json").unlink()
        model, switch = tiny(arch), Switch()
        attention.install(model)
        again = load(tmp_path / "a", model, switch, "b")
        assert again.settings.num_tokens == 5
        switch.name = "b"
        assert all(
            torch.equal(*pair) for pair in zip(logits(Policy(model, switch, flat=policy.flat)), wanted, strict=True)
        )


@pytest.mark.parametrize(("choice", "arch"), FEW)
def test_6_it_knows_nothing_of_how_weights_are_kept(choice, arch):
    wide = adapted(choice, arch, dtype=torch.float64)[0]
    wanted = logits(wide)
    close([one.double() for one in logits(adapted(choice, arch)[0])], [one.double() for one in wanted])
    half = logits(adapted(choice, arch, dtype=torch.bfloat16)[0])
    assert max(attention.same_logits(*pair, torch.bfloat16) for pair in zip(half, wanted, strict=True)) <= 1
    with wide.reference():
        apart = [attention.same_logits(*pair, torch.bfloat16) for pair in zip(logits(wide), wanted, strict=True)]
    assert max(apart) > 1, "the adapter changes more than rounding does"


@pytest.mark.parametrize("storage", MADE)
@pytest.mark.parametrize("choice", CHOICES)
def test_6_before_a_base_in_few_bits_it_is_before_the_dequantised_numbers(choice, storage):
    policy, adapter_set = adapted(choice, "llama")
    plain = logits(policy)
    for path, layer in adapter_set.body.modules.items():
        if isinstance(layer, nn.Linear) and adapter_set.body.block_of(path) is not None:
            replace(policy.model, path, MADE[storage](layer.weight.detach(), None, torch.float32))
    policy.model.requires_grad_(False)
    adapter_set.requires_grad(True)
    found = logits(policy), loss_and_gradients(policy, adapter_set)
    assert dequantise(policy.model)
    torch.testing.assert_close(found[0], logits(policy), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], loss_and_gradients(policy, adapter_set), rtol=1e-3, atol=1e-4)
    assert max((one - other).abs().max() for one, other in zip(found[0], plain, strict=True)) > 1e-3


@pytest.mark.parametrize(("choice", "arch"), thinned(CASES, in_turn(CHOICES, ARCHITECTURES, of=3)))
def test_a_prompt_is_answered_the_same_with_any_neighbours(choice, arch):
    """In one batch: this adapter, another of its kind, a LoRA and the base; greedy, padded, refilled, in pieces."""
    policy, _ = adapted(choice, arch)
    model, switch = policy.model, policy.switch
    moved(add(model, switch, CHOICES[choice].model_copy(update={"num_tokens": 3}), name="b", seed=4), 6)
    moved(add(model, switch, LoRASettings(r=2, targets="attention"), name="c", seed=5), 7)
    prompts = [document.tolist() for document in (*DOCUMENTS, DOCUMENTS[0].flip(0))]
    names = ["a", "b", None, "c"]
    pieces, mixed = (
        generate(
            model, prompts, max_new_tokens=6, eos_ids=[], switch=switch, adapters=names, max_rows=3, prefill_tokens=most
        )
        for most in (40, 4096)
    )
    assert [answer.token_ids for answer in pieces] == [answer.token_ids for answer in mixed]
    for prompt, name, answer in zip(prompts, names, mixed, strict=True):
        assert all(token < FIRST for token in answer.token_ids)
        switch.name = name
        for at, token in enumerate(answer.token_ids):
            last = logits(policy, [torch.tensor(prompt + answer.token_ids[:at])])[0][-1]
            assert last[token] >= last.max() - 1e-4
    switch.name = "a"
    assert generate(model, prompts[:1], max_new_tokens=6, eos_ids=[])[0].token_ids == mixed[0].token_ids


@pytest.mark.parametrize("choice", CHOICES)
def test_a_common_beginning_and_beams_keep_the_virtual_tokens(choice):
    policy, _ = adapted(choice, "llama")
    model, switch = policy.model, policy.switch
    prompts = [[*range(3, 23), *document.tolist()] for document in DOCUMENTS]
    options = {"max_new_tokens": 5, "eos_ids": [], "switch": switch}
    together = generate(model, prompts, adapters=["a"] * 3, **options)
    beams = generate(model, prompts, adapters=["a"] * 3, num_beams=3, **options)
    for prompt, answer, best in zip(prompts, together, beams, strict=True):
        assert generate(model, [prompt], adapters=["a"], **options)[0].token_ids == answer.token_ids
        assert generate(model, [prompt], adapters=["a"], num_beams=3, **options)[0].token_ids == best.token_ids


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("flat", [True, False])
def test_noise_leaves_virtual_tokens_out(choice, flat):
    policy, _ = adapted(choice, "llama", flat=flat)
    quiet = logits(policy)
    policy.noise = noise = NEFTune(5.0)
    seen = []
    noise.register_forward_hook(lambda _, inputs, made: seen.append((*inputs, made)))
    torch.manual_seed(0)
    noisy = logits(policy)
    assert not torch.equal(quiet[0], noisy[0])
    x, lengths, made = seen[0]
    assert x.shape == made.shape
    assert x.shape[:2] == lengths.shape == ((1, sum(LENGTHS)) if flat else (3, max(LENGTHS)))


def test_counts_and_rates():
    expected = {"prompt": 5 * 32, "prefix": 5 * 2 * 2 * 16, "llama-adapter": 2 * (5 * 32 + 1)}
    for method, count in expected.items():
        _, adapter_set = adapted(method, "llama")
        assert adapter_set.counts().trained == count
        assert adapter_set.groups() == {}
        assert adapter_set.targets.missed == ()


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in GATED])
def test_what_attention_a_gate_needs_is_said(arch):
    with pytest.raises(AdapterError, match=r"does not know the attention(.|\n)*to do"):
        add(tiny(arch), Switch(), CHOICES["llama-adapter"], name="a", seed=0)


def test_a_gate_needs_our_attention_in_padded_batches_too():
    model, switch = tiny("llama"), Switch()
    add(model, switch, CHOICES["llama-adapter"], name="a", seed=0)
    switch.name = "a"
    with pytest.raises(ModelError, match="attention of its own"):
        Policy(model, switch, flat=False).hidden(flat_batch(DOCUMENTS))


@pytest.mark.parametrize("method", METHODS_HERE)
def test_settings_that_cannot_be_heeded_are_refused(method):
    def recipe(model=None, **adapter):
        values = {"model": {"name": "x", **(model or {})}, "data": {"train": "rows"}}
        return from_dict({**values, "adapter": {"method": method, **adapter}})

    for values in ({"targets": "mlp"}, {"train_in_full": ["norms"]}, {"num_tokens": 0}):
        with pytest.raises(RecipeError, match=next(iter(values))):
            recipe(**values)
    if method == "llama-adapter":
        with pytest.raises(AdapterError, match="2 blocks"):
            add(tiny("llama"), Switch(), METHODS[method].Settings(last_blocks=3), name="a", seed=0)
    else:
        with pytest.raises(RecipeError, match="last_blocks"):
            recipe(last_blocks=1)
    with pytest.raises(RecipeError, match="beside virtual tokens"):
        recipe({"add_tokens": ["<x>"]})
    with pytest.raises(RecipeError, match="cache_frozen"):
        from_dict(
            {
                "model": {"name": "x"},
                "data": {"train": "rows"},
                "adapter": {"method": method},
                "train": {"cache_frozen": True},
            }
        )
    with pytest.raises(AdapterError, match="at once"):
        add(tiny("llama"), Switch(), CHOICES[method], name="a", seed=0, added_tokens=2)
