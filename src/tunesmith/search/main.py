"""`tunesmith search`, and `tunesmith.search` from Python: a recipe and what is looked for in, the best settings out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tunesmith.compare.process import Runner, in_process
from tunesmith.errors import MachineError
from tunesmith.progress import Progress
from tunesmith.search import settings
from tunesmith.search.report import results, show, write_report
from tunesmith.search.trials import run_trials


@dataclass(frozen=True)
class Found:
    """What a search found: the best values by section.key, `results` as in results.json, and the files by kind."""

    folder: Path
    best: dict[str, Any]
    results: dict[str, Any]
    files: dict[str, Path]

    @property
    def run(self) -> Path:
        """The best trial's run folder: `--resume` trains the rest of it."""
        return Path(self.results["trials"][0]["folder"])


def search(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    trust_remote_code: bool = False,
    quiet: bool = False,
    runner: Runner = in_process,
    command: str = "",
) -> Found:
    """Look for settings (a search's or recipe's YAML file, or a search's values), or go on where that stopped."""
    loaded = settings.from_dict(source, overrides) if isinstance(source, Mapping) else settings.load(source, overrides)
    with Progress(quiet=quiet) as progress:
        searched = run_trials(
            loaded, trust_remote_code=trust_remote_code, runner=runner, progress=progress, command=command
        )
    files = write_report(searched)
    if not quiet:
        show(searched, files, Console(highlight=False))
    if searched.best is None:
        raise MachineError(
            "every trial of the search failed",
            where=str(loaded.folder),
            found=(searched.trials[0].failed or "no held-out loss").splitlines()[0],
            fix=f"read {loaded.folder / 'logs'}",
        )
    return Found(loaded.folder, dict(searched.best.values), results(searched), files)
