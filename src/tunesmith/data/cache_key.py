"""What prepared rows depend on, as one name: while it is the same, so is every token of them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.data.laid import digest_of_file
from tunesmith.data.prepare import Task
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings, name_and_split
from tunesmith.data.split import as_held_out
from tunesmith.data.streamed import ReadWhole, of_hub
from tunesmith.machine import versions

PACKAGES = ("tunesmith", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "jinja2")
_MOMENT = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1")


@dataclass(frozen=True)
class Content:
    """One source. `files`: where it lies here; none, where it is of the hub and known by `hub_name`."""

    name: str
    files: tuple[Path, ...] = ()
    hub_name: str = ""

    def stamps(self) -> list[tuple[str, int, int]]:
        """What changes when somebody writes a file."""
        states = [(str(path), path.stat()) for path in self.files]
        return [(path, state.st_size, state.st_mtime_ns) for path, state in states]

    def digest(self) -> list[str]:
        return [self.name, self.hub_name, *(part for path in self.files for part in (str(path), digest_of_file(path)))]


def contents(settings: DataSettings) -> list[Content]:
    """All that rows are read from, the file of held-out rows too."""
    found = [_content(one.named, one.subset, one.split, one.limit) for one in settings.sources]
    held_out = as_held_out(settings.held_out)
    if held_out is not None and held_out.file is not None:
        name, part = name_and_split(held_out.file)
        if part is None or Path(held_out.file).expanduser().exists():
            name, part = held_out.file, settings.split
        found.append(_content(name, settings.subset, part))
    return found


def _content(name: str, subset: str | None, split: str, limit: int | None = None) -> Content:
    path = Path(name).expanduser()
    if path.is_dir():
        return Content(name, tuple(sorted(one for one in path.rglob("*") if one.is_file())))
    if path.exists():
        return Content(name, (path,))
    if limit is not None:  # a few rows are fetched, and not the whole
        raise ReadWhole
    return Content(name, hub_name=str(of_hub(name, subset, split)._fingerprint))


def key_of(task: Task, worded: Mapping[str | None, Renderer], sources: Iterable[Content]) -> str:
    said = {
        "settings": task.settings.model_dump(mode="json"),
        "seed": task.seed,
        "made for": task.made_for,
        "bound": task.bound,
        "takes": [kind.__name__ for kind in task.takes],
        "sources": [source.digest() for source in sources],
        "tokenizers": [[template, _of_tokenizer(renderer)] for template, renderer in worded.items()],
        "moments": moments(worded),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "code": CODE,
    }
    return _digest(json.dumps(said, sort_keys=True, default=str).encode())


def moments(worded: Mapping[str | None, Renderer]) -> list[str]:
    """What templates that write the date write now."""
    texts = [str(renderer.tokenizer.chat_template) for renderer in worded.values()]
    now = datetime.now()
    return [now.strftime(form) for text in texts if "strftime_now" in text for _, form in _MOMENT.findall(text)]


def _of_tokenizer(renderer: Renderer) -> str:
    """Its words, what it puts around a text, and how it words a conversation."""
    tokenizer: Any = renderer.tokenizer
    said = [
        type(tokenizer).__name__,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        [tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)],
        [[number, repr(token)] for number, token in sorted(tokenizer.added_tokens_decoder.items())],
        tokenizer("a").input_ids,
        tokenizer.backend_tokenizer.to_str(),
    ]
    return _digest(json.dumps(said, sort_keys=True, default=str).encode())


def code_of(folder: Path) -> str:
    """The files of a folder: what those beside this one do differently, they do to the rows."""
    files = sorted(folder.glob("*.py"))
    return _digest(b"\0".join(part for path in files for part in (path.name.encode(), path.read_bytes())))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


CODE = code_of(Path(__file__).parent)
"""Read as this file is loaded, and those beside it: a file that is written later is not what makes the rows here."""
