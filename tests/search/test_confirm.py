"""The rows that confirm what a search found: no trial trains on them or is chosen by them, and the study is sound."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tunesmith
from tunesmith.compare import checks as compare_checks
from tunesmith.compare.checks import plan as plan_study
from tunesmith.compare.grid import cell
from tunesmith.compare.main import compare
from tunesmith.compare.settings import load as load_study
from tunesmith.data.mixture import part_rows, read_parts
from tunesmith.errors import MachineError
from tunesmith.recipe import from_dict
from tunesmith.search import checks, settings

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS / "compare"))

import studies  # noqa: E402

NUM_ROWS = 60
PAIR = {"chosen": "it is so", "rejected": "it is not"}
KINDS = {
    "sft": lambda i: {"prompt": f"what is {i}", "completion": f"it is {i}"},
    "preference": lambda i: {"prompt": f"what is {i}", **PAIR},
    "reward": lambda i: {"prompt": f"what is {i}", **PAIR},
    "policy": lambda i: {"prompt": f"what is {i}", "gold": str(i)},
    "judged": lambda i: {"prompt": f"what is {i}", "completion": f"it is {i}", "label": i % 2 == 0},
    "classify": lambda i: {"text": f"what is {i}", "label": "odd" if i % 2 else "even"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = studies.make(tmp_path_factory.mktemp("confirm"))
    for kind, row in KINDS.items():
        write(folder / f"{kind}.jsonl", [row(i) | {"group": i // 4} for i in range(NUM_ROWS)])
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(home, folder, kind="sft", **changes):
    """Three learning rates, of which the recipe's own is the worst."""
    recipe = studies.values(home)["recipe"]
    recipe["data"] = {"train": str(home / f"{kind}.jsonl"), "held_out": 6}
    recipe["objective"] = {"kind": "preference", "loss": "kto"} if kind == "judged" else {"kind": kind}
    recipe["train"] |= {"steps": 8, "evaluate_every": 2, "learning_rate": 1e-6}
    space = {"train.learning_rate": [1e-6, 0.01, 0.003]}
    return {"recipe": recipe, "space": space, "folder": str(home / folder), **changes}


class Watching:
    """A `Runner` that remembers which rows its trials trained on, and by which they were chosen."""

    def __init__(self):
        self.trained: set[str] = set()
        self.chose: set[str] = set()

    def __call__(self, order, tell, stop):
        trained, chose = sides(from_dict(order.recipe).recipe)
        self.trained |= trained
        self.chose |= chose
        return studies.here(order, tell, stop)


def sides(recipe):
    """What a run of a recipe trains on, and what it holds out: each row as text."""
    parted = part_rows(read_parts(recipe.data), recipe.data, seed=recipe.train.seed)
    return tuple({json.dumps(row) for part in side for _, row in part.raw} for side in (parted.train, parted.held_out))


def lines(path):
    return {json.dumps(json.loads(line)) for line in Path(path).read_text().splitlines()}


def planned(given):
    return checks.plan(settings.from_dict(given))


@pytest.mark.parametrize("held_out", [6, 0.05, {"key": "group"}], ids=["count", "share", "groups"])
@pytest.mark.parametrize("seed", [0, 2])
def test_rows_that_confirm_trained_nothing_and_chose_nothing(home, held_out, seed):
    given = values(home, f"apart-{held_out if isinstance(held_out, int | float) else 'groups'}-{seed}")
    given["recipe"]["data"]["held_out"] = held_out
    given["recipe"]["train"]["seed"] = seed
    runner = Watching()
    found = tunesmith.search(given, quiet=True, runner=runner)
    study = load_study(found.files["confirm"])
    ready = plan_study(study)
    confirm = lines(ready.wanted.test)
    assert confirm
    assert runner.chose
    assert not confirm & runner.trained
    assert not confirm & runner.chose
    assert not runner.trained & runner.chose
    assert confirm | runner.trained | runner.chose == lines(home / "sft.jsonl")
    assert seed not in study.settings.seeds
    for arm in ready.arms:
        for own in study.settings.seeds:
            trained, chose = sides(cell(study, arm, own, train_rows=ready.train_rows).resolved.recipe)
            assert trained | chose == runner.trained | runner.chose
            assert not confirm & (trained | chose)
    if isinstance(held_out, dict):
        groups = [{json.loads(row)["group"] for row in side} for side in (confirm, runner.trained, runner.chose)]
        assert sum(map(len, groups)) == len(set().union(*groups))


def test_the_same_rows_are_kept_when_a_search_goes_on(home):
    first = tunesmith.search(values(home, "again"), quiet=True, runner=Watching())
    kept = [home / "again" / "data" / name for name in ("train.jsonl", "test.jsonl")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    runner = Watching()
    second = tunesmith.search(values(home, "again"), quiet=True, runner=runner)
    assert not runner.trained
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept] == before
    assert second.results == first.results
    assert second.files["confirm"].read_bytes() == first.files["confirm"].read_bytes()


