"""Which methods go with which storages: the table of docs/storages.md, out of the tests that pytest collects.

A pair is a yes where a whole run of it and its laws are cases of the tests, whatever their files are made of by then.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from page_parts import REPOSITORY

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import refusal
from tunesmith.quant import QUANTISED

STORAGES = ("plain", *QUANTISED)
RUN = "tests/test_quantised_run.py"
TRAINS = "test_every_method_trains_on_every_storage"
FEW_BITS, PLAIN, VIRTUAL = (f"tests/laws/test_{name}_laws.py" for name in ("storage", "adapter", "virtual"))

Pairs = Counter[tuple[str, str, str]]
"""(file, method, storage) -> how many cases of the file hold the two."""


class _Listening:
    """A plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def collected() -> Pairs:
    """Of the four files, slow cases too. SystemExit where pytest cannot collect them."""
    listening, said = _Listening(), io.StringIO()
    before = os.environ.pop("PYTEST_ADDOPTS", None)
    options = ["--collect-only", "-qq", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY)]
    files = [str(REPOSITORY / file) for file in (RUN, FEW_BITS, PLAIN, VIRTUAL)]
    try:
        with contextlib.redirect_stdout(said):
            status = pytest.main([*options, *files], plugins=[listening])
    finally:
        if before is not None:
            os.environ["PYTEST_ADDOPTS"] = before
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"the tests of storages cannot be collected:\n{said.getvalue()}")
    return pairs_of((item.nodeid, item.callspec.params) for item in listening.items if hasattr(item, "callspec"))


def pairs_of(cases: Any) -> Pairs:
    """Of (test's id, its parameters). A law without a storage of few bits is one of plain layers."""
    found: Pairs = Counter()
    for test, given in cases:
        file, _, name = test.partition("::")
        method = str(given.get("method", given.get("choice"))).partition(",")[0]
        storage = given.get("storage")
        if storage not in STORAGES:
            storage = "plain"
        if method in METHODS and (file != RUN or name.startswith(f"{TRAINS}[")):
            found[file, method, storage] += 1
    return found


def laws_of(method: str, storage: str, found: Mapping[tuple[str, str, str], int]) -> int:
    """How many cases of laws hold the pair."""
    return sum(found.get((file, method, storage), 0) for file in (FEW_BITS, PLAIN, VIRTUAL))


def said_of(method: str, storage: str, found: Mapping[tuple[str, str, str], int]) -> str:
    reason = refusal(METHODS[method].Settings(), storage)  # type: ignore[attr-defined]
    if reason is not None:
        return f"no: {reason}"
    runs, laws = found.get((RUN, method, storage), 0), laws_of(method, storage, found)
    if runs and laws:
        return "yes"
    return "laws alone" if laws else "a run alone" if runs else "not tested"


def pairs_section(found: Pairs | None = None) -> str:
    found = collected() if found is None else found
    lines = [f"| method | {' | '.join(STORAGES)} |", "|---" * (len(STORAGES) + 1) + "|"]
    for method in METHODS:
        lines.append(f"| {method} | {' | '.join(said_of(method, storage, found) for storage in STORAGES)} |")
    return (
        "## Which methods go with them\n\n"
        f"A yes is two things. A whole run of the pair (trained, saved, opened again, the same answers): the case "
        f"`[METHOD-STORAGE]` of `{RUN}::{TRAINS}`. And its laws: beside few bits those of `{FEW_BITS}` (of methods "
        f"with virtual tokens the sixth of `{VIRTUAL}`: before a base in few bits they are what they are before its "
        f"dequantised numbers), beside plain layers those of `{PLAIN}` and `{VIRTUAL}`. The table is made from the "
        "cases that pytest collects; most runs are marked slow and belong to `make test-all`. A no is refused before "
        "the model loads.\n\n" + "\n".join(lines) + "\n"
    )
