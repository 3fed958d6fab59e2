"""What a run publishes is the adapter of the checkpoint that its settings name, on disk and in memory."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_model, recipe

from tunesmith.recipe import from_dict
from tunesmith.run import train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    draw = random.Random(0)
    rows = [{"prompt": str(i), "completion": "".join(draw.choices("abcdefgh", k=12))} for i in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_adapter_is_that_of_the_step_that_was_asked_for(place, tmp_path, which):
    values = recipe(place / "model", place / "rows.jsonl", tmp_path / "run")
    # answers without sense, learned by heart: the held-out loss rises again
    values["train"] |= {"steps": 40, "evaluate_every": 5, "learning_rate": 0.05, "schedule": "constant"}
    values["train"] |= {"keep_checkpoints": 9, "publish": which}
    values["adapter"] |= {"dropout": 0.0, "r": 8}
    values["train"].pop("epochs", None)
    trained = train(from_dict(values), quiet=True)
    assert trained.ended.best_step < 40
    step = trained.ended.best_step if which == "best" else 40
    checkpoint = trained.folder / "checkpoints" / f"step-{step:06d}"
    name = "adapter_model.safetensors"
    assert (trained.adapter / name).read_bytes() == (checkpoint / name).read_bytes()
    weights = load_file(checkpoint / "trainer.safetensors")
    held = trained.session.sets[trained.session.adapter].state()
    assert held
    assert all(torch.equal(tensor, weights[f"weights/{key}"]) for key, tensor in held.items())
    assert json.loads((trained.folder / "summary.json").read_text())["published"] == which
    assert ("of the last step" in (trained.folder / "README.md").read_text()) == (which == "last")
