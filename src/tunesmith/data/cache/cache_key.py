"""What prepared rows depend on, as one name: while it is the same, so is every token of them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, nodes

from tunesmith.data.cache.file_digests import FileDigests, Stamp, stamp
from tunesmith.data.prepare import Task
from tunesmith.data.reading.sources import data_files, is_saved
from tunesmith.data.reading.streamed import ReadWhole, of_hub
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings, name_and_split
from tunesmith.data.split import as_held_out
from tunesmith.data.templating.templates import syntax
from tunesmith.machine import versions

PACKAGES = ("tunesmith", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "jinja2")
CLOCK = "strftime_now"
"""What chat templates call for the date."""


@dataclass(frozen=True)
class Content:
    """One source. `files`: where it lies here; none, where it is of the hub and known by `hub_name`."""

    name: str
    files: tuple[Path, ...] = ()
    hub_name: str = ""

    def stamps(self) -> list[tuple[str, Stamp]]:
        """What changes when somebody writes a file."""
        return [(str(path), stamp(path)) for path in self.files]

    def digest(self, known: FileDigests) -> list[str]:
        return [self.name, self.hub_name, *known.of_all(self.files)]


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
        if not is_saved(path):
            return Content(name, tuple(data_files(path, split)))
        return Content(name, tuple(sorted(one for one in path.rglob("*") if one.is_file())))
    if path.exists():
        return Content(name, (path,))
    if limit is not None:  # a few rows are fetched, and not the whole
        raise ReadWhole
    return Content(name, hub_name=str(of_hub(name, subset, split)._fingerprint))


def key_of(
    task: Task, worded: Mapping[str | None, Renderer], sources: Iterable[Content], known: FileDigests | None = None
) -> str:
    """`known`: digests of files that are kept."""
    known = known or FileDigests()
    said = {
        "settings": task.settings.model_dump(mode="json"),
        "seed": task.seed,
        "made for": task.made_for,
        "bound": task.bound,
        "replaced": task.replaced,
        "takes": [kind.__name__ for kind in task.takes],
        "sources": [source.digest(known) for source in sources],
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
    return [moment for text in texts if CLOCK in text for moment in _moments(text, now)]


def _moments(template: str, now: datetime) -> list[str]:
    """By every call of the clock with a written form. A mention of any other kind may write anything: then it is this
    very moment, which is never another one's, so that what is made by such a template is made anew each time."""
    try:
        tree = syntax(template)
    except TemplateSyntaxError:
        return [now.isoformat()]
    forms, harmless = list[str](), 0
    for call in tree.find_all(nodes.Call):
        match call:
            case nodes.Call(
                node=nodes.Name(name="strftime_now"),
                args=[nodes.Const(value=str(form))],
                kwargs=[],
                dyn_args=None,
                dyn_kwargs=None,
            ):
                forms.append(form)
    for test in tree.find_all(nodes.Test):
        if isinstance(test.node, nodes.Name) and test.node.name == CLOCK and test.name in ("defined", "undefined"):
            harmless += 1
    mentions = template.count(CLOCK)
    return [now.strftime(form) for form in forms] if len(forms) + harmless == mentions else [now.isoformat()]


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
    """The files of a folder and of those in it: what they do differently, they do to the rows."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py"))
    return _digest(b"\0".join(part for name, path in files for part in (name.encode(), path.read_bytes())))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


CODE = code_of(Path(__file__).parents[1])
"""Read as this file is loaded, and all of `data/`: a file that is written later is not what makes the rows here."""
