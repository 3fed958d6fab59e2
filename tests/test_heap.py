"""Memory that a step frees serves the next one, is given back when asked, and the user's own settings come first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU's C library")
SCRIPT = """
import resource, sys
from tunesmith import heap
if "keep" in sys.argv:
    heap.keep()
import torch
from pathlib import Path
from tunesmith.models.room import free_cache

def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = torch.ones(12_000_000)
y = x * x
before = faults()
for _ in range(10):
    y = None
    y = x * x
again = faults() - before
y = None
held = pages()
free_cache(torch.device("cpu"))
print(again, held - pages())
"""
PAGES = 12_000_000 * 4 // os.sysconf("SC_PAGE_SIZE")


def run(*arguments: str, **variables: str) -> tuple[int, int]:
    """Pages cleared by ten results of 48 MB one after the other, and pages given back in the end."""
    own = ("MALLOC_", "GLIBC_TUNABLES", "THP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **variables},
    )
    cleared, given_back = done.stdout.split()
    return int(cleared), int(given_back)


def test_what_is_freed_serves_again_and_is_given_back_when_asked():
    cleared, given_back = run("keep")
    assert cleared < PAGES // 10
    assert given_back > PAGES // 2


def test_that_is_not_so_otherwise():
    assert run()[0] > 5 * PAGES


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_users_own_settings_come_first(variable):
    assert run("keep", THP_MEM_ALLOC_ENABLE="0", **{variable: "100000"})[0] > 5 * PAGES
