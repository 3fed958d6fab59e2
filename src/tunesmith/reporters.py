"""`report_to`: the run's numbers sent to a tracking service, one small listener each.

What is sent is numbers by name and step, and the run's name. No text, no path, no recipe, no secret; who is logged in
is the service's own business. Services are imported when asked for, before the model loads.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.errors import MachineError, TunesmithError, together
from tunesmith.events import Ended, Evaluated, Event, StepDone

PROJECT = "tunesmith"


def reporters(names: Iterable[str], run_name: str, folder: Path) -> list[Reporter]:
    """A listener for each of `names`; a service that is not installed is an error that names its extra."""
    wanted = [REPORTERS[name] for name in dict.fromkeys(names)]
    errors: list[TunesmithError] = []
    for reporter in wanted:
        try:
            for module in reporter.modules:
                importlib.import_module(module)
        except ImportError as error:
            errors.append(
                MachineError(
                    f"report_to: {reporter.name} is not installed",
                    found=str(error),
                    fix=f"pip install 'tunesmith[{reporter.name}]', or take it out of output.report_to",
                )
            )
    if errors:
        raise together(errors)
    return [reporter(run_name, folder) for reporter in wanted]


def numbers(event: Event) -> dict[str, float]:
    """The finite numbers of an event, named as in the services' charts: train/loss, held_out/loss."""
    values: dict[str, Any] = {}
    if isinstance(event, StepDone):
        values = {f"train/{name}": value for name, value in vars(event).items() if name not in ("step", "num_steps")}
    elif isinstance(event, Evaluated):
        values = {f"held_out/{name}": value for name, value in event.metrics.items()}
        values["held_out/seconds"] = event.seconds
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


class Reporter:
    """A listener that hands numbers on. A service that fails is named once and then left alone; the run goes on."""

    name = ""
    modules: tuple[str, ...] = ()
    """What must be importable."""
    _failed = False

    def __init__(self, run_name: str, folder: Path) -> None:
        raise NotImplementedError

    def __call__(self, event: Event) -> None:
        if self._failed:
            return
        try:
            values = numbers(event)
            if values and isinstance(event, StepDone | Evaluated):
                self.send(values, event.step)
            elif isinstance(event, Ended):
                self.finish()
        except Exception as error:
            self._failed = True
            warnings.warn(f"{self.name} failed and gets no more numbers: {error}", RuntimeWarning, stacklevel=2)

    def send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError


class Wandb(Reporter):
    name, modules = "wandb", ("wandb",)

    def __init__(self, run_name: str, folder: Path) -> None:
        self._run = importlib.import_module("wandb").init(project=PROJECT, name=run_name, dir=str(folder))

    def send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio(Reporter):
    name, modules = "trackio", ("trackio",)

    def __init__(self, run_name: str, folder: Path) -> None:
        self._run = importlib.import_module("trackio").init(project=PROJECT, name=run_name)

    def send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        self._run.finish()


class TensorBoard(Reporter):
    name, modules = "tensorboard", ("tensorboard", "torch.utils.tensorboard")

    def __init__(self, run_name: str, folder: Path) -> None:
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def send(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class Mlflow(Reporter):
    name, modules = "mlflow", ("mlflow",)

    def __init__(self, run_name: str, folder: Path) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=run_name)

    def send(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def finish(self) -> None:
        self._mlflow.end_run()


REPORTERS: dict[str, type[Reporter]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
}
