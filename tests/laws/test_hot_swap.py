"""Several adapters on one base: to swap is to point elsewhere, and to load one is to read its own folder alone."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tunesmith.adapters import METHODS, store
from tunesmith.adapters.adapter_set import add, unload
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.identity import identify
from tunesmith.models.generate import generate
from tunesmith.models.tiny import tiny

PROMPTS = [[5, 9, 11], [7, 3], [20, 21, 22, 23], [8], [30, 31]]
NAMES = ["one", None, "two", "one", "two"]
OPTIONS = {"max_new_tokens": 6, "eos_ids": (), "want_logprobs": True}


def perturbed(adapter_set, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture(params=["lora", "dora", "vera", "ia3"])
def two(request, tmp_path):
    """A base with adapters one and two, and the folder of each."""
    torch.manual_seed(0)
    model, switch = tiny("llama").eval(), Switch()
    for seed, name in enumerate(("one", "two")):
        made = add(model, switch, METHODS[request.param].Settings(), name=name, seed=seed)
        perturbed(made, seed)
        store.save(tmp_path / name, made, identify(model))
    return model, switch, tmp_path


def live_bytes():
    gc.collect()
    return sum(thing.nbytes for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))


def test_to_swap_allocates_nothing_and_moves_nothing(two):
    model, switch, _ = two
    where = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    before = live_bytes()
    for name in ("one", "two", None):
        with switch.set_to(name):
            assert live_bytes() == before
    assert where == {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}


def test_each_row_of_a_mixed_batch_is_that_of_its_adapter_alone(two):
    model, switch, _ = two
    mixed = generate(model, PROMPTS, adapters=NAMES, switch=switch, **OPTIONS)
    alone = [
        generate(model, [prompt], adapters=[name], switch=switch, **OPTIONS)[0]
        for prompt, name in zip(PROMPTS, NAMES, strict=True)
    ]
    for ours, own in zip(mixed, alone, strict=True):
        assert ours.token_ids == own.token_ids
        torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(own.logprobs), rtol=0, atol=1e-5)
    others = [
        generate(model, [PROMPTS[0]], adapters=[name], switch=switch, **OPTIONS)[0].logprobs for name in (None, "two")
    ]
    assert all(abs(other[0] - mixed[0].logprobs[0]) > 1e-4 for other in others), "the adapters do nothing"


def read_bytes():
    """What this process has read through system calls so far, cached or not."""
    told = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in told if line.startswith("rchar"))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what is read")
def test_a_cold_load_reads_the_adapter_s_own_folder_and_nothing_else(two):
    model, switch, folder = two
    size = sum(file.stat().st_size for file in (folder / "two").iterdir())
    store.load(folder / "two", model, switch, "warm")  # what Python imports on the way is read once
    unload(model, "warm")
    before = read_bytes()
    store.load(folder / "two", model, switch, "again")
    own = read_bytes() - before
    assert size <= own < size + 4_000, f"{own} bytes read for a folder of {size}"
