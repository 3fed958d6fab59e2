"""Whole runs over several sources: resumed they are the unbroken run, and what is asked of them knows every source."""

from __future__ import annotations

import json
import os
import signal

import pytest
from small_run import make_model, make_rows, recipe
from typer.testing import CliRunner

from tunesmith import cli, run
from tunesmith.card import public
from tunesmith.errors import CheckpointError, Interrupted
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 8)
    talk = [{"from": "asker", "value": "what is it"}, {"from": "gpt", "value": "it is"}]
    (folder / "talks.jsonl").write_text(
        "".join(json.dumps({"said": [*talk, *talk[:1], t]}) + "\n" for t in talk[1:] * 5)
    )
    run.train(from_dict(values(folder, folder / "whole")), quiet=True)
    return folder


def values(folder, run_folder):
    made = recipe(folder / "model", folder / "rows.jsonl", run_folder)
    made["data"]["train"] = [
        {"path": str(folder / "rows.jsonl"), "weight": 1.5},
        {"path": str(folder / "talks.jsonl"), "columns": {"messages": "said"}, "roles": {"asker": "user"}},
    ]
    return made


def invoke(*words):
    done = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_that_is_resumed_is_the_unbroken_run(place):
    def strike(event):
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    made = values(place, place / "cut")
    with pytest.raises(Interrupted):
        run.train(from_dict(made), quiet=True, listeners=[strike])
    run.train(from_dict(made), resume=True, quiet=True)
    wanted, found = (place / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut"))
    assert wanted.read_bytes() == found.read_bytes()
    other = values(place, place / "cut")
    other["data"]["train"][0]["weight"] = 2.5
    with pytest.raises(CheckpointError, match="another recipe"):
        run.train(from_dict(other), resume=True, quiet=True)


def test_what_is_asked_of_a_run_knows_all_its_sources(place):
    summary = json.loads((place / "whole" / "summary.json").read_text())
    assert summary["rows"] == 10
    assert summary["held_out_rows"] == 3
    card = (place / "whole" / "README.md").read_text()
    assert "| source | rows.jsonl (weight 1.5), talks.jsonl |" in card
    found = json.loads(invoke("evaluate", place / "whole", "--json", "--score", "loss", "--score", "exact"))
    assert found["rows"] == 3
    assert found["loss"] == pytest.approx(summary["best_metrics"]["loss"], rel=1e-4)
    of_file = json.loads(invoke("evaluate", place / "whole", "--data", place / "rows.jsonl", "--json"))
    assert of_file["rows"] == 8
    assert "by source" in invoke("check", place / "whole")
    told = json.loads(invoke("check", place / "whole", "--json"))
    assert [one["train"]["visited"] + one["held_out"]["kept"] for one in told["sources"]] != [8, 5]


def test_a_list_of_sources_on_the_command_line_tells_strangers_no_paths():
    given = "data.train=[{path: /home/me/my/a.jsonl, weight: 2}, {path: 'owner/rows'}, {path: \"/b/c.jsonl\"}]"
    assert public(given) == "data.train=[{path: a.jsonl, weight: 2}, {path: 'owner/rows'}, {path: \"c.jsonl\"}]"


def test_a_file_is_read_as_the_only_source_of_a_run_says(place):
    made = values(place, place / "talks")
    made["data"]["train"] = made["data"]["train"][1:]
    made["data"]["held_out"] = 1
    run.train(from_dict(made), quiet=True)
    of_file = json.loads(invoke("evaluate", place / "talks", "--data", place / "talks.jsonl", "--json"))
    assert of_file["rows"] == 5
