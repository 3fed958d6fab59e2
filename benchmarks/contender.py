"""What every contender shares: the job it is handed, the rows it trains on, and the one line it answers with.

Imported inside each rival's own environment, so nothing but the standard library and torch is used here.
A runner is started as `python -m <module> job.json` with `benchmarks/` as working directory.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

IGNORED = -100
"""Label of a token that is not learned; the same number in torch, transformers, TRL and LitGPT."""


@dataclass(frozen=True)
class Job:
    """One run of one contender. Every contender of a benchmark gets the same job but for `contender` and `variant`."""

    contender: str
    rows: str
    model: str
    cache: str
    steps: int
    warmup_steps: int
    rows_per_step: int
    rank: int
    alpha: int
    learning_rate: float
    seed: int
    threads: int
    variant: dict[str, Any] = field(default_factory=dict)
    method: str = "lora"
    """lora or dora."""

    @classmethod
    def read(cls, path: str | Path) -> Job:
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @property
    def total_steps(self) -> int:
        return self.warmup_steps + self.steps

    def load_rows(self) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` of the rows of all steps, in order; rows of step k are [k*n, (k+1)*n)."""
        rows = json.loads(Path(self.rows).read_text())["rows"]
        needed = self.total_steps * self.rows_per_step
        if len(rows) < needed:
            raise SystemExit(f"{self.rows} holds {len(rows)} rows, {self.total_steps} steps need {needed}")
        return rows[:needed]


def num_learned(row: dict[str, list[int]]) -> int:
    """Tokens learned in a row. The first token is never a target: nothing predicts it."""
    return sum(label != IGNORED for label in row["labels"][1:])


def status_bytes(key: str) -> int:
    """`VmHWM` (highest resident size so far) or `VmRSS` (resident now) of this process; 0 where /proc is absent."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def forget_peak() -> bool:
    """Start the highest resident size anew, so that what loading took is not charged to training."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Meter:
    """Clock, memory and losses of one run.

    `start` right before the first step, `step_done` after each optimizer step, `finish` prints the line. A step's
    seconds reach from the end of the step before it, so that fetching rows, padding and logging count.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows = job.load_rows()
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.load_peak_bytes = 0
        self.ready_bytes = 0
        self.peak_was_reset = False
        self._last = 0.0

    def start(self) -> None:
        self.load_peak_bytes = status_bytes("VmHWM")
        self.ready_bytes = status_bytes("VmRSS")
        self.peak_was_reset = forget_peak()
        self._last = time.perf_counter()

    def step_done(self, loss: float, grad_norm: float) -> None:
        """`loss` is the sum over the step's learned tokens divided by their number, before the update."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.losses.append(float(loss))
        self.grad_norms.append(float(grad_norm))
        self._last = time.perf_counter()

    def finish(self, trainable_parameters: int, packages: list[str], **chosen: Any) -> None:
        """Print the answer. `chosen` are settings that the contender picked by itself."""
        job = self.job
        if len(self.seconds) != job.total_steps:
            raise SystemExit(f"{job.contender}: {len(self.seconds)} steps measured, {job.total_steps} asked")
        if not all(math.isfinite(norm) and norm > 0 for norm in self.grad_norms):
            raise SystemExit(f"{job.contender}: a gradient norm is zero or not finite: {self.grad_norms}")
        n = job.rows_per_step
        steps = [self.rows[k * n : (k + 1) * n] for k in range(job.total_steps)]
        training_peak = status_bytes("VmHWM")
        process_peak = max(
            self.load_peak_bytes, training_peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        answer = {
            "contender": job.contender,
            "variant": job.variant,
            "chosen": chosen,
            "warmup_steps": job.warmup_steps,
            "seconds": self.seconds,
            "tokens": [sum(len(row["input_ids"]) for row in step) for step in steps],
            "learned_tokens": [sum(num_learned(row) for row in step) for step in steps],
            "losses": self.losses,
            "grad_norms": self.grad_norms,
            "peak_rss_bytes": process_peak,
            "training_peak_rss_bytes": training_peak if self.peak_was_reset else None,
            "ready_rss_bytes": self.ready_bytes,
            "trainable_parameters": trainable_parameters,
            "threads": job.threads,
            "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        }
        sys.stdout.flush()
        print(json.dumps(answer), flush=True)


def begin(path: str) -> tuple[Job, Meter]:
    """Read the job, fix threads and seed."""
    import torch

    job = Job.read(path)
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return job, Meter(job)
