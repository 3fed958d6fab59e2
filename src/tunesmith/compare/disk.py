"""What a study holds on disk: added up before its first model loads, and given back once a cell is done.

Of a cell that is trained and measured everything stays but its checkpoints. Of a trial what stays is words and numbers:
its recipe, its summary and metrics. Whether a cell is done is never asked of what goes, so that a study may be killed
at any of this.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.adapters.adapter_set import make
from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.targets import choose
from tunesmith.assemble import origin
from tunesmith.errors import MachineError
from tunesmith.models.frozen_file import free_bytes
from tunesmith.models.load import without_weights
from tunesmith.progress import size
from tunesmith.recipe import Recipe
from tunesmith.record import finished

CHECKPOINTS = "checkpoints"
OF_A_TRIAL = (CHECKPOINTS, "adapter", "README.md", "loss.png", "classes.png")
"""What goes of a trial: besides what it learned, the pictures and the model card of that."""
TRIAL = re.compile(r"-trial-.+-round\d+-seed\d+-[0-9a-f]+$")
"""A trial's folder, by its name."""


def tidy(folder: Path, *, is_trial: bool) -> None:
    """Give back what nobody needs of a cell that is done."""
    for path in (folder / name for name in (OF_A_TRIAL if is_trial else (CHECKPOINTS,))):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def tidy_all(cells: Path) -> None:
    """The same for all that is done in a folder of cells, those that the study has no more too."""
    for folder in cells.glob("*"):
        is_trial = TRIAL.search(folder.name) is not None
        if _is_done(folder) or (is_trial and finished(folder)):
            tidy(folder, is_trial=is_trial)


def _is_done(folder: Path) -> bool:
    """Whether a cell of a seed wants no more room."""
    return finished(folder) and (folder / "measures.json").is_file()


@dataclass(frozen=True)
class Sizes:
    """Bytes of one run's files."""

    adapter: int
    """As it is published."""
    checkpoint: int
    """Adapter, what learns once more in full, and the optimizer's two moments."""
    kept: int = 2
    """Checkpoints that stay (train.keep_checkpoints); the best comes on top, and the one that is being written."""

    @property
    def at_work(self) -> int:
        return (self.kept + 2) * self.checkpoint


def sizes(recipe: Recipe, head: ClassHead | None, *, trust_remote_code: bool) -> Sizes | None:
    """Of a run by this recipe, reckoned from shapes; None where the model cannot be built from its config alone. What
    grows while training (ReLoRA's merged products) is counted as it begins."""
    kept, folder = recipe.train.keep_checkpoints, origin(recipe)
    if folder is not None:
        held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return Sizes(held, 4 * held, kept)
    model = without_weights(recipe.model, trust_remote_code=trust_remote_code, head=head)
    if model is None:
        return None
    targets = choose(model, recipe.adapter)
    made = make(model, recipe.adapter, name="reckoned", seed=None, targets=targets, token_rows={})
    stored = [one for adapter in made.adapters.values() for one in adapter.stored().values()]
    adapter = sum(piece.nbytes for one in stored for piece in one.pieces)
    state = sum(tensor.nbytes for tensor in made.state().values())
    learned = sum(parameter.nbytes for parameter in made.parameters().values())
    return Sizes(adapter, adapter + state + 2 * learned, kept)


def refuse_full(study: Path, arms: Sequence[tuple[Sizes, Sequence[Sequence[Path]]]], *, has_trials: bool) -> None:
    """MachineError where the disk cannot take what the study in `study` will hold at most, beyond what is there.

    `arms`: of each, what a run of it takes, and for every seed the folders that its cell may be, by its learning rate.
    Each adapter stays; checkpoints are there of one cell at a time.
    """
    to_do = [(of, [places for places in seeds if not any(map(_is_done, places))]) for of, seeds in arms]
    at_work = [of for of, missing in to_do if missing]
    lasting = sum(len(missing) * of.adapter for of, missing in to_do)
    passing = max((of.at_work for of in at_work), default=0)
    passing += max((of.adapter for of in at_work), default=0) if has_trials else 0
    begun = [place / CHECKPOINTS for _, missing in to_do for places in missing for place in places]
    there = sum(file.stat().st_size for folder in begun for file in folder.glob("*/*") if file.is_file())
    needed, free = lasting + max(0, passing - there), free_bytes(study)
    if needed > free:
        most = max((of.kept for of in at_work), default=1)
        fewer = "shared.train.keep_checkpoints=1, " if most > 1 else ""
        raise MachineError(
            "the disk has no room for what the study will hold",
            where=str(study),
            found=f"{size(free)} free",
            expected=f"{size(needed)}: {size(lasting)} of adapters, {size(needed - lasting)} while a cell is trained",
            fix=f"make room, {fewer}fewer arms or seeds, or a folder on another disk: folder=…",
        )
