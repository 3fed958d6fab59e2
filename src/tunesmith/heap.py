"""How this process asks for memory: what a step frees is kept for the next, and large tensors lie on large pages.

The C library hands the memory of a large tensor back when it is freed, and the system clears every page of the next
one: 583,000 pages in a step of a small model and its embeddings. Nothing here changes a number, and nothing is done
where the C library is not GNU's or the user has said otherwise in its own variables.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 2**31 - 1  # mallopt takes an int
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's own switch: tensors of 2 MB and more ask for large pages. Read when torch makes its first tensor."""


def keep() -> None:
    """Keep freed memory from now on; large pages too, where torch has made no tensor yet. `models.room.free_cache`
    gives back what is not used."""
    if sys.platform != "linux":
        return
    os.environ.setdefault(_LARGE_PAGES, "1")
    if not any(name in os.environ for name in _OWN):
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            library.mallopt(_MMAP_THRESHOLD, _MOST)
            library.mallopt(_TRIM_THRESHOLD, _MOST)
