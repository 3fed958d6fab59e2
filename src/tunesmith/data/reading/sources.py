"""Where rows come from: a file, a folder of files, a hub id, or a Python list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.problems import listed, shown
from tunesmith.data.reading.files import READERS, RawRow, ending, of_arrow, read_file
from tunesmith.data.reading.hub import is_out_of_reach
from tunesmith.data.reading.python_rows import read_python
from tunesmith.data.reading.quiet import quiet_datasets
from tunesmith.data.settings import name_and_split
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

Source = str | Path | Iterable[Mapping[str, Any]]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Written beside data by `datasets`: about the data, not of it.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json"}
WHOLE = "train"
"""The split that is asked for where nothing is said: of what has no splits, all of it."""
_SPLIT_WORDS = ("train", "validation", "valid", "dev", "eval", "test")


def read(source: Source, *, split: str = "train", subset: str | None = None, limit: int | None = None) -> list[RawRow]:
    """The rows of `source` with where each came from. Broken rows are one DataError that names them all."""
    if not isinstance(source, (str, Path)):
        return read_python(source, limit)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split, limit)
    if path.exists():
        if ending(path) not in READERS:
            raise DataError(
                f"cannot tell what kind of file this is by its ending {ending(path)!r}",
                where=str(path),
                expected=listed(READERS),
                fix="rename or convert the file",
            )
        refuse_split_of_file(path, split)
        return read_file(path, limit)
    if not _looks_like_hub_id(str(source)):
        raise DataError("no such file or folder", where=str(source), fix=_nearby(path))
    with quiet_datasets():
        return _read_hub(str(source), split, subset, limit)


def read_held_out(source: str, *, split: str, subset: str | None = None) -> list[RawRow]:
    """The rows of a source of its own, `path` or `path:split`; `split` where it names none."""
    name, part = name_and_split(source)
    whole = Path(source).expanduser()
    if part is None or whole.exists():
        return read(source, split=WHOLE if whole.is_file() else split, subset=subset)
    if Path(name).expanduser().is_file():
        raise DataError(
            "a file has no splits", where=source, found=f"the split {part!r} of the file {name}", fix=f"name it: {name}"
        )
    return read(name, split=part, subset=subset)


def _looks_like_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and ending(Path(name)) not in READERS


def _nearby(path: Path) -> str:
    """What stands where the file was expected."""
    parent = path.parent
    if not parent.is_dir():
        return f"the folder {parent} does not exist either; check the path (a hub id is written owner/name)"
    names = sorted(item.name for item in parent.iterdir() if ending(item) in READERS)[:8]
    return f"data files in {parent}: {listed(names)} (a hub id is written owner/name)"


def _read_folder(folder: Path, split: str, limit: int | None) -> list[RawRow]:
    if is_saved(folder):
        return _read_saved(folder, split, limit)
    rows: list[RawRow] = []
    for path in data_files(folder, split):
        rows += read_file(path, None if limit is None else limit - len(rows))
        if limit is not None and len(rows) >= limit:
            break
    return rows


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def data_files(folder: Path, split: str) -> list[Path]:
    """Every data file in the folder; where file names speak of splits, only those of `split`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _is_data(path.relative_to(folder)))
    if not files:
        raise DataError(
            "the folder has no data files",
            where=str(folder),
            expected=listed(READERS),
            fix="name the folder or the file in which the rows are",
        )
    by_split = {path: _split_of(path) for path in files}
    if any(by_split.values()):
        if of_none := [path for path in files if by_split[path] is None]:
            raise DataError(
                "some files of the folder belong to no split, others do: it is not clear which are meant",
                where=str(folder),
                found=f"of no split: {listed(path.name for path in of_none)}",
                expected=f"names that begin with {listed(_SPLIT_WORDS)}, or none of them",
                fix="name one file, or move those of no split elsewhere",
            )
        chosen = [path for path in files if by_split[path] == split]
        if not chosen:
            raise DataError(
                f"the folder has no file for the split {split!r}",
                where=str(folder),
                found=listed(path.name for path in files),
                fix="set data.split, or name one file",
            )
        files = chosen
    elif split != WHOLE:
        raise _no_splits(folder, split, f"files whose names speak of none: {listed(path.name for path in files[:8])}")
    return files


def _no_splits(folder: Path, split: str, found: str) -> DataError:
    """Rows of a folder that knows no splits are not those of a split, whichever is asked for."""
    return DataError(
        f"there is no split {split!r}: the folder has no splits",
        where=str(folder),
        found=found,
        expected=f"files whose names begin with {listed(_SPLIT_WORDS)}",
        fix=f"take data.split out (it is {WHOLE} where nothing is said), or name one file",
    )


