"""Stored states of the frozen blocks change no loss and no gradient, and spare these blocks from being run."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
import torch

from tunesmith.adapters import full, llama_adapter, lora, prefix, prompt
from tunesmith.adapters.adapter_set import add, anatomy
from tunesmith.adapters.attach import Switch
from tunesmith.data.pack import collate, micro_batches
from tunesmith.data.types import Example, Origin
from tunesmith.errors import MachineError
from tunesmith.models import attention, frozen_file
from tunesmith.models.frozen import Activations, Blocks, StandIn, digest, distinct, fill, find
from tunesmith.models.frozen_file import Folder, key
from tunesmith.models.fuse import fuse
from tunesmith.models.policy import Policy, flat_batch, probe
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.objectives.sft import SFT
from tunesmith.train.mode import train_mode
from tunesmith.train.noise import NEFTune

pytestmark = pytest.mark.filterwarnings("ignore")
METHODS = {
    "lora": lora.Settings(r=3, last_blocks=1),
    "full": full.Settings(last_blocks=1),
    "head": full.Settings(targets=("lm_head",)),
}


def rows(seed: int = 0, lengths=(31, 5, 17, 2, 24)):
    """Two of them begin alike, long enough to be a tree."""
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        weights = ((rng.random(length) < 0.6) * rng.choice([1.0, 0.5, 2.0], length)).astype(np.float32)
        weights[-1] = 1.0
        made.append(Example(rng.integers(3, 90, length), weights, Origin("rows", number + 1)))
    made[4].token_ids[:20] = made[0].token_ids[:20]
    return made


def built(arch: str, settings, dtype: torch.dtype = torch.float32, fused: bool = False):
    attention.register()
    model, switch = tiny(arch, dtype=dtype), Switch()
    attention.install(model)
    if fused:
        fuse(model)
    adapter_set = add(model, switch, settings, name="a", seed=3)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, dtype))
            parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)
    policy, _ = probe(model, switch)
    switch.name = "a"
    return policy, adapter_set


def stored(blocks: Blocks, examples) -> Activations:
    alone, starts = distinct(examples)
    table = torch.full((sum(map(len, alone)), blocks.width), torch.nan, dtype=blocks.dtype)
    done = list(fill(blocks, alone, starts, 40, lambda start, states: table[start : start + len(states)].copy_(states)))
    assert done[-1] == len(table)
    return Activations(blocks, table, starts)


def learned(policy, adapter_set, batches):
    """(sums of the loss, gradients) over `batches`."""
    for parameter in adapter_set.parameters().values():
        parameter.grad = None
    objective = SFT(rows(), (), batch_size=5, seed=0)
    sums = [objective.loss(policy, batch).sums["loss"] for batch in batches]
    torch.stack(sums).sum().backward()
    return [value.item() for value in sums], {name: p.grad.clone() for name, p in adapter_set.parameters().items()}


def same(found, wanted, close):
    assert found[0] == pytest.approx(wanted[0], rel=close)
    largest = max(grad.abs().max().item() for grad in wanted[1].values())
    for name, grad in wanted[1].items():
        assert (found[1][name] - grad).abs().max().item() <= close * largest, name
        assert grad.abs().max() > 0, name


def count_calls(policy):
    """How often each block's own attention or norm is entered: a stand-in does not enter them."""
    calls: dict[str, int] = {}
    for path in anatomy(policy.model).blocks:
        first = next(module for module in policy.model.get_submodule(path).modules() if not list(module.children()))
        first.register_forward_hook(lambda *_, path=path: calls.update({path: calls.get(path, 0) + 1}))
    return calls


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_loss_and_gradients_are_the_same_and_the_frozen_blocks_are_not_run(arch, method, dtype, close):
    if method == "head" and anatomy(tiny(arch)).tied:
        pytest.skip("the head is the embedding")
    if dtype == torch.float64 and arch in ("mixtral", "qwen2_moe"):
        pytest.skip("torch's grouped product takes no fp64")
    policy, adapter_set = built(arch, METHODS[method], dtype, fused=dtype == torch.float32)
    train_mode(policy, recompute=False)
    for flat in (True, False) if policy.flat else (False,):
        policy.flat, policy.stored = flat, None
        cuts = [[collate(rows())], micro_batches(rows(), 40)]
        cuts += [[collate(rows(), share=True)], micro_batches(rows(), 48, share=True)] if flat else []
        wanted = [learned(policy, adapter_set, batches) for batches in cuts]
        blocks = find(policy, adapter_set)
        assert isinstance(blocks, Blocks), blocks
        assert blocks.frozen == (2 if method == "head" else 1)
        policy.stored = stored(blocks, rows())
        modules = dict(policy.model.named_modules())
        calls = count_calls(policy)
        for batches, before in zip(cuts, wanted, strict=True):
            same(learned(policy, adapter_set, batches), before, close)
        num_batches = sum(map(len, cuts))
        assert calls == ({} if method == "head" else {blocks.paths[1]: num_batches})
        assert dict(policy.model.named_modules()) == modules


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_and_recomputation_above_go_on_as_before(recompute):
    policy, adapter_set = built("llama", lora.Settings(r=3, last_blocks=1, dropout=0.3))
    if recompute:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    train_mode(policy, recompute)
    batches, state = [collate(rows())], torch.get_rng_state()
    wanted = learned(policy, adapter_set, batches)
    blocks = find(policy, adapter_set)
    training = {name for name, module in policy.named_modules() if module.training}
    policy.stored = stored(blocks, rows())
    assert training == {name for name, module in policy.named_modules() if module.training}
    torch.set_rng_state(state)
    same(learned(policy, adapter_set, batches), wanted, 2e-5)


