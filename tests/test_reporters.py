"""Trackers get numbers and nothing else, and a missing one is said before the model loads."""

import math
import sys
import types

import pytest

from tunesmith.errors import MachineError
from tunesmith.events import BrokenOff, Ended, Evaluated, Noted, Saved, Started, StepDone
from tunesmith.record import OutputSettings
from tunesmith.reporters import REPORTERS, reporters

EVENTS = [
    Started(2, None, 0, 0.0),
    StepDone(1, 2, 0.5, 2.0, 1e-4, math.nan, 100, 40, 0.5, 0.5, 200.0, None, 10**9),
    Noted("a private path: /home/somebody"),
    Evaluated(1, {"loss": 1.5}, 0.2, True),
    Saved(1, "/home/somebody/run", 0.1),
    Ended(2, "budget spent", 1.0, 0.2, 200),
]


class Service:
    """Stands for any of the four; keeps what it is told."""

    id = name = "one"
    info = types.SimpleNamespace(run_id="one")

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


@pytest.fixture
def service(monkeypatch):
    fake = Service()
    for name in ("wandb", "trackio", "mlflow", "tensorboard", "torch.utils.tensorboard"):
        module = types.ModuleType(name)
        for attribute in (
            "init", "SummaryWriter", "set_experiment", "start_run", "log_metrics", "end_run", "Settings",
        ):  # fmt: skip
            setattr(module, attribute, getattr(fake, attribute))
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.mark.parametrize("name", REPORTERS)
def test_a_service_gets_the_numbers_by_step_and_is_closed(name, service, tmp_path):
    (reporter,) = reporters([name], "trial", tmp_path)
    for event in EVENTS:
        reporter(event)
    sent = {}
    for call, arguments, options in service.calls:
        if call == "add_scalar":
            sent[arguments[0]] = (arguments[1], arguments[2])
        elif call in ("log", "log_metrics"):
            sent |= {key: (value, options["step"]) for key, value in arguments[0].items()}
    assert sent["train/loss"] == (2.0, 1)
    assert sent["held_out/loss"] == (1.5, 1)
    assert "train/grad_norm" not in sent
    assert all(isinstance(value, float) and math.isfinite(value) for value, _ in sent.values())
    assert service.calls[-1][0] in ("finish", "close", "end_run")
    assert "somebody" not in repr(service.calls)


@pytest.mark.parametrize("name", REPORTERS)
def test_a_service_that_is_not_installed_names_its_extra(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MachineError, match=f"report_to: {name} is not installed") as caught:
        reporters([name], "trial", tmp_path)
    assert f"pip install 'tunesmith[{name}]'" in caught.value.fix


@pytest.mark.parametrize("name", REPORTERS)
def test_a_run_that_ends_early_lets_the_service_go_and_says_that_it_failed(name, service, tmp_path):
    (reporter,) = reporters([name], "trial", tmp_path)
    reporter(BrokenOff(1, "stopped by SIGTERM", "interrupted", 1.0, 0.0, 100))
    call, arguments, options = service.calls[-1]
    assert call in ("finish", "close", "end_run")
    assert name in ("trackio", "tensorboard") or "FAILED" in arguments or options["exit_code"] == 1
    count = len(service.calls)
    reporter.close()
    assert len(service.calls) == count
    (unheard,) = reporters([name], "trial", tmp_path)
    unheard.close()
    assert service.calls[-1][0] == call, "a run that never began lets it go too"


def test_a_service_that_does_not_start_is_an_error_and_the_others_are_let_go(service, monkeypatch, tmp_path):
    def refused(*arguments, **options):
        raise ConnectionError("not logged in\nat all")

    monkeypatch.setattr(sys.modules["mlflow"], "set_experiment", refused)
    with pytest.raises(MachineError, match="report_to: mlflow does not start") as caught:
        reporters(["wandb", "mlflow"], "trial", tmp_path)
    assert caught.value.found == "not logged in"
    assert service.calls[-1][0] == "finish"


def test_what_services_gather_by_themselves_is_off(service, tmp_path):
    reporters(["wandb", "trackio", "mlflow"], "trial", tmp_path)
    (settings,) = [options for call, _, options in service.calls if call == "Settings"]
    assert settings["console"] == "off"
    assert settings["disable_git"]
    assert settings["x_disable_meta"]
    assert settings["host"] == settings["program"] == ""
    assert {"auto_log_gpu": False, "auto_log_cpu": False}.items() <= next(
        options for call, _, options in service.calls if call == "init" and "auto_log_gpu" in options
    ).items()
    (begun,) = [options for call, _, options in service.calls if call == "start_run"]
    assert set(begun["tags"].values()) == {""}
    assert "mlflow.user" in begun["tags"]


def test_none_by_default(tmp_path):
    assert reporters(OutputSettings().report_to, "trial", tmp_path) == []


def test_a_missing_service_is_known_before_another_is_started(service, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MachineError):
        reporters(["wandb", "mlflow"], "trial", tmp_path)
    assert service.calls == []


def test_a_service_that_fails_is_named_once_and_the_run_goes_on(service, tmp_path):
    (reporter,) = reporters(["wandb"], "trial", tmp_path)

    def fail(values, step):
        raise ConnectionError("gone")

    reporter.send = fail
    with pytest.warns(RuntimeWarning, match="wandb failed and gets no more numbers: gone") as caught:  # noqa: PT031
        for event in EVENTS * 2:
            reporter(event)
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_project_is_handed_on(name, service, tmp_path):
    reporters([name], "trial", tmp_path, project="team/mine" if name == "wandb" else "mine")
    said = [str(arguments) + str(options) for _, arguments, options in service.calls]
    assert any("'mine'" in text for text in said)
    if name == "wandb":
        assert any("'entity': 'team'" in text for text in said)
