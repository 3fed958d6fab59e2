"""The study that asks whether what a search found is more than noise, and the rows that are kept for it.

They are taken away before the search begins, as `tunesmith compare` takes away a test's, and lie in files of the
search's folder: no trial trains on them or is chosen by them. Where there can be no such study, the reason is told.

folder/data/train.jsonl   what the trials read in place of the recipe's file
folder/data/test.jsonl    what is kept
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.compare import checks
from tunesmith.compare.kinds import kind_of
from tunesmith.compare.settings import Planned, Study, StudySettings
from tunesmith.data.problems import counted
from tunesmith.data.reading.sources import WHOLE
from tunesmith.data.settings import DataSettings
from tunesmith.data.split import as_held_out
from tunesmith.errors import MachineError, TunesmithError
from tunesmith.notation import write
from tunesmith.recipe import Recipe
from tunesmith.search.settings import Search
from tunesmith.search.space import Values

SHARE = 0.1
FEWEST = 4
"""Rows below which a study is not written."""
MOST_BYTES = 1_000_000_000
"""Of a file or folder that is copied: compare holds all of its rows in memory."""
WHICH_ROWS = ("data", "data.train", "data.split", "data.subset", "data.limit")
"""Settings by which other rows are read."""
TITLE = "# Is what the search found more than noise? Seeds that chose nothing, on rows that no trial saw.\n"


@dataclass(frozen=True)
class Kept:
    """The two files of a search whose finding can be confirmed; or `missing`, why it cannot be."""

    train: str | None = None
    """Read by every trial in place of the recipe's file; None: that itself is read."""
    test: str | None = None
    """Read by the study alone."""
    num_test: int = 0
    missing: str | None = None


def keep(search: Search, recipe: Recipe, searched: Iterable[str], *, trust_remote_code: bool = False) -> Kept:
    """Takes a tenth of the recipe's rows away (whole groups where rows are held out by groups), the same ones each
    time. `searched`: the settings that are looked for. Nothing is taken where `tunesmith compare` would refuse the
    study."""
    missing = _not_to_be_parted(recipe.data, searched)
    if missing is not None:
        return Kept(missing=missing)
    held_out = as_held_out(recipe.data.held_out)
    key = None if held_out is None else held_out.key
    rows: Any = SHARE if key is None else {"key": key, "share": SHARE}
    study = _study(search, recipe, {}, rows, (0,))
    train, test = files = _files(search)
    missing = _refusal(study, trust_remote_code)
    if missing is None:
        with test.open(encoding="utf-8") as lines:
            count = sum(1 for _ in lines)
        if count >= FEWEST:
            return Kept(str(train), str(test), count)
        missing = f"a tenth of the rows would be {counted(count, 'row')}, too few to tell anything"
    for file in files:
        file.unlink(missing_ok=True)
    return Kept(missing=missing)


def confirming(
    search: Search, recipe: Recipe, kept: Kept, found: Values, seed: int, *, trust_remote_code: bool = False
) -> tuple[str | None, str | None]:
    """(the study of `found` against the recipe as it was, as YAML; why there is none). What is written was planned by
    `tunesmith compare`. `seed`: the search's."""
    if kept.test is None:
        return None, kept.missing
    seeds = tuple(other for other in range(4) if other != seed)[:3]
    own = recipe.data.model_copy(update={"train": kept.train, "subset": None, "split": WHOLE})
    study = _study(search, recipe.model_copy(update={"data": own}), found, kept.test, seeds)
    missing = _refusal(study, trust_remote_code)
    if missing is not None:
        return None, missing
    return TITLE + write(study.settings.model_dump(mode="json", exclude_unset=True)), None


def _files(plan: Planned[Any]) -> tuple[Path, Path]:
    """Where compare's plan writes the two sides."""
    return plan.folder / "data" / "train.jsonl", plan.folder / "data" / "test.jsonl"


def _refusal(study: Study, trust_remote_code: bool) -> str | None:
    """Why `tunesmith compare` would refuse the study, or None. What the machine lacks today (room for its runs) decides
    nothing, so that a search that goes on keeps the rows that it kept."""
    try:
        checks.plan(study, trust_remote_code=trust_remote_code)
    except MachineError:
        if not all(file.is_file() for file in _files(study)):
            raise
        return None
    except TunesmithError as error:
        return " ".join(error.what.split())
    return None


def _not_to_be_parted(data: DataSettings, searched: Iterable[str]) -> str | None:
    """Why no rows can be taken out of what the recipe reads, or None."""
    other = [key for key in searched if key in WHICH_ROWS]
    if other:
        return f"{', '.join(other)} decides which rows there are, and is searched"
    if not isinstance(data.train, str):
        return "data.train is a list of sources, and rows are taken out of one alone"
    held_out = as_held_out(data.held_out)
    if held_out is not None and held_out.file is not None and (data.split, data.subset) != (WHOLE, None):
        return "the held-out rows are found by data.split and data.subset, which rows in a file have not"
    path = Path(data.train).expanduser()
    if not path.exists():
        return None if data.limit is not None else "rows of the hub are not copied without a data.limit"
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if data.limit is None and sum(file.stat().st_size for file in files) > MOST_BYTES:
        return f"{data.train} holds more than {MOST_BYTES / 1e9:g} GB, and is not copied without a data.limit"
    return None


def _study(search: Search, recipe: Recipe, found: Values, rows: Any, seeds: tuple[int, ...]) -> Study:
    sections = recipe.explicit()
    sections.pop("output", None)
    settings = StudySettings.model_validate(
        {
            "recipe": sections,
            "arms": {"as it was": None, "found": found or None},
            "baseline": "as it was",
            "seeds": seeds,
            "test": {"rows": rows} | ({"score": "label"} if kind_of(recipe) == "classify" else {}),
            "prompting": (),
            "folder": str(search.folder / "confirm"),
        }
    )
    return Study(settings, "confirm", str(search.folder / "confirm.yaml"), search.folder, search.beside)
