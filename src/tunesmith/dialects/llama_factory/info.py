"""LLaMA-Factory's dataset_info.json: what the names under `dataset` mean.

Of an entry without `columns` the usual columns are read; with `columns`, those that it names and no others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.dialects.base import NO_SUBSET, Said
from tunesmith.errors import RecipeError
from tunesmith.notation import write_inline
from tunesmith.strict import near

INFO = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_MEND = "mend that place: names and texts stand in double quotes, and no comma behind the last entry"
_ENTRY = (
    *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting", "ranking"),
    *("subset", "split", "folder", "num_samples", "revision", "file_sha1", "columns", "tags"),
)
_COLUMNS = (
    *("prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios"),
    *("chosen", "rejected", "kto_tag"),
)
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
_MEDIA = ("images", "videos", "audios")
_ELSEWHERE = {
    "ms_hub_url": "it lies at ModelScope",
    "om_hub_url": "it lies at Modelers",
    "cloud_file_name": "it lies in a cloud's store",
    "script_url": "it is made by a script",
}
_REFUSED = {
    "num_samples": "leave it out, and set max_samples: the first so many rows of each data set",
    "revision": "download that revision, and name its file as file_name",
    "folder": "download that folder, and name it as file_name",
}


@dataclass(frozen=True)
class Entry:
    """One data set. `where`: the file and the entry, for errors; `columns` and `tags` are in LLaMA-Factory's words."""

    where: str
    path: str
    is_local: bool
    split: str | None = None
    subset: str | None = None
    limit: int | None = None
    formatting: str = "alpaca"
    ranking: bool = False
    columns: Mapping[str, str] = field(default_factory=lambda: dict(ALPACA))
    tags: Mapping[str, str] = field(default_factory=dict)

    def wrong(self, what: str, fix: str) -> RecipeError:
        return RecipeError(what, where=self.where, fix=fix)


