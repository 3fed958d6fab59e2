"""docs/methods.md says of each method what its file and the results say, and judges by what was measured alone.

That the page is the one that the script would write is held by test_documents.py.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import workshop

from tunesmith.adapters import METHODS

PAGE = (workshop.ROOT / "docs" / "methods.md").read_text()


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(workshop.ROOT / "scripts"))
    try:
        import against_lora
        import methods_page
        import step_times

        yield methods_page, against_lora, step_times
    finally:
        sys.path.remove(str(workshop.ROOT / "scripts"))


@pytest.fixture(scope="module")
def script(scripts):
    return scripts[0]


@pytest.fixture(scope="module")
def against(scripts):
    return scripts[1]


@pytest.fixture(scope="module")
def timing(scripts):
    return scripts[2]


def part(name):
    """The method's own part of the page."""
    title = (METHODS[name].__doc__ or "").strip().partition(":")[0]
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    assert found, title
    return found[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_part(name, script):
    text = part(name)
    for word in ("**When:**", "**Cost:**", "**Laws that cannot hold:**", "**Beside LoRA:**"):
        assert word in text
    assert f"{script.facts(name).trained:,}" in text
    if name != "lora":
        assert ("**Time of a step:** not measured here" in text) == (name not in script.step_times())
        assert ("not compared here" in text) == (not script.of(name, script.told()))


def test_the_small_models_numbers_are_counted_on_its_shapes(script):
    """By hand: 30 blocks of d = 576, m = 1,536, 3 of 9 heads of 64 for keys and values, one embedding."""
    d, m, kv, blocks = 576, 1536, 192, 30
    matrices = [(d, d), (d, kv), (d, kv), (d, d), (d, m), (d, m), (m, d)]
    by_hand = {
        "lora": 8 * sum(a + b for a, b in matrices),
        "lora-fa": 8 * sum(b for _, b in matrices),
        "dora": sum(8 * (a + b) + b for a, b in matrices),
        "vera": sum(256 + b for _, b in matrices),
        "ia3": 2 * kv + m,
    }
    for name, each in by_hand.items():
        assert script.facts(name).trained == blocks * each
    assert script.facts("prompt").trained == 20 * d
    assert script.facts("full").trained == script.facts("lora").total
    assert script.facts("full").trained == 49152 * d + d + blocks * (2 * d + sum(a * b for a, b in matrices))


def test_what_a_method_declares_is_on_the_page(script):
    for name in METHODS:
        one = script.facts(name)
        assert ("the neutral start" in part(name)) == (not one.neutral)
        assert ("the merge (" in part(name)) == (not one.mergeable)
    assert not script.facts("prompt").neutral
    assert not script.facts("bottleneck").mergeable
    assert script.facts("dora").neutral
    assert script.facts("dora").mergeable


def one(against, gain=0.1, low=None, high=None, differs=True, tuning=1.0, **others):
    """dora against LoRA in a study of its own."""
    given = {"method": "dora", "what": "dora", "study": "mail", "date": "2026-01-02", "file": "x.json", "time": 1.13}
    given |= {"budget": "9 steps", "measure": "test loss", "points": False, "seeds": 3, **others}
    ends = {"low": gain - 0.001 if low is None else low, "high": gain + 0.001 if high is None else high}
    return against.Told(**given, **ends, gain=gain, differs=differs, tuning=tuning)


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"gain": 0.015}, "SAME", "**nobody will notice**, 0.0150 better [+0.0140, +0.0160], 1.5 % of what"),
        ({"gain": -0.015}, "SAME", "**nobody will notice**, 0.0150 worse"),
        ({"gain": 0.001, "differs": False}, "SAME", "**nobody will notice**"),  # told to be within 2 %
        ({"gain": 0.015, "low": -0.3, "high": 0.33, "differs": False}, "UNSURE", "from -30 % to +33 % of what tuning"),
        (
            {"gain": 0.05},
            "BETTER",
            "**a little better**, 0.0500 better [+0.0490, +0.0510], 5.0 % of what tuning gained",
        ),
        ({"gain": -0.5}, "WORSE", "**clearly worse**, 0.5000 worse [-0.5010, -0.4990], 50 % of what tuning gained"),
        ({"gain": 2.5}, "BETTER", "2.5 times what tuning gained"),
        ({"gain": 0.5, "points": True}, "BETTER", "50.0 points better [+49.9 points, +50.1 points]"),
        ({"tuning": None}, "BETTER", "**better; what tuning itself gains was not measured there**"),
        ({"tuning": None, "differs": False}, "UNSURE", "**cannot tell**"),
    ],
)
def test_the_size_of_a_difference_is_told_beside_what_tuning_gained(against, given, kind, said):
    found = one(against, **given)
    assert found.kind == getattr(against, kind)
    assert said in found.words
    assert found.words.startswith("mail (2026-01-02; 9 steps; 3 seeds), by test loss: ")
    assert found.words.endswith("Its training took 1.13 of LoRA's time there.")


