"""NEFTune is the paper's formula for each document by itself, while training only, and exact under resume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loops import bench, rows, whole_and_resumed

from tunesmith.data.pack import collate
from tunesmith.data.types import Example, Origin
from tunesmith.events import Evaluated
from tunesmith.models.policy import document_lengths
from tunesmith.train.noise import NEFTune

pytestmark = pytest.mark.filterwarnings("ignore")
ALPHA = 5.0


class Recorded(NEFTune):
    """Keeps what it was given and what it made of it."""

    def forward(self, x, lengths):
        made = super().forward(x, lengths)
        self.x, self.lengths, self.made = x, lengths, made
        return made


@pytest.mark.parametrize(
    ("arch", "flat"), [("llama", True), ("llama", False), ("gemma2", True), ("gpt2", True), ("bloom", False)]
)
def test_each_document_gets_noise_by_its_own_length(tmp_path, arch, flat):
    made = bench(tmp_path, arch=arch, flat=flat)
    noise = made.policy.noise = Recorded(ALPHA)
    examples = rows(4, seed=2)
    lengths = sorted(map(len, examples))
    torch.manual_seed(5)
    with torch.no_grad():
        made.policy.hidden(collate(examples))
    width = noise.x.shape[-1]
    torch.manual_seed(5)
    e = torch.empty(noise.x.shape).uniform_(-1, 1)
    for row, (x, out, draws, own) in enumerate(zip(noise.x, noise.made, e, noise.lengths, strict=True)):
        at = 0
        for length in lengths if made.policy.flat else [lengths[row]]:
            part = slice(at, at + length)
            assert (own[part] == length).all()
            torch.testing.assert_close(out[part], x[part] + ALPHA / math.sqrt(length * width) * draws[part])
            at += length


def test_a_shared_beginning_counts_the_longest_of_its_rows():
    common = list(range(3, 23))
    examples = [
        Example(np.array(common + [30 + i] * (2 + i)), np.ones(22 + i, dtype=np.float32), Origin("x", i))
        for i in range(2)
    ]
    batch = collate(examples, share=True)
    assert document_lengths(batch.segments).tolist() == [23] * 20 + [22] * 2 + [23] * 3


def test_noise_reaches_the_hidden_states_and_evaluation_has_none(tmp_path):
    made, quiet = bench(tmp_path / "a", neftune_alpha=ALPHA), bench(tmp_path / "b")
    batch = collate(rows(3))
    with torch.no_grad():
        wanted = quiet.policy.hidden(batch)
        assert not torch.allclose(made.policy.hidden(batch), wanted, atol=1e-3)
        made.policy.eval()
        quiet.policy.eval()
        assert torch.equal(made.policy.hidden(batch), quiet.policy.hidden(batch))


def test_noise_is_uniform_and_fresh_for_every_call():
    noise = NEFTune(ALPHA)
    x = torch.zeros(400, 64)
    bound = ALPHA / math.sqrt(400 * 64)
    one, other = noise(x, torch.full((400,), 400)), noise(x, torch.full((400,), 400))
    assert not torch.equal(one, other)
    assert one.abs().max() <= bound
    assert one.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(one.mean().item()) < 0.02 * bound


def test_a_run_with_noise_learns_otherwise_evaluates_without_and_resumes_bit_for_bit(tmp_path):
    held_out = rows(3, seed=4)
    options = {"steps": 6, "evaluate_every": 2, "neftune_alpha": 20.0, "held_out": held_out}
    whole, again = whole_and_resumed(tmp_path, 3, **options)
    without = bench(tmp_path / "without", **{**options, "neftune_alpha": None})
    without.loop.run()
    assert whole.kinds(Evaluated)[-1].metrics != without.kinds(Evaluated)[-1].metrics
    again.policy.eval()
    assert again.loop.objective.evaluate(again.policy, 1000) == whole.kinds(Evaluated)[-1].metrics
