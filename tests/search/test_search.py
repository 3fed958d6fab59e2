"""Whole searches of a tiny model: what is found, what is not done twice, and what is refused before any work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tunesmith
from tunesmith.compare.process import Outcome, in_process
from tunesmith.compare.worker import Order, reached, work
from tunesmith.errors import Interrupted, MachineError, RecipeError, TunesmithError

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS / "compare"))

import studies  # noqa: E402

RATES = [1e-6, 0.01, 0.003, 1e-5]
STEPS = 16


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return studies.make(tmp_path_factory.mktemp("search"))


def values(home, folder, **changes):
    """Four learning rates, of which two hardly learn."""
    recipe = studies.values(home)["recipe"]
    recipe["train"] |= {"steps": STEPS, "evaluate_every": 4, "learning_rate": 0.01}
    return {
        "recipe": recipe,
        "space": {"train.learning_rate": RATES},
        "folder": str(home / folder),
        **changes,
    }


class Counting:
    """A `Runner` in this process that remembers what it was told."""

    def __init__(self):
        self.orders: list[Order] = []

    def __call__(self, order, tell, stop):
        self.orders.append(order)
        return studies.here(order, tell, stop)


@pytest.fixture(scope="module")
def whole(home):
    runner = Counting()
    return tunesmith.search(values(home, "whole"), quiet=True, runner=runner), runner


def test_the_better_half_goes_on_and_the_best_is_found(whole):
    found, runner = whole
    trials = found.results["trials"]
    assert found.best["train.learning_rate"] in (0.01, 0.003)
    assert [len(trial["rungs"]) for trial in trials] == [2, 2, 1, 1]
    assert {trial["values"]["train.learning_rate"] for trial in trials[:2]} == {0.01, 0.003}
    assert trials[0]["rungs"][-1][1] <= trials[1]["rungs"][-1][1]
    assert [order.until for order in runner.orders] == [4] * 4 + [8] * 2
    assert found.results["steps"] == 4 * 4 + 2 * 4 <= 1.5 * STEPS
    assert next(trial for trial in trials if trial["own"])["values"] == {"train.learning_rate": 0.01}


def test_a_trial_that_was_left_and_gone_on_with_is_the_unbroken_run(whole, home):
    """The best trial's run, to its end, has bit for bit the losses of the recipe that the search wrote, on its rows."""
    found, _ = whole
    again = tunesmith.train(tunesmith.load(str(found.run)), resume=True, quiet=True)
    assert reached(found.run) == STEPS
    own_rows = f"data.train={tunesmith.load(str(found.run)).recipe.data.train}"
    straight = tunesmith.load(str(found.files["best"]), [own_rows, f"output.folder={home / 'straight'}"])
    tunesmith.train(straight, quiet=True)

    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "step"]

    assert losses(found.run) == losses(home / "straight")
    assert len(losses(found.run)) == STEPS
    assert again.ended.step == STEPS


def test_what_is_done_is_never_done_again(home):
    first = tunesmith.search(values(home, "twice"), quiet=True, runner=Counting())
    runner = Counting()
    second = tunesmith.search(values(home, "twice"), quiet=True, runner=runner)
    assert runner.orders == []
    assert second.results == first.results
    larger = Counting()
    third = tunesmith.search(values(home, "twice", budget=3), quiet=True, runner=larger)
    assert [order.until for order in larger.orders] == [8, 8, 16, 16]  # the two that were at 8 are there
    assert third.results["steps"] == 2 * 8 + 2 * 16


def test_the_report(whole, home):
    found, _ = whole
    assert found.files["picture"].read_bytes()[:4] == b"\x89PNG"
    text = found.files["markdown"].read_text()
    assert "the lowest found" in text
    assert "step 4" in text
    words = " ".join(found.results["words"])
    if found.results["trials"][0]["own"]:
        assert "nothing better was found" in words
    else:
        assert "the recipe's own, learning_rate 0.01" in words
    saved = json.loads(found.files["json"].read_text())
    assert saved["best"] == found.best
    best = tunesmith.load(str(found.files["best"])).recipe
    assert best.train.learning_rate == found.best["train.learning_rate"]
    assert best.data.train == str(home / "rows.jsonl")  # all rows, those too that no trial saw


