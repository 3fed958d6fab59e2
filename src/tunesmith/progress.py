"""What a person sees while work is done: stages, a bar with the loss, notes.

Three surfaces show the same facts: a terminal (one live block under the lines that stay), a notebook (one output
updated in place), and anything else, where plain lines appear now and then.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunesmith.events import BrokenOff, Ended, Evaluated, Event, Noted, Started, StepDone

BLOCKS = "▁▂▃▄▅▆▇█"
SECONDS_BETWEEN_FRAMES = 0.1
SECONDS_BETWEEN_LINES, SHARE_BETWEEN_LINES, LINES_IN_HASTE = 10.0, 0.05, 12
SEEN = {
    "reward": "reward",
    "completions/mean_length": "length",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "kl": "kl",
}


class Progress:
    """A listener that shows a run, and the stages around it.

    `picture` is shown at the end in a notebook; `quiet` shows nothing. The clock is a parameter for the tests.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        quiet: bool = False,
        picture: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._console = _Console(file=self._stream, quiet=quiet, highlight=False, force_jupyter=False)
        self._picture, self._clock = picture, clock
        self._notebook = _Notebook() if stream is None and not quiet and in_notebook() else None
        self._live: Live | None = None
        self._started: Started | None = None
        self._last: StepDone | None = None
        self._held_out: Evaluated | None = None
        self._losses: list[float] = []
        self._has_ended = False
        self._shown_at, self._shown_share, self._num_lines = -1e9, 0.0, 0

    @property
    def stream(self) -> IO[str]:
        return self._stream

    @property
    def is_quiet(self) -> bool:
        return self._console.quiet

    @property
    def is_live(self) -> bool:
        return self._notebook is not None or (self._console.is_terminal and not self._console.is_dumb_terminal)

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._while_seen():
            if self._notebook is not None:
                self._notebook.line(text)
            else:
                (self._live.console if self._live else self._console).print(Text(text), soft_wrap=True)

    @contextlib.contextmanager
    def _while_seen(self) -> Iterator[None]:
        """Work does not end because nobody sees it any more: a closed terminal or pipe makes this display silent."""
        try:
            yield
        except OSError:
            self._live, self._notebook, self._console = None, None, _Console(quiet=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float], None]]:
        """`loading the model … 2.1 s`. In a terminal the first half stands there while the work is done.

        Whoever knows the share that is done tells it: shown in the terminal at once, elsewhere now and then.
        """
        begun = shown = self._clock()
        status = self._console.status(f"{name} …") if self.is_live and not self._live and not self._notebook else None

        def told(share: float) -> None:
            nonlocal shown
            if status is not None:
                status.update(f"{name} … {share:.0%}")
            elif self._clock() - shown >= SECONDS_BETWEEN_LINES:
                shown = self._clock()
                self.say(f"{name} … {share:.0%}")

        with status or contextlib.nullcontext():
            try:
                yield told
            except BaseException:
                self.say(f"{name} … failed after {seconds(self._clock() - begun)}")
                raise
        self.say(f"{name} … {seconds(self._clock() - begun)}")

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Evaluated):
            self._held_out = event
            self.say(evaluation_line(event))
        elif isinstance(event, Noted):
            self.say(event.text)
        elif isinstance(event, Ended | BrokenOff):
            self._end(event)

    def close(self) -> None:
        """Takes the live block away; lines stay. In a notebook the picture follows. Safe to call twice."""
        if self._live is not None:
            with self._while_seen():
                self._live.stop()
            self._live = None
        if self._has_ended and self._notebook is not None and self._picture is not None and self._picture.is_file():
            self._notebook.show_picture(self._picture)
            self._picture = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, event: Started) -> None:
        self._started = event
        if event.first_step:
            self.say(f"going on after step {event.first_step}")
        if self.is_live and self._notebook is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            with self._while_seen():
                self._live.start()

    def _step(self, event: StepDone) -> None:
        first = self._last is None
        self._last = event
        self._losses.append(event.loss)
        now = self._clock()
        last = event.num_steps is not None and event.step >= event.num_steps
        if self.is_live:
            if first or last or now - self._shown_at >= SECONDS_BETWEEN_FRAMES:
                self._shown_at = now
                self._draw(event)
            return
        share = self._share(event)
        # Lines come every ten seconds for two minutes, then as the work gets on, and at least once in ten minutes.
        patience = SECONDS_BETWEEN_LINES if self._num_lines < LINES_IN_HASTE else 60 * SECONDS_BETWEEN_LINES
        if first or last or now - self._shown_at >= patience or share - self._shown_share >= SHARE_BETWEEN_LINES:
            self._shown_at, self._shown_share = now, share
            self._num_lines += 1
            self.say(step_line(event))

    def _share(self, event: StepDone) -> float:
        """How much of the budget is spent, 0 to 1."""
        if event.num_steps:
            return min(event.step / event.num_steps, 1.0)
        if self._started is not None and self._started.minutes:
            return min(event.train_seconds / (60 * self._started.minutes), 1.0)
        return 0.0

    def _draw(self, event: StepDone) -> None:
        if self._notebook is not None:
            bar = _text_bar(self._share(event), 32)
            lines = [f"{bar}  {step_line(event)}", f"loss {sparkline(self._losses, 48)}"]
            if self._held_out is not None:
                lines.append(evaluation_line(self._held_out).strip())
            self._notebook.update("\n".join(lines))
        elif self._live is not None:
            with self._while_seen():
                self._live.update(self._block(event), refresh=True)

    def _block(self, event: StepDone) -> RenderableType:
        width = max(self._console.width, 40)
        bar = Table.grid(padding=(0, 1))
        of = f"/{event.num_steps}" if event.num_steps else ""
        bar.add_row(
            Text(f"step {event.step}{of}", style="bold"),
            ProgressBar(total=1.0, completed=self._share(event), width=min(40, width // 3)),
            Text(f"{self._share(event):.0%}"),
            Text(f"{seconds(event.seconds_left)} left" if event.seconds_left is not None else "", style="cyan"),
        )
        facts = Text()
        facts.append(f"loss {event.loss:.4f} ", style="bold")
        facts.append(sparkline(self._losses, min(24, width // 4)), style="blue")
        if self._held_out is not None and "loss" in self._held_out.metrics:
            facts.append(f"  held-out {self._held_out.metrics['loss']:.4f}", style="yellow")
        facts.append(_seen(event.metrics), style="bold")
        facts.append(f"  {event.tokens_per_second:,.0f} tokens/s  {size(event.memory_bytes)}", style="green")
        facts.append(f"  lr {event.learning_rate:.1e}  epoch {event.epoch:.2f}", style="dim")
        facts.no_wrap, facts.overflow = True, "ellipsis"
        return Group(bar, facts)

    def _end(self, event: Ended | BrokenOff) -> None:
        if self._last is not None and self.is_live:
            self._draw(self._last)
        elif self._last is not None and self._shown_share < self._share(self._last):
            self.say(step_line(self._last))
        self.close()  # the picture is not drawn yet
        rate = f", {event.num_tokens / event.train_seconds:,.0f} tokens/s" if event.train_seconds > 0 else ""
        best = event.best_metrics.get("loss")
        reason = "broken off by an error" if isinstance(event, BrokenOff) and event.status == "failed" else event.reason
        self.say(
            f"{reason}: {event.step} step{'s' if event.step != 1 else ''}, {seconds(event.train_seconds)} training"
            + (f" + {seconds(event.evaluation_seconds)} evaluating" if event.evaluation_seconds else "")
            + (f" + {seconds(event.saving_seconds)} saving" if event.saving_seconds else "")
            + rate
            + (f", best held-out loss {best:.4f} at step {event.best_step}" if best is not None else "")
        )
        self._has_ended = True


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Silent from now on, where rich would end the process: `train … | head` has still to train."""
        self.quiet = True


class _Notebook:
    """One output that changes in place, by IPython's display handles (plain ones: no widget has to be installed)."""

    def __init__(self) -> None:
        from IPython import display

        self._display = display
        self._handle: Any = None

    def line(self, text: str) -> None:
        self._display.display(self._html(text))

    def update(self, text: str) -> None:
        if self._handle is None:
            self._handle = self._display.display(self._html(text), display_id=True)
        else:
            self._handle.update(self._html(text))

    def show_picture(self, path: Path) -> None:
        self._display.display(self._display.Image(data=path.read_bytes(), format="png", width=720))

    def _html(self, text: str) -> Any:
        return self._display.HTML(f"<pre style='margin:0;line-height:1.35'>{html.escape(text)}</pre>")


def in_notebook() -> bool:
    """Whether an IPython kernel (not its terminal) runs this; IPython is asked only if it is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def step_line(event: StepDone) -> str:
    """step 120/600  epoch 0.80  loss 0.8312  lr 1.8e-04  1,834 tokens/s  1.2 GB  4 min 10 s left"""
    of = f"/{event.num_steps}" if event.num_steps else ""
    left = f"  {seconds(event.seconds_left)} left" if event.seconds_left else ""
    return (
        f"step {event.step}{of}  epoch {event.epoch:.2f}  loss {event.loss:.4f}{_seen(event.metrics)}  "
        f"lr {event.learning_rate:.1e}  {event.tokens_per_second:,.0f} tokens/s  {size(event.memory_bytes)}{left}"
    )


def evaluation_line(event: Evaluated) -> str:
    plain = {name: value for name, value in event.metrics.items() if "/" not in name and name not in SEEN}
    said = "  ".join(f"{name} {value:.4f}" for name, value in plain.items()) + _seen(event.metrics)
    return f"  held-out after step {event.step}: {said}{'  (best)' if event.best else ''}  {seconds(event.seconds)}"


def _seen(metrics: dict[str, float]) -> str:
    """Of an objective's many metrics the few that a line has room for; the files have all."""
    return "".join(f"  {word} {metrics[name]:.3f}" for name, word in SEEN.items() if name in metrics)


def sparkline(values: list[float], width: int) -> str:
    """The course of `values` in at most `width` characters, each the mean of its share; low is low."""
    shown = [value for value in values if value == value and abs(value) != float("inf")]
    if not shown or width < 1:
        return ""
    count = min(width, len(shown))
    edges = [index * len(shown) // count for index in range(count + 1)]
    means = [sum(shown[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def seconds(value: float) -> str:
    """0.42 s · 12.3 s · 4 min 10 s · 2 h 05 min"""
    if value < 10:
        return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"
    if value < 59.5:
        return f"{value:.0f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(num_bytes: float) -> str:
    """512 MB · 1.2 GB (powers of ten)."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _text_bar(share: float, width: int) -> str:
    full = round(share * width)
    return "█" * full + "░" * (width - full)
