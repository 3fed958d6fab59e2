"""Tunesmith: fine-tune language models cheaply, with the proof that what was trained is what is served.

    import tunesmith

    trained = tunesmith.tune("HuggingFaceTB/SmolLM2-135M-Instruct", "rows.jsonl")
    trained.session.answer(["…"])

The public names, and nothing else; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.classifier import Classifier, Prediction
    from tunesmith.compare.main import Comparison, compare
    from tunesmith.errors import TunesmithError
    from tunesmith.inference import merge
    from tunesmith.models.session import Params
    from tunesmith.one_call import tune
    from tunesmith.recipe import Recipe, load
    from tunesmith.run import Trained, check, train
    from tunesmith.search.main import Found, search
    from tunesmith.session import Session, open_session

_HOME = {
    "Classifier": "classifier",
    "Prediction": "classifier",
    "Comparison": "compare.main",
    "compare": "compare.main",
    "Found": "search.main",
    "search": "search.main",
    "TunesmithError": "errors",
    "Params": "models.session",
    "Recipe": "recipe",
    "load": "dialects.read",
    "Trained": "run",
    "check": "run",
    "merge": "inference",
    "train": "run",
    "tune": "one_call",
    "Session": "session",
    "open_session": "session",
}

__all__ = [
    "Classifier", "Comparison", "Found", "Params", "Prediction", "Recipe", "Session", "Trained", "TunesmithError",
    "check", "compare", "load", "merge", "open_session", "search", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"tunesmith.{_HOME[name]}"), name)
    raise AttributeError(f"tunesmith has no {name}; it has {', '.join(__all__)}")


class _Facade(ModuleType):
    """Folders and functions share the names `train`, `compare` and `search`: who asks the package gets the function."""

    @property
    def train(self) -> Any:
        return importlib.import_module("tunesmith.run").train

    @train.setter
    def train(self, folder: ModuleType) -> None:
        """The import system stores the folder here; it stays where imports look for it, in `sys.modules`."""

    @property
    def compare(self) -> Any:
        return importlib.import_module("tunesmith.compare.main").compare

    @compare.setter
    def compare(self, folder: ModuleType) -> None:
        """As with `train`."""

    @property
    def search(self) -> Any:
        return importlib.import_module("tunesmith.search.main").search

    @search.setter
    def search(self, folder: ModuleType) -> None:
        """As with `train`."""


sys.modules[__name__].__class__ = _Facade