def test_what_is_found_can_be_confirmed(home):
    """The study that the search writes is sound, and holds the recipe's own settings against the found ones."""
    from tunesmith.compare import settings
    from tunesmith.compare.checks import plan
    from tunesmith.compare.grid import resolve

    worse = values(home, "confirm")
    worse["recipe"]["train"]["learning_rate"] = 1e-6
    found = tunesmith.search(worse, quiet=True, runner=Counting())
    study = settings.load(found.files["confirm"], [f"folder={home / 'confirmed'}"])
    planned = plan(study)
    rates = [resolve(study, arm).recipe.train.learning_rate for arm in planned.arms]
    assert rates == [1e-6, found.best["train.learning_rate"]]
    assert "the recipe's own, learning_rate 1" in " ".join(found.results["words"])


def test_median_pruning_stops_who_falls_behind(home):
    runner = Counting()
    order = [0.01, 0.003, 1e-6, 1e-5]
    given = values(home, "median", pruning="median", budget=4, space={"train.learning_rate": order})
    found = tunesmith.search(given, quiet=True, runner=runner)
    steps = {trial["values"]["train.learning_rate"]: trial["step"] for trial in found.results["trials"]}
    assert steps == {0.01: STEPS, 0.003: STEPS, 1e-6: 4, 1e-5: 4}
    assert found.best["train.learning_rate"] in (0.01, 0.003)
    again = Counting()
    assert tunesmith.search(given, quiet=True, runner=again).results == found.results
    assert again.orders == []
    less = tunesmith.search(values(home, "less", pruning="median", budget=1.25), quiet=True, runner=Counting())
    assert less.results["steps"] <= 1.25 * STEPS
    assert [trial["step"] for trial in less.results["trials"]] == [STEPS, 4]


def test_start_and_an_earlier_search_are_tried_first(home):
    range_ = {"train.learning_rate": {"low": 1e-6, "high": 0.1, "log": True}}
    first = tunesmith.search(
        values(home, "first", space=range_, trials=4, start=[{"train.learning_rate": 0.02}]),
        quiet=True,
        runner=Counting(),
    )
    tried = {trial["number"]: trial["values"]["train.learning_rate"] for trial in first.results["trials"]}
    assert (tried[1], tried[2]) == (0.01, 0.02)
    assert len(set(tried.values())) == 4
    assert all(1e-6 <= rate <= 0.1 for rate in tried.values())
    warm = values(home, "warm", space=range_, trials=4, warm_start=str(home / "first"))
    second = tunesmith.search(warm, quiet=True, runner=Counting())
    again = {trial["number"]: trial["values"]["train.learning_rate"] for trial in second.results["trials"]}
    best = [trial["values"]["train.learning_rate"] for trial in first.results["trials"]][:3]
    expected = list(dict.fromkeys([0.01, *best]))
    assert [again[number + 1] for number in range(len(expected))] == expected


