"""The page of `tunesmith check --html`: whole, with nothing from outside, and nothing of the rows obeyed."""

from __future__ import annotations

from tiny_tokenizers import CHATML, byte_level

from tunesmith.data.check.check_page import check_page
from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings

ROWS = [{"prompt": f"what is {i}", "completion": f"<b>it</b> is {i * i}"} for i in range(9)]


def test_the_page_shows_learned_tokens_and_escapes_the_rows() -> None:
    tokenizer = byte_level(CHATML)
    page = check_page("mine", prepare(DataSettings(train="rows"), tokenizer, seed=0, rows=ROWS), tokenizer, 2)
    assert page.count("class='row'") == 2
    assert "<b>&lt;b&gt;it&lt;/b&gt; is 0" in page
    assert "<b>it</b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "9 to train on" in page
    assert "Nothing odd was found." in page


def test_findings_stand_on_the_page() -> None:
    tokenizer = byte_level(CHATML)
    made = prepare(DataSettings(train="rows"), tokenizer, seed=0, rows=[*ROWS, ROWS[0]])
    assert "1 row like an earlier one" in check_page("mine", made, tokenizer, 1)


def test_each_finding_stands_there_once() -> None:
    tokenizer = byte_level(CHATML)
    made = prepare(DataSettings(train="rows"), tokenizer, seed=0, rows=[*ROWS, ROWS[0]])
    assert check_page("mine", made, tokenizer, 1).count("like an earlier one") == 1


def test_lengths_before_cutting_and_the_share_that_is_cut_stand_on_the_page() -> None:
    tokenizer = byte_level(CHATML)
    rows = [*ROWS, {"prompt": "what", "completion": "it is what it is " * 40}]
    whole = check_page("mine", prepare(DataSettings(train="rows"), tokenizer, seed=0, rows=rows), tokenizer, 1)
    assert "before cutting" not in whole
    made = prepare(DataSettings(train="rows", max_length=60), tokenizer, seed=0, rows=rows)
    page = check_page("mine", made, tokenizer, 1)
    assert "before cutting" in page
    assert f"<td>{max(made.counts.lengths):,}</td>" in page
    assert "1 row (10.0%) longer than data.max_length" in page
