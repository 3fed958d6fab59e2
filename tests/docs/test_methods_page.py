"""docs/methods.md says of each method what its file and the results say, and judges by what was measured alone.

That the page is the one that the script would write is held by test_documents.py.
"""

from __future__ import annotations

import re
import sys

import pytest
import workshop

from tunesmith.adapters import METHODS

PAGE = (workshop.ROOT / "docs" / "methods.md").read_text()


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(workshop.ROOT / "scripts"))
    try:
        import methods_page

        yield methods_page
    finally:
        sys.path.remove(str(workshop.ROOT / "scripts"))


def part(name):
    """The method's own part of the page."""
    title = (METHODS[name].__doc__ or "").strip().partition(":")[0]
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    assert found, title
    return found[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_part(name, script):
    text = part(name)
    for word in ("**When:**", "**Cost:**", "**Laws that cannot hold:**", "**Measured:**"):
        assert word in text
    assert f"{script.facts(name).trained:,}" in text
    ratios = script.step_times().get(name)
    assert ("Time of a step: not measured here" in text) == (not ratios)


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


def told(script, method, better):
    return script.Told(method, "mail", "2026-01-01", "x.json", "…", better)


def test_a_dear_method_without_proof_does_not_earn_its_price(script):
    said = script.price("dora", [1.14, 1.27], [], 0.1, 1.06)
    assert "1.14 to 1.27 of LoRA's time (2 measurements)" in said
    assert "not measured here" in said
    assert "does not earn its price" in said
    assert "does not earn its price" in script.price("dora", [1.14, 1.27], [told(script, "dora", False)], 0.1, 1.06)
    assert "By that one measurement" in script.price("dora", [1.4], [], 0.1, 1.06)
    assert "0.09 of LoRA's trained numbers" in script.price("vera", [1.4], [], 0.1, 0.086)


def test_a_study_that_found_it_better_takes_the_judgement_back(script):
    said = script.price("dora", [1.14, 1.27], [told(script, "dora", True)], 0.1, 1.06)
    assert "does not earn" not in said
    assert "found it better" in said


def test_noise_is_no_judgement(script):
    assert "within the noise" in script.price("lora-fa", [0.96, 0.98], [], 0.1, 0.5)
    assert "One alone proves little" in script.price("ia3", [0.8], [], 0.1, 0.02)
    assert "It is cheaper" in script.price("ia3", [0.8, 0.79], [], 0.1, 0.02)
    assert "Time of a step: not measured here" in script.price("prompt", [], [], 0.1, 0.01)
    assert script.noise({"relora": {"a": 0.81, "b": 1.03}}) == pytest.approx(0.19)


def test_a_studys_verdicts_are_taken_from_its_results(script):
    study = {
        "study": "mail",
        "made": "2026-01-02T10:00:00+0000",
        "recipe": {"adapter": {"method": "lora"}},
        "differences": {"adapter.method": {"plain": "lora", "norm": "dora", "one": "vera", "fast": "lora"}},
        "measures": [{"key": "loss", "higher_is_better": False}, {"key": "exact", "higher_is_better": True}],
        "comparisons": [
            {"measure": key, "arm": arm, "baseline": "plain", "value": value, "differs": differs, "verdict": "words"}
            for key, arm, value, differs in (
                ("loss", "norm", -0.1, True),
                ("exact", "norm", -0.1, True),
                ("exact", "one", 0.2, False),
                ("loss", "fast", -0.3, True),
                ("exact", "no tuning", -0.5, True),
            )
        ],
        "arms": {arm: {"tuned": arm != "no tuning"} for arm in ("plain", "norm", "one", "fast", "no tuning")},
    }
    found = script.told_by("x.json", study)
    judged = [(one.method, one.is_better) for one in found]
    assert judged == [("dora", True), ("dora", False), ("vera", False), ("lora", True)]
    assert found[0].date == "2026-01-02"
    assert found[0].verdict == "by loss, words"
