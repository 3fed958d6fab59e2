"""A tiny model without weights, and rows, for every test of plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import make_model, make_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("plan")
    model = make_model(folder / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"num_hidden_layers": 7, "hidden_size": 64, "head_dim": 32, "intermediate_size": 96}
    config.pop("layer_types", None)
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").unlink()  # a plan reads no weight
    return model, make_rows(folder / "rows.jsonl", 40)
