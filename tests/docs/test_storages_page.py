"""docs/storages.md says yes of the pairs that the tests hold, and of no others.

That the page is the one that the script would write is held by test_documents.py.
"""

from __future__ import annotations

import re
import sys

import pytest
import workshop

from tunesmith.adapters import METHODS
from tunesmith.quant import QUANTISED

PAGE = (workshop.ROOT / "docs" / "storages.md").read_text()


@pytest.fixture(scope="module")
def pairs():
    sys.path.insert(0, str(workshop.ROOT / "scripts"))
    try:
        import storage_pairs

        yield storage_pairs
    finally:
        sys.path.remove(str(workshop.ROOT / "scripts"))


def test_every_method_is_tested_on_every_storage_or_refused():
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.*) \|$", PAGE.partition("## Which methods go with them")[2], re.M))
    for method in METHODS:
        said = rows[method].split(" | ")
        assert len(said) == 1 + len(QUANTISED)
        assert all(one == "yes" or one.startswith("no: ") for one in said), (method, said)


def cases(pairs, *, run=True, law=True, method="prompt", storage="nf4"):
    made = []
    if run:
        made.append((f"{pairs.RUN}::{pairs.TRAINS}[x]", {"method": method, "storage": storage}))
    if law:
        made.append((f"{pairs.VIRTUAL}::test_6[x]", {"choice": f"{method}, otherwise", "storage": storage}))
    return pairs.pairs_of(made)


def test_a_yes_is_a_whole_run_and_laws(pairs):
    for run, law, said in (
        (True, True, "yes"),
        (False, True, "laws alone"),
        (True, False, "a run alone"),
        (False, False, "not tested"),
    ):
        found = cases(pairs, run=run, law=law)
        assert pairs.said_of("prompt", "nf4", found) == said
        assert pairs.said_of("prompt", "int8", found) == pairs.said_of("lora", "nf4", found) == "not tested"


def test_laws_without_a_storage_are_of_plain_layers_and_other_runs_are_none(pairs):
    law = (f"{pairs.PLAIN}::test_2[lora-linear-bf16]", {"method": "lora", "storage": "bf16"})
    other = (f"{pairs.RUN}::test_merged[nf4]", {"storage": "nf4"})
    another = (f"{pairs.RUN}::test_something_else[lora-plain]", {"method": "lora", "storage": "plain"})
    found = pairs.pairs_of([law, other, another])
    assert dict(found) == {(pairs.PLAIN, "lora", "plain"): 1}
    assert pairs.said_of("lora", "plain", found) == "laws alone"


def test_a_refused_pair_says_why(pairs, monkeypatch):
    monkeypatch.setattr(METHODS["lora"], "PLAIN_ONLY", "it changes the base itself", raising=False)
    assert pairs.said_of("lora", "nf4", cases(pairs, method="lora")) == "no: it changes the base itself"
    assert pairs.said_of("lora", "plain", cases(pairs, method="lora", storage="plain")) == "yes"


def test_what_a_yes_names_is_there(pairs):
    for file, name in ((pairs.RUN, f"def {pairs.TRAINS}("), (pairs.VIRTUAL, "def test_6_"), (pairs.FEW_BITS, "@cases")):
        assert file in PAGE
        assert name in (workshop.ROOT / file).read_text()
