"""The same law for studies and searches: every key of theirs shows in what would be trained and measured.

Nothing is trained: the runner writes down its orders and says that they failed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from records import keys_of
from small_run import make_model, make_rows

from tunesmith.compare import settings as studies
from tunesmith.compare.process import Outcome
from tunesmith.compare.study import run_cells
from tunesmith.compare.worker import Order
from tunesmith.progress import Progress
from tunesmith.search import settings as searches
from tunesmith.search.trials import run_trials

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RECIPE = {
    "model": {"name": "@/model", "dtype": "float32", "device": "cpu"},
    "data": {"train": "@/rows.jsonl", "held_out": 6},
    "adapter": {"r": 2},
    "train": {"steps": 16, "batch_size": 2, "learning_rate": 0.01, "evaluate_every": 2},
}
STUDY = {
    "recipe": RECIPE,
    "folder": "@/study",
    "arms": {"lora": {}, "dora": {"adapter.method": "dora"}},
    "seeds": [0],
    "test": {"rows": 10, "score": ["f1"]},
    "forget": {"text": "@/text.txt"},
}
SEARCH = {"recipe": RECIPE, "folder": "@/search", "space": {"train.learning_rate": [1e-3, 1e-2, 3e-3, 1e-4]}}
RANGE = {"space": {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}, "trials": 3, "budget": 4.0}
EXEMPT = {"price_per_hour": "a factor of the seconds that a run took: tests/compare/test_study.py reckons it"}


@dataclass(frozen=True)
class Case:
    value: Any
    beside: Mapping[str, Any] = field(default_factory=dict)


OF_STUDIES = {
    "recipe": Case({**RECIPE, "adapter": {"r": 3}}),
    "shared": Case({"adapter.r": 3}),
    "folder": Case("@/elsewhere"),
    "arms": Case({"lora": {}, "vera": {"adapter.method": "vera"}}),
    "vary": Case({"adapter.r": [2, 3]}),
    "baseline": Case("dora"),
    "seeds": Case([1]),
    "learning_rates": Case([0.01, 0.001]),
    "tuning_seed": Case(77, {"learning_rates": [0.01, 0.001]}),
    "test": Case({"rows": 10, "score": ["exact"]}),
    "forget": Case(None),
    "prompting": Case([0, 2]),
    "test.rows": Case(12),
    "test.score": Case(["exact"]),
    "test.gold": Case("prompt"),
    "test.limit": Case(5),
    "test.max_new_tokens": Case(9),
    "test.batch_size": Case(3),
    "test.rows.share": Case(0.5, {"test.rows": {"share": 0.2}}),
    "test.rows.count": Case(12, {"test.rows": {"count": 10}}),
    "test.rows.file": Case("@/more.jsonl", {"test.rows": {"file": "@/test.jsonl"}}),
    "test.rows.key": Case("completion", {"test.rows": {"key": "prompt"}}),
    "forget.text": Case("@/other.txt"),
    "forget.limit": Case(3),
    "forget.max_length": Case(40),
}
OF_SEARCHES = {
    "recipe": Case({**RECIPE, "adapter": {"r": 3}}),
    "shared": Case({"adapter.r": 3}),
    "folder": Case("@/elsewhere"),
    "space": Case({"train.learning_rate": [1e-3, 1e-2]}),
    "budget": Case(3.0),
    "trials": Case(2),
    "pruning": Case("median"),
    "start": Case([{"train.learning_rate": 1e-4}]),
    "warm_start": Case("@/earlier"),
    "sampler_seed": Case(5, RANGE),
    "space[].low": Case(5e-3, RANGE),
    "space[].high": Case(2e-2, RANGE),
    "space[].log": Case(True, RANGE),
}


class Clerk:
    """A `Runner` that does nothing but write down what it was told."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def __call__(self, order: Order, tell: Callable[..., None], stop: Callable[[], int | None]) -> Outcome:
        self.orders.append(order)
        return Outcome(failed="nothing is trained here")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("plans")
    make_model(folder / "model")
    for name, count in (("rows", 40), ("more", 12), ("test", 11)):
        make_rows(folder / f"{name}.jsonl", count)
    for name, day in (("text", "rained"), ("other", "snowed")):
        (folder / f"{name}.txt").write_text("\n\n".join(f"It {day} on day {i}." for i in range(8)))
    (folder / "earlier").mkdir()
    trials = [{"values": {"train.learning_rate": 1e-4}, "failed": None}]
    (folder / "earlier" / "results.json").write_text(json.dumps({"trials": trials}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        yield folder


def placed(values: Any, home: Path) -> Any:
    return json.loads(json.dumps(values).replace("@/", f"{home}/"))


def put(values: dict[str, Any], key: str, value: Any) -> None:
    *before, last = key.split(".")
    for part in before:
        values = values["space"]["train.learning_rate"] if part == "space[]" else values[part]
    values[last] = copy.deepcopy(value)


def seen_of_a_study(values: dict[str, Any]) -> Any:
    study = studies.from_dict(values)
    clerk = Clerk()
    ran = run_cells(study, runner=clerk, progress=Progress(quiet=True))
    names = ("folder", "recipe", "train", "shots", "measure")
    return ran.plan.baseline, [{name: getattr(order, name) for name in names} for order in clerk.orders]


def seen_of_a_search(values: dict[str, Any]) -> Any:
    clerk = Clerk()
    run_trials(searches.from_dict(values), runner=clerk, progress=Progress(quiet=True))
    return [(order.folder, order.recipe, order.until) for order in clerk.orders]


def test_every_key_has_its_case() -> None:
    assert set(OF_STUDIES) | set(EXEMPT) == set(keys_of(studies.StudySettings, ""))
    assert set(OF_SEARCHES) == set(keys_of(searches.SearchSettings, ""))


@pytest.mark.parametrize(
    ("kind", "key"), [*(("study", key) for key in OF_STUDIES), *(("search", key) for key in OF_SEARCHES)]
)
def test_another_value_shows(home: Path, kind: str, key: str) -> None:
    if kind == "search":
        pytest.importorskip("optuna")
    base, cases, see = (
        (STUDY, OF_STUDIES, seen_of_a_study) if kind == "study" else (SEARCH, OF_SEARCHES, seen_of_a_search)
    )
    values = copy.deepcopy(base)
    for other, value in cases[key].beside.items():
        put(values, other, value)
    before = see(placed(values, home))
    assert before[-1]
    assert see(placed(values, home)) == before
    put(values, key, cases[key].value)
    assert see(placed(values, home)) != before