def test_a_batch_with_a_row_that_is_not_stored_runs_every_block():
    policy, adapter_set = built("llama", METHODS["lora"])
    wanted = policy.hidden(collate([*rows(), *rows(seed=9)]))
    policy.stored = stored(find(policy, adapter_set), rows())
    calls = count_calls(policy)
    assert torch.equal(policy.hidden(collate([*rows(), *rows(seed=9)])), wanted)
    assert len(calls) == 2


def test_the_stored_states_are_what_is_computed_from():
    """Other states, other hidden states: the table is no decoration."""
    policy, adapter_set = built("llama", METHODS["lora"])
    batch = collate(rows())
    wanted = policy.hidden(batch)
    policy.stored = stored(find(policy, adapter_set), rows())
    torch.testing.assert_close(policy.hidden(batch), wanted, rtol=1e-4, atol=1e-4)
    policy.stored.table.mul_(-1)
    assert (policy.hidden(batch) - wanted).abs().max() > 0.1


REASONS = {
    "embeddings": (lora.Settings(last_blocks=1, train_in_full=("embeddings",)), "embed_tokens is trained"),
    "all blocks": (lora.Settings(), "first block"),
    "head of a tied model": (full.Settings(last_blocks=1, train_in_full=("rest", "head")), "embed_tokens is trained"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_learns_below_is_found_and_named(case):
    settings, text = REASONS[case]
    policy, adapter_set = built("qwen2", settings)
    assert text in find(policy, adapter_set)


def test_bloom_s_norm_of_the_embeddings_lies_below():
    policy, adapter_set = built("bloom", lora.Settings(last_blocks=1, train_in_full=("norms",)))
    assert "word_embeddings_layernorm is trained" in find(policy, adapter_set)
    policy, adapter_set = built("bloom", full.Settings(last_blocks=1))
    assert isinstance(find(policy, adapter_set), Blocks)


def test_added_tokens_and_noise_lie_below():
    model, switch = tiny("llama"), Switch()
    model.resize_token_embeddings(99)
    adapter_set = add(model, switch, lora.Settings(last_blocks=1), name="a", seed=0, added_tokens=3)
    policy, _ = probe(model, switch)
    assert "embed_tokens is trained" in find(policy, adapter_set)
    policy, adapter_set = built("llama", METHODS["lora"])
    policy.noise = NEFTune(5.0)
    assert "NEFTune" in find(policy, adapter_set)


@pytest.mark.parametrize("method", [prompt, prefix, llama_adapter])
def test_virtual_tokens_change_every_block(method):
    policy, adapter_set = built("llama", method.Settings(num_tokens=3))
    assert "virtual tokens" in find(policy, adapter_set)
    assert policy.stored is None


def test_a_model_whose_later_blocks_want_more_than_hidden_states_is_found_by_trying():
    """The first block leaves something behind that the second adds."""
    policy, adapter_set = built("llama", METHODS["lora"])
    first, second = policy.model.model.layers
    left: list[torch.Tensor] = []
    first.mlp.register_forward_hook(lambda _, __, out: left.append(out))
    second.mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0] + left.pop(),))
    assert "need more of those below" in find(policy, adapter_set)
    assert policy.stored is None


