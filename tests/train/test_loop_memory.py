"""Out of memory lowers the micro-batch, never the result."""

from __future__ import annotations

import pytest
import torch
from loops import bench, rows

from tunesmith.errors import MachineError
from tunesmith.events import Noted

pytestmark = pytest.mark.filterwarnings("ignore")


FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12")


def limited(made, most_tokens, error=FULL):
    """Out of memory above `most_tokens` in one forward pass, thrown after some of the work is done."""
    loss = made.loop.objective.loss

    def checked(policy, batch):
        result = loss(policy, batch)
        if len(batch) > most_tokens:
            raise error
        return result

    made.loop.objective.loss = checked


@pytest.mark.parametrize(
    "error", [RuntimeError("not enough memory"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tmp_path, error):
    examples = rows(8)
    options = {"train": examples, "batch_size": 8, "steps": 3, "dtype": torch.float64, "arch": "gpt2"}
    plain = bench(tmp_path / "a", **options)
    plain.loop.run()
    made = bench(tmp_path / "b", **options)
    limited(made, 60, error)
    made.loop.run()
    assert made.kinds(Noted)
    assert all("unchanged" in event.text for event in made.kinds(Noted))
    assert len(made.kinds(Noted)) <= 3
    for name, value in plain.weights().items():
        torch.testing.assert_close(made.weights()[name], value, rtol=1e-10, atol=1e-10)
    again = bench(tmp_path / "b", **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    assert again.loop.at.micro_tokens == made.loop.at.micro_tokens < sum(map(len, examples))


def test_one_row_too_long_for_memory_is_said(tmp_path):
    made = bench(tmp_path, batch_size=8)
    limited(made, 5)
    with pytest.raises(MachineError, match=r"one row of \d+ tokens") as caught:
        made.loop.run()
    assert caught.value.exit_code == 4
    assert "recompute" in caught.value.fix


def test_other_errors_pass(tmp_path):
    made = bench(tmp_path)
    limited(made, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        made.loop.run()
