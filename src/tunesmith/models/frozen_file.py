"""Stored hidden states on disk: a folder for each (model, dtype, blocks, rows), found by whoever needs the same.

    frozen/<key>/states.bin     [N, d] in the model's dtype, row after row; memory-mapped
    frozen/<key>/facts.json     shape, dtype, sha256 of the states, and the seconds that they took

A folder is made under another name, flushed, and renamed: it is there whole or not at all. One whose sha256 is not what
was written is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
import transformers
from torch import Tensor

from tunesmith.adapters.adapter_set import base_parameters
from tunesmith.adapters.targets import anatomy
from tunesmith.atomic import guarded
from tunesmith.models.frozen import Blocks

STATES, FACTS = "states.bin", "facts.json"
FORMAT = 1
ABANDONED = 3600.0
"""Seconds without a write after which a half-made folder belongs to nobody."""


def key(blocks: Blocks, rows: Iterable[bytes], max_tokens: int) -> str:
    """40 hex digits of all that the states depend on, `rows` by their digests, and of how they are computed.

    Every number of the embeddings and the frozen blocks counts, not a sample; a classification head, which each seed
    draws anew, does not. `max_tokens`, since the sums of a product may round otherwise in a batch of another size.
    """
    model, digest = blocks.policy.model, hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    how = [
        FORMAT,
        str(model.dtype),
        model.device.type,
        blocks.frozen,
        blocks.policy.flat,
        max_tokens,
        transformers.__version__,
        config,
    ]
    digest.update(json.dumps(how, sort_keys=True, default=str).encode())
    body = anatomy(model)
    above = tuple(f"{path}." for path in (*body.blocks[blocks.frozen :], *body.scorer))
    for name, parameter in base_parameters(model).items():
        if not name.startswith(above):
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for row in rows:
        digest.update(row)
    return digest.hexdigest()[:40]


class Folder:
    """The folder of one key, in the cache."""

    def __init__(self, root: Path, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.path, self.shape, self.dtype = root / name, shape, dtype
        self.num_bytes = shape[0] * shape[1] * dtype.itemsize

    def facts(self, sha256: str) -> dict[str, Any]:
        return {"format": FORMAT, "shape": list(self.shape), "dtype": str(self.dtype), "sha256": sha256}

    def is_whole(self) -> bool:
        """Whether every byte is as it was written."""
        try:
            written = json.loads((self.path / FACTS).read_text())
            facts = self.facts(_sha256(self.path / STATES))
            return bool({key: written.get(key) for key in facts} == facts)
        except (OSError, ValueError, AttributeError):
            return False

    @property
    def seconds(self) -> float:
        """What it took to make it; 0 where nobody wrote that down."""
        try:
            return float(json.loads((self.path / FACTS).read_text())["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0.0

    def table(self) -> Tensor:
        """[N, d], mapped, not read."""
        with suppress(OSError):
            os.utime(self.path)  # used last
        rows, width = self.shape
        return torch.from_file(str(self.path / STATES), shared=False, size=rows * width, dtype=self.dtype).view(
            rows, width
        )

    def has_room(self) -> bool:
        """Whether the disk takes it; states that were not used for longest give way."""
        root = self.path.parent
        _clear_abandoned(root)
        others = sorted((path for path in root.glob("[0-9a-f]*") if path != self.path), key=_used)
        while free_bytes(root) < 1.05 * self.num_bytes + 1e8:
            if not others:
                return False
            shutil.rmtree(others.pop(0), ignore_errors=True)
        return True

    @contextmanager
    def making(self) -> Iterator[Callable[[int, Tensor], None]]:
        """`write(start, states [n, d])` inside; at the end the folder stands under its name, or nothing does."""
        made, begun = self.path.with_name(f".making-{self.path.name}-{os.getpid()}"), time.perf_counter()
        try:
            with guarded(self.path):
                made.mkdir(parents=True, exist_ok=True)
                with (made / STATES).open("wb") as file:
                    file.truncate(self.num_bytes)
                    yield lambda start, states: self._write(file, start, states)
                    file.flush()
                    os.fsync(file.fileno())
                facts = self.facts(_sha256(made / STATES)) | {"seconds": time.perf_counter() - begun}
                (made / FACTS).write_text(json.dumps(facts))
                if not self.is_whole():  # another process may have made it meanwhile
                    shutil.rmtree(self.path, ignore_errors=True)
                    made.replace(self.path)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _write(self, file: BinaryIO, start: int, states: Tensor) -> None:
        if states.dtype != self.dtype or states.shape[1] != self.shape[1]:
            raise ValueError(
                f"states are {states.dtype} of width {states.shape[1]}, not {self.dtype} of {self.shape[1]}"
            )
        file.seek(start * self.shape[1] * self.dtype.itemsize)
        file.write(states.contiguous().view(torch.uint8).numpy().tobytes())


def _used(folder: Path) -> float:
    """When it was used last; what went away meanwhile, never."""
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _clear_abandoned(root: Path) -> None:
    """What a kill left half made."""
    for path in root.glob(".making-*"):
        with suppress(OSError):
            if time.time() - max(inner.stat().st_mtime for inner in (path, *path.iterdir())) > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
