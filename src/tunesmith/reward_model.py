"""A trained reward model as a reward of online learning: `objective.rewards: [model:runs/rm]`.

It is loaded when it is first asked, beside the model that learns, and gives each prompt with its completion a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tunesmith.adapters import store
from tunesmith.adapters.heads import head_of_config
from tunesmith.classifier import Classifier
from tunesmith.data.types import Message
from tunesmith.errors import RecipeError
from tunesmith.models.load import load_config
from tunesmith.objectives.rewards import WITH_ARGUMENT, text_of
from tunesmith.session import find_source, open_session


def reward_model(source: str) -> Callable[..., list[float]]:
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

    def judge(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        talks = [
            (*_turns(prompt), Message("assistant", text_of(said)))
            for prompt, said in zip(prompts, completions, strict=True)
        ]
        return opened().rewards(talks)

    return judge


def _turns(prompt: Any) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt)]
    return [Message(turn["role"], turn["content"]) for turn in prompt]


def offer() -> None:
    """Make `model:` known among the kinds of rewards."""
    WITH_ARGUMENT["model"] = reward_model
