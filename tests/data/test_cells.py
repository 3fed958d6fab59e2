"""Messages in the cells of a table are messages: the JSON of a list means what the list does."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from tunesmith.data.formats import LEARNABLE, convert
from tunesmith.data.reading.sources import read
from tunesmith.data.types import Judged, Message, Origin, Preference, Prompt
from tunesmith.errors import DataError

ASKED = [{"role": "system", "content": "be [brief]"}, {"role": "user", "content": 'say "hi",\nplease'}]
YES, NO = [{"role": "assistant", "content": "hi"}], [{"role": "assistant", "content": "no"}]
ROWS: dict[str, tuple[dict[str, Any], tuple[type, ...]]] = {
    "prompt-completion": ({"prompt": ASKED, "completion": YES}, LEARNABLE),
    "messages": ({"messages": ASKED + YES}, LEARNABLE),
    "preference": ({"prompt": ASKED, "chosen": YES, "rejected": NO}, (Preference,)),
    "preference, no prompt": ({"chosen": ASKED + YES, "rejected": ASKED + NO}, (Preference,)),
    "preference, one message": ({"prompt": ASKED, "chosen": YES[0], "rejected": NO[0]}, (Preference,)),
    "unpaired": ({"prompt": ASKED, "completion": YES, "label": True}, (Judged,)),
    "prompt": ({"prompt": ASKED}, (Prompt,)),
}


def meaning(row: dict[str, Any], takes: Any) -> Any:
    return convert([(Origin("rows", 1), row)], "auto", {}, takes).rows[0]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("name", ROWS)
def test_a_list_in_a_cell_means_what_it_means_in_json(tmp_path: Any, name: str, ending: str) -> None:
    row, takes = ROWS[name]
    path = tmp_path / f"rows.{ending}"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t" if ending == "tsv" else ",")
        cells = [cell if isinstance(cell, bool) else json.dumps(cell) for cell in row.values()]
        table.writerows([row.keys(), cells])
    [(_, cells)] = read(str(path))
    assert isinstance(cells["label" if "label" in cells else next(iter(cells))], str)
    assert meaning(cells, takes) == meaning(row, takes)


@pytest.mark.parametrize(
    "cell",
    [
        repr(ASKED),
        "[{'content': 'hi', 'role': 'user'}\n {'content': 'yes', 'role': 'assistant'}]",
        json.dumps(ASKED)[:-9],
    ],
)
def test_what_begins_like_messages_and_is_no_json_is_refused(cell: str) -> None:
    for row, takes in (
        ({"prompt": cell, "completion": cell}, LEARNABLE),
        ({"messages": cell}, LEARNABLE),
        ({"prompt": "q", "chosen": cell, "rejected": "no"}, (Preference,)),
    ):
        with pytest.raises(DataError, match=r"(?s)row 1.*begins like messages.*json\.dumps"):
            meaning(row, takes)


@pytest.mark.parametrize(
    "answer",
    [
        '{"role": "engineer", "content": "x"}',
        '{"role": "user", "rights": ["read"]}',
        '[{"from": "Anna", "value": 3}]',
        "{'role': 'engineer'}",
        '["user", "assistant"]',
        "[]",
        "{{ role }}",
        '{"role": ["user"], "content": "x"}',
    ],
)
def test_an_answer_that_is_some_other_json_stays_text(answer: str) -> None:
    row = meaning({"prompt": "q", "completion": answer}, LEARNABLE)
    assert row.messages == (Message("user", "q"), Message("assistant", answer))


def test_text_beside_messages_is_refused_with_the_way_to_mean_it() -> None:
    with pytest.raises(DataError, match=r"(?s)both be text.*prompt: text and completion: messages.*data\.format="):
        meaning({"prompt": "q", "completion": json.dumps(YES)}, LEARNABLE)
