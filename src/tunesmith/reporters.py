"""`report_to`: the run's numbers sent to a tracking service, one small listener each.

What is sent is numbers by name and step, and the run's name. No text, no path, no recipe, no secret; who is logged in
is the service's own business. What services gather by themselves (terminal output, command lines, host and user names,
versions of packages, the state of the repository) is switched off. They are started before the model loads.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tunesmith.errors import MachineError, TunesmithError, together
from tunesmith.events import BrokenOff, Ended, Evaluated, Event, StepDone

PROJECT = "tunesmith"


def reporters(names: Iterable[str], run_name: str, folder: Path) -> list[Reporter]:
    """A listener for each of `names`, started; one that is not installed, or does not start, is an error."""
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
    started: list[Reporter] = []
    for reporter in wanted:
        try:
            started.append(reporter(run_name, folder))
        except Exception as error:
            for earlier in started:
                earlier.close()
            raise MachineError(
                f"report_to: {reporter.name} does not start",
                found=str(error).partition("\n")[0] or type(error).__name__,
                fix=f"set {reporter.name} up with its own tool, or take it out of output.report_to",
            ) from error
    return started


def _known(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of `options` that this version of a service takes."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if takes_all or name in parameters}


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
    _done = False

    def __init__(self, run_name: str, folder: Path) -> None:
        raise NotImplementedError

    def __call__(self, event: Event) -> None:
        if self._done:
            return
        try:
            values = numbers(event)
            if values and isinstance(event, StepDone | Evaluated):
                self.send(values, event.step)
            elif isinstance(event, Ended | BrokenOff):
                self._done = True
                self.finish(whole=isinstance(event, Ended))
        except Exception as error:
            self._done = True
            warnings.warn(f"{self.name} failed and gets no more numbers: {error}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Lets the service go where no event has ended the run, so that another may begin in this process."""
        if not self._done:
            self._done = True
            try:
                self.finish(whole=False)
            except Exception as error:
                warnings.warn(f"{self.name} could not be closed: {error}", RuntimeWarning, stacklevel=2)

    def send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def finish(self, whole: bool) -> None:
        """The run is over; not `whole`: a signal or an error ended it."""
        raise NotImplementedError


class Wandb(Reporter):
    name, modules = "wandb", ("wandb",)

    def __init__(self, run_name: str, folder: Path) -> None:
        wandb = importlib.import_module("wandb")
        silent = _known(
            wandb.Settings,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            program="",
            program_relpath="",
            program_abspath="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        settings = wandb.Settings(**silent)
        self._run = wandb.init(project=PROJECT, name=run_name, dir=str(folder), settings=settings)

    def send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


class Trackio(Reporter):
    name, modules = "trackio", ("trackio",)

    def __init__(self, run_name: str, folder: Path) -> None:
        init = importlib.import_module("trackio").init
        self._run = init(project=PROJECT, name=run_name, **_known(init, auto_log_gpu=False, auto_log_cpu=False))

    def send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self, whole: bool) -> None:
        self._run.finish()


class TensorBoard(Reporter):
    name, modules = "tensorboard", ("tensorboard", "torch.utils.tensorboard")

    def __init__(self, run_name: str, folder: Path) -> None:
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def send(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, whole: bool) -> None:
        self._writer.close()


class Mlflow(Reporter):
    name, modules = "mlflow", ("mlflow",)

    def __init__(self, run_name: str, folder: Path) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        told = ("user", "source.name", "source.git.commit", "source.git.branch", "source.git.repoURL")
        silent = _known(self._mlflow.start_run, log_system_metrics=False)
        self._mlflow.start_run(run_name=run_name, tags={f"mlflow.{name}": "" for name in told}, **silent)

    def send(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def finish(self, whole: bool) -> None:
        self._mlflow.end_run("FINISHED" if whole else "FAILED")


REPORTERS: dict[str, type[Reporter]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
}
