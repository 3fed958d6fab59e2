"""Studies of a tiny model, and a runner that works in this process."""

from __future__ import annotations

import sys
from pathlib import Path

from tunesmith.compare.process import Outcome
from tunesmith.compare.worker import work
from tunesmith.errors import TunesmithError

TESTS = Path(__file__).resolve().parent.parent


def here(order, tell, stop):
    """A `Runner` without a process of its own."""
    try:
        work(order, tell)
    except TunesmithError as error:
        return Outcome(failed=str(error))
    return Outcome()


def make(folder):
    """A model, 40 rows, general text."""
    sys.path.insert(0, str(TESTS))
    from small_run import make_model, make_rows

    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 40)
    text = "\n\n".join(f"It rained on day {i} and the river rose." for i in range(8))
    (folder / "text.txt").write_text(text)
    return folder


def values(home, **changes):
    """Two arms, two seeds, four steps; ten rows are the test's."""
    recipe = {
        "model": {"name": str(home / "model"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(home / "rows.jsonl"), "held_out": 6},
        "adapter": {"r": 2},
        "train": {"steps": 4, "batch_size": 2, "learning_rate": 0.01, "evaluate_every": 2},
    }
    return {
        "recipe": recipe,
        "arms": {"lora": {}, "dora": {"adapter.method": "dora"}},
        "seeds": [0, 1],
        "test": {"rows": 10, "score": ["f1", "exact"], "max_new_tokens": 6},
        "forget": {"text": str(home / "text.txt")},
        "prompting": [0, 2],
        "price_per_hour": 1.5,
        "folder": str(home / "study"),
        **changes,
    }


YAML = """\
recipe:
  model: {name: model, dtype: float32, device: cpu}
  data: {train: rows.jsonl, held_out: 6}
  adapter: {r: 2}
  train: {steps: 4, batch_size: 2, learning_rate: 0.01, evaluate_every: 2}
arms:
  lora:
  dora: {adapter.method: dora}
seeds: [0]
test:
  rows: 10
prompting: []
folder: FOLDER
"""
