"""The demo: a small model learns to turn questions into SQLite queries, on this machine, in minutes.

    prepare   the model (unpacked once), the questions, a base to compare with
    before    the base on the tests, plainly and with examples in its prompt; a few answers streamed
    train     tunesmith.run.train on the recipe below
    after     the same questions again; scores with intervals, and what to type next

Everything lands in one folder. Run again, it goes on where it stopped, whatever stopped it; once finished, it shows
what it found.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.atomic import write_json
from tunesmith.data.types import Message
from tunesmith.demo.generator import Question
from tunesmith.demo.small_model import small_model_folder
from tunesmith.demo.task import NUM_SHOTS, NUM_TEST, SYSTEM, Task, judge, make_task, prompt, write_task
from tunesmith.errors import CheckpointError, Interrupted
from tunesmith.models.load import pick_device
from tunesmith.models.session import Params
from tunesmith.progress import Progress
from tunesmith.progress import seconds as spoken
from tunesmith.recipe import Resolved, from_dict
from tunesmith.record import locked
from tunesmith.score.intervals import paired_change, wilson
from tunesmith.session import Session, open_session

SETTINGS: dict[str, Any] = {
    "data": {"held_out": 12, "shuffle": False},
    "adapter": {"method": "lora", "r": 16, "alpha": 32},
    "train": {"batch_size": 2, "learning_rate": 1e-3, "evaluate_every": 100},
}
MINUTES = 4.5
"""Of training on a processor; a GPU goes through the rows once, which takes it less."""
PARAMS = Params(max_new_tokens=80)
TESTS = {"tables": "tables never seen", "combinations": "combinations never seen"}
WAYS = {"base": "the base, asked plainly", "shots": f"the base with {NUM_SHOTS} examples", "tuned": "tuned"}
NUM_SHOWN = 3
FOLDER = Path("demo-run")
BEGUN = "provenance.json"
"""A run writes it first, so that its folder is known for one."""
ROWS_AT_A_TIME = {"base": 200, "shots": 100}
"""Questions that the base answers together: all of them, or as many as their examples leave memory for."""
EXAMPLE = "pet(pet_id,name,kind,age,owner_id)\nowner(owner_id,city)\nCount the pets whose age is at least 3."


@dataclass(frozen=True)
class Scores:
    """Right or wrong for each question, by test and by way of asking: `right["tables"]["tuned"]`."""

    right: dict[str, dict[str, list[bool]]]

    def share(self, test: str, way: str) -> str:
        right = self.right[test][way]
        interval = wilson(sum(right), len(right))
        return f"{100 * interval.value:.0f} %  [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"

    def gain(self, test: str) -> str:
        """What tuning adds over the best prompting, on the same questions."""
        ways = self.right[test]
        best = max((way for way in ways if way != "tuned"), key=lambda way: sum(ways[way]))
        change = paired_change([float(x) for x in ways[best]], [float(x) for x in ways["tuned"]])
        return f"{100 * change.difference:+.0f} points  [{100 * change.low:+.0f}, {100 * change.high:+.0f}]"


def run(folder: Path, *, fresh: bool = False) -> None:
    """The whole demo in `folder`; `fresh` throws away what an earlier one left there."""
    begun = time.perf_counter()
    console = Console(highlight=False)
    if fresh:
        _throw_away(folder)
    done = folder / "scores.json"
    found = _kept(done)
    if found is not None:
        console.print(f"The demo was here already ({folder}); --fresh does it anew.\n")
        _show(console, folder, Scores(found["right"]), found["facts"])
        return
    console.print(
        "[bold]A small model learns SQL.[/] SmolLM2-135M reads questions with their SQLite queries, for "
        f"{MINUTES:g} minutes at most; the test asks about tables it has never seen, and every answer is run in two "
        "databases.\n"
    )
    with Progress() as progress:
        model, task = _prepare(progress, folder)
        scores = _before(progress, console, model, task, folder)
    with _told_how_to_go_on(folder):
        trained = _train(folder, model)
    with Progress() as progress:
        _after(progress, console, trained.session, task, scores)
    facts = _facts(folder, time.perf_counter() - begun)
    write_json(done, {"right": scores.right, "facts": facts})
    _show(console, folder, scores, facts)


def _prepare(progress: Progress, folder: Path) -> tuple[str, Task]:
    """The model's folder, and the questions, which are made while it is fetched and unpacked."""
    making: Future[Task] = Future()

    def make() -> None:
        try:
            making.set_result(make_task())
        except BaseException as error:
            making.set_exception(error)

    Thread(target=make, daemon=True).start()
    with progress.stage("preparing the small model"):
        model = small_model_folder(progress.say)
    with progress.stage("making the questions"):
        task = making.result()
    write_task(task, folder / "data")
    progress.say(
        f"  {sum(map(len, task.training))} training questions in {len(task.forms())} forms; "
        f"{len(task.tables)} + {len(task.combinations)} test questions"
    )
    return str(model), task


