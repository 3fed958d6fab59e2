"""A folder with a tiny model and a run or two of it, and the commands as typed on them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from small_run import make_model, make_rows, recipe
from typer.testing import CliRunner

from tunesmith import cli, run
from tunesmith.errors import Interrupted
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict


def furnish(folder: Path) -> Path:
    """A model, rows, prompts and a run that ended (`whole`)."""
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    run.train(from_dict(recipe(folder / "model", folder / "rows.jsonl", folder / "whole")), quiet=True)
    (folder / "prompts.txt").write_text("first\n\n  \nsecond\nthird\n")
    return folder


def cut_short(folder: Path) -> None:
    """Beside them a run that SIGTERM ended after step 4 (`cut`)."""

    def strike(event):
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    values = recipe(folder / "model", folder / "rows.jsonl", folder / "cut")
    with pytest.raises(Interrupted):
        run.train(from_dict(values), quiet=True, listeners=[strike])


def invoke(*words, code=0, **options):
    done = CliRunner().invoke(cli.app, [str(word) for word in words], **options)
    assert done.exit_code == code, done.output
    return done


def figures(*words):
    return json.loads(invoke("evaluate", *words, "--json").stdout)
