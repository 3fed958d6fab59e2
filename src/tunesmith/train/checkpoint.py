"""Checkpoints: atomic, checksummed, safetensors and JSON only.

    checkpoints/step-000120/
      adapter_model.safetensors, adapter_config.json, …   the adapter, usable by itself
      trainer.safetensors                                 optimizer moments, random states
      state.json                                          counters, cursor, rates, micro-batch
      MANIFEST.json                                       size and sha256 of every other file; written last

A checkpoint is made in a hidden folder, flushed to disk, then renamed: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.atomic import no_room
from tunesmith.errors import CheckpointError, MachineError

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Restored:
    step: int
    folder: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, no two in one memory: 8-bit optimizers share their tables between parameters."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        apart[name] = own.clone() if own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    return apart


class Checkpoints:
    """The checkpoints of one run: write, list, check, prune."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def write(
        self,
        step: int,
        write_adapter: Callable[[Path], None],
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        protect: set[int],
    ) -> Path:
        """Write one checkpoint whole, then drop old ones (never those in `protect`)."""
        final, made = self.path(step), self.folder / f".making-step-{step:06d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            write_adapter(made)
            save_file(_apart(tensors), made / "trainer.safetensors")
            (made / "state.json").write_text(json.dumps(state, indent=1))
            files = sorted(path for path in made.iterdir() if path.is_file())
            manifest = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files}
            (made / MANIFEST).write_text(json.dumps({"step": step, "files": manifest}, indent=1))
            for path in (*files, made / MANIFEST, made):
                _flush(path)
            if final.exists():  # the same step, with more known of it
                os.replace(final, self._aside(step))
            os.replace(made, final)
            _flush(self.folder)
            shutil.rmtree(self._aside(step), ignore_errors=True)
        except Exception as error:
            with suppress(OSError):
                self._tidy()
            if not isinstance(error, OSError | SafetensorError) and not no_room(error):
                raise
            raise MachineError(
                f"the checkpoint of step {step} could not be written",
                where=str(self.folder),
                found=str(error),
                fix="free some disk space, then go on with --resume; earlier checkpoints are intact",
            ) from error
        self._prune(protect | {step})
        return final

    def _aside(self, step: int) -> Path:
        """Where the old checkpoint of a step waits until the new one stands in its place."""
        return self.folder / f".old-step-{step:06d}"

    def _tidy(self) -> None:
        """What a kill between two steps of a write left: an old checkpoint goes back, unfinished ones go."""
        for path in self.folder.glob(".old-step-*"):
            final = self.folder / path.name.removeprefix(".old-")
            if final.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.replace(path, final)
        for path in self.folder.glob(".making-step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self, protect: set[int]) -> None:
        loose = [step for step in self.steps() if step not in protect]
        surplus = len(loose) - max(0, self.keep - 1)
        for step in loose[: max(0, surplus)]:
            shutil.rmtree(self.path(step), ignore_errors=True)

    def problem(self, step: int) -> str | None:
        """Why the checkpoint of `step` cannot be trusted, or None."""
        folder = self.path(step)
        try:
            written = json.loads((folder / MANIFEST).read_text())
            manifest, of_step = written["files"], written["step"]
            expected = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in manifest.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"no readable {MANIFEST} ({type(error).__name__}: {error})"
        if of_step != step:
            return f"{MANIFEST} is of step {of_step}"
        unlisted = {"trainer.safetensors", "state.json"} - expected.keys()
        if unlisted:
            return f"{MANIFEST} does not list {', '.join(sorted(unlisted))}"
        for name, (num_bytes, sha256) in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != num_bytes:
                return f"{name} has {path.stat().st_size} bytes instead of {num_bytes}"
            if digest(path) != sha256:
                return f"{name} is damaged (its checksum differs)"
        return None

    def best_so_far(self) -> Path | None:
        """The whole checkpoint with the lowest held-out loss, as the newest whole one knows it, or that one itself."""
        for step in reversed(self.steps()):
            if self.problem(step) is None:
                best = json.loads((self.path(step) / "state.json").read_text())["progress"]["best_step"]
                chosen = step if best is None or self.problem(best) else best
                return self.path(chosen)
        return None

    def latest(self, note: Callable[[str], None]) -> Restored | None:
        """The newest checkpoint whose every byte is right; damaged ones are passed over aloud."""
        self._tidy()
        problems = []
        for step in reversed(self.steps()):
            problem = self.problem(step)
            if problem is None:
                folder = self.path(step)
                return Restored(
                    step,
                    folder,
                    load_file(folder / "trainer.safetensors"),
                    json.loads((folder / "state.json").read_text()),
                )
            problems.append(f"{self.path(step).name}: {problem}")
            note(f"checkpoint {problems[-1]}; trying an earlier one")
        if problems:
            raise CheckpointError(
                "no checkpoint of this run is whole",
                where=str(self.folder),
                found="; ".join(problems),
                fix="start again in another folder",
            )
        return None
