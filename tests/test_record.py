"""The run folder: one run at a time, whole files, metrics as an unbroken run writes them, and no secret in any file."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunesmith import atomic
from tunesmith.atomic import write_file
from tunesmith.card import card
from tunesmith.errors import CheckpointError, MachineError
from tunesmith.events import BrokenOff, Ended, Evaluated, Noted, Saved, Started, StepDone
from tunesmith.recipe import from_dict, load
from tunesmith.record import Run


def recipe(folder, *overrides):
    values = {"model": {"name": "owner/model"}, "data": {"train": "owner/rows", "held_out": 0.1}}
    return from_dict(values, [f"output.folder={folder}", "train.steps=20", *overrides], name="trial")


def step(number, loss=1.0):
    return StepDone(number, 20, number / 10, loss, 1e-4, 0.5, 100, 40, 0.5, number * 0.5, 200.0, 5.0, 10**9)


def work(run, first, last, until=None):
    """What the loop says from `first` steps done to `last`: an evaluation and a checkpoint every five."""
    run(Started(20, None, first, 0.0))
    for number in range(first + 1, last + 1):
        run(step(number, 3.0 / number))
        if number % 5 == 0:
            run(Evaluated(number, {"loss": 3.1 / number}, 0.1, True))
            (run.checkpoints / f"step-{number:06d}").mkdir(parents=True, exist_ok=True)
            run(Saved(number, str(run.checkpoints / f"step-{number:06d}"), 0.1))


def test_a_whole_run_leaves_every_file(tmp_path):
    folder = tmp_path / "run"
    with Run.create(folder, recipe(folder)) as run:
        run(Noted("padded"))
        work(run, 0, 20)
        run.describe(base_model="owner/model", trained_parameters=10, total_parameters=1000, rows=90)
        run(Ended(20, "budget spent", 10.0, 0.4, 2000, 20, {"loss": 0.155}))
    names = {path.name for path in folder.iterdir()}
    assert names == {"lock", "recipe.yaml", "provenance.json", "environment.json", "metrics.jsonl", "summary.json",
                     "loss.png", "README.md", "checkpoints"}  # fmt: skip
    assert load(folder).recipe == recipe(folder).recipe
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["last_checkpoint"] == {"step": 20, "path": "checkpoints/step-000020"}
    assert (summary["tokens_per_second"], summary["final_loss"]) == (200.0, 0.15)
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines].count("step") == 20
    assert lines[0] == {"event": "note", "text": "padded"}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["command"]


@pytest.mark.parametrize("killed_at", [3, 5, 7, 12, 20])
@pytest.mark.parametrize("torn", [False, True])
def test_metrics_after_a_resume_are_those_of_an_unbroken_run(tmp_path, killed_at, torn):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with Run.create(whole, recipe(whole)) as run:
        work(run, 0, 20)
    with Run.create(broken, recipe(broken)) as run:
        work(run, 0, killed_at)
    if torn:
        with (broken / "metrics.jsonl").open("a") as file:
            file.write('{"event": "st')
    with Run.create(broken, recipe(broken), resume=True) as run:
        run(Noted("going on"))
        work(run, killed_at // 5 * 5, 20)
    kept = [line for line in (broken / "metrics.jsonl").read_text().splitlines() if '"note"' not in line]
    assert "\n".join(kept) + "\n" == (whole / "metrics.jsonl").read_text()


def test_an_evaluation_told_again_after_a_resume_is_written_once(tmp_path):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        work(run, 0, 10)
    before = (tmp_path / "metrics.jsonl").read_text()
    with Run.create(tmp_path, recipe(tmp_path), resume=True) as run:
        run(Started(20, None, 10, 0.0))
        run(Evaluated(10, {"loss": 0.31}, 0.1, True))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def broken_off(number, status="interrupted"):
    return BrokenOff(number, "stopped by SIGTERM", status, number * 0.5, 0.1, 100 * number, 5, {"loss": 0.6}, 0.2)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_run_that_is_broken_off_leaves_a_summary_and_a_picture_and_no_card(tmp_path):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        run.describe(rows=90)
        run(Started(20, None, 0, 0.0))
        assert summary_of(tmp_path)["status"] == "unfinished", "what a kill leaves"
        work(run, 0, 7)
        run(broken_off(7))
    summary = summary_of(tmp_path)
    assert (summary["status"], summary["reason"], summary["step"]) == ("interrupted", "stopped by SIGTERM", 7)
    assert (summary["saving_seconds"], summary["rows"], summary["best_step"]) == (0.2, 90, 5)
    assert summary["last_checkpoint"]["step"] == 5
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "README.md").exists()
    with Run.create(tmp_path, recipe(tmp_path), resume=True) as run:
        run(Started(20, None, 5, 2.5))
        assert summary_of(tmp_path)["status"] == "unfinished"
        work(run, 5, 20)
        run(Ended(20, "budget spent", 10.0, 0.4, 2000, 20, {"loss": 0.155}))
    assert summary_of(tmp_path)["status"] == "finished"


def test_a_run_is_finished_when_the_last_of_its_files_is_there(tmp_path, monkeypatch):
    def full(folder):
        raise MachineError("the disk is full")

    monkeypatch.setattr("tunesmith.card.write_card", full)
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        work(run, 0, 20)
        with pytest.raises(MachineError):
            run(Ended(20, "budget spent", 10.0, 0.4, 2000, 20, {"loss": 0.155}))
    assert summary_of(tmp_path)["status"] == "unfinished"


def test_a_picture_that_cannot_be_drawn_fails_no_run(tmp_path, monkeypatch):
    def broken(*_):
        raise ImportError("no ft2font")

    monkeypatch.setattr("tunesmith.plot.plot_run", broken)
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        work(run, 0, 20)
        with pytest.warns(RuntimeWarning, match="loss.png could not be drawn: no ft2font"):
            run(Ended(20, "budget spent", 10.0, 0.4, 2000, 20, {"loss": 0.155}))
    assert summary_of(tmp_path)["status"] == "finished"
    assert (tmp_path / "README.md").exists()


def test_a_run_broken_off_before_its_first_step_draws_nothing(tmp_path):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        run(Started(20, None, 0, 0.0))
        run(broken_off(0))
    assert summary_of(tmp_path)["status"] == "interrupted"
    assert not (tmp_path / "loss.png").exists()


def test_a_finished_run_that_is_resumed_keeps_its_summary(tmp_path):
    end = Ended(20, "budget spent", 10.0, 0.4, 2000, 20, {"loss": 0.155})
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        work(run, 0, 20)
        run(end)
    before = summary_of(tmp_path)
    with Run.create(tmp_path, recipe(tmp_path), resume=True) as run:
        run(Started(20, None, 20, 10.0))
        run(end)
        run(broken_off(20))
    assert summary_of(tmp_path) == before
    assert before["last_checkpoint"]["step"] == 20
    assert before["final_loss"] == 0.15


def test_nan_and_infinity_are_null(tmp_path):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        run(Started(20, None, 0, 0.0))
        run(step(1, math.nan))
        run(step(2, math.inf))
        run(Evaluated(2, {"loss": math.nan}, 0.1, False))
        run(Ended(2, "stopped", 1.0, 0.0, 200))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail).get("loss", 0) for line in lines] == [None, None, 0]
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (tmp_path / "loss.png").stat().st_size > 0


def test_a_second_run_in_the_folder_is_refused_and_a_dead_one_is_no_hindrance(tmp_path):
    script = (
        "import sys; from tests.test_record import recipe; from tunesmith.record import Run\n"
        "run = Run.create(sys.argv[1], recipe(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[1]
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another run is at work in this folder") as caught:
            Run.create(tmp_path, recipe(tmp_path), resume=True)
        assert caught.value.found == f"process {holder.pid}"
        assert caught.value.exit_code == 3
    finally:
        holder.kill()
        holder.wait()
    Run.create(tmp_path, recipe(tmp_path)).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty, and not a run's") as caught:
        Run.create(tmp_path, recipe(tmp_path), resume=True)
    assert "thesis.tex" in caught.value.found
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_finished_run_is_not_overwritten_but_one_that_never_began_is(tmp_path):
    Run.create(tmp_path, recipe(tmp_path)).close()
    with Run.create(tmp_path, recipe(tmp_path, "train.seed=1")) as run:
        work(run, 0, 3)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match="a run has been here already") as caught:
        Run.create(tmp_path, recipe(tmp_path, "train.seed=1"))
    assert "--resume" in caught.value.fix
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_another_recipe_cannot_go_on_here(tmp_path):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        work(run, 0, 3)
    with pytest.raises(CheckpointError, match="has another recipe") as caught:
        Run.create(tmp_path, recipe(tmp_path, "train.seed=1", "adapter.r=4"), resume=True)
    assert caught.value.notes["differs in"] == "adapter.r (was 8, now 4); train.seed (was 0, now 1)"
    Run.create(tmp_path, recipe(tmp_path, "train.keep_checkpoints=9", "output.name=x"), resume=True).close()
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert len(environment["before"]) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": 3}', ""])
def test_damaged_notes_of_a_run_are_said_or_done_without(tmp_path, content):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        work(run, 0, 3)
    (tmp_path / "environment.json").write_text(content)
    Run.create(tmp_path, recipe(tmp_path), resume=True).close()
    json.loads((tmp_path / "environment.json").read_text())
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"provenance\.json: what this run was begun with cannot be read"):
        Run.create(tmp_path, recipe(tmp_path), resume=True)


def test_what_a_kill_left_of_a_file_is_taken_away(tmp_path):
    for name in (".summary.json.4711", ".loss.png.4711", ".provenance.json.4711", ".hidden", "4711", ".a.b"):
        (tmp_path / name).write_text("half")
    (tmp_path / "provenance.json").write_text("{}")
    Run.create(tmp_path, recipe(tmp_path)).close()
    assert {path.name for path in tmp_path.iterdir() if "4711" in path.name or path.name[0] == "."} == {
        ".hidden", "4711", ".a.b"
    }  # fmt: skip


def test_no_secret_of_the_environment_is_in_any_file(tmp_path):
    canary = "hf_canary4711canary4711"
    script = (
        "import sys; from pathlib import Path; from tests.test_record import *\n"
        "run = Run.create(sys.argv[1], recipe(sys.argv[1])); work(run, 0, 20)\n"
        "run(Ended(20, 'budget spent', 10.0, 0.4, 2000, 20, {'loss': 0.155})); run.close()"
    )
    root = Path(__file__).parents[1]
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD", "HTTPS_PROXY", "PIP_INDEX_URL")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | dict.fromkeys(names, canary)
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], cwd=root, env=environment, check=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert not [path for path in files if canary.encode() in path.read_bytes()]


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_file(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(MachineError, match="the disk is full") as caught:
        write_file(path, "new")
    assert caught.value.exit_code == 4
    assert "MB free" in caught.value.found
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_metrics_are_written(tmp_path):
    with Run.create(tmp_path, recipe(tmp_path)) as run:
        run(Started(20, None, 0, 0.0))
        run._metrics.close()
        run._metrics = Path("/dev/full").open("w")  # noqa: SIM115
        with pytest.raises(MachineError, match="the disk is full"):
            run(step(1))
        run._metrics = None


def test_the_model_card(tmp_path):
    folder = tmp_path / "run"
    with Run.create(folder, recipe(folder, "output.licence=apache-2.0", "output.name=sql")) as run:
        work(run, 0, 20)
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        run.describe(trained_parameters=2_442_240, total_parameters=134_515_008, rows=90, before={"accuracy": 0.01})
        run(Ended(20, "budget spent", 10.0, 0.4, 2000, 20, {"loss": 0.155}))
    text = card(folder)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "peft"
    assert front["base_model"] == "owner/model"
    assert front["license"] == "apache-2.0"
    assert "lora" in front["tags"]
    assert "| weights trained | 2,442,240 of 134,515,008 (1.82%) |" in text
    assert "| held-out loss (best, step 20) | 0.155 |" in text
    for said in ("# sql", "r 8", "owner/rows", "accuracy before | 0.01", "torch ", "20 steps done"):
        assert said in text
    assert (folder / "adapter" / "README.md").read_text() == text == (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("budget", "said"),
    [("tokens=2_500_000", "2,500,000 tokens"), ("epochs=1.5", "1.5 epochs"), ("minutes=0.25", "0.25 minutes")],
)
def test_the_card_says_the_budget_in_its_own_unit(tmp_path, budget, said):
    with Run.create(tmp_path, recipe(tmp_path, "train.steps=", f"train.{budget}")) as run:
        work(run, 0, 20)
        run(Ended(20, "the budget is spent", 10.0, 0.4, 2000, 20, {"loss": 0.155}))
    assert f"| budget | {said}; 20 steps done" in card(tmp_path)


def test_the_card_tells_strangers_no_paths(tmp_path):
    rows = tmp_path / "private" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("{}")
    values = {"model": {"name": "owner/model"}, "data": {"train": str(rows)}}
    folder = tmp_path / "run"
    with Run.create(folder, from_dict(values, [f"output.folder={folder}"])) as run:
        work(run, 0, 5)
        run(Ended(5, "stopped", 10.0, 0.4, 2000))
    assert "rows.jsonl" in card(folder)
    assert str(tmp_path) not in card(folder)
