"""The picture of a run, and its smoothing."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.plot import plot_run, smoothed


@given(st.lists(st.floats(-10, 10), max_size=60), st.floats(0.1, 40))
def test_smoothing_stays_within_the_values_and_keeps_their_number(values, span):
    means = smoothed(values, span)
    assert len(means) == len(values)
    assert all(min(values) - 1e-9 <= mean <= max(values) + 1e-9 for mean in means)


def test_smoothing_does_not_lag():
    line = [float(n) for n in range(100)]
    assert smoothed(line, 3)[20:80] == pytest.approx(line[20:80])


@pytest.mark.parametrize("num_steps", [0, 1, 4, 60])
@pytest.mark.parametrize("evaluated", [False, True])
def test_any_run_has_a_picture(num_steps, evaluated, tmp_path):
    lines = [
        {
            "event": "step",
            "step": n,
            "loss": 3 / n if n != 3 else None,
            "learning_rate": 1e-4,
            "tokens_per_second": 100.0,
        }
        for n in range(1, num_steps + 1)
    ]
    if evaluated:
        lines += [{"event": "evaluation", "step": num_steps, "metrics": {"loss": math.e}, "seconds": 1.0, "best": True}]
    lines += [{"event": "note", "text": "x"}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_run(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
