"""What an objective computes beside the loop's micro-batches: where memory runs out, by less at a time, the same."""

from __future__ import annotations

import pytest
import torch
from preference_case import answers
from test_preference import objective_of, policy_of

from tunesmith.models.generate import generate
from tunesmith.objectives import preference, reference, samplers
from tunesmith.objectives.logprobs import row_logps
from tunesmith.objectives.reference import precompute
from tunesmith.objectives.samplers import Drawing, InProcess

FULL = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
UNITS = [answers()[i : i + 2] for i in (0, 2, 4)]


@pytest.fixture
def narrow(monkeypatch):
    """A batch that holds more than one unit does not fit; the lengths of those that did."""
    fitted: list[int] = []

    def measured(policy, batch):
        if len(batch.leaves) > 2:
            raise FULL
        fitted.append(len(batch))
        return row_logps(policy, batch)

    for module in (preference, reference):
        monkeypatch.setattr(module, "row_logps", measured)
    return fitted


def test_the_reference_of_all_rows(narrow, tmp_path, monkeypatch):
    policy, _ = policy_of(torch.float64)
    found, _ = precompute(policy, UNITS, max_tokens=10**6, share=True, root=tmp_path / "less", told=lambda share: None)
    assert len(narrow) > 1
    monkeypatch.setattr(reference, "row_logps", row_logps)
    wanted, _ = precompute(policy, UNITS, max_tokens=10**6, share=True, root=tmp_path / "all", told=lambda share: None)
    assert found.sums == pytest.approx(wanted.sums, rel=1e-9)


def test_kto_s_mismatched_prompts(narrow, monkeypatch):
    policy, _ = policy_of(torch.float64, filled="formula")
    objective = objective_of("kto")
    found = objective._mismatched(policy, answers(), 10**6)
    assert len(narrow) > 1
    monkeypatch.setattr(preference, "row_logps", row_logps)
    assert found == pytest.approx(objective._mismatched(policy, answers(), 10**6), rel=1e-9)


def test_completions(monkeypatch):
    policy, _ = policy_of(filled="formula")
    prompts, drawing = [[5, 9, 20], [7, 33, 41, 8], [11, 64]], Drawing(1.0, 1.0, None, 0)

    def drawn():
        return InProcess((2,)).generate(policy, prompts, [6, 6, 6], drawing, num_samples=4)

    wanted, tried = drawn(), []

    def narrow_generate(*given, max_rows, **more):
        tried.append(max_rows)
        if max_rows > 3:
            raise FULL
        return generate(*given, max_rows=max_rows, **more)

    monkeypatch.setattr(samplers, "generate", narrow_generate)
    found = drawn()
    assert tried == [12, 6, 3]
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    for own, other in zip(found, wanted, strict=True):
        assert own.logprobs == pytest.approx(other.logprobs, abs=1e-5)
