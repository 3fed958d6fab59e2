"""When a run stores what its frozen blocks give, and what stands in the way of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from loops import bench, rows

from tunesmith.adapters.lora import Settings
from tunesmith.errors import MachineError, ModelError
from tunesmith.models import frozen_file
from tunesmith.progress import Progress
from tunesmith.train import frozen
from tunesmith.train.budget import Budget
from tunesmith.train.frozen import store_frozen
from tunesmith.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")
LAST = Settings(r=2, last_blocks=1)


@dataclass
class Rows:
    """What is asked of `Prepared`."""

    train: list[Any] = field(default_factory=lambda: rows(8))
    held_out: list[Any] = field(default_factory=lambda: rows(2, seed=3))


def decided(tmp_path, adapter=LAST, before=None, quiet=None, **train):
    """Whether states are stored, and the files."""
    made = bench(tmp_path / "run", adapter=adapter, **{"epochs": 2, **train})
    settings = TrainSettings(**{"epochs": 2, **train})
    budget = Budget(settings, made.loop.objective.steps_per_epoch)
    progress = quiet or Progress(quiet=True)
    store_frozen(made.policy, made.adapter_set, Rows(), settings, budget, tmp_path / "frozen", before, progress)
    return made.policy.stored is not None, sorted(path.name for path in (tmp_path / "frozen").glob("*"))


@pytest.mark.parametrize(
    ("wanted", "case"),
    [
        (True, {}),
        (False, {"epochs": 1}),
        (False, {"epochs": None, "steps": 2}),
        (True, {"epochs": None, "steps": 3}),
        (False, {"epochs": None, "minutes": 5}),
        (True, {"epochs": None, "minutes": 5, "cache_frozen": True}),
        (True, {"epochs": 1, "cache_frozen": True}),
        (False, {"cache_frozen": False}),
        (False, {"adapter": Settings(r=2)}),
        (False, {"adapter": Settings(r=2, targets="re:.*[.]1[.]mlp[.].*")}),
        (True, {"adapter": Settings(r=2, targets="re:.*[.]1[.]mlp[.].*"), "cache_frozen": True}),
        (False, {"neftune_alpha": 5.0}),
        (True, {"epochs": 1, "before": True}),
        (False, {"before": False}),
        (False, {"before": False, "cache_frozen": True}),
    ],
)
def test_it_is_done_where_rows_come_again_or_it_is_asked_for_and_a_resumed_run_does_as_before(tmp_path, wanted, case):
    found, files = decided(tmp_path, **case)
    assert found == wanted
    assert len(files) == wanted


def test_a_full_disk_is_a_reason_or_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_file, "free_bytes", lambda _: 10)
    assert decided(tmp_path) == (False, [])
    with pytest.raises(MachineError, match="no room"):
        decided(tmp_path, cache_frozen=True)


def test_what_cannot_be_stored_is_an_error_where_it_was_asked_for(tmp_path):
    settings = Settings(r=2, last_blocks=1, train_in_full=("embeddings",))
    assert decided(tmp_path, settings) == (False, [])
    with pytest.raises(ModelError, match="embed_tokens is trained"):
        decided(tmp_path, settings, cache_frozen=True)


def test_out_of_memory_halves_the_batches(tmp_path, monkeypatch):
    asked = []

    def short(blocks, examples, starts, max_tokens, write):
        asked.append(max_tokens)
        if max_tokens > 60:
            raise torch.OutOfMemoryError("out of memory")
        return original(blocks, examples, starts, max_tokens, write)

    original = frozen.fill
    monkeypatch.setattr(frozen, "fill", short)
    found, files = decided(tmp_path, micro_batch_tokens=200)
    assert found
    assert asked == [200, 100, 50]
    assert len(files) == 1
