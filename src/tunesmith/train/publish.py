"""Which checkpoint becomes the run's adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.errors import MachineError
from tunesmith.events import Ended, Event

Which = Literal["best", "last"]


def published_step(ended: Ended, which: Which) -> int:
    """The step whose adapter is published: the last where nothing is held out."""
    return ended.step if which == "last" or ended.best_step is None else ended.best_step


class Publisher:
    """Puts the adapter of one checkpoint into the run's `adapter/` when the run ends."""

    def __init__(self, folder: Path, which: Which) -> None:
        self.folder, self.which = folder, which

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Ended):
            return
        checkpoint = self.folder / "checkpoints" / f"step-{published_step(event, self.which):06d}"
        made, final = self.folder / ".making-adapter", self.folder / "adapter"
        try:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            for path in checkpoint.iterdir():
                if path.name not in ("trainer.safetensors", "state.json", "MANIFEST.json"):
                    shutil.copy2(path, made / path.name)
            shutil.rmtree(final, ignore_errors=True)
            made.replace(final)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            raise MachineError(
                "the adapter could not be written",
                where=str(final),
                found=str(error),
                fix=f"free some space; the checkpoint {checkpoint} is whole, and --resume finishes the run",
            ) from error


def take(adapter_set: AdapterSet, checkpoints: Path, ended: Ended, step: int) -> None:
    """The tensors in memory become those that were published."""
    if step == ended.step:
        return
    saved = load_file(checkpoints / f"step-{step:06d}" / "trainer.safetensors")
    kind = "weights/"
    adapter_set.load_state({key.removeprefix(kind): tensor for key, tensor in saved.items() if key.startswith(kind)})
