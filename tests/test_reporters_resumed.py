"""A run that goes on goes on in the services: the same run there, no second one, and no point twice."""

from __future__ import annotations

import json
import os
import signal
import sys
import types

import pytest
from small_run import make_model, make_rows, recipe

from tunesmith import run
from tunesmith.errors import CheckpointError, Interrupted, MachineError
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict
from tunesmith.reporters import REPORTERS, reporters

pytestmark = pytest.mark.filterwarnings("ignore")


class Shelf:
    """Runs by id as a service keeps them: {step: numbers} each. Stands for all four, with the rules of each."""

    def __init__(self):
        self.runs, self.names, self.begun, self.one_row_a_step = {}, {}, 0, False

    def begin(self, run_id=None, name=None, must=False):
        if run_id is not None and run_id not in self.runs and must:
            raise KeyError(f"there is no run {run_id}")
        if run_id not in self.runs:
            self.begun += 1
            run_id = run_id or f"id{self.begun}"
            self.runs[run_id], self.names[run_id] = [], name
        return Handle(self, run_id, name)


class Handle:
    def __init__(self, shelf, run_id, name):
        self.shelf, self.id, self.name = shelf, run_id, name
        self.info = types.SimpleNamespace(run_id=run_id)

    def log(self, values, step):
        """Wandb passes over a step that is behind the last one, and has one row for each step."""
        points = self.shelf.runs[self.id]
        if self.shelf.one_row_a_step:
            if points and step < points[-1][1]:
                return
            points[:] = [point for point in points if point[1] < step or point[0] not in values]
        points += [(name, step, value) for name, value in values.items()]

    def finish(self, exit_code=0):
        pass


@pytest.fixture
def shelf(monkeypatch):
    kept, state = Shelf(), types.SimpleNamespace(run=None)

    def wandb_init(project, name, dir, settings, id=None, resume=None):
        kept.one_row_a_step = True
        return kept.begin(id, name, must=resume == "must")

    def trackio_init(project, name, resume="never"):
        known = [run_id for run_id, own in kept.names.items() if own == name and resume != "never"]
        return kept.begin(known[-1] if known else None, name)

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            self.run = kept.begin(folder)
            if purge_step is not None:
                kept.runs[folder][:] = [point for point in kept.runs[folder] if point[1] < purge_step]

        def add_scalar(self, name, value, step):
            self.run.log({name: value}, step)

        def close(self):
            pass

    def start_run(run_name=None, run_id=None, tags=None):
        state.run = kept.begin(run_id, run_name, must=True)
        return state.run

    class MlflowClient:
        def get_metric_history(self, run_id, key):
            return [types.SimpleNamespace(step=step) for name, step, _ in kept.runs[run_id] if name == key]

    services = {
        "wandb": {"init": wandb_init, "Settings": lambda **_: None},
        "trackio": {"init": trackio_init},
        "tensorboard": {},
        "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
        "mlflow": {
            "set_experiment": lambda name: None,
            "start_run": start_run,
            "log_metrics": lambda values, step: state.run.log(values, step),
            "end_run": lambda status: None,
            "MlflowClient": MlflowClient,
        },
    }
    for name, functions in services.items():
        module = types.ModuleType(name)
        for key, function in functions.items():
            setattr(module, key, function)
        monkeypatch.setitem(sys.modules, name, module)
    return kept


def losses(shelf):
    """(step, loss) of every point of every run there."""
    return [[(step, loss) for name, step, loss in points if name == "train/loss"] for points in shelf.runs.values()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    return folder


@pytest.mark.parametrize("name", REPORTERS)
def test_a_run_that_was_struck_down_is_one_run_there_with_each_point_once(name, shelf, place, tmp_path):
    """The last checkpoint is of step 3; steps 4 and 5 were told of before, and come again (to trackio twice, alike)."""
    values = recipe(place / "model", place / "rows.jsonl", tmp_path / "run", save_every=3, evaluate_every=3)
    values["output"]["report_to"] = [name]

    def strike(event):
        if isinstance(event, StepDone) and event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run.train(from_dict(values), quiet=True, listeners=[strike])
    for newer in (tmp_path / "run" / "checkpoints").glob("step-00000[45]"):
        newer.rename(tmp_path / newer.name)  # as after a kill
    run.train(from_dict(values), quiet=True, resume=True)
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = [(line["step"], line["loss"]) for line in told if line["event"] == "step"]
    assert len(wanted) == 8
    (found,) = losses(shelf)
    assert [step for step, _ in found] == ([1, 2, 3, 4, 5, 4, 5, 6, 7, 8] if name == "trackio" else list(range(1, 9)))
    assert dict(found) == dict(wanted)


def test_another_run_in_another_folder_is_another_run_there(shelf, place, tmp_path):
    for folder in ("one", "two"):
        values = recipe(place / "model", place / "rows.jsonl", tmp_path / folder, epochs=1)
        values["output"]["report_to"] = ["wandb", "mlflow"]
        run.train(from_dict(values), quiet=True)
    assert len(shelf.runs) == 4
    ids = [json.loads((tmp_path / folder / "trackers.json").read_text()) for folder in ("one", "two")]
    assert ids[0].keys() == ids[1].keys() == {"wandb", "mlflow"}
    assert len({*ids[0].values(), *ids[1].values()}) == 4


def test_a_run_that_is_gone_there_is_an_error_that_says_how_to_begin_another(shelf, tmp_path):
    with pytest.raises(MachineError, match="mlflow does not start") as caught:
        reporters(["mlflow"], "trial", tmp_path, {"mlflow": "gone"})
    assert "delete trackers.json" in caught.value.fix


def test_ids_that_cannot_be_read_are_an_error(place, tmp_path):
    values = recipe(place / "model", place / "rows.jsonl", tmp_path / "run", epochs=1)
    run.train(from_dict(values), quiet=True)
    (tmp_path / "run" / "trackers.json").write_text("torn")
    with pytest.raises(CheckpointError, match="ids of this run cannot be read"):
        run.train(from_dict(values), quiet=True, resume=True)
