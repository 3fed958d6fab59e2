"""Large sources do not lie in memory: neither their rows, nor the tokens that are made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.cache.large import FEW, fewer


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=6))
def test_a_few_rows_stand_in_for_all_where_most_is_asked(counts):
    found = fewer(counts)
    for chosen in range(2 ** len(counts)):
        halves = [2 * sum(c for i, c in enumerate(of) if chosen >> i & 1) > sum(of) for of in (counts, found)]
        assert halves[0] == halves[1]


def test_millions_of_rows_are_few_unless_they_are_half_and_half():
    assert sum(fewer([1_000_003, 17, 3])) < FEW + 3
    assert fewer([5, 5]) == [1, 1]
    assert fewer([1_000_003, 1_000_002]) == [1_000_003, 1_000_002]


MEMORY = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import datasets, tiny_tokenizers as tiny
from tunesmith.data.cache import kept
from tunesmith.data.settings import DataSettings
def anonymous():
    said = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(said["RssAnon"].split()[0]) * 1024
most = [0]
def watch():
    while True:
        most[0] = max(most[0], anonymous())
        time.sleep(0.02)
tokenizer = tiny.byte_level(tiny.CHATML)
def made(path):
    said = DataSettings(train=path, held_out=0.01)
    return kept.prepare_once(said, tokenizer, seed=0, root=Path(sys.argv[2]), say=print)
threading.Thread(target=watch, daemon=True).start()
few = len(made(sys.argv[4]).train)
before = most[0]
many = len(made(sys.argv[3]).train)
print((most[0] - before) / (many - few))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("count", "words", "most"), [(6_000, 100, 9_000), (200_000, 10, 700)])
def test_memory_for_a_row_does_not_hold_its_tokens(tmp_path, count, words, most):
    """`most` bytes a row. In arrays, as text and once more as what it means, one of 100 words takes 14,000, and one
    of 10 takes 2,500."""
    for name, number in (("rows", count), ("few", 1_600)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for row in range(number):
                file.write(json.dumps({"text": "".join(f"zebra {row * place} dog " for place in range(words))}) + "\n")
    places = [str(Path(__file__).parent), *(str(tmp_path / name) for name in ("cache", "rows.jsonl", "few.jsonl"))]
    for is_there in (False, True):
        done = subprocess.run([sys.executable, "-c", MEMORY, *places], capture_output=True, text=True, check=True)
        assert float(done.stdout.split()[-1]) < most
        assert ("rows as prepared before" in done.stdout) == is_there
