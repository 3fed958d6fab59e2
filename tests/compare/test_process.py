"""The process of a cell: whose folder another one still holds, it waits a while, and then says so."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tunesmith.compare import process
from tunesmith.compare.process import in_process
from tunesmith.compare.worker import Order
from tunesmith.record import locked


@pytest.fixture
def order(tmp_path):
    """Of a cell whose folder is held; it fails at once when it begins, since it names no model."""
    (tmp_path / "cell").mkdir()
    return Order("cell", str(tmp_path / "cell"), str(tmp_path / "forget"), {"model": {}}, {}, "test")


def never():
    return None


def test_a_folder_that_another_process_is_leaving_is_waited_for(order, tmp_path):
    held = locked(tmp_path / "cell")
    said, began = [], []
    threading.Timer(1.0, lambda: (began.append((tmp_path / "orders").exists()), os.close(held))).start()
    outcome = in_process(order, said.append, never)
    assert began == [False]  # nothing was ordered while the folder was held
    assert "model.name is missing" in outcome.failed
    waiting = [values["say"] for values in said if "say" in values]
    assert len(waiting) == 1
    assert f"process {os.getpid()} is still at work in {tmp_path / 'cell'}" in waiting[0]


def test_one_that_stays_is_said_by_the_run(order, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "LETS_GO_SECONDS", 0.3)
    held = locked(tmp_path / "cell")
    began = time.monotonic()
    assert process.let_go(tmp_path / "cell", lambda text: None, never)
    assert 0.3 <= time.monotonic() - began < 5.0
    os.close(held)


def test_a_signal_ends_the_waiting(order, tmp_path):
    held = locked(tmp_path / "cell")
    outcome = in_process(order, lambda values: None, lambda: 2)
    assert outcome.stopped
    os.close(held)


def test_a_folder_without_a_lock_stays_as_it_is(tmp_path):
    assert process.let_go(tmp_path / "new", lambda text: None, never)
    assert not (tmp_path / "new").exists()