def resolved(folder: Path, model: str) -> Resolved:
    """The demo's recipe."""
    values = {section: dict(settings) for section, settings in SETTINGS.items()}
    values["model"] = {"name": model}
    values["train"] |= {"minutes": MINUTES} if pick_device("auto").type == "cpu" else {"epochs": 1}
    values["data"]["train"] = str(folder / "data" / "train.jsonl")
    values["output"] = {"folder": str(folder / "run"), "name": "sql-demo"}
    return from_dict(values, name="sql-demo", source="the demo")


def _train(folder: Path, model: str) -> Any:
    """Trains; or goes on where an earlier demo has left a checkpoint, and begins anew where it has left none."""
    from tunesmith import run as runs

    run, patterns = folder / "run", ("step-*", ".old-step-*")  # an old one is put back where its heir never came
    has_saved = any(path for pattern in patterns for path in (run / "checkpoints").glob(pattern))
    if not has_saved:
        _clear(run)
    return runs.train(resolved(folder, model), resume=has_saved)


def _clear(run: Path) -> None:
    """Takes a run away, but not from under a process that is at work there."""
    if not (run / BEGUN).is_file():
        return
    lock = locked(run)
    try:
        for entry in run.iterdir():
            if entry.name != BEGUN:  # last: without it, what a kill leaves here would not be known for a run's
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.rmtree(run)
    finally:
        os.close(lock)


@contextmanager
def _told_how_to_go_on(folder: Path) -> Iterator[None]:
    """What the training says of --resume and output.folder is not for the demo, which has neither."""
    again = f"{_command()} demo" + ("" if folder == FOLDER else f" --folder {shlex.quote(str(folder))}")
    try:
        yield
    except Interrupted as error:
        raise error.to_do(f"{again} goes on from here") from None
    except CheckpointError as error:
        anew = f"if nothing is at work there, start anew: {again} --fresh"
        raise error.to_do(f"{anew}; or elsewhere: {_command()} demo --folder …") from None


def _throw_away(folder: Path) -> None:
    """What a demo writes, and nothing else: the folder may be anybody's."""
    written = ("scores.json", "before.json", *(f"data/{name}.jsonl" for name in ("train", *TESTS)))
    (folder / written[0]).unlink(missing_ok=True)  # first: with it, what a kill leaves here would look finished
    with _told_how_to_go_on(folder):
        _clear(folder / "run")
    for name in written[1:]:
        (folder / name).unlink(missing_ok=True)


def _kept(path: Path) -> dict[str, Any] | None:
    """What an earlier demo has found; None where there is none, or another demo's, with fewer questions."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        counts = {len(right) for ways in found["right"].values() for right in ways.values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return found if counts == {NUM_TEST} and set(found["right"]) == set(TESTS) else None


def _turns(question: Question, shots: Sequence[Question] = ()) -> list[Message]:
    return [Message(turn["role"], turn["content"]) for turn in prompt(question, shots)]


def _right(
    session: Session, task: Task, adapter: str | None, shots: Sequence[Question], rows_at_a_time: int
) -> dict[str, list[bool]]:
    """Whether each answer, run in both databases, gives the right rows. SQL is fished out of any talk around it.

    Both tests are asked at once: a step takes little longer for many answers than for few.
    """
    tests = {"tables": task.tables, "combinations": task.combinations}
    questions = [question for of_test in tests.values() for question in of_test]
    made = session.answer(
        [_turns(question, shots) for question in questions],
        adapters=[adapter] * len(questions),
        params=PARAMS,
        max_rows=rows_at_a_time,
    )
    verdicts = iter([judge(question, answer).correct for question, answer in zip(questions, made, strict=True)])
    return {name: [next(verdicts) for _ in of_test] for name, of_test in tests.items()}


def _before(progress: Progress, console: Console, model: str, task: Task, folder: Path) -> Scores:
    """The base's answers and scores; kept, so that a demo that was broken off does not ask again."""
    kept = folder / "before.json"
    found = _kept(kept)
    if found is not None:
        return Scores(found["right"])
    with progress.stage("loading the base"):
        session = open_session(model)
    console.print("\n[bold]Before[/]")
    _stream(console, session, task, None)
    right: dict[str, dict[str, list[bool]]] = {name: {} for name in TESTS}
    for way, shots in (("base", []), ("shots", task.shots())):
        with progress.stage(f"scoring {WAYS[way]}{_on(task)}"):
            for name, of_test in _right(session, task, None, shots, ROWS_AT_A_TIME[way]).items():
                right[name][way] = of_test
    scores = Scores(right)
    write_json(kept, asdict(scores))
    console.print()
    return scores