def test_a_trial_that_fails_is_shown_and_the_search_goes_on(home):
    def runner(order, tell, stop):
        if json.dumps(order.recipe["train"]).find("1e-05") >= 0:
            return Outcome(failed="out of memory")
        return studies.here(order, tell, stop)

    found = tunesmith.search(values(home, "failing"), quiet=True, runner=runner)
    failed = [trial for trial in found.results["trials"] if trial["failed"]]
    assert [trial["values"]["train.learning_rate"] for trial in failed] == [1e-5]
    assert found.results["trials"][-1] is failed[0] or found.results["trials"][-1]["failed"] == "out of memory"
    with pytest.raises(MachineError, match="every trial of the search failed"):
        tunesmith.search(
            values(home, "hopeless"), quiet=True, runner=lambda order, tell, stop: Outcome(failed="no memory")
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"train.lerning_rate": [1, 2]}}, "did you mean"),
        ({"space": {"adapter.r": [4, -1]}}, "adapter.r cannot be"),
        ({"space": {"adapter.r": [4]}}, "space holds no choice"),
        ({"space": {"adapter.r": [4, 4]}}, "names a value twice"),
        ({"space": {"train.steps": [4, 8]}}, "is the budget by which trials are measured"),
        ({"space": {"train.tokens": [400, 800]}}, "is the budget by which trials are measured"),
        ({"space": {"train.seed": [4, 8]}}, "is nothing to search"),
        ({"space": {"adapter.r": {"low": 1, "hgih": 3}}}, "hgih"),
        ({"budget": 0.1}, "has none for some of the 4 trials"),
        ({"budget": -1}, "budget cannot be"),
        ({"start": [{"adapter.r": 3}]}, "start 1 has not the settings that are searched"),
        ({"start": [{"train.learning_rate": 7.0}]}, "start 1 is not in the space"),
        ({"warm_start": "nowhere"}, "there is no search in nowhere"),
        ({"shared": {"data.held_out": None, "train.evaluate_every": None}}, "no rows to choose by"),
        ({"shared": {"train.steps": None, "train.minutes": 1}}, "budget is in minutes"),
        ({"pruning": "hyperband"}, "pruning cannot be"),
        ({"trails": 4}, "did you mean: trials"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(home, changes, said):
    runner = Counting()
    with pytest.raises(RecipeError) as raised:
        tunesmith.search(values(home, "wrong", **changes), quiet=True, runner=runner)
    assert said in str(raised.value)
    assert runner.orders == []


def test_a_fit_at_once_has_no_steps_to_search(home, tmp_path):
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"number {i}", "label": str(i % 2)}) + "\n" for i in range(40)))
    given = values(home, "fits")
    given["recipe"]["data"] = {"train": str(rows), "held_out": 6}
    given["recipe"]["objective"] = {"kind": "classify", "way": "features"}
    given["recipe"].pop("adapter", None)
    given["space"] = {"train.batch_size": [2, 4]}
    runner = Counting()
    with pytest.raises(RecipeError, match=r"(?s)takes none.*way=features"):
        tunesmith.search(given, quiet=True, runner=runner)
    assert runner.orders == []


def test_a_budget_in_tokens_is_counted_in_steps(home):
    from tunesmith.search import checks, settings

    given = values(home, "tokens", budget=4)
    given["recipe"]["train"] = {"tokens": 10**4, "batch_size": 4, "learning_rate": 0.01, "evaluate_every": 4}
    many = checks.plan(settings.from_dict(given)).num_steps
    given["recipe"]["train"]["tokens"] = 5 * 10**3
    assert many - 4 <= 2 * checks.plan(settings.from_dict(given)).num_steps <= many + 4


@pytest.mark.parametrize(("batch", "steps", "first"), [("batch_size=9", 4, 2), ("batch_tokens=100000", 1, 1)])
def test_a_search_knows_when_shares_of_a_pass_are_evaluated_first(home, batch, steps, first):
    """Of 30 rows: four are kept to confirm what is found."""
    from tunesmith.search import checks, settings

    given = values(home, "passes", budget=4)
    given["recipe"]["train"] = {"epochs": 3, "learning_rate": 0.01, "evaluate_every": "0.4 epochs"}
    planned = checks.plan(settings.from_dict(given, [f"recipe.train.{batch}"]))
    assert (planned.num_steps, planned.first_evaluation) == (3 * steps, first)


