"""Prepared rows that are kept: laid flat in a folder, and taken from it as long as nothing changes a token of them.

What is small is prepared as ever, which is faster than to look for it. Whatever is wrong with a folder, the rows are
prepared anew: nothing but time depends on what is kept. What is wrong with rows is told as of small files.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tunesmith.data.cache.cache_key import Content, contents, key_of, moments
from tunesmith.data.cache.file_digests import FileDigests
from tunesmith.data.cache.laid import Table, is_whole, text_digest
from tunesmith.data.cache.large import lay
from tunesmith.data.cache.laying import Laying
from tunesmith.data.cache.plain_values import NotFlat, of_plain, plain
from tunesmith.data.cache.telling import tell
from tunesmith.data.check.findings import findings
from tunesmith.data.formats import LEARNABLE
from tunesmith.data.prepare import Prepared, Task, joined, prepare, renderers
from tunesmith.data.reading.streamed import ReadWhole
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Prompt, Row
from tunesmith.errors import TunesmithError

LEAST_BYTES = 2_000_000
"""Of all local files together: below it, to prepare is no slower than to look."""
MOST_FOLDERS, MOST_BYTES = 16, 40_000_000_000
"""Beyond either, those go that were not used for longest."""
LEFT_BEHIND_SECONDS = 24 * 3600
"""An unfinished folder of that age is of a process that died."""
HEADER = "prepared.json"
KNOWN_FILES = "digests.json"
_OF_ROWS = ("format", "notes", "fingerprint", "counts", "held_out_counts", "sources", "shapes", "found")


def prepare_once(
    settings: DataSettings,
    tokenizer: Any,
    *,
    seed: int,
    root: Path,
    say: Callable[[str], object],
    rows: Iterable[Mapping[str, Any]] | None = None,
    most_tokens: int | None = None,
    made_for: int | None = None,
    takes: tuple[type[Row], ...] = LEARNABLE,
    replaced: Any = None,
) -> Prepared:
    """As `prepare`, but that large sources are kept in a folder of `root`, and read from it lazily."""
    task = Task.of(settings, seed, most_tokens, made_for, takes, replaced)
    try:
        is_kept = rows is None and Prompt not in takes  # prompts hold columns of any kind
        sources = _contents(settings) if is_kept else []
        if not all(source.files for source in sources) or sum(map(_size, sources)) >= max(1, LEAST_BYTES):
            return _kept(task, tokenizer, sources, root, say)
    except OSError as error:
        say(f"prepared rows cannot be kept in {root}: {error}")
    except NotFlat:
        pass
    except _Wrong as wrong:
        tell(task, tokenizer, to_the_end=isinstance(wrong.__cause__, TunesmithError))
    bounds = {"most_tokens": most_tokens, "made_for": made_for}
    return prepare(settings, tokenizer, seed=seed, rows=rows, takes=takes, replaced=replaced, **bounds)


class _Wrong(Exception):
    """Something is wrong with the rows, or they are to be read whole; its cause says which."""


@contextmanager
def _in_other_words() -> Iterator[None]:
    try:
        yield
    except (ReadWhole, TunesmithError) as error:
        raise _Wrong from error


def _contents(settings: DataSettings) -> list[Content]:
    try:
        with _in_other_words():
            return contents(settings)
    except _Wrong as wrong:
        if isinstance(wrong.__cause__, ReadWhole):  # of the hub, and not here
            return []
        raise


def _size(source: Content) -> int:
    return sum(path.stat().st_size for path in source.files)


def _kept(task: Task, tokenizer: Any, sources: list[Content], root: Path, say: Callable[[str], object]) -> Prepared:
    with _in_other_words():
        worded = renderers(tokenizer, task.settings, task.settings.templates, task.replaced)
    before = [source.stamps() for source in sources], moments(worded)
    folder = root / key_of(task, worded, sources, FileDigests(root / KNOWN_FILES))
    found = _opened(folder, worded[None])
    if found is not None:
        say(f"rows as prepared before: {folder}")
        return found
    with _making(root, folder.name) as made:
        with _in_other_words(), Laying(made) as laying:
            laid = lay(task, worded, laying)
        described = laying.described()
        table = Table(made, described)
        examples = table.examples()
        for one in (*laid.train, *laid.held_out):
            one.side.examples = examples[one.start : one.end]
        train, held_out = [one.side for one in laid.train], [one.side for one in laid.held_out]
        prepared = replace(joined(task, laid.notes, train, held_out, worded), held_out_rows=table.meanings())
        prepared = replace(prepared, found=tuple(findings(prepared)))
        if before == ([source.stamps() for source in sources], moments(worded)):  # else the name would be a lie
            _write_header(made / HEADER, prepared, described, sum(one.end - one.start for one in laid.train))
            _put(made, folder)
            with suppress(FileNotFoundError):  # another process may tidy up at the same time
                _drop_oldest(root, folder)
    return prepared


def _write_header(path: Path, prepared: Prepared, described: dict[str, Any], num_train: int) -> None:
    """All but the rows themselves. `visited`: the places of the rows of one pass, where weights make them others."""
    visited = array("q", (example.place for example in prepared.train))  # type: ignore[attr-defined]
    said = {name: plain(getattr(prepared, name)) for name in _OF_ROWS}
    said |= {"table": described, "train": num_train}
    said["visited"] = None if visited == array("q", range(num_train)) else plain(visited)
    text = json.dumps(said)
    path.write_text(f"{text_digest(text)}\n{text}")


def _opened(folder: Path, renderer: Renderer) -> Prepared | None:
    """What lies in a folder; None where there is none, or a damaged one, which is taken away."""
    try:
        digest, _, text = (folder / HEADER).read_text().partition("\n")
        said = json.loads(text) if digest == text_digest(text) else None
        if said is not None and is_whole(folder, said["table"]):
            os.utime(folder / HEADER)
            return _prepared(folder, said, renderer)
    except (FileNotFoundError, ValueError):  # the text is no text, too
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _prepared(folder: Path, said: Mapping[str, Any], renderer: Renderer) -> Prepared:
    table, num_train = Table(folder, said["table"]), said["train"]
    examples = table.examples()
    train = examples[:num_train]
    if said["visited"] is not None:
        train = [examples[place] for place in of_plain(said["visited"])]
    return Prepared(
        train=train,
        held_out=examples[num_train:],
        held_out_rows=table.meanings(),
        renderer=renderer,
        **{name: of_plain(said[name]) for name in _OF_ROWS},
    )


@contextmanager
def _making(root: Path, name: str) -> Iterator[Path]:
    """A folder of this process alone. What was not put in its place is gone afterwards; open files stay readable."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f".{name}.", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(made: Path, folder: Path) -> None:
    """Whole or not at all; where another process was first, its rows are the same."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _drop_oldest(root: Path, kept: Path) -> None:
    """Folders beyond the bounds, and what processes left behind that died."""
    now = time.time()
    for folder in root.glob(".*"):
        if now - _used(folder) > LEFT_BEHIND_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    newest_first = sorted((path.parent for path in root.glob(f"*/{HEADER}")), key=_used, reverse=True)
    newest_first = [kept, *(folder for folder in newest_first if folder != kept)]
    total = 0
    for number, folder in enumerate(newest_first):
        total += sum(path.stat().st_size for path in folder.glob("*"))
        if folder != kept and (number >= MOST_FOLDERS or total > MOST_BYTES):
            shutil.rmtree(folder, ignore_errors=True)


def _used(folder: Path) -> float:
    """When a folder was last used, or an unfinished one last written to."""
    header = folder / HEADER
    try:
        paths = [header] if header.exists() else [folder, *folder.glob("*")]
        return max(path.stat().st_mtime for path in paths)
    except FileNotFoundError:  # another process took it away
        return 0.0
