"""The one training loop.

It owns normalisation, clipping, updates, evaluation, checkpoints and what it tells its listeners. What is learned comes
in through two seams of the objective: `steps` (which rows, divided by what) and `loss` (sums of one micro-batch).
Nothing here knows of methods, data formats or losses: what a method wants done between steps it asks for (`on_step`).

Exactness: a checkpoint holds everything that the next step reads (weights, moments, random states, the objective's
cursor, rates, micro-batch), so that a resumed run continues bit for bit on a CPU. A step that a signal, an error or a
lack of memory broke off leaves no trace: the state is that of the last whole step. Whatever ends a run early, that is
what is saved, and the error that ended it goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.base import Request, ResetMoments, Rewarm
from tunesmith.data.types import Origin
from tunesmith.errors import Interrupted, MachineError, NonFiniteError, TunesmithError
from tunesmith.events import BrokenOff, Ended, Evaluated, Event, Listener, Noted, Saved, Started, StepDone
from tunesmith.models.policy import Policy
from tunesmith.models.room import free_cache, is_out_of_memory
from tunesmith.objectives.base import Objective, Step
from tunesmith.train import memory
from tunesmith.train.budget import Budget, Progress
from tunesmith.train.checkpoint import Checkpoints, Restored
from tunesmith.train.every import Every, is_due
from tunesmith.train.mode import train_mode
from tunesmith.train.optim import (
    gradient_norm,
    load_optimizer,
    make_optimizer,
    optimizer_numbers,
    optimizer_tensors,
    reset_moments,
    set_learning_rate,
)
from tunesmith.train.settings import TrainSettings
from tunesmith.train.signals import Signals


@dataclass(frozen=True)
class Job:
    """What is trained: the tensors, their learning-rate multipliers, and how they are written."""

    parameters: Mapping[str, nn.Parameter]
    multipliers: Mapping[str, float]
    write: Callable[[Path], None]
    """Writes the adapter's own files into a folder."""
    state: Callable[[], Mapping[str, Tensor]]
    """Every tensor that makes the adapter, trained or not, as it is now."""
    load_state: Callable[[Mapping[str, Tensor]], None]
    """Puts them back."""
    on_step: Callable[[int, int | None], Sequence[Request]]
    """Given how many updates are done and planned (None: unknown): what the method does then, and what it asks for."""

    @classmethod
    def of(cls, adapter_set: AdapterSet, write: Callable[[Path], None]) -> Job:
        """The training of an adapter."""
        own = adapter_set
        return cls(own.parameters(), own.groups(), write, own.state, own.load_state, own.on_step)


@dataclass
class _StepResult:
    loss: float
    grad_norm: float
    num_tokens: int
    num_learned: int
    metrics: dict[str, float]


