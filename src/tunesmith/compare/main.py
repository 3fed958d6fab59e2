"""`tunesmith compare`, and `tunesmith.compare` from Python: a study in, its report and results out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tunesmith.atomic import finite
from tunesmith.compare import settings
from tunesmith.compare.process import Runner, in_process
from tunesmith.compare.report import show, write_report
from tunesmith.compare.results import results
from tunesmith.compare.study import Ran, run_cells
from tunesmith.errors import MachineError
from tunesmith.progress import Progress


@dataclass(frozen=True)
class Comparison:
    """What a study found: `results` as in results.json, and the report's files by kind."""

    folder: Path
    results: dict[str, Any]
    files: dict[str, Path]

    @property
    def verdicts(self) -> list[str]:
        """One sentence for each arm, by the measure that decides."""
        primary = self.results["primary"]
        return [one["verdict"] for one in self.results["comparisons"] if one["measure"] == primary]


def compare(
    study: str | os.PathLike[str] | Mapping[str, Any] | settings.Study,
    overrides: Sequence[str] = (),
    *,
    trust_remote_code: bool = False,
    quiet: bool = False,
    runner: Runner = in_process,
    command: str = "",
) -> Comparison:
    """Run a study (a YAML file, its values, or one that is loaded), or what is missing of it, and report.

    Each cell is trained and measured in a process of its own. Interrupted, the same call goes on where it stopped.
    """
    if isinstance(study, settings.Planned):
        loaded = study
    elif isinstance(study, Mapping):
        loaded = settings.from_dict(study, overrides)
    else:
        loaded = settings.load(study, overrides)
    with Progress(quiet=quiet) as progress:
        ran = run_cells(loaded, trust_remote_code=trust_remote_code, runner=runner, progress=progress, command=command)
    found: dict[str, Any] = finite(results(ran))
    files = write_report(found, loaded.folder)
    if not quiet:
        show(found, files, Console(highlight=False))
    _refuse_all_failed(ran)
    return Comparison(loaded.folder, found, files)


def _refuse_all_failed(ran: Ran) -> None:
    """No arm has a finished seed: that is an error, also where the base was measured."""
    arms = {arm.name for arm in ran.plan.arms}
    if any(done.failed is None for done in ran.done if done.arm in arms):
        return
    arms_by_reason: dict[str, list[str]] = {}
    for done in ran.done:
        if done.arm in arms:
            named = arms_by_reason.setdefault((done.failed or "").splitlines()[0], [])
            named += [done.arm] if done.arm not in named else []
    is_all = all(done.failed is not None for done in ran.done)
    raise MachineError(
        "every cell of the study failed" if is_all else "every cell of every arm failed: only the base was measured",
        where=str(ran.study.folder),
        found="; ".join(f"{', '.join(names)}: {why}" for why, names in arms_by_reason.items()),
        fix=f"read {ran.study.folder / 'logs'}",
    )
