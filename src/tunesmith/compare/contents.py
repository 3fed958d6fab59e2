"""Files and folders by their bytes: where they lie and when they were written says nothing of what a run learns.

placeless(["/home/me/rows.jsonl", 3]) -> ["<digest of its bytes>.jsonl", 3]
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.data.cache.file_digests import FileDigests, stamp
from tunesmith.machine import cache_folder


def digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def content(name: str) -> str:
    """Digest of a file's bytes, or of all files of a folder with their names; of a hub id, the id."""
    path = Path(name)
    if path.is_file():
        return digest(_bytes_of(path))
    if not path.is_dir():
        return name
    files = {item.relative_to(path): item for item in path.rglob("*") if item.is_file()}
    named = {place.as_posix(): item for place, item in files.items() if not _is_hidden(place)}
    return digest([[place, _bytes_of(item)] for place, item in sorted(named.items())])


def placeless(value: Any) -> Any:
    """`value` with every file and folder that it names, at any depth, by its bytes; plain values of JSON in and out."""
    if isinstance(value, Mapping):
        return {key: placeless(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [placeless(inner) for inner in value]
    if not isinstance(value, str):
        return value
    found = _by_content(value)
    if found is not None or ":" not in value or "\n" in value:
        return found or value
    return ":".join(_by_content(part) or part for part in value.split(":"))  # file.py:function, rows.json:split


def _by_content(text: str) -> str | None:
    """What stands for a path; None where `text` is none."""
    if os.path.isfile(text):
        name = Path(text).suffix if os.path.isabs(text) else f" {text}"  # a word may be that of a file by chance
        return content(text) + name
    is_folder = os.path.isabs(text) and os.path.isdir(text)
    return content(text) if is_folder and Path(text) != Path(Path(text).anchor) else None  # "/" is a word of a format


def _is_hidden(place: Path) -> bool:
    """What tools write down beside a model: when it was fetched, and from where."""
    return any(part.startswith(".") for part in place.parts)


def _bytes_of(file: Path) -> str:
    return _read_once(str(file.absolute()), tuple(stamp(file)))


@lru_cache(maxsize=4096)
def _read_once(file: str, _: tuple[int, ...]) -> str:
    """A large file's digest is kept in the cache folder: it is read once for all studies."""
    return FileDigests(cache_folder() / "contents.json").of_all([Path(file)])[1]