def _after(progress: Progress, console: Console, session: Session, task: Task, scores: Scores) -> None:
    console.print("\n[bold]After[/]")
    _stream(console, session, task, session.adapter)
    with progress.stage(f"scoring the tuned model{_on(task)}"):
        for name, of_test in _right(session, task, session.adapter, [], ROWS_AT_A_TIME["base"]).items():
            scores.right[name]["tuned"] = of_test


def _on(task: Task) -> str:
    return f" on {len(task.tables)} tables and {len(task.combinations)} combinations never seen"


def _stream(console: Console, session: Session, task: Task, adapter: str | None) -> None:
    """The same few questions before and after, as they are written."""
    for question in task.tables[:NUM_SHOWN]:
        console.print(f"  [dim]{question.text}[/]")
        sys.stdout.write("  ")
        session.stream(_turns(question), PARAMS, _write_inline, adapter=adapter)
        sys.stdout.write("\n")
        sys.stdout.flush()


def _write_inline(text: str) -> None:
    sys.stdout.write(text.replace("\n", " "))
    sys.stdout.flush()


def _facts(folder: Path, total_seconds: float) -> dict[str, Any]:
    summary = json.loads((folder / "run" / "summary.json").read_text())
    wanted = ("trained_parameters", "total_parameters", "train_seconds", "tokens_per_second", "peak_memory_bytes")
    return {name: summary[name] for name in wanted} | {"total_seconds": total_seconds}


def _show(console: Console, folder: Path, scores: Scores, facts: dict[str, Any]) -> None:
    table = Table(title="right answers, with 95 % intervals", title_justify="left", box=None, padding=(0, 3, 0, 0))
    table.add_column("")
    for test in TESTS.values():
        table.add_column(test)
    for way, words in WAYS.items():
        table.add_row(words, *(scores.share(test, way) for test in TESTS), style="bold" if way == "tuned" else "")
    table.add_row("tuning adds", *(scores.gain(test) for test in TESTS))
    console.print()
    console.print(table)
    share = facts["trained_parameters"] / facts["total_parameters"]
    command = _command()
    console.print(
        f"\nTrained {facts['trained_parameters']:,} weights, {share:.1%} of the model, in "
        f"{spoken(facts['train_seconds'])} at {facts['tokens_per_second']:.0f} tokens a second; "
        f"the whole demo took {spoken(facts['total_seconds'])}.\n"
        f"Loss: {folder / 'run' / 'loss.png'}    Adapter: {folder / 'run' / 'adapter'}\n\n"
        "[bold]Next[/]\n"
        f"  {command} generate {folder / 'run'} --system '{SYSTEM}' \\\n"
        f"    $'{EXAMPLE.encode('unicode_escape').decode()}'",
        soft_wrap=True,
    )
    console.print(
        f"  {command} chat {folder / 'run'}\n"
        f"  {command} merge {folder / 'run'} {folder / 'merged'}\n"
        f"  {command} train my-recipe.yaml      # your own file: docs/training.md",
        soft_wrap=True,
    )


def _command() -> str:
    """How this program was called, as short as it may be typed again."""
    called = Path(sys.argv[0])
    if called.name != "tunesmith":
        return "tunesmith"
    if shutil.which("tunesmith") and Path(shutil.which("tunesmith") or "").resolve() == called.resolve():
        return "tunesmith"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)
