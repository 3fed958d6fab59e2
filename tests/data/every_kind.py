"""A few rows of every kind, and what an objective takes of them."""

from __future__ import annotations

import json

import tiny_tokenizers as tiny

from tunesmith.data.types import Conversation, Document, Judged, Labelled, Preference, Prompt

TOKENIZER = tiny.byte_level(tiny.CHATML)
TEXT, PAIRS = (Conversation, Document), (Preference,)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talk(i):
    turns = [{"role": "system", "content": "be brief"}] if i % 3 == 0 else []
    for j in range(1 + i % 3):
        turns += [{"role": "user", "content": f"what is {i} {j}"}, {"role": "assistant", "content": f"it is {i * j}"}]
    if i % 5 == 0:
        turns[-1]["weight"] = 1
    return {"messages": turns, "topic": i % 4, **({"system": None} if i % 2 else {})}


ROWS = {
    "pairs": [
        {"prompt": f"question {i % 9}", "completion": f"answer {i}" * (i % 4), "topic": i % 3} for i in range(23)
    ],
    "talks": [talk(i) for i in range(17)],
    "alpaca": [
        {"instruction": f"do {i}", "output": f"done {i}", "input": "it" * (i % 2), "topic": i} for i in range(9)
    ],
    "texts": [{"text": "the quick brown fox " * (i % 6), "topic": i % 3, "note": i or None} for i in range(14)],
    "segments": [
        {"segments": [{"label": bool(j % 2), "text": f"piece {i} {j} "} for j in range(2 + i % 3)], "topic": i % 2}
        for i in range(11)
    ],
    "tokens": [
        {"input_ids": list(range(9, 14 + i)), "labels": [-100] * 3 + list(range(12, 14 + i)), "topic": 0}
        for i in range(12)
    ],
    "choices": [
        {"prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i % 4}", "topic": i % 3, "margin": margin}
        for i, margin in zip(range(13), [1, 1.5, None, "wide"] * 4, strict=False)
    ],
    "judged": [
        {"prompt": f"ask {i}", "completion": f"good {i}", "label": bool(i % 2), "topic": i % 3} for i in range(10)
    ],
    "labels": [{"text": f"a text {i}", "labels": ["a", "b"][: i % 3], "topic": i % 3} for i in range(10)],
    "asked": [{"prompt": f"ask {i}", "answer": i, "topic": i % 3} for i in range(8)],
}  # fmt: skip
TAKES = {"choices": PAIRS, "judged": (Judged,), "labels": (Labelled,), "asked": (Prompt,)}
