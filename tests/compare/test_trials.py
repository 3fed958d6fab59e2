"""Trials of learning rates are whole runs, only shorter: of every method, and known to be possible beforehand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import studies

import tunesmith
from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import for_share
from tunesmith.compare import settings
from tunesmith.compare.checks import plan
from tunesmith.compare.grid import shorter
from tunesmith.errors import TunesmithError
from tunesmith.recipe import from_dict

COUNTING = {
    "relora": {"adapter": {"method": "relora", "r": 2, "restart_every": 4, "rewarm": 2}},
    "delta": {"adapter": {"method": "delta-lora", "r": 2, "start_step": 4}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return studies.make(tmp_path_factory.mktemp("studies"))


def values(home, name, steps=8, **changes):
    made = studies.values(home, folder=str(home / name), seeds=[0], prompting=[], forget=None, test={"rows": 10})
    made["recipe"]["train"]["steps"] = steps
    return {**made, "learning_rates": [1e-2, 3e-2], **changes}


def test_methods_that_count_steps_have_real_trials(folder):
    orders = []

    def watching(order, tell, stop):
        orders.append(order)
        return studies.here(order, tell, stop)

    found = tunesmith.compare(values(folder, "counting", arms=COUNTING), runner=watching, quiet=True)
    for name in COUNTING:
        row = found.results["arms"][name]
        assert row["failed"] == {}
        assert len(row["trials"]) == 2
        assert row["figures"]["loss"]["seeds"] == 1
    told = [(order.recipe["train"]["steps"], order.recipe["adapter"]) for order in orders]
    assert [(steps, own["restart_every"], own["rewarm"]) for steps, own in told if "restart_every" in own] == [
        *[(4, 2, 1)] * 2,
        (8, 4, 2),
    ]
    assert [(steps, own["start_step"]) for steps, own in told if "start_step" in own] == [(4, 2), (4, 2), (8, 4)]
    for order in orders:
        if "restart_every" in order.recipe["adapter"]:
            text = (folder / "counting" / "cells" / order.name / "metrics.jsonl").read_text()
            assert text.count("the learning rate warms up again") == 1


def test_a_run_or_a_trial_that_a_method_cannot_serve_is_refused_before_any_model_loads(folder, monkeypatch):
    monkeypatch.setattr("tunesmith.assemble.load_model", None)
    arms = {"lora": {}, "relora": {"adapter": {"method": "relora", "restart_every": 8, "rewarm": 2}}}
    with pytest.raises(
        TunesmithError, match=r"(?s)restart_every 8 is not reached.*budget of 8 steps.*arm: relora"
    ) as no:
        plan(settings.from_dict(values(folder, "never", arms=arms, learning_rates="fixed")))
    assert "trial" not in str(no.value)
    arms = {"lora": {}, "delta": {"adapter": {"method": "delta-lora", "start_step": 1}}}
    arms["relora"] = {"adapter": {"method": "relora", "restart_every": 1, "rewarm": 0}}
    plan(settings.from_dict(values(folder, "never", steps=2, arms=arms, learning_rates="fixed")))
    with pytest.raises(TunesmithError, match="restart_every 1 is not reached") as no:
        plan(settings.from_dict(values(folder, "never", steps=2, arms=arms)))
    assert "a trial of a learning rate, which has 0.5 of a run's budget" in str(no.value)
    assert "start_step" not in str(no.value)  # W moves from the first step of the trial


def test_a_rate_that_no_recipe_can_have_is_refused_before_any_model_loads(folder, monkeypatch):
    monkeypatch.setattr("tunesmith.assemble.load_model", None)
    arms = {"lora": {}, "floor": {"train.min_learning_rate": 0.02}}
    with pytest.raises(TunesmithError, match=r"(?s)min_learning_rate.*arm: floor"):
        plan(settings.from_dict(values(folder, "never", arms=arms)))


@pytest.mark.parametrize(
    ("train", "quarter"),
    [
        ({"steps": 100, "warmup": 8}, {"train.steps": 25, "train.warmup": 2}),
        ({"epochs": 2}, {"train.epochs": 0.5}),
        ({"minutes": 6}, {"train.minutes": 1.5}),
        ({"tokens": 4000}, {"train.tokens": 1000}),
        ({"steps": 3, "warmup": 0.1}, {"train.steps": 1}),
    ],
)
def test_a_share_of_a_budget_in_any_unit(train, quarter, folder):
    base = {"model": {"name": str(folder / "model")}, "data": {"train": str(folder / "rows.jsonl")}}
    recipe = from_dict({**base, "train": train}).recipe
    assert {key: value for key, value, _ in shorter(recipe, 0.25, "here")} == quarter


def test_only_methods_that_count_steps_have_other_settings_in_a_trial():
    for name, method in METHODS.items():
        own = for_share(method.Settings(), 0.25)
        assert (own != method.Settings()) == (name in ("relora", "delta-lora"))
    made = for_share(SimpleNamespace(method="lora"), 0.25)
    assert made.method == "lora"


def test_a_trial_s_adapter_settings_are_those_that_it_ran_with(folder):
    trial = next((folder / "counting" / "cells").glob("relora-trial-*"))
    assert json.loads((trial / "provenance.json").read_text())["recipe"]["adapter"]["restart_every"] == 2
