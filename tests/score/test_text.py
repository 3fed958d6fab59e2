from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.score import SCORERS, text


def test_normalisation_is_the_official_one():
    assert text.normalise("The  Quick, brown-fox!\n A an the") == "quick brownfox"
    assert text.normalise("Theatre") == "theatre"


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("the Eiffel Tower.", ["Eiffel Tower"], 1.0, 1.0),
        ("Eiffel Tower in Paris", ["Eiffel Tower"], 0.0, 2 * 0.5 * 1 / 1.5),
        ("in the 10th and 11th centuries", ["10th and 11th centuries", "in the 10th and 11th centuries"], 1.0, 1.0),
        ("Cannot find answer", [], 1.0, 1.0),
        ("cannot find the answer.", [], 1.0, 1.0),
        ("", [], 1.0, 1.0),
        ("Paris", [], 0.0, 0.0),
        ("Cannot find answer", ["Paris"], 0.0, 0.0),
        # a refusal shares words with an answer, and still scores nothing
        ("Cannot find answer", ["the answer"], 0.0, 0.0),
        ("France France", ["France"], 0.0, 2 * 0.5 * 1 / 1.5),
    ],
)
def test_squad_scores(prediction, gold, exact, f1):
    assert text.exact_match(prediction, gold) == exact
    assert text.f1(prediction, gold) == pytest.approx(f1)


@pytest.mark.parametrize(
    "gold",
    [
        {"text": ["in France", "France"], "answer_start": [1, 4]},  # as the hub's squad_v2 has it
        [
            {"text": "in France", "answer_start": 1},
            {"text": "France", "answer_start": 4},
        ],  # as the original file has it
        {"text": "France"},
    ],
)
def test_answers_in_the_forms_of_squad_are_read(gold):
    assert text.exact_match("France", gold) == 1.0
    assert text.exact_match("text", gold) == 0.0
    assert text.f1("answer_start", gold) == 0.0
    assert text.exact_match("Cannot find answer", {"text": [], "answer_start": []}) == 1.0
    assert text.contains("It is France.", gold) == 1.0


def test_gold_may_be_a_number_and_what_is_no_answer_is_refused():
    assert text.exact_match("5", 5) == 1.0
    assert text.contains("it is 5.", [4, 5]) == 1.0
    assert text.label("1", 1, [0, 1]) == 1.0
    for name in ("exact", "f1", "contains", "label"):
        with pytest.raises(DataError, match="right answer"):
            SCORERS[name]("", {"answer": "x"}, {})


def test_a_refusal_of_ones_own_comes_with_the_row():
    assert SCORERS["exact"]("I do not know", [], {}) == 0.0
    assert SCORERS["exact"]("I do not know", [], {"refusal": "I do not know."}) == 1.0


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=3))
def test_exact_never_beats_f1_and_both_lie_in_the_unit_interval(prediction, gold):
    exact, f1 = text.exact_match(prediction, gold), text.f1(prediction, gold)
    assert 0.0 <= exact <= f1 <= 1.0


@given(st.lists(st.sampled_from(["red", "green", "blue", "the"]), max_size=5), st.integers(0, 5))
def test_f1_does_not_look_at_the_order_of_words(words, shift):
    shift = min(shift, len(words))
    turned = words[shift:] + words[:shift]
    gold = ["red green"]
    assert text.f1(" ".join(words), gold) == text.f1(" ".join(turned), gold)


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("so 3 + 4 = 7.\n#### 7", "She has 3 and 4. #### 7", 1.0),
        ("The answer is $1,234.50", "1234.5", 1.0),
        ("it is -5", 5, 0.0),
        ("it is minus nothing", 5, 0.0),
        ("first 7, then 8", "7", 0.0),
        ("0.1", 0.1000000001, 1.0),
        ("10-3", "7", 0.0),
        ("pages 10-12", 12, 1.0),
        ("2026-11-26", 26, 1.0),
        ("-$5", -5, 1.0),
        ("\u22125", -5, 1.0),
        ("x=-5", -5, 1.0),
        ("5 - 8 = -3", -3, 1.0),
        ("5 - 8", 8, 1.0),
        ("$-1,234.50", -1234.5, 1.0),
        ("1e400", 1, 0.0),
        ("3", 10.0, 0.0),
    ],
)
def test_number(prediction, gold, score):
    assert text.number(prediction, gold) == score


@pytest.mark.parametrize("gold", ["no number", "", None, [], "9" * 400, 10**400, float("nan")])
def test_a_right_answer_without_a_number_is_refused_and_never_matched(gold):
    with pytest.raises(DataError, match="number"):
        SCORERS["number"]("3", gold, {})


def test_contains_wants_whole_words():
    assert text.contains("The capital is Paris, of course.", ["paris"]) == 1.0
    assert text.contains("Parisian", ["paris"]) == 0.0
    assert text.contains("anything", []) == 0.0


def test_label_takes_the_first_label_named():
    labels = ["ham", "spam", "not spam"]
    assert text.label("This is spam, not ham.", "spam", labels) == 1.0
    assert text.label("Not spam.", "not spam", labels) == 1.0
    assert text.label("Not spam.", "spam", labels) == 0.0
    assert text.label("hamster", "ham", labels) == 0.0
    assert text.label(" Spam! ", "spam") == 1.0


def test_labels_may_be_articles_or_signs_and_the_right_one_must_be_among_them():
    letters = ["A", "B", "C", "D"]
    assert [text.label(answer, "A", letters) for answer in ("A", "The answer is A.", "(a) Paris", "B", "the", "")] == [
        1.0, 1.0, 1.0, 0.0, 0.0, 0.0,
    ]  # fmt: skip
    assert text.label("B", "B", letters) == 1.0
    assert text.label("an", "A", []) == 0.0
    assert [text.label(answer, "+", ["+", "-"]) for answer in ("+", "it is +", "-")] == [1.0, 1.0, 0.0]
    with pytest.raises(DataError, match="none of the labels"):
        text.label("spam", "junk", ["ham", "spam"])
