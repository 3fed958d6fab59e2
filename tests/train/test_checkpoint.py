"""A checkpoint is there whole or not at all; what is damaged is passed over aloud; what was there before stays."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch

from tunesmith.errors import CheckpointError, MachineError
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Checkpoints


def write(checkpoints, step, protect=(), value=None):
    def adapter(folder):
        (folder / "adapter.txt").write_text(f"adapter {step}")

    tensors = {"weights/a": torch.full((3,), float(step if value is None else value))}
    return checkpoints.write(step, adapter, tensors, {"step": step, "value": value}, set(protect))


def test_what_is_written_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    write(checkpoints, 5)
    saved = checkpoints.latest(print)
    assert saved.step == 5
    assert torch.equal(saved.tensors["weights/a"], torch.full((3,), 5.0))
    assert saved.state["step"] == 5
    assert {path.suffix for path in saved.folder.iterdir()} == {".safetensors", ".json", ".txt"}


@pytest.mark.parametrize("name", ["trainer.safetensors", "state.json", "adapter.txt", "MANIFEST.json"])
def test_a_flipped_byte_anywhere_is_detected_and_the_earlier_one_used_aloud(tmp_path, name):
    checkpoints = Checkpoints(tmp_path, 2)
    write(checkpoints, 1)
    folder = write(checkpoints, 2)
    whole = (folder / name).read_bytes()
    content = json.loads((folder / "MANIFEST.json").read_text())
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            damaged = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
            if name == "MANIFEST.json":
                try:
                    if json.loads(damaged) == content:
                        continue
                except ValueError:
                    pass
            (folder / name).write_bytes(damaged)
            notes = []
            assert checkpoints.latest(notes.append).step == 1, (at, flip)
            assert "step-000002" in notes[0]
    (folder / name).unlink()
    assert checkpoints.latest(print).step == 1


def test_none_whole_is_an_error_and_none_at_all_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.latest(print) is None
    folder = write(checkpoints, 1)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="whole"):
        checkpoints.latest(print)


OPERATIONS = ("mkdir", "rmdir", "replace", "unlink", "open", "fsync")


class Killed(BaseException):
    """The process ends here."""


def struck(monkeypatch, at, error):
    """The `at`-th file operation raises instead; returns the count so far."""
    count = [0]

    def wrap(function):
        def wrapped(*args, **named):
            count[0] += 1
            if count[0] == at:
                raise error
            return function(*args, **named)

        return wrapped

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    monkeypatch.setattr(checkpoint, "save_file", wrap(checkpoint.save_file))
    return count


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_broken_off_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path, same_step, error):
    """One checkpoint kept, and the next written over it or beside it: at no moment is there none."""
    broken = 0
    for at in range(1, 200):
        folder = tmp_path / str(at)
        checkpoints = Checkpoints(folder, 1)
        write(checkpoints, 1, value=10)
        with pytest.MonkeyPatch.context() as monkeypatch:
            count = struck(monkeypatch, at, error)
            try:
                write(checkpoints, 1 if same_step else 2, value=20)
                raised = False
            except (Killed, MachineError):
                raised = True
        saved = Checkpoints(folder, 1).latest(lambda note: None)
        assert saved is not None, at
        assert saved.tensors["weights/a"][0].item() in (10.0, 20.0)
        assert saved.state["value"] == saved.tensors["weights/a"][0].item()
        assert not list(folder.glob(".*")), "nothing half-made stays"
        write(checkpoints, 3, value=30)
        assert Checkpoints(folder, 1).latest(print).step == 3
        broken += raised
        if count[0] < at:
            break
        shutil.rmtree(folder)
    assert broken >= 8
    assert count[0] < at, "every operation was struck"


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    from tunesmith.train.checkpoint import Checkpoints

    table = torch.arange(8, dtype=torch.float32)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.write(1, lambda folder: None, {"a/table": table, "b/table": table}, {}, set())
    restored = checkpoints.latest(lambda text: None)
    assert restored is not None
    assert torch.equal(restored.tensors["a/table"], table)
    assert torch.equal(restored.tensors["b/table"], table)
