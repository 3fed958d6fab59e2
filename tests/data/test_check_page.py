"""The page of `tunesmith check --html`: whole, with nothing from outside, and nothing of the rows obeyed."""

from __future__ import annotations

from tiny_tokenizers import CHATML, byte_level

from tunesmith.data.check_page import check_page
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