class Catalogue:
    """The dataset_info.json that a file means, and the data sets that it names there."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.given = said.take("dataset_dir", str)
        home = Path(said.where(())).parent  # of the file itself
        wanted = self.given or "data"
        self.folders = [Path(wanted), home / wanted, *([home] if self.given is None else [])]
        self.file = next((folder / INFO for folder in self.folders if (folder / INFO).is_file()), None)
        self.is_broken = False
        if self.given is not None and self.given.startswith("REMOTE:"):
            said.refuse("dataset_dir", "lies on the hub", f"download its {INFO} and its files, and name their folder")
            self.is_broken = True
        elif self.given is not None:
            where = "names are hub ids" if self.given == "ONLINE" else f"{self.file or 'its files'} are read"
            said.carry("dataset_dir", where)

    @cached_property
    def entries(self) -> dict[str, Any] | None:
        """The file's entries; none where there is no file, or it is broken."""
        if self.file is None or self.given == "ONLINE":
            return None
        try:
            value = json.loads(self.file.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            where = f"{self.file}, line {error.lineno}, column {error.colno}"
            self._broken(RecipeError(f"this is not JSON: {error.msg}", where=where, fix=_MEND))
            return None
        except (OSError, UnicodeDecodeError) as error:
            fix = "let it be a text in UTF-8 that you may read, or name another folder: dataset_dir=…"
            self._broken(RecipeError(f"cannot be read: {error}", where=str(self.file), fix=fix))
            return None
        if not isinstance(value, dict):
            expected = '{"name": {"file_name": …}, …}'
            fix = "put the entries in braces, each behind the name that `dataset` says"
            self._broken(RecipeError("holds no data sets by name", where=str(self.file), expected=expected, fix=fix))
            return None
        return value

    def _broken(self, error: RecipeError) -> None:
        self.is_broken = True
        self.said.ledger.errors.append(error)

    def named(self, key: str, names: list[str]) -> list[Entry]:
        """The data sets named under `key`; what is wrong with them joins the errors."""
        found = [self._entry(key, name) for name in names]
        return [entry for entry in found if entry is not None]

    def _entry(self, key: str, name: str) -> Entry | None:
        entries = self.entries
        if self.is_broken:
            return None
        if self.given == "ONLINE":
            return Entry(f"{self.said.where((key,))} ({name})", name, is_local=False)
        if entries is not None and name in entries:
            return self._described(name, entries[name])
        tried = [folder / name for folder in (Path(), *self.folders)]
        file = next((path for path in tried if path.exists()), None)
        if file is not None:
            return Entry(f"{self.said.where((key,))} ({name})", os.path.abspath(file), is_local=True, formatting="file")
        if entries is None:
            looked = ", ".join(str(folder / INFO) for folder in self.folders)
            fix = "name the folder in which it lies: dataset_dir=…"
            self.said.refuse(key, f"names {name}, and there is no {INFO}", fix, expected=looked)
            return None
        meant = near(name, list(entries), {})
        known = ", ".join(list(entries)[:8]) + (" …" if len(entries) > 8 else "")
        fix = f"did you mean {meant}? Correct it, or add {name}" if meant else f"add it to {self.file}"
        self.said.refuse(key, f"names {name}, which is not in {self.file}", fix, expected=known)
        return None

    def _described(self, name: str, raw: Any) -> Entry | None:
        where = f"{self.file}, {name}"
        errors = self.said.ledger.errors
        if not isinstance(raw, dict):
            fix = f'say where its rows lie: "{name}": {{"file_name": "rows.json"}}'
            what, expected = f"cannot be {write_inline(raw)}", '{"file_name": …}'
            errors.append(RecipeError(what, where=where, expected=expected, fix=fix))
            return None
        known = len(errors)
        self._refuse_unknown(where, "", raw, _ENTRY)
        columns, tags = (self._names(where, raw, *pair) for pair in (("columns", _COLUMNS), ("tags", _TAGS)))
        for key, fix in _REFUSED.items():
            if raw.get(key) is not None:
                errors.append(RecipeError(f"{key} is not done here", where=where, fix=fix))
        for key in _MEDIA:
            if key in columns:
                fix = "train on text: take it out, or name other rows"
                errors.append(RecipeError(f"columns.{key}: {key} are not trained on here", where=where, fix=fix))
        formatting = raw.get("formatting") or "alpaca"
        if formatting not in ("alpaca", "sharegpt", "openai"):
            expected = "alpaca, sharegpt or openai"
            fix = "take sharegpt or openai for rows of messages, alpaca for instruction and output"
            errors.append(RecipeError(f"formatting cannot be {formatting}", where=where, expected=expected, fix=fix))
        path, is_local = self._path(where, raw)
        split, limit = self._split(where, raw.get("split"), is_local)
        if len(errors) > known or path is None:
            return None
        usual = ALPACA if formatting == "alpaca" else {"messages": "conversations"}
        columns = columns if raw.get("columns") else dict(usual)
        ranking = raw.get("ranking") is True
        subset = raw.get("subset")
        if subset is not None and is_local:
            self.said.note(f"{where}: subset {subset} is without effect: {NO_SUBSET}")
            subset = None
        return Entry(where, path, is_local, split, subset, limit, formatting, ranking, columns, tags)

    def _refuse_unknown(self, where: str, above: str, raw: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in raw:
            if key not in known:
                meant = near(key, list(known), {})
                fix = f"did you mean {meant}? Correct it, or take it out" if meant else "take it out"
                expected = ", ".join(known)
                error = RecipeError(
                    f"{above}{key} says nothing to LLaMA-Factory", where=where, expected=expected, fix=fix
                )
                self.said.ledger.errors.append(error)

    def _names(self, where: str, raw: Mapping[str, Any], key: str, known: tuple[str, ...]) -> dict[str, str]:
        given = raw.get(key) or {}
        if not isinstance(given, dict) or not all(isinstance(name, str | None) for name in given.values()):
            what, expected = f"{key} cannot be {write_inline(given)}", "{name: name, …}"
            fix = f"write it so: {key}: " + ('{"prompt": "question"}' if key == "columns" else '{"role_tag": "from"}')
            self.said.ledger.errors.append(RecipeError(what, where=where, expected=expected, fix=fix))
            return {}
        self._refuse_unknown(where, f"{key}.", given, known)
        return {name: value for name, value in given.items() if value}

    def _path(self, where: str, raw: Mapping[str, Any]) -> tuple[str | None, bool]:
        errors = self.said.ledger.errors
        if raw.get("hf_hub_url"):
            return str(raw["hf_hub_url"]), False
        if elsewhere := next((key for key in _ELSEWHERE if raw.get(key)), None):
            what = f"{elsewhere}: {_ELSEWHERE[elsewhere]}, and is not read here"
            errors.append(RecipeError(what, where=where, fix="download it, and name its file as file_name"))
            return None, False
        if not raw.get("file_name"):
            fix = f'say "file_name": a file beside {INFO}, or "hf_hub_url": a data set of the hub'
            expected = "file_name or hf_hub_url"
            errors.append(RecipeError("names neither file nor hub id", where=where, expected=expected, fix=fix))
            return None, False
        assert self.file is not None
        path = self.file.parent / str(raw["file_name"])
        if not path.exists():
            beside = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
            meant = near(path.name, beside, {})
            notes = {"did you mean": meant} if meant else {}
            fix = f"correct file_name, which is looked for beside {INFO}, or put the file there"
            errors.append(RecipeError(f"file_name: there is no {path}", where=where, notes=notes, fix=fix))
            return None, True
        return os.path.abspath(path), True

    def _split(self, where: str, split: str | None, is_local: bool) -> tuple[str | None, int | None]:
        """The split of a hub data set; of a file there is one, of which the first so many rows may be asked for."""
        if not is_local or split in (None, "train"):
            return (None if is_local else split), None
        if first := re.fullmatch(r"train\[:(\d+)\]", split or ""):
            return None, int(first[1])
        fix = "take it out, or name a file that holds these rows"
        self.said.ledger.errors.append(RecipeError(f"split: a file has no split {split}", where=where, fix=fix))
        return None, None
