"""Files that are there whole or not at all, and a sentence when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ELSEWHERE, MachineError

_PARTIAL = "partial-"
_LEFT_SECONDS = 24 * 3600


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces `path` whole: written beside it, flushed to the disk, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with guarded(path):
            with beside.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def new_partial(parent: Path) -> Path:
    """A folder in `parent` for what is not whole yet. Those that a killed process left a day ago or longer go."""
    for left in parent.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))


def no_room(error: BaseException) -> bool:
    """Whether a disk is full: in Python's words, or in those of safetensors and tokenizers, errors without a number."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in full
    return any(f"(os error {number})" in str(error) for number in full)


@contextlib.contextmanager
def guarded(path: Path) -> Iterator[None]:
    """A write that fails says so in one sentence: the disk is full, or the folder may not be written."""
    try:
        yield
    except OSError as error:
        if not no_room(error):
            raise MachineError(
                f"cannot be written: {error.strerror or error}", where=str(path), fix=ELSEWHERE
            ) from error
        existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 1e6
        raise MachineError(
            "the disk is full",
            where=str(path),
            found=f"{free:,.0f} MB free",
            fix="make room, or move the run: output.folder=…; what was saved before can be resumed",
        ) from error