def test_quality_that_was_not_measured_is_not_judged(script, timing):
    for ratio in (0.5, 1.0, 1.38):
        assert script.judgement("vera", timing.Time(ratio, ratio, ratio, 9, ()), []) == "**not compared here**."
    assert script.judgement("vera", None, []) == "**not compared here**."


def test_a_method_earns_its_price_by_what_is_noticed(script, against, timing):
    dear, unsure, cheap = (timing.Time(1.2, low, high, 9, ()) for low, high in ((1.1, 1.3), (0.9, 1.3), (0.9, 1.0)))
    same, better, wide = one(against, 0.01), one(against, 0.5), one(against, 0.5, low=-2, high=3, differs=False)
    assert "does not earn its price" in script.judgement("dora", dear, [same])
    assert "rounds cannot tell" in script.judgement("dora", unsure, [same])
    assert "in no more time" in script.judgement("dora", cheap, [same])
    assert "where anything could be told" in script.judgement("dora", dear, [same, replace(wide, study="other")])
    assert "earn" not in script.judgement("dora", dear, [better])
    assert "yours to say" in script.judgement("dora", dear, [better])
    assert script.judgement("dora", cheap, [better]) == "**better**."
    assert "cannot tell" in script.judgement("dora", dear, [wide])
    assert "earn" not in script.judgement("dora", dear, [wide])
    other = one(against, -0.5, study="other")
    assert script.judgement("dora", dear, [better, other]) == "**better in one study, worse in another**."


def test_the_measure_that_decides_a_study_decides_the_judgement(script, against):
    first, second = one(against, 0.01, measure="label"), one(against, 0.5, measure="test loss")
    assert script.verdict([first, second]) == against.SAME


def study(against, differences, *, rates="fixed", arms=(), made="2026-01-02T10:00:00+0000", name="mail", **changes):
    """A results.json: LoRA, the other arms, and the base."""
    arms = list(dict.fromkeys(["plain", *arms]))
    values = {"plain": 1.0, "no tuning, zero-shot": 2.0}
    return {
        "study": name,
        "made": made,
        "primary": "loss",
        "settings": {"learning_rates": rates},
        "recipe": {"adapter": {"method": "lora"}, "train": {"steps": 20, "batch_size": 8}},
        "differences": differences,
        "measures": [{"key": "loss", "title": "test loss", "higher_is_better": False, "points": False}],
        "comparisons": [
            {"measure": "loss", "arm": arm, "baseline": "plain", "value": -0.3, "low": -0.4, "high": -0.1, "seeds": 3}
            | {"differs": True, "verdict": "words"}
            for arm in (*arms[1:], "no tuning, zero-shot")
        ],
        "arms": {
            arm: {
                "tuned": arm != "no tuning, zero-shot",
                "train_seconds": 90.0 if arm == "plain" else 99.0,
                "figures": {"loss": {"value": values.get(arm, 0.7)}},
            }
            for arm in (*arms, "no tuning, zero-shot")
        },
    } | changes


def test_an_arm_is_credited_where_it_differs_in_the_method_alone(against):
    def methods(**others):
        return {"plain": "lora"} | others

    arms = ("norm", "noisy", "ranked", "rated", "whole", "tiny", "ratio", "long")
    differences = {
        "adapter.method": methods(norm="dora", noisy="dora", ranked="dora", rated="dora", whole="full", tiny="vera")
        | {"ratio": "lora", "long": "lora"},
        "adapter.start": {arm: "zero" if arm in ("plain", "ratio", "long") else None for arm in ("plain", *arms)},
        "adapter.r": {"plain": 8, "ranked": 4, "whole": None, "tiny": 256}
        | dict.fromkeys(("norm", "noisy", "rated", "ratio", "long"), 8),
        "adapter.train_in_full": {arm: ["rest"] if arm == "whole" else ["norms"] for arm in ("plain", *arms)},
        "adapter.lr_ratio": {
            arm: None if arm in ("whole",) else 16.0 if arm == "ratio" else 1.0 for arm in ("plain", *arms)
        },
        "train.neftune_alpha": {arm: 5.0 if arm == "noisy" else None for arm in ("plain", *arms)},
        "train.learning_rate": {arm: 0.1 if arm == "rated" else 0.01 for arm in ("plain", *arms)},
        "train.steps": {arm: 40 if arm == "long" else 20 for arm in ("plain", *arms)},
    }
    found = against.told_by("x.json", study(against, differences, arms=arms))
    assert {told.what: told.method for told in found} == {
        "dora": "dora",
        "full": "full",
        "vera": "vera",
        "lr_ratio 16": "lora",
    }
    tuned = against.told_by("x.json", study(against, differences, arms=arms, rates=[0.1, 0.01]))
    assert [told.what for told in tuned].count("dora") == 2  # each at its own best rate
    assert "each at its best of 2 learning rates" in tuned[0].budget