def test_a_model_that_breaks_without_its_first_blocks_is_found_by_trying():
    policy, adapter_set = built("llama", METHODS["lora"])
    first, second = policy.model.model.layers

    def ask(*_):
        if policy.model.model.layers[0] is not first:
            raise RuntimeError("the first block is not itself")

    second.register_forward_pre_hook(ask)
    assert "do not run without those below (RuntimeError: the first block" in find(policy, adapter_set)
    assert policy.stored is None
    assert policy.model.model.layers[0] is first


def test_rows_are_known_by_their_tokens_whatever_the_split():
    one, starts = distinct(rows()[:3], rows()[3:])
    other, again = distinct(rows()[2:], rows()[:2], rows())
    assert starts == again
    assert [digest(row.token_ids) for row in one] == [digest(row.token_ids) for row in other]
    assert sorted(starts.values())[0] == 0
    assert len(one) == 5


def keyed(settings=METHODS["lora"], arch="llama", examples=None, max_tokens=40, change=None, dtype=torch.float32):
    policy, adapter_set = built(arch, settings, dtype)
    if change is not None:
        change(policy.model)
    return key(find(policy, adapter_set), distinct(examples or rows())[1], max_tokens)


def test_a_key_is_of_all_that_the_states_depend_on_and_of_nothing_else():
    wanted = keyed()
    assert keyed() == wanted
    assert keyed(METHODS["full"]) == wanted, "another method over the same blocks"
    assert keyed(examples=rows()[::-1]) == wanted

    def nudge(path):
        def change(model):
            model.get_parameter(path).view(-1)[7] += 1e-6

        return change

    assert keyed(change=nudge("model.layers.1.mlp.down_proj.weight")) == wanted
    others = {
        keyed(change=nudge("model.layers.0.mlp.down_proj.weight")),
        keyed(change=nudge("model.embed_tokens.weight")),
        keyed(change=lambda model: setattr(model.config, "rms_norm_eps", 1e-3)),
        keyed(examples=rows()[:4]),
        keyed(examples=rows(seed=1)),
        keyed(max_tokens=41),
        keyed(dtype=torch.float64),
        keyed(full.Settings(targets=("lm_head",))),
        keyed(arch="mistral"),
    }
    assert wanted not in others
    assert len(others) == 9


def made(root, values: torch.Tensor, name: str = "ab") -> Folder:
    folder = Folder(root, name, tuple(values.shape), values.dtype)
    with folder.making() as write:
        write(3, values[3:])
        write(0, values[:3])
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_written_is_read_bit_for_bit(tmp_path, dtype):
    values = torch.randn(7, 5).to(dtype)
    folder = made(tmp_path, values)
    assert folder.is_whole()
    assert torch.equal(folder.table(), values)
    assert [path.name for path in tmp_path.iterdir()] == ["ab"]


