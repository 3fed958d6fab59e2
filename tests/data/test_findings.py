"""What is odd about prepared rows is found, counted once, and named by its row."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_tokenizers import CHATML, byte_level

from tunesmith.data.findings import Finding, findings, learned_runs
from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Preference


def found(rows: list[dict[str, Any]], takes: Any = None, **settings: Any) -> dict[str, Finding]:
    more = {} if takes is None else {"takes": takes}
    data = DataSettings(train="rows", **settings)
    made = prepare(data, byte_level(CHATML), seed=0, rows=rows, **more)
    return {finding.kind: finding for finding in findings(made)}


def pair(question: str, answer: str) -> dict[str, str]:
    return {"prompt": question, "completion": answer}


CLEAN = [pair(f"what is {i}", f"it is {i * i}") for i in range(8)]


def test_nothing_odd_is_found_in_clean_rows() -> None:
    assert found(CLEAN) == {}
    assert found([{"text": f"the quick brown fox {i}"} for i in range(4)]) == {}


def test_copies_are_counted_beyond_the_first_and_not_those_that_a_weight_makes() -> None:
    again = found([*CLEAN, CLEAN[2], CLEAN[2], CLEAN[5]])["duplicate"]
    assert (again.rows, again.first) == (3, ("rows, row 9", "rows, row 10", "rows, row 11"))
    assert "like an earlier one" in str(again)


def test_the_same_question_with_another_answer_is_no_copy() -> None:
    assert "duplicate" not in found([*CLEAN, pair("what is 2", "it is two")])


def test_a_held_out_question_that_training_asks_too() -> None:
    rows = [pair(f"what is {i % 4}", f"it is {i}") for i in range(40)]
    asked = found(rows, held_out=0.2)["same_question"]
    assert asked.rows == 8
    assert "same_question" not in found([pair(f"what is {i}", "it") for i in range(40)], held_out=0.2)


def test_an_answer_cut_before_its_end_does_not_teach_to_stop() -> None:
    rows = [*CLEAN, pair("what is it", "it is what it is " * 20)]
    cut = found(rows, max_length=40, overlong="truncate")["endless"]
    assert (cut.rows, cut.first) == (1, ("rows, row 9",))
    assert found(CLEAN, learn_ends="none")["endless"].rows == len(CLEAN)


def test_an_empty_answer_among_full_ones() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]
    turns += [{"role": "user", "content": "b"}, {"role": "assistant", "content": "yes"}]
    assert found([{"messages": turns}])["empty_answer"].rows == 1


@pytest.mark.parametrize(("longer", "sign"), [("chosen", "+"), ("rejected", "-")])
def test_a_length_that_gives_the_better_answer_away(longer: str, sign: str) -> None:
    rows = []
    for i in range(20):
        answers = {"chosen": f"yes {i}", "rejected": f"no {i}"}
        answers[longer] += " it is what it is" * (1 + i % 3)
        rows.append({"prompt": f"what is {i}", **answers})
    kinds = found(rows, takes=(Preference,))
    assert sign in kinds["length_bias"].text
    assert kinds["shared_prefix"].rows == 20
    same = [{"prompt": f"what is {i}", "chosen": "it is a", "rejected": "it is b"} for i in range(20)]
    assert "length_bias" not in found(same, takes=(Preference,))


def test_learned_runs_are_where_the_weights_are() -> None:
    example = prepare(DataSettings(train="rows"), byte_level(CHATML), seed=0, rows=CLEAN).train[0]
    (run,) = learned_runs(example)
    assert example.loss_weights[run[0] : run[1]].all()
    assert not example.loss_weights[: run[0]].any()
    assert not example.loss_weights[run[1] :].any()
