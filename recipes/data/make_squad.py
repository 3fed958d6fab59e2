"""Write the data of squad_by_paragraph.yaml into data/squad/ beside this file: SQuAD 2.0 by paragraph.

A paragraph of SQuAD has about ten questions. As rows of their own each repeats the paragraph; as turns of one
conversation the paragraph is read once, for a quarter of the tokens. The first turn is worded by recipes/squad.yaml,
which is how a question is asked later. The file holds several passes, with the questions in another order each time.

    python recipes/data/make_squad.py [FILE of rows with context, question, answers, title]
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from tunesmith.data.formats import template
from tunesmith.data.settings import TemplateFormat
from tunesmith.data.types import Origin
from tunesmith.notation import read

HERE = Path(__file__).resolve().parent
PASSES = 4


def conversations(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """{"messages", "title"} for each paragraph, `PASSES` times, each pass shuffled anew."""
    recipe = read((HERE.parent / "squad.yaml").read_text(encoding="utf-8"), "squad.yaml").value
    form = template(TemplateFormat(**recipe["data"]["format"]))
    paragraphs: dict[str, list[list[dict[str, str]]]] = {}
    titles = {row["context"]: row["title"] for row in rows}
    for number, row in enumerate(rows, 1):
        turns = [{"role": turn.role, "content": turn.content} for turn in form(row, Origin("squad", number)).messages]
        paragraphs.setdefault(row["context"], []).append(turns)
    shuffled, made = random.Random(seed), []
    for _ in range(PASSES):
        order = list(paragraphs)
        shuffled.shuffle(order)
        for context in order:
            questions = shuffled.sample(paragraphs[context], len(paragraphs[context]))
            messages = list(questions[0])
            for _, asked, answer in questions[1:]:  # the paragraph and the system turn stand there already
                messages += [{"role": "user", "content": asked["content"].rpartition("\n\n")[2]}, answer]
            made.append({"messages": messages, "title": titles[context]})
    return made


def write(source: Path, folder: Path = HERE / "squad") -> Path:
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "train.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in conversations(rows))
    target.write_text(text, encoding="utf-8")
    return target


if __name__ == "__main__":
    there = HERE.parent.parent.parent / "shared" / "data" / "squad_v2" / "train.jsonl"
    print(f"wrote {write(Path(sys.argv[1]) if len(sys.argv) > 1 else there)}")