@pytest.mark.slow
def test_a_recipe_alone_searches_its_rate_and_ratio(home, monkeypatch, capsys):
    """From the command line, in processes of its own; the second time there is nothing to do."""
    monkeypatch.chdir(home)
    recipe = values(home, "x")["recipe"]
    (home / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "tunesmith", "search", "recipe.yaml", "trials=2", "train.steps=4", "budget=1"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "learning_rate from 0.0025 to 0.04 by magnitude" in done.stderr
    assert "lr_ratio among 1, 2, 4, 8, 16, 20" in done.stderr
    assert "tunesmith train" in done.stdout
    results = json.loads((home / "runs" / "recipe-search" / "results.json").read_text())
    assert results["num_steps"] == 4
    assert len(results["trials"]) == 2
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0
    assert again.stderr.count("done before") == 2


def test_broken_off_and_gone_on_with(home):
    """A signal amid a trial: what is done is kept, and the same call finds what an unbroken search does."""
    straight = tunesmith.search(values(home, "unbroken"), quiet=True, runner=Counting())

    def runner(order, tell, stop):
        if order.until == 8:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            return Outcome(stopped=True)
        return studies.here(order, tell, stop)

    with pytest.raises(Interrupted, match="goes on from there"):
        tunesmith.search(values(home, "broken"), quiet=True, runner=runner)
    runner = Counting()
    found = tunesmith.search(values(home, "broken"), quiet=True, runner=runner)
    assert [order.until for order in runner.orders] == [8, 8]

    def plain(result):
        return [(trial["values"], trial["rungs"]) for trial in result.results["trials"]]

    assert plain(found) == plain(straight)


@pytest.mark.slow
def test_a_worker_stops_where_it_is_told(home):
    """In a process of its own: `until`, and the median of rivals."""
    orders = []

    def runner(order, tell, stop):
        orders.append(order)
        return in_process(order, tell, stop)

    tunesmith.search(
        values(home, "process", space={"train.learning_rate": [0.01, 0.003]}, budget=0.5), quiet=True, runner=runner
    )
    assert [reached(Path(order.folder)) for order in orders] == [4, 4]
    behind = Order(**{**vars(orders[0]), "until": STEPS, "rivals": [{"8": 0.1}, {"8": 0.2}]})
    work(behind, lambda values: None)
    assert reached(Path(behind.folder)) == 8
    with pytest.raises(TunesmithError):
        work(Order(**{**vars(behind), "recipe": {**behind.recipe, "model": {"name": "nowhere/at-all"}}}), print)


@pytest.mark.parametrize(("every", "rewarm"), [((8, 4), (2, 6)), ((4, 8), (6, 2))], ids=["last", "first"])
def test_a_combination_that_no_run_can_have_is_left_out_and_told(home, capsys, every, rewarm):
    """relora: the learning rate has to have risen again before the next restart."""
    space = {"adapter.restart_every": list(every), "adapter.rewarm": list(rewarm)}
    asked = values(home, f"barred-{every[0]}", space=space, budget=2)
    asked["recipe"]["adapter"] = {"method": "relora", "r": 2, "restart_every": 8, "rewarm": 2}
    found = tunesmith.search(asked, runner=Counting())
    tried = {tuple(trial["values"].values()) for trial in found.results["trials"]}
    assert tried == {(8, 2), (8, 6), (4, 2)}
    said = " ".join("".join(capsys.readouterr()).split())
    assert "left out, since no run can have them together: 1 combination (" in said


def test_a_value_that_goes_with_no_other_is_refused_before_any_work(home):
    asked = values(home, "never", space={"adapter.restart_every": [8, 4], "adapter.rewarm": [2, 9]})
    asked["recipe"]["adapter"] = {"method": "relora", "r": 2, "restart_every": 8, "rewarm": 2}
    with pytest.raises(RecipeError, match="rewarm of 9 steps"):
        tunesmith.search(asked, runner=Counting(), quiet=True)


@pytest.mark.slow
def test_a_range_is_proposed_only_where_a_run_can_have_it(home):
    pytest.importorskip("optuna")
    space = {"adapter.restart_every": {"low": 3, "high": 8}, "adapter.rewarm": {"low": 1, "high": 5}}
    asked = values(home, "ranges", space=space, budget=2, trials=6)
    asked["recipe"]["adapter"] = {"method": "relora", "r": 2, "restart_every": 8, "rewarm": 2}
    found = tunesmith.search(asked, runner=Counting(), quiet=True)
    tried = [trial["values"] for trial in found.results["trials"]]
    assert len(tried) == 6
    assert all(own["adapter.rewarm"] < own["adapter.restart_every"] for own in tried)
