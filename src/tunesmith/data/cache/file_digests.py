"""Digests of large files, kept: a file that nobody wrote is not read again to know it.

What a file system changes with every write tells whether one was written: size, both of its times, and which file it
is. The time of change (ctime) is set by the system alone: a tool that puts the other one back leaves it. Times go in
ticks of a few milliseconds, and what is written through a mapping may lie in memory for half a minute before they
change: so a digest is kept only of a file that was left alone for a minute before it was read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tunesmith.atomic import write_file
from tunesmith.data.cache.laid import digest_of_file, text_digest
from tunesmith.errors import TunesmithError

LEFT_ALONE_NS = 60 * 10**9
LEAST_BYTES = 1 << 16
"""A smaller file is read as quickly as it is looked up."""
MOST_FILES = 100_000
"""Beyond these, those go that were read first."""

Stamp = list[int]


def stamp(path: Path) -> Stamp:
    """Of a file: device, number, bytes, and nanoseconds of the last write and of the last change.

    Asked of the opened file: over a network, only opening asks the server.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


class FileDigests:
    """Those that the file `at` holds, and those of files that are read meanwhile; none kept where it is None."""

    def __init__(self, at: Path | None = None) -> None:
        self.at = at if os.name == "posix" else None  # elsewhere ctime is when a file was made
        self.known: dict[str, tuple[Stamp, str]] = {}
        self.num_new = 0
        if self.at is not None:
            with suppress(OSError, ValueError):  # there is none, or a damaged one
                digest, _, text = self.at.read_text().partition("\n")
                if digest == text_digest(text):
                    self.known = {path: (stamp, digest) for path, stamp, digest in json.loads(text)}

    def of(self, path: Path) -> str:
        name, now, found = str(path.absolute()), time.time_ns(), stamp(path)
        known, digest = self.known.get(name, ([], ""))
        if known == found:
            return digest
        digest = digest_of_file(path)
        *_, num_bytes, written, changed = found
        is_settled = max(written, changed) + LEFT_ALONE_NS < now and stamp(path) == found
        if self.at is not None and num_bytes >= LEAST_BYTES and is_settled:
            self.known.pop(name, None)
            self.known[name] = found, digest
            self.num_new += 1
        return digest

    def of_all(self, paths: Iterable[Path]) -> list[str]:
        """Name and digest of each, and those that are new kept: where that fails, they are found anew next time."""
        found = [part for path in paths for part in (str(path), self.of(path))]
        if self.at is not None and self.num_new:
            said = [[name, *known] for name, known in self.known.items()][-MOST_FILES:]
            text = json.dumps(said)
            with suppress(OSError, TunesmithError):
                self.at.parent.mkdir(parents=True, exist_ok=True)
                write_file(self.at, f"{text_digest(text)}\n{text}")
                self.num_new = 0
        return found
