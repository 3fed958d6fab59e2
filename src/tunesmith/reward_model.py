"""A trained reward model as a reward of online learning: `objective.rewards: [model:runs/rm]`.

It is loaded when it is first asked, beside the model that learns, and gives each prompt with its completion a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.adapters import store
from tunesmith.adapters.heads import head_of_config
from tunesmith.classifier import Classifier
from tunesmith.data.types import Conversation, Message, Prompt
from tunesmith.errors import RecipeError
from tunesmith.models.load import load_config
from tunesmith.objectives.rewards import Judge
from tunesmith.objectives.rewards_built_in import WITH_ARGUMENT, text_of
from tunesmith.session import Source, find_source, open_session


def reward_model(source: str) -> Judge:
    """The reward of a run folder, an adapter's folder, a model's folder or a hub id; its kind is looked at at once."""
    found = find_source(source)
    head = head_of_config(load_config(found.model)) if found.adapter is None else store.head_of(found.adapter)
    if head is None or head.meaning != "reward":
        what = "it ends in words" if head is None else f"it tells {', '.join(head.labels)} apart"
        raise RecipeError(
            f"objective.rewards: {source} is no reward model", found=what, expected="a run of objective.kind reward"
        )

    @cache
    def opened() -> Classifier:
        return Classifier(open_session(source))

    def judge(asked: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        talks = [
            Conversation((*prompt.messages, Message("assistant", text_of(said))), prompt.origin, prompt.tools)
            for prompt, said in zip(asked, completions, strict=True)
        ]
        return opened().rewards(talks)

    return Judge(judge, opened, _digest(found))


def _digest(found: Source) -> str:
    """Of the files that make the judge: another adapter or model of the same name is another judge."""
    folder = found.adapter or Path(found.model.name).expanduser()
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def offer() -> None:
    """Make `model:` known among the kinds of rewards."""
    WITH_ARGUMENT["model"] = reward_model
