"""Tunesmith: fine-tune language models cheaply, with the proof that what was trained is what is served.

    import tunesmith

    trained = tunesmith.tune("HuggingFaceTB/SmolLM2-135M-Instruct", "rows.jsonl")
    trained.session.answer(["…"])

The public names, and nothing else; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.errors import TunesmithError
    from tunesmith.inference import merge
    from tunesmith.recipe import Recipe, load
    from tunesmith.run import Trained, check, train, tune
    from tunesmith.session import Session, open_session

_HOME = {
    "TunesmithError": "errors",
    "Recipe": "recipe",
    "load": "recipe",
    "Trained": "run",
    "check": "run",
    "merge": "inference",
    "train": "run",
    "tune": "run",
    "Session": "session",
    "open_session": "session",
}

__all__ = [
    "Recipe", "Session", "Trained", "TunesmithError", "check", "load", "merge", "open_session", "train", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"tunesmith.{_HOME[name]}"), name)
    raise AttributeError(f"tunesmith has no {name}; it has {', '.join(__all__)}")