def test_a_difference_is_read_in_the_direction_of_better(against):
    differences = {"adapter.method": {"plain": "lora", "norm": "dora"}}
    loss = study(against, differences, arms=("norm",))
    (found,) = against.told_by("x.json", loss)
    assert (found.gain, found.low, found.high, found.tuning) == (0.3, 0.1, 0.4, 1.0)
    assert found.time == pytest.approx(1.1)
    assert found.budget == "20 steps of 8 rows, one learning rate for all"
    score = [{"key": "loss", "title": "exact", "higher_is_better": True, "points": True}]
    (found,) = against.told_by("x.json", loss | {"measures": score})
    assert (found.gain, found.low, found.high, found.tuning) == (-0.3, -0.4, -0.1, None)  # tuning made that worse


def test_what_has_no_number_or_another_unit_is_not_reckoned_with(against):
    differences = {"adapter.method": {"plain": "lora", "norm": "dora"}}
    given = study(against, differences, arms=("norm",))
    given["comparisons"][0] |= {"low": None, "high": None, "differs": False, "seeds": 1}
    (found,) = against.told_by("x.json", given)
    assert found.kind == against.UNSURE
    assert "1 seed), by test loss: **cannot tell**, 0.3000 better [no interval]. Its training" in found.words
    (found,) = against.told_by("x.json", given | {"apart": {"loss": ["no tuning, zero-shot"]}})
    assert found.tuning is None
    given["comparisons"][0]["value"] = None
    assert against.told_by("x.json", given) == []


def test_arms_beside_another_baseline_than_lora_tell_nothing(against):
    differences = {"adapter.method": {"plain": "dora", "norm": "full"}}
    assert against.told_by("x.json", study(against, differences, arms=("norm",))) == []


def test_of_several_results_of_a_study_the_newest_counts(against):
    results = {
        "2026-01-01-study-a.json": {"study": "a", "made": "2026-01-01T10"},
        "2026-01-01-study-b.json": {"study": "b", "made": "2026-01-01T11"},
        "2026-01-03-study-a.json": {"study": "a", "made": "2026-01-03T10"},
        "2026-01-02-study-a.json": {"study": "a", "made": "2026-01-02T10"},
    }
    assert list(against.newest(results)) == ["2026-01-01-study-b.json", "2026-01-03-study-a.json"]


def test_an_arm_that_has_more_than_the_method_is_not_on_the_page():
    """DoRA with noise is another thing than DoRA."""
    for file in (workshop.ROOT / "benchmarks" / "results").glob("*-study-*.json"):
        for arm, noise in json.loads(file.read_text())["differences"].get("train.neftune_alpha", {}).items():
            assert not noise or arm not in PAGE, f"{file.name}: {arm}"


def test_the_time_of_a_step_is_told_with_what_it_may_be(timing):
    def result(own, other):
        return {"contenders": {"lora": {"seconds": other}, "dora": {"seconds": own}}}

    results = {
        "2026-01-01-methods-lora.json": result([9.0], [1.0]),
        "2026-01-02-methods-lora.json": result([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
        "2026-01-02-methods-lora-2.json": result([1.0] * 4, [1.0] * 4),
    }
    found = timing.step_times(results)["dora"]
    assert (found.ratio, found.rounds) == (1.0, 10)
    assert (found.low, found.high) == (1.0, 2.5)  # the second least and the second most of ten
    assert len(found.files) == 2
    assert "1.00 of LoRA's (1.00 to 2.50; 10 rounds)" in found.words


def test_the_interval_of_a_median_holds_in_95_of_100_cases(timing):
    """Against the table of the sign test: of 10 the 2nd and 9th, of 20 the 6th and 15th, of 5 the ends."""
    for count, least in ((5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (16, 4), (20, 6), (25, 8)):
        assert timing.around_median(list(range(1, count + 1))) == (least, count + 1 - least)


def test_a_method_is_dearer_where_all_of_the_interval_is(timing):
    for low, high, dearer in ((1.09, 1.3, True), (0.9, 1.3, None), (0.9, 1.05, False)):
        assert timing.Time(1.0, low, high, 9, ()).is_dearer is dearer
