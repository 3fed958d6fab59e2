"""What is shown: plain lines where nobody watches, one live block where somebody does, one output in a notebook."""

import io
import sys
import types

import pytest

from tunesmith import progress
from tunesmith.events import Ended, Evaluated, Noted, Started, StepDone
from tunesmith.progress import Progress, seconds, size, sparkline


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(number, num_steps=1000, train_seconds=None):
    spent = number * 0.5 if train_seconds is None else train_seconds
    return StepDone(number, num_steps, 0.1, 2.0 / number, 1e-4, 0.5, 100, 40, 0.5, spent, 1834.0, 250.0, 1_200_000_000)


def ended(number, reason="budget spent"):
    return Ended(number, reason, 500.0, 20.0, 900_000, 800, {"loss": 0.5})


def show(num_steps, seconds_per_step, stream=None, first=0):
    clock = Clock()
    stream = stream or io.StringIO()
    with Progress(stream, clock=clock) as shown:
        shown(Started(num_steps, None, first, 0.0))
        for number in range(first + 1, num_steps + 1):
            clock.now += seconds_per_step
            shown(step(number, num_steps))
        shown(ended(num_steps))
    return stream.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_work_goes_on_when_nobody_sees_it_any_more(kind, monkeypatch):
    stream = kind()
    with Progress(stream, clock=Clock()) as shown:
        shown(Started(1000, None, 0, 0.0))
        shown(step(1))

        def gone(*_):
            raise BrokenPipeError(32, "Broken pipe")

        stream.write = gone
        for number in range(2, 1001):
            shown(step(number))
        shown(Evaluated(1000, {"loss": 1.0}, 0.1, True))
        shown.say("a line")
        shown(ended(1000))


@pytest.mark.parametrize(
    ("num_steps", "seconds_per_step", "most"),
    [(1, 1, 1), (3, 0.01, 3), (1000, 0.001, 22), (1000, 0.5, 45), (100_000, 0.5, 160), (20, 60, 20)],
)
def test_plain_lines_are_few_and_first_and_last_are_there(num_steps, seconds_per_step, most):
    text = show(num_steps, seconds_per_step)
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert lines[0].startswith(f"step 1/{num_steps} ")
    assert lines[-1].startswith(f"step {num_steps}/{num_steps} ")
    assert len(lines) == len(set(lines)) <= most
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_plain_line_says_what_matters():
    line = show(3, 1).splitlines()[0]
    for said in ("step 1/3", "loss 2.0000", "1,834 tokens/s", "1.2 GB", "4 min 10 s left"):
        assert said in line
    last = show(3, 1).splitlines()[-1]
    for said in (
        "budget spent: 3 steps",
        "8 min 20 s training + 20 s evaluating",
        "1,800 tokens/s",
        "0.5000 at step 800",
    ):
        assert said in last


def test_a_run_that_stops_early_shows_its_last_step():
    stream, clock = io.StringIO(), Clock()
    shown = Progress(stream, clock=clock)
    shown(Started(1000, None, 0, 0.0))
    for number in range(1, 8):
        shown(step(number))
    shown(ended(7, "early stop"))
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()[:2]] == ["step 1", "step 7"]


def test_a_budget_in_minutes_moves_the_lines_too():
    stream = io.StringIO()
    shown = Progress(stream, clock=Clock())
    shown(Started(None, 10.0, 0, 0.0))
    for number in range(1, 601):
        shown(step(number, None, train_seconds=float(number)))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step ")]
    assert 20 <= len(lines) <= 22


def test_a_resume_evaluations_and_notes_are_said():
    stream = io.StringIO()
    shown = Progress(stream, clock=Clock())
    shown(Started(100, None, 40, 0.0))
    shown(Evaluated(50, {"loss": 1.25, "accuracy": 0.5}, 2.0, True))
    shown(Noted("micro-batch lowered to 512 tokens"))
    first, held_out, note = stream.getvalue().splitlines()
    assert first == "going on after step 40"
    assert held_out == "  held-out after step 50: loss 1.2500  accuracy 0.5000  (best)  2.0 s"
    assert note == "micro-batch lowered to 512 tokens"


def test_a_long_line_is_one_line_where_nobody_watches():
    stream = io.StringIO()
    Progress(stream).say("word " * 100)
    assert stream.getvalue() == "word " * 100 + "\n"


def test_stages_tell_their_time_and_their_failure():
    stream, clock = io.StringIO(), Clock()
    shown = Progress(stream, clock=clock)
    with shown.stage("loading the model"):
        clock.now += 2.1
    with pytest.raises(ValueError, match="x"), shown.stage("reading rows"):
        raise ValueError("x")
    assert stream.getvalue().splitlines() == ["loading the model … 2.1 s", "reading rows … failed after 0.00 s"]


def test_a_long_stage_tells_its_share_every_ten_seconds():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock=clock).stage("computing") as told:
        for number in range(1, 7):
            clock.now += 4.0
            told(number / 6)
    assert stream.getvalue().splitlines() == ["computing … 50%", "computing … 100%", "computing … 24 s"]


def test_quiet_is_quiet():
    stream = io.StringIO()
    shown = Progress(stream, quiet=True)
    with shown.stage("x"):
        shown(Started(5, None, 0, 0.0))
        shown(step(1))
        shown(ended(1))
    assert stream.getvalue() == ""


def test_a_terminal_has_a_live_block_that_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = show(50, 1.0, Terminal())
    assert "\x1b[" in text
    assert "step 25/50" in text
    assert any(block in text for block in progress.BLOCKS)
    assert text.rstrip("\n").splitlines()[-1].startswith("\x1b[1A\x1b[2K\x1b[1A\x1b[2Kbudget spent")


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    text = show(50, 1.0, Terminal())
    assert "step 25/50" in text
    assert not any(f"\x1b[{code}" in text for code in ("3", "38", "1;3", "32m", "34m"))


def test_a_notebook_updates_one_output_and_shows_the_picture(monkeypatch, tmp_path):
    shown, updates, pictures = [], [], []

    class Handle:
        def update(self, what):
            updates.append(what)

    def display(what, display_id=False):
        shown.append(what)
        return Handle() if display_id else None

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display, ipython.display.HTML = display, str
    ipython.display.Image = lambda data, format, width: pictures.append(data)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"png")
    clock = Clock()
    here = Progress(picture=picture, clock=clock)
    here(Started(30, None, 0, 0.0))
    for number in range(1, 31):
        clock.now += 1
        here(step(number, 30))
    here(ended(30))
    assert "step 1/30" in shown[0]
    assert len(updates) >= 29
    assert "step 30/30" in updates[-1]
    here.close()
    here.close()
    assert pictures == [b"png"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.424, "0.42 s"), (2.14, "2.1 s"), (42, "42 s"), (59.7, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")],
)
def test_seconds(value, text):
    assert seconds(value) == text


def test_size_and_sparkline():
    assert (size(512e6), size(1.24e9)) == ("512 MB", "1.2 GB")
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == progress.BLOCKS
    assert sparkline([float("nan"), 1.0, 1.0], 8) == "▁▁"
    assert sparkline([], 8) == sparkline([float("inf")], 8) == ""
    assert len(sparkline(list(range(1000)), 24)) == 24