def test_the_study_that_is_written_runs(home):
    found = tunesmith.search(values(home, "whole"), quiet=True, runner=Watching())
    told = load_study(found.files["confirm"], ["seeds=[1, 2]", "recipe.train.steps=2"])
    done = compare(told, quiet=True, runner=studies.here)
    assert list(done.results["arms"]) == ["as it was", "found"]
    assert done.results["differences"]["train.learning_rate"]["found"] == found.best["train.learning_rate"]
    assert Path(told.folder) == home / "whole" / "confirm"


def test_of_classes_right_and_wrong_are_confirmed(home):
    found = tunesmith.search(values(home, "classes", "classify"), quiet=True, runner=Watching())
    study = load_study(found.files["confirm"])
    assert study.settings.test.scores == ("label",)
    assert len(lines(plan_study(study).wanted.test)) == NUM_ROWS // 10


def test_what_compare_would_refuse_is_neither_written_nor_named(home, capsys):
    runner = Watching()
    given = values(home, "pairs", "judged")
    given["recipe"]["train"]["learning_rate"] = 0.01  # of labels that say nothing, the least is the best
    found = tunesmith.search(given, runner=runner)
    assert found.best["train.learning_rate"] != 0.01
    assert "confirm" not in found.files
    assert not (home / "pairs" / "confirm.yaml").exists()
    assert runner.trained | runner.chose == lines(home / "judged.jsonl")  # nothing is kept for no use
    said = " ".join("".join(capsys.readouterr()).split())
    assert "tunesmith compare" not in said
    assert "what is found will not be confirmed: the test's rows hold no pair of" in said
    assert "there is no study that would ask (the test's rows hold no pair of" in said
    assert "confirm.yaml" not in said


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("judged", {}, "the test's rows hold no pair of"),
        ("preference", {}, None),
        ("reward", {}, None),
        ("policy", {"shared": {"objective.rewards": ["exact"], "objective.gold": "gold"}}, None),
        ("sft", {"shared": {"data.limit": 30}}, "would be 3 rows, too few"),
        ("sft", {"space": {"data.limit": [40, 50]}}, "data.limit decides which rows there are"),
        ("sft", {"shared": {"data.held_out": 55}}, "nothing is left to train on"),
        ("classify", {"shared": {"objective.kind": "sft", "data.format": "text"}}, None),
    ],
)
def test_where_there_can_be_no_study_the_reason_is_said_beforehand(home, kind, changes, reason):
    ready = planned(values(home, "told", kind, **changes))
    told = "\n".join(ready.lines())
    if reason is None:
        assert ready.kept.num_test == NUM_ROWS // 10
        assert "kept to confirm what is found, seen by no trial: 6 rows" in told
        return
    assert ready.kept.test is ready.kept.train is None
    assert reason in ready.kept.missing
    assert f"what is found will not be confirmed: {ready.kept.missing}" in told
    assert not list((home / "told" / "data").glob("*.jsonl"))


def test_a_list_of_sources_and_held_out_rows_of_another_split_are_left_whole(home):
    given = values(home, "sources")
    given["recipe"]["data"]["train"] = [{"path": str(home / "sft.jsonl")}, {"path": str(home / "rows.jsonl")}]
    assert "data.train is a list of sources" in planned(given).kept.missing
    folder = home / "splits"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        write(folder / f"{name}.jsonl", [KINDS["sft"](i) for i in range(40)])
    given["recipe"]["data"] |= {"train": str(folder), "split": "valid", "held_out": str(folder)}
    assert "found by data.split" in planned(given).kept.missing
    given["recipe"]["data"] |= {"split": "train", "held_out": f"{folder}:test"}
    assert planned(given).kept.num_test == 4


def test_a_finding_that_is_the_recipes_own_leaves_nothing_to_confirm(home, capsys):
    given = values(home, "own")
    given["recipe"]["train"]["learning_rate"] = 0.01
    given["space"] = {"train.learning_rate": [0.01, 1e-6]}
    found = tunesmith.search(given, runner=Watching())
    said = "".join(capsys.readouterr())
    assert found.results["trials"][0]["own"]
    assert "nothing better was found" in said
    assert "confirm.yaml" not in said
    assert "confirm" not in found.files


def test_a_full_disk_changes_no_row_that_is_kept(home, monkeypatch):
    """Room for the study is asked for when it is run: a search that goes on keeps what it kept."""
    before = planned(values(home, "room")).kept
    plan = compare_checks.plan

    def full(*given, **options):
        plan(*given, **options)
        raise MachineError("there is no room")

    monkeypatch.setattr(compare_checks, "plan", full)
    assert planned(values(home, "room")).kept == before
    assert before.num_test == NUM_ROWS // 10