def refuse_split_of_file(path: Path, split: str) -> None:
    """A file is one whole; a split that is asked of it would be passed over in silence."""
    if split != WHOLE:
        raise DataError(
            "a file has no splits",
            where=str(path),
            found=f"data.split: {split}",
            fix=f"take data.split out (it is {WHOLE} where nothing is said), or name the file that holds those rows",
        )


def saved_split(saved: Any, folder: Path, split: str) -> Any:
    """The rows of a saved data set, or those of one of its splits. DataError where it has no such split."""
    from datasets import DatasetDict

    if isinstance(saved, DatasetDict):
        if split in saved:
            return saved[split]
        raise DataError(
            f"no split {split!r}", where=str(folder), found=listed(saved), fix="set data.split to one of them"
        )
    if split not in (WHOLE, str(saved.split)):
        raise _no_splits(folder, split, "one data set, saved alone")
    return saved


def _is_data(path: Path) -> bool:
    """A file of rows, and not in a hidden folder, where tools keep copies."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and ending(path) in READERS and path.name not in _NOT_DATA


def _split_of(path: Path) -> str | None:
    word = re.split(r"[^a-z]", path.stem.lower())[0]
    return word if word in _SPLIT_WORDS else None


def _read_saved(folder: Path, split: str, limit: int | None) -> list[RawRow]:
    """A folder written by `Dataset.save_to_disk`."""
    from datasets import load_from_disk

    with quiet_datasets():
        try:
            saved = load_from_disk(str(folder))
        except Exception as error:  # pyarrow and datasets raise a dozen kinds for a damaged folder
            raise DataError(
                "not a readable saved data set",
                where=str(folder),
                found=shown(str(error), 160),
                fix="write it anew by save_to_disk; an interrupted copy looks like this",
            ) from error
        return _collected(saved_split(saved, folder, split), str(folder), limit)


def _collected(dataset: Iterable[Any], name: str, limit: int | None) -> list[RawRow]:
    rows: list[RawRow] = []
    for number, row in enumerate(dataset, start=1):
        rows.append((Origin(name, number), of_arrow(row)))
        if limit is not None and number >= limit:
            break
    if not rows:
        raise DataError("the data set has no rows", where=name, fix="name another one, or another split by data.split")
    return rows


def _read_hub(name: str, split: str, subset: str | None, limit: int | None) -> list[RawRow]:
    from datasets import load_dataset

    if is_out_of_reach(name):
        raise _unreachable(name, "no connection to the hub")
    label = f"{name} ({subset}, {split})" if subset else f"{name} ({split})"
    try:
        return _collected(load_dataset(name, subset, split=split, streaming=limit is not None), label, limit)
    except DataError:
        raise
    except Exception as error:  # the hub's failures come as a dozen kinds, from four libraries
        raise _hub_error(error, name, split, subset) from error


def _hub_error(error: Exception, name: str, split: str, subset: str | None) -> DataError:
    """One sentence for each way in which a hub data set can fail to arrive."""
    seen: BaseException | None = error
    kinds, text = set(), ""
    while seen is not None:
        kinds |= {kind.__name__ for kind in type(seen).__mro__}
        text += f" {seen}"
        seen = seen.__cause__ or seen.__context__
    first = shown(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
    if "gated" in text.lower() or "GatedRepoError" in kinds:
        return DataError(
            "the hub data set is gated: its owner asks you to accept terms",
            where=name,
            fix=f"accept them at huggingface.co/datasets/{name}, then log in with `hf auth login`",
        )
    offline = {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "LocalEntryNotFoundError", "TimeoutError"}
    if kinds & offline or "couldn't reach" in text.lower() or "offline" in text.lower():
        return _unreachable(name, first)
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return DataError(
            "there is no such file or folder here, and no public data set of this name on the hub",
            where=name,
            fix="check the spelling; for a private one log in with `hf auth login`",
        )
    wanted = f"split {split!r}" + (f" of subset {subset!r}" if subset else "")
    return DataError(
        f"the hub data set has no readable {wanted}", where=name, found=first, fix="set data.split, data.subset"
    )


def _unreachable(name: str, found: str) -> DataError:
    return DataError(
        "there is no such file or folder here, and the hub cannot be reached",
        where=name,
        found=found,
        fix="give the path of a local file, or check the network (HF_HUB_OFFLINE must not be set)",
    )