def test_what_is_half_or_damaged_is_not_whole(tmp_path):
    values = torch.randn(7, 5)
    folder = made(tmp_path, values)
    assert not Folder(tmp_path, "ab", (7, 6), torch.float32).is_whole()
    assert not Folder(tmp_path, "ab", (7, 5), torch.bfloat16).is_whole()
    data = bytearray((folder.path / "states.bin").read_bytes())
    data[50] ^= 1
    (folder.path / "states.bin").write_bytes(data)
    assert not folder.is_whole()
    made(tmp_path, values)
    assert folder.is_whole()
    (folder.path / "states.bin").write_bytes(data[:-8])
    assert not folder.is_whole()
    (folder.path / "facts.json").write_text(json.dumps([]))
    assert not folder.is_whole()


@pytest.mark.parametrize(
    ("broken", "told"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), MachineError)],
)
def test_broken_off_it_leaves_nothing(tmp_path, broken, told):
    folder = Folder(tmp_path, "ab", (7, 5), torch.float32)

    def half():
        with folder.making() as write:
            write(0, torch.zeros(7, 5))
            raise broken

    with pytest.raises(told):
        half()
    assert not list(tmp_path.iterdir())


def test_states_of_another_dtype_or_width_are_refused(tmp_path):
    folder = Folder(tmp_path, "ab", (7, 5), torch.float32)
    for states in (torch.zeros(7, 5, dtype=torch.float64), torch.zeros(7, 4)):
        with folder.making() as write, pytest.raises(ValueError, match="not torch"):
            write(0, states)


def test_room_is_made_by_what_was_not_used_for_longest(tmp_path, monkeypatch):
    old, new = (made(tmp_path, torch.zeros(7, 5), name) for name in ("aa", "bb"))
    os.utime(old.path, (time.time() - 50, time.time() - 50))
    wanted = Folder(tmp_path, "cc", (1000, 10), torch.float32)
    free = {2: 0, 1: int(2e8), 0: int(2e8)}
    monkeypatch.setattr(frozen_file, "free_bytes", lambda _: free[len(list(tmp_path.glob("[ab]*")))])
    assert wanted.has_room()
    assert [path.name for path in tmp_path.iterdir()] == ["bb"]
    assert new.is_whole()
    monkeypatch.setattr(frozen_file, "free_bytes", lambda _: 0)
    assert not wanted.has_room()


def test_what_a_kill_left_goes_after_an_hour(tmp_path):
    for name, age in (("dead", 5000), ("live", 10)):
        left = tmp_path / f".making-{name}-1"
        left.mkdir()
        (left / "states.bin").write_bytes(b"x")
        for path in (left / "states.bin", left):
            os.utime(path, (time.time() - age, time.time() - age))
    assert Folder(tmp_path, "cc", (1, 1), torch.float32).has_room()
    assert [path.name for path in tmp_path.iterdir()] == [".making-live-1"]


def test_a_stand_in_answers_for_its_block():
    block = tiny("gemma3").model.layers[0]
    made = StandIn(block, None, torch.ones(1, 2, 3))
    assert made.self_attn is block.self_attn
    assert torch.equal(made(torch.zeros(1, 2, 3), position_ids=None), torch.ones(1, 2, 3))
    assert StandIn(block, 3)(hidden_states=torch.ones(1))[1:] == (None, None)
    with pytest.raises(AttributeError):
        _ = made.nothing_of_that_name


def test_both_layouts_are_inverse():
    model = tiny("llama", dtype=torch.bfloat16)
    batch = flat_batch([torch.arange(3, 9), torch.arange(3, 14), torch.arange(5, 8)])
    states = torch.randn(len(batch), 4)
    for flat, shape in ((True, (1, 32, 4)), (False, (3, 11, 4))):
        policy = Policy(model, Switch(), flat=flat)
        assert policy.as_run(states, batch).shape == shape
        assert torch.equal(policy.from_run(policy.as_run(states, batch), batch), states)