class Loop:
    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        job: Job,
        settings: TrainSettings,
        checkpoints: Checkpoints,
        signals: Signals,
        listeners: Sequence[Listener] = (),
        extra_state: Mapping[str, Any] | None = None,
    ) -> None:
        self.policy, self.objective, self.job, self.settings = policy, objective, job, settings
        self.checkpoints, self.signals, self.listeners = checkpoints, signals, listeners
        self.extra_state = dict(extra_state or {})
        self.optimizer = make_optimizer(settings, job.parameters, job.multipliers)
        self.at = Progress(
            micro_tokens=settings.micro_batch_tokens or memory.default_micro_batch_tokens(policy.device),
            loss_scale=2.0**14 if policy.model.dtype == torch.float16 else 1.0,
        )
        self.budget = Budget.of(settings, objective)
        self._names = {id(parameter): name for name, parameter in job.parameters.items()}
        self._cursor = objective.state_dict()
        torch.manual_seed(settings.seed)
        self._random = self._random_states()
        self._whole = True
        self._stop_asked = False
        self._saved: tuple[int, int] | None = None
        self._refused: tuple[int, int] | None = None

    # ---- the run ------------------------------------------------------------------------------------------------

    def run(self) -> Ended:
        """Train until the budget is spent; returns how it ended. What ends it early is raised after saving."""
        try:
            with self.signals.deferred():
                free_cache(self.policy.device)  # what loading left behind
                memory.reset_peak(self.policy.device)
                at = self.at
                self._tell(Started(self.budget.num_steps, self.settings.minutes, at.step, at.train_seconds))
                self._evaluate_if_due()
                for step, begun in self._steps():
                    self._one_step(step, begun)
                    self._evaluate_if_due()
                    if self._reason() is None:
                        self._save_if_due()
                self._finish()
            ended = Ended(at.step, self._reason() or "the budget is spent", **self._totals())
            self._tell(ended)
        except BaseException as error:
            with self.signals.deferred():
                self._break_off(error)
            raise
        return ended

    def _steps(self) -> Iterator[tuple[Step, float]]:
        """The objective's steps while the budget lasts and nothing says stop, each with when its making began."""
        if self.budget.over(self.at) or self._reason() is not None:
            return
        begun = time.perf_counter()
        for step in self.objective.steps(self.policy):
            yield step, begun
            if self.budget.over(self.at) or self._reason() is not None:
                return
            begun = time.perf_counter()

    def _totals(self) -> dict[str, Any]:
        at = self.at
        return {
            "train_seconds": at.train_seconds,
            "evaluation_seconds": at.evaluation_seconds,
            "saving_seconds": at.saving_seconds,
            "num_tokens": at.num_tokens,
            "best_step": at.best_step,
            "best_metrics": at.best_metrics,
        }

    def _break_off(self, error: BaseException) -> None:
        """Save the last whole step and tell who listens. `error` ends the run, whatever else goes wrong here."""
        # Nothing is whole amid an update, and a number that was not finite comes again from the same state.
        if self._whole and not isinstance(error, NonFiniteError):
            try:
                self._save()
            except Exception as again:
                if isinstance(error, Interrupted):
                    error.noted("not saved", f"what came after the last checkpoint: {str(again).splitlines()[0]}")
        if not isinstance(error, TunesmithError) and self._saved is not None:
            error.add_note(f"the run is saved as it was after step {self._saved[0]}; --resume goes on from there")
        status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        reason = str(error).partition("\n")[0] or type(error).__name__
        for listener in self.listeners:
            with suppress(Exception):
                listener(BrokenOff(self.at.step, reason, status, **self._totals()))

    def _reason(self) -> str | None:
        """Why to stop before the budget is spent."""
        return self.budget.stops(self.at) or ("a listener asked to stop" if self._stop_asked else None)

    def _one_step(self, step: Step, begun: float) -> None:
        learning_rate = self.budget.learning_rate(self.at)
        self._restore_random(self._random)  # whatever listeners or an evaluation drew
        result = self._gradients(step)
        if self.settings.max_grad_norm is not None and result.grad_norm > self.settings.max_grad_norm:
            shrink = self.settings.max_grad_norm / (result.grad_norm + 1e-6)
            torch._foreach_mul_([p.grad for p in self.job.parameters.values() if p.grad is not None], shrink)
        set_learning_rate(self.optimizer, learning_rate)
        self._update()
        at = self.at
        at.step += 1
        notes = [self._carry_out(request) for request in self.job.on_step(at.step, self.budget.num_steps)]
        seconds = time.perf_counter() - begun
        at.train_seconds += seconds
        at.last_step_seconds = seconds
        at.num_tokens += result.num_tokens
        at.num_learned += result.num_learned
        self.budget.watch(at, result.loss)
        # Here a whole step ends: this is what a checkpoint written from now on must hold.
        self._cursor, self._random = self.objective.state_dict(), self._random_states()
        self._whole = True
        self._tell(
            StepDone(
                step=at.step,
                num_steps=self.budget.num_steps,
                epoch=step.epoch,
                loss=result.loss,
                learning_rate=learning_rate,
                grad_norm=result.grad_norm,
                num_tokens=result.num_tokens,
                num_learned=result.num_learned,
                seconds=seconds,
                train_seconds=at.train_seconds,
                tokens_per_second=result.num_tokens / max(seconds, 1e-9),
                seconds_left=self.budget.seconds_left(at),
                memory_bytes=memory.peak_bytes(self.policy.device),
                metrics=result.metrics,
            )
        )
        for note in [*map(Noted, step.notes), *notes]:
            self._tell(note)

    def _carry_out(self, request: Request) -> Noted:
        """Do what a method asks for; returns what is said of it once the step is whole."""
        match request:
            case ResetMoments(names, kept):
                reset_moments(self.optimizer, [self.job.parameters[name] for name in names], kept)
                how = f"pruned to the largest {kept:.3g}" if kept else "reset"
                return Noted(f"after step {self.at.step}: the optimizer's moments of {len(names)} tensors are {how}")
            case Rewarm(steps):
                self.at.rewarm_from, self.at.rewarm_steps = self.at.step, steps
                return Noted(f"after step {self.at.step}: the learning rate warms up again over {steps} steps")

    def _update(self) -> None:
        """Nothing can be taken back from here until the step is whole."""
        self._whole = False
        try:
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MachineError(
                f"out of memory in the update of step {self.at.step + 1}",
                found=str(error).partition("\n")[0],
                fix="train.optimizer=adamw-8bit, a smaller adapter (adapter.r, adapter.targets, adapter.last_blocks) "
                "or train.recompute=true; the last checkpoint is intact",
            ) from error
        self.optimizer.zero_grad(set_to_none=True)

    # ---- one step's gradients -----------------------------------------------------------------------------------

    def _gradients(self, step: Step) -> _StepResult:
        """Gradients of one step, redone with smaller micro-batches or a smaller loss scale where that is the remedy."""
        lengths = [len(example) for example in step.examples]
        random = self._random_states()
        while True:
            try:
                result = self._accumulate(step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink_micro_batch(lengths, error, "the step")
            else:
                if math.isfinite(result.grad_norm):
                    return result
                if self.at.loss_scale <= 1.0:
                    raise self._non_finite("the gradient", [example.origin for example in step.examples])
                self.at.loss_scale /= 2.0
                self._tell(Noted(f"fp16 overflow: loss scale lowered to {self.at.loss_scale:g}, the step is redone"))
            self.optimizer.zero_grad(set_to_none=True)
            free_cache(self.policy.device)
            self._restore_random(random)

    def _shrink_micro_batch(self, lengths: Sequence[int], error: BaseException, of: str) -> None:
        """Half of what a micro-batch can have held, but never less than the longest row."""
        longest, held = max(lengths), min(self.at.micro_tokens, sum(lengths))
        if held <= longest:
            raise MachineError(
                f"out of memory in {of}, with one row of {longest} tokens in a micro-batch",
                found=str(error).partition("\n")[0],
                fix="train.recompute=true, a smaller data.max_length, adapter.last_blocks, or a smaller model",
            ) from error
        self.at.micro_tokens = max(longest, held // 2)
        self._tell(
            Noted(f"out of memory: micro-batches now hold {self.at.micro_tokens} tokens; {of} itself is unchanged")
        )

    def _accumulate(self, step: Step) -> _StepResult:
        batches = self.objective.micro_batches(step, self.at.micro_tokens)
        losses: list[Tensor] = []
        metrics: dict[str, list[Tensor]] = {}
        for batch in batches:
            if self.signals.received is not None:
                self.optimizer.zero_grad(set_to_none=True)
                with self.signals.immediate():
                    pass
            found = self.objective.loss(self.policy, batch.to(self.policy.device))
            total = torch.stack([value / step.denominators[name] for name, value in found.sums.items()]).sum()
            for name, value in found.metrics.items():
                metrics.setdefault(name, []).append(value)
            (total * self.at.loss_scale).backward()
            losses.append(total.detach())
        values = torch.stack(losses).tolist()
        if not all(map(math.isfinite, values)):
            raise self._non_finite("the loss", self._culprits(step))
        parameters = list(self.job.parameters.values())
        if self.at.loss_scale != 1.0:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.at.loss_scale)
        norm = gradient_norm(parameters).item()
        num_learned = sum(batch.num_learned for batch in batches)
        means = step.metrics | {
            name: torch.stack(sums).sum().item() / step.denominators[name]
            for name, sums in metrics.items()
            if step.denominators[name]
        }
        return _StepResult(sum(values), norm, sum(map(len, batches)), num_learned, means)

    @torch.no_grad()
    def _culprits(self, step: Step) -> list[Origin]:
        """The rows of `step` whose own loss is not finite (all of them, where none is alone)."""
        guilty: list[Origin] = []
        for batch in self.objective.micro_batches(step, 1):  # as small as the objective has them
            sums = self.objective.loss(self.policy, batch.to(self.policy.device)).sums
            if not all(torch.isfinite(value).item() for value in sums.values()):
                guilty += batch.origins
        return list(dict.fromkeys(guilty or [example.origin for example in step.examples]))

    def _non_finite(self, what: str, origins: Sequence[Origin]) -> NonFiniteError:
        self.optimizer.zero_grad(set_to_none=True)
        shown = "; ".join(map(str, origins[:5])) + (f"; and {len(origins) - 5} more" if len(origins) > 5 else "")
        kept = f"the checkpoint of step {self._saved[0]} is intact" if self._saved else "nothing was saved yet"
        return NonFiniteError(
            f"{what} of step {self.at.step + 1} is not a finite number; the update was not applied",
            found=f"rows {shown}",
            fix="look at these rows with `tunesmith check`, lower train.learning_rate, or model.dtype=float32; " + kept,
        )

    # ---- evaluation and checkpoints -----------------------------------------------------------------------------

    def _due(self, every: Every | None, last_share: float) -> bool:
        if every is not None:
            return is_due(every, self.at.step, self.budget.steps_per_epoch)
        if self.budget.num_steps is not None:
            return self.at.step % max(1, math.ceil(self.budget.num_steps / 10)) == 0
        return int(self.budget.spent(self.at) * 10) > int(last_share * 10)

    def _evaluate_if_due(self) -> None:
        at = self.at
        if at.step == 0 or at.evaluated_step == at.step:
            return
        if self.budget.over(at) or self._due(self.settings.evaluate_every, at.evaluated_share):
            self._evaluate()

    def _evaluate(self) -> None:
        start = time.perf_counter()
        self.policy.eval()
        try:
            metrics = self._metrics()
        finally:
            train_mode(self.policy, self.settings.recompute)
        at = self.at
        seconds = time.perf_counter() - start
        at.evaluated_step, at.evaluated_share = at.step, self.budget.spent(at)
        if not metrics:
            return
        at.evaluation_seconds += seconds
        best = math.isfinite(metrics["loss"]) and metrics["loss"] < at.best_metrics.get("loss", math.inf)
        at.no_gain = 0 if best else at.no_gain + 1
        if best:
            at.best_step, at.best_metrics = at.step, metrics
        self._tell(Evaluated(at.step, metrics, seconds, best))
        if best:
            self._save()

    def _metrics(self) -> dict[str, float]:
        """Held-out metrics, all measured again with smaller micro-batches where memory ran out."""
        while True:
            try:
                with self.signals.immediate():
                    return self.objective.evaluate(self.policy, self.at.micro_tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink_micro_batch(self.objective.held_out_lengths(), error, "the evaluation")
            free_cache(self.policy.device)

    def _save_if_due(self) -> None:
        every, at = self.settings.save_every, self.at
        if at.evaluated_step == at.step if every is None else is_due(every, at.step, self.budget.steps_per_epoch):
            self._save()

    def _finish(self) -> None:
        if self.budget.still_warming(self.at) and self._reason() is None:
            self._tell(Noted("the budget ended within the warm-up: train.learning_rate was never reached"))
        if self.at.evaluated_step != self.at.step and (self.at.step > 0 or self.budget.num_steps == 0):
            self._evaluate()
        self._save()

    def _save(self) -> None:
        """Write a checkpoint of the last whole step, unless it is there already with all that is known now."""
        start, now = time.perf_counter(), (self.at.step, self.at.evaluated_step)
        if now in (self._saved, self._refused):
            return
        self._refused = now
        state = {"progress": asdict(self.at), "objective": self._cursor, **self.extra_state,
                 "optimizer": optimizer_numbers(self.optimizer, self._names)}  # fmt: skip
        tensors = {f"weights/{name}": tensor for name, tensor in self.job.state().items()}
        tensors |= {f"optimizer/{k}": v for k, v in optimizer_tensors(self.optimizer, self._names).items()}
        tensors |= {f"random/{name}": value for name, value in self._random.items()}
        protect = {self.at.best_step} if self.at.best_step is not None else set()
        path = self.checkpoints.write(self.at.step, self.job.write, tensors, state, protect)
        self._saved, self._refused = now, None
        seconds = time.perf_counter() - start
        self.at.saving_seconds += seconds
        self._tell(Saved(self.at.step, str(path), seconds))

    def restore(self, saved: Restored) -> None:
        """Go back to a checkpoint, bit for bit."""
        split: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "random": {}}
        for key, value in saved.tensors.items():
            kind, _, name = key.partition("/")
            split[kind][name] = value
        self.job.load_state(split["weights"])
        load_optimizer(self.optimizer, self.job.parameters, split["optimizer"], saved.state["optimizer"])
        self.at = Progress(**saved.state["progress"])
        self.objective.load_state_dict(saved.state["objective"])
        self._restore_random(split["random"])
        self._cursor, self._random = saved.state["objective"], split["random"]
        self._saved = (self.at.step, self.at.evaluated_step)

    # ---- small things -------------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            if listener(event) == "stop":
                self._stop_asked = True

    def _random_states(self) -> dict[str, Tensor]:
        states = {"torch": torch.get_rng_state()}
        if self.policy.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.policy.device)
        return states

    def _restore_random(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        if "cuda" in states and self.policy.device.type == "cuda":  # begun on a GPU, going on without
            torch.cuda.set_rng_state(states["cuda"], self.policy.device)
