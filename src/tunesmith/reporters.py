"""`report_to`: the run's numbers sent to a tracking service, one small listener each.

What is sent is numbers by name and step, and the run's name. No text, no path, no recipe, no secret; who is logged in
is the service's own business. What services gather by themselves (terminal output, command lines, host and user names,
versions of packages, the state of the repository) is switched off. They are started before the model loads.

A run that goes on goes on in the services too: by the id that it had there, and without points that are there already.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import MachineError, TunesmithError, together
from tunesmith.events import BrokenOff, Ended, Evaluated, Event, Started, StepDone

PROJECT = "tunesmith"


def reporters(
    names: Iterable[str],
    run_name: str,
    folder: Path,
    earlier: Mapping[str, str] | None = None,
    project: str | None = None,
) -> list[Reporter]:
    """A listener for each of `names`, started; one that is not installed, or does not start, is an error.

    `earlier`: by service, the `run_id` of the run that goes on. `project`: the services' name for related runs.
    """
    wanted = [REPORTERS[name] for name in dict.fromkeys(names)]
    known = earlier or {}
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
            started.append(reporter(run_name, folder, known.get(reporter.name), project or PROJECT))
        except Exception as error:
            for other in started:
                other.close()
            id_given = known.get(reporter.name)
            goes_on = "; or, to begin another run there, delete trackers.json in the run folder" if id_given else ""
            raise MachineError(
                f"report_to: {reporter.name} does not start",
                found=str(error).partition("\n")[0] or type(error).__name__,
                fix=f"set {reporter.name} up with its own tool, or take it out of output.report_to{goes_on}",
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
        kept = {name: value for name, value in vars(event).items() if name not in ("step", "num_steps", "metrics")}
        values = {f"train/{name}": value for name, value in (kept | event.metrics).items()}
    elif isinstance(event, Evaluated):
        values = {f"held_out/{name}": value for name, value in event.metrics.items()}
        values["held_out/seconds"] = event.seconds
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


class Reporter:
    """A listener that hands numbers on. A service that fails is named once and then left alone; the run goes on."""

    name = ""
    modules: tuple[str, ...] = ()
    """What must be importable."""
    run_id: str | None = None
    """By which the service knows the run again; None where it needs none."""
    _done = False

    def __init__(self, run_name: str, folder: Path, earlier: str | None = None, project: str = PROJECT) -> None:
        """`earlier`: the `run_id` of a run that goes on."""
        raise NotImplementedError

    def __call__(self, event: Event) -> None:
        if self._done:
            return
        try:
            values = numbers(event)
            if values and isinstance(event, StepDone | Evaluated):
                self.send(values, event.step)
            elif isinstance(event, Started) and event.first_step:
                self.go_on(event.first_step)
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

    def go_on(self, first_step: int) -> None:
        """The run goes on behind `first_step`: what was sent of later steps comes again."""

    def send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def finish(self, whole: bool) -> None:
        """The run is over; not `whole`: a signal or an error ended it."""
        raise NotImplementedError


class Wandb(Reporter):
    name, modules = "wandb", ("wandb",)

    def __init__(self, run_name: str, folder: Path, earlier: str | None = None, project: str = PROJECT) -> None:
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
        same: dict[str, str] = {"id": earlier, "resume": "allow"} if earlier else {}
        team, _, project = project.rpartition("/")
        same |= {"entity": team} if team else {}
        self._run = wandb.init(project=project, name=run_name, dir=str(folder), settings=settings, **same)
        self.run_id = str(self._run.id)

    def send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)  # what it holds of this step already it keeps, and passes over the rest

    def finish(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


class Trackio(Reporter):
    name, modules = "trackio", ("trackio",)

    def __init__(self, run_name: str, folder: Path, earlier: str | None = None, project: str = PROJECT) -> None:
        init = importlib.import_module("trackio").init
        same = {"resume": "allow"} if earlier else {}
        silent = _known(init, auto_log_gpu=False, auto_log_cpu=False)
        self._run = init(project=project, name=earlier or run_name, **silent, **same)
        self.run_id = str(self._run.name)  # it knows runs again by name

    def send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self, whole: bool) -> None:
        self._run.finish()


class TensorBoard(Reporter):
    name, modules = "tensorboard", ("tensorboard", "torch.utils.tensorboard")

    def __init__(self, run_name: str, folder: Path, earlier: str | None = None, project: str = PROJECT) -> None:
        self._folder = str(folder / "tensorboard")  # a folder is a run there, so the same folder is the same run
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(self._folder)

    def go_on(self, first_step: int) -> None:
        self._writer.close()
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(self._folder, purge_step=first_step + 1)

    def send(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, whole: bool) -> None:
        self._writer.close()


class Mlflow(Reporter):
    name, modules = "mlflow", ("mlflow",)

    def __init__(self, run_name: str, folder: Path, earlier: str | None = None, project: str = PROJECT) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(project)
        self._there: dict[str, int] = {}
        self._goes_on = earlier is not None
        told = ("user", "source.name", "source.git.commit", "source.git.branch", "source.git.repoURL")
        silent = _known(self._mlflow.start_run, log_system_metrics=False)
        which = {"run_id": earlier} if earlier else {"run_name": run_name}
        run = self._mlflow.start_run(tags={f"mlflow.{name}": "" for name in told}, **which, **silent)
        self.run_id = str(run.info.run_id)

    def send(self, values: dict[str, float], step: int) -> None:
        new = {name: value for name, value in values.items() if step > self._last_step(name)}
        if new:
            self._mlflow.log_metrics(new, step=step)

    def _last_step(self, name: str) -> int:
        """The last step of which the run had this number before it went on: a second point would stand beside it."""
        if self._goes_on and name not in self._there:
            history = self._mlflow.MlflowClient().get_metric_history(self.run_id, name)
            self._there[name] = max((point.step for point in history), default=-1)
        return self._there.get(name, -1)

    def finish(self, whole: bool) -> None:
        self._mlflow.end_run("FINISHED" if whole else "FAILED")


REPORTERS: dict[str, type[Reporter]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
}
