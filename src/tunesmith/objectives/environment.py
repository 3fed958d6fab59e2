"""Environments: what a policy answers to, turn after turn, and what it earns.

    class Guess:
        def reset(self, **row): ...     the row's columns, `prompt` among them. None: the prompt stands; text, or
                                        messages, take its place
        def step(self, answer): ...     (what the world says, text or messages; what was earned; whether it is over)

One object plays one episode. Tokens stay what they were: what was sampled is kept, what the world says is written as
the chat template writes it behind an answer, and only what was sampled is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith.data.messages import Unreadable, read_messages
from tunesmith.data.render import Renderer
from tunesmith.data.types import Asked, Message, Origin
from tunesmith.errors import DataError, RecipeError
from tunesmith.models.generate import Generated
from tunesmith.objectives.plugins import imported, short_name, within

Generate = Callable[[Sequence[Sequence[int]], Sequence[int], Sequence[int], int], list[Generated]]
"""(prompts, most new tokens of each, a number of each that decides its draws, turn) -> an answer to each."""


class Environment(Protocol):
    def reset(self, **row: Any) -> Any: ...

    def step(self, answer: str) -> tuple[Any, float, bool]: ...


@dataclass
class Played:
    """One completion: all that came after the prompt."""

    asked: Asked
    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    """Which of these tokens were sampled."""
    logprobs: list[float] = field(default_factory=list)
    """Of those, the sampler's."""
    said: list[str] = field(default_factory=list)
    """By turn."""
    earned: float = math.nan
    """From the environment; NaN where there is none."""
    is_cut: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def take(self, answer: Generated, text: str) -> None:
        self.token_ids += answer.token_ids
        self.learned += [True] * len(answer.token_ids)
        self.logprobs += answer.logprobs or []
        self.said.append(text)
        self.is_cut = answer.finish_reason == "length"

    def hear(self, token_ids: Sequence[int]) -> None:
        self.token_ids += token_ids
        self.learned += [False] * len(token_ids)


@dataclass(frozen=True)
class World:
    """How environments are made and asked; what goes wrong in one is said with its row."""

    name: str
    make: Callable[[], Environment]
    seconds: float
    max_turns: int

    @property
    def short(self) -> str:
        return short_name(self.name)

    def begin(self, asked: Asked, renderer: Renderer) -> tuple[Environment, list[int]]:
        """An episode, and the ids that it begins with."""
        row = {**asked.prompt.columns, "prompt": asked.prompt.given}
        environment = self._asked(self.make, asked.origin, "cannot be made")
        first = self._asked(lambda: environment.reset(**row), asked.origin, "failed in reset")
        if first is None:
            return environment, asked.token_ids.tolist()
        return environment, renderer.prompt_ids(self._turns(first, asked.origin), asked.prompt.tools)

    def step(self, environment: Environment, answer: str, origin: Origin) -> tuple[list[Message], float, bool]:
        found = self._asked(lambda: environment.step(answer), origin, "failed in step")
        if not isinstance(found, tuple) or len(found) != 3:
            raise DataError(
                f"the environment {self.name} gave no (what the world says, what was earned, whether it is over)",
                where=str(origin),
                found=f"{found!r:.80}",
            )
        says, earned, is_over = found
        if isinstance(earned, str) or earned is None or not math.isfinite(float(earned)):
            raise DataError(
                f"the environment {self.name} gave no finite number", where=str(origin), found=f"{earned!r:.60}"
            )
        return ([] if is_over else self._turns(says, origin)), float(earned), bool(is_over)

    def _asked(self, call: Callable[[], Any], origin: Origin, what: str) -> Any:
        try:
            return within(self.seconds, call, f"the environment {self.name}", [str(origin)])
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the environment {self.name} {what}: {type(error).__name__}: {error}",
                where=str(origin),
                fix="mend it; --resume goes on after the last whole step",
            ) from error

    def _turns(self, said: Any, origin: Origin) -> list[Message]:
        if isinstance(said, str):
            return [Message("user", said)]
        try:
            return list(read_messages(said, "what the world says"))
        except Unreadable as error:
            raise DataError(
                f"the environment {self.name}: {error.what}", where=str(origin), found=error.found
            ) from None


def load_environment(name: str, seconds: float, max_turns: int) -> World:
    """The environment of a recipe, `file.py:Class` or `module:Class`; what has no reset or step is refused at once."""
    made = imported(name, "objective.environment", "class")
    missing = [method for method in ("reset", "step") if not callable(getattr(made, method, None))]
    if missing:
        raise RecipeError(
            f"objective.environment: {name} has no {' and no '.join(missing)}",
            expected="a class with reset(self, **row) and step(self, answer)",
        )
    return World(name, made, seconds, max_turns)


def play(
    world: World,
    asked: Sequence[Asked],
    num_each: int,
    renderer: Renderer,
    generate: Generate,
    most_tokens: int,
) -> list[Played]:
    """`num_each` episodes of each prompt, side by side, of at most `most_tokens` behind the prompt."""
    decode = renderer.tokenizer.decode
    episodes = [world.begin(one, renderer) for one in asked for _ in range(num_each)]
    played = [Played(asked[place // num_each], ids) for place, (_, ids) in enumerate(episodes)]
    for one in played:
        one.earned = 0.0
    going = list(range(len(played)))
    for turn in range(world.max_turns):
        prompts = [played[place].prompt_ids + played[place].token_ids for place in going]
        room = [most_tokens - len(played[place].token_ids) for place in going]
        answers = generate(prompts, room, going, turn)
        left = []
        for place, answer in zip(going, answers, strict=True):
            one, environment = played[place], episodes[place][0]
            text = decode(answer.content_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            one.take(answer, text)
            says, earned, is_over = world.step(environment, text, one.asked.origin)
            one.earned += earned
            if is_over or one.is_cut or turn == world.max_turns - 1:
                continue
            heard = renderer.continuation_ids(says)
            if len(one.token_ids) + len(heard) >= most_tokens:
                one.is_cut = True
                continue
            one.hear(heard)
            left.append(place)
        going = left
        if not going:
            break
    return played


def alone(asked: Sequence[Asked], num_each: int, answers: Sequence[Generated], renderer: Renderer) -> list[Played]:
    """Answers of one turn, without an environment."""
    played, decode = [], renderer.tokenizer.decode
    for place, answer in enumerate(answers):
        text = decode(answer.content_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        own = asked[place // num_each]
        one = Played(own, own.token_ids.tolist())
        one.take(answer, text)
        played.append(one)
    return played
