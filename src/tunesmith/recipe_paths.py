"""The files that a recipe names, made absolute."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tunesmith.data.settings import ONCE, DataSettings, HeldOut, name_and_split
from tunesmith.errors import RecipeError, TunesmithError, together
from tunesmith.models.settings import ModelSettings
from tunesmith.notation import Path as KeyPath
from tunesmith.notation import dotted
from tunesmith.settings import Settings

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz")


OF_A_PATH = ("model", "json_schema")
"""Rewards that are given a file or folder."""


class Paths:
    """Makes the files that a recipe names absolute: first from the recipe's folder, then from the current one."""

    def __init__(self, where: Callable[[KeyPath], str], folder: Path) -> None:
        """`where`: the file and line of a setting; `folder`: the recipe's."""
        self.where, self.folders = where, list(dict.fromkeys((folder.absolute(), Path.cwd())))
        self.errors: list[TunesmithError] = []

    def absolute(self, model: ModelSettings, data: DataSettings, objective: Settings) -> dict[str, Settings]:
        """The sections with absolute paths, by their names; what is named and not there is an error."""
        named = self._changed(("model", "name"), model.name, (".gguf",))
        if model.revision is not None and named:
            self.errors.append(
                RecipeError(
                    f"model.revision {model.revision!r} has no meaning beside a folder",
                    where=self.where(("model", "revision")),
                    found=f"model.name is the folder {model.name}",
                    fix="take it out, or name the model by its hub id",
                )
            )
        model = model.model_copy(
            update=named
            | self._changed(("model", "adapter"), model.adapter, ())
            | self._changed(("model", "template"), model.template, (".jinja", ".j2", ".txt"))
        )
        data = self._sources(data)
        if isinstance(data.held_out, str):
            data = data.model_copy(update=self._of_its_own(("data", "held_out"), data.held_out))
        elif isinstance(data.held_out, HeldOut):
            file = self._of_its_own(("data", "held_out", "file"), data.held_out.file)
            data = data.model_copy(update={"held_out": data.held_out.model_copy(update=file)} if file else {})
        if self.errors:
            raise together(self.errors)
        return {"model": model, "data": data, "objective": self._of_objective(objective)}

    def _sources(self, data: DataSettings) -> DataSettings:
        """The rows to train on, of one source or of several."""
        if isinstance(data.train, str):
            return data.model_copy(update=self._changed(("data", "train"), data.train, DATA_SUFFIXES))
        places: list[KeyPath] = [("data", "train", number, "path") for number in range(len(data.train))]
        sources = tuple(
            source.model_copy(update=self._changed(place, source.path, DATA_SUFFIXES))
            for place, source in zip(places, data.train, strict=True)
        )
        data = data.model_copy(update={"train": sources})
        if (twice := data.repeated_source) is not None:
            self.errors.append(
                RecipeError(
                    f"{dotted(places[twice])} names {sources[twice].path}, which stands in the list already",
                    where=self.where(places[twice]),
                    fix=ONCE,
                )
            )
        return data

    def _of_objective(self, objective: Settings) -> Settings:
        """Of an objective with rewards, those that are functions in files; of one with a teacher, its folder."""
        teacher = getattr(objective, "teacher", None)
        if teacher is not None and (found := self._found(teacher)):
            return objective.model_copy(update={"teacher": os.path.normpath(found)})
        objective = self._world(objective)
        names = getattr(objective, "rewards", ())
        made = []
        for name in names:
            kind, _, own = name.partition(":")  # "verl:file.py:function" was written for another system
            if kind in OF_A_PATH:
                place = self._found(own)
                made.append(name if place is None else f"{kind}:{os.path.normpath(place)}")
                continue
            before, own = (f"{kind}:", own) if kind in ("verl", "openrlhf") else ("", name)
            path, _, function = own.rpartition(":")
            found = self._found(path) if path.endswith(".py") else None
            made.append(name if found is None else f"{before}{os.path.normpath(found)}:{function}")
        return objective.model_copy(update={"rewards": tuple(made)}) if tuple(made) != tuple(names) else objective

    def _world(self, objective: Settings) -> Settings:
        """Of one with an environment, its file."""
        path, _, name = (getattr(objective, "environment", None) or "").rpartition(":")
        found = self._found(path) if path.endswith(".py") else None
        if found is None:
            return objective
        return objective.model_copy(update={"environment": f"{os.path.normpath(found)}:{name}"})

    def _of_its_own(self, place: KeyPath, text: str | None) -> dict[str, str]:
        """The same for held-out rows, `path` or `path:split`."""
        name, split = (text, None) if text is None or self._found(text) else name_and_split(text)
        changed = self._changed(place, name, DATA_SUFFIXES)
        return {key: path if split is None else f"{path}:{split}" for key, path in changed.items()}

    def _tried(self, text: str) -> list[Path]:
        return [folder / Path(text).expanduser() for folder in self.folders]

    def _found(self, text: str) -> Path | None:
        return next((path for path in self._tried(text) if path.exists()), None)

    def _changed(self, place: KeyPath, text: str | None, suffixes: tuple[str, ...]) -> dict[str, str]:
        """{last key of `place`: absolute path} where `text` is a file or folder; {} where it is a hub id, a name or
        inline text."""
        if text is None or "://" in text or "\n" in text or "{" in text:
            return {}
        if found := self._found(text):
            return {str(place[-1]): os.path.normpath(found)}
        if text.startswith((".", "/", "~")) or text.lower().endswith(suffixes or ("/",)) or text.count("/") > 1:
            self.errors.append(
                RecipeError(
                    f"{dotted(place)}: there is no {text}",
                    where=self.where(place),
                    notes={"looked for": " and ".join(dict.fromkeys(map(os.path.normpath, self._tried(text))))},
                )
            )
        return {}
