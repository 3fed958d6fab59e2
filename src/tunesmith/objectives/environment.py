"""Environments: what a policy answers to, turn after turn, and what it earns.

    class Guess:
        def reset(self, **row): ...     the row's columns, `prompt` and a `seed` among them: the row's own, or one that
                                        is drawn. None: the prompt stands; text, or messages, take its place
        def step(self, answer): ...     (what the world says, text or messages; what was earned; whether it is over)

One object plays one episode. Tokens stay what they were: what was sampled is kept, what the world says is written as
the chat template writes it behind an answer, and only what was sampled is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from tunesmith.data.render import Renderer
from tunesmith.data.rows.messages import Unreadable, read_messages
from tunesmith.data.types import Asked, Message, Prompt
from tunesmith.errors import DataError, RecipeError
from tunesmith.models.generate import Generated
from tunesmith.objectives.plugins import Worker, imported, is_number, short_name

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
    turns: list[Message] = field(default_factory=list)
    """What was said before the last answer, where a world said any of it."""
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
    last: int = 0
    """Tokens of the last answer."""

    @property
    def num_sampled(self) -> int:
        return sum(self.learned)

    def take(self, answer: Generated, text: str) -> None:
        self.token_ids += answer.token_ids
        self.learned += [True] * len(answer.token_ids)
        self.logprobs += answer.logprobs or []
        self.said.append(text)
        self.last = len(answer.token_ids)
        self.is_cut = answer.finish_reason == "length"

    def hear(self, turns: Sequence[Message], token_ids: Sequence[int]) -> None:
        self.turns += [Message("assistant", self.said[-1]), *turns]
        self.token_ids += token_ids
        self.learned += [False] * len(token_ids)

    def as_prompt(self) -> Prompt:
        """What the last answer is to: the row's prompt, or all that was said before in the world."""
        prompt = self.asked.prompt
        if not self.turns:
            return prompt
        given = [{"role": turn.role, "content": turn.content} for turn in self.turns]
        return replace(prompt, messages=tuple(self.turns), given=given)


@dataclass
class Episode:
    """One object of the user's class, asked in a thread of its own within a limit of time; what goes wrong in it is
    said with its row."""

    world: World
    asked: Asked
    worker: Worker
    environment: Any = None

    def begin(self, renderer: Renderer, seed: int, most_tokens: int | None) -> tuple[list[Message], list[int]]:
        """The turns and ids that it begins with."""
        prompt = self.asked.prompt
        row = {**prompt.columns, "prompt": prompt.given}
        if row.get("seed") is None:
            row["seed"] = seed
        self.environment = self._called(self.world.make, "cannot be made")
        first = self._called(lambda: self.environment.reset(**row), "failed in reset")
        turns = list(prompt.messages) if first is None else self.heard(first)
        try:
            ids = self.asked.token_ids.tolist() if first is None else renderer.prompt_ids(turns, prompt.tools)
        except DataError as error:
            raise error.at(str(self.asked.origin)).noted("environment", self.world.name) from error
        if most_tokens is not None and len(ids) > most_tokens:
            raise DataError(
                f"the environment {self.world.name} begins with more than the model has room for",
                where=str(self.asked.origin),
                found=f"{len(ids)} tokens",
                expected=f"at most {most_tokens}, with objective.max_completion_length behind them",
            )
        return turns, ids

    def step(self, answer: str) -> tuple[Any, float, bool]:
        found = self._called(lambda: self.environment.step(answer), "failed in step")
        name, where = self.world.name, str(self.asked.origin)
        if not isinstance(found, tuple) or len(found) != 3:
            what = f"the environment {name} gave no (what the world says, what was earned, whether it is over)"
            fix = 'return ("text or messages", 0.0, False), as docs/policy.md shows'
            raise DataError(what, where=where, found=f"{found!r:.80}", fix=fix)
        says, earned, is_over = found
        if not is_number(earned) or not math.isfinite(float(earned)):
            what = f"the environment {name} gave no finite number"
            raise DataError(what, where=where, found=f"{earned!r:.60}", fix="mend its step: what is earned is a number")
        return says, float(earned), bool(is_over)

    def heard(self, said: Any) -> list[Message]:
        """What the world says, as turns."""
        if isinstance(said, str):
            return [Message("user", said)]
        try:
            return list(read_messages(said, "what the world says"))
        except Unreadable as error:
            what = f"the environment {self.world.name}: {error.what}"
            fix = "mend what it says: text, or messages of role and content"
            raise DataError(what, where=str(self.asked.origin), found=error.found, fix=fix) from None

    def follow(self, renderer: Renderer, turns: Sequence[Message]) -> list[int]:
        """Ids of what the world says behind an answer."""
        try:
            return renderer.continuation_ids(turns)
        except DataError as error:
            raise error.at(str(self.asked.origin)).noted("environment", self.world.name) from error

    def _called(self, call: Callable[[], Any], what: str) -> Any:
        try:
            return self.worker.ask(self.world.seconds, call, [str(self.asked.origin)])
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the environment {self.world.name} {what}: {type(error).__name__}: {error}",
                where=str(self.asked.origin),
                fix="mend it; --resume goes on after the last whole step",
            ) from error


@dataclass(frozen=True)
class World:
    """How environments are made and asked."""

    name: str
    make: Callable[[], Environment]
    seconds: float
    max_turns: int

    @property
    def short(self) -> str:
        return short_name(self.name)

    def episode(self, asked: Asked) -> Episode:
        return Episode(self, asked, Worker(f"the environment {self.name}"))


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
    seed: int = 0,
    positions: int | None = None,
) -> list[Played]:
    """`num_each` episodes of each prompt, side by side, of at most `most_tokens` behind the prompt.

    Episodes of one prompt are reset with one seed, so that they play the same task: the row's own, or one of `seed` and
    its place. `positions`: the model has no more.
    """
    decode = renderer.tokenizer.decode
    episodes = [world.episode(one) for one in asked for _ in range(num_each)]
    try:
        room = None if positions is None else positions - most_tokens
        played = []
        for place, episode in enumerate(episodes):
            own = int(np.random.SeedSequence([seed, place // num_each]).generate_state(1)[0])
            turns, ids = episode.begin(renderer, own, room)
            played.append(Played(episode.asked, ids, turns, earned=0.0))
        going = list(range(len(played)))
        for turn in range(world.max_turns):
            prompts = [played[place].prompt_ids + played[place].token_ids for place in going]
            most = [most_tokens - len(played[place].token_ids) for place in going]
            answers = generate(prompts, most, going, turn)
            left = []
            for place, answer in zip(going, answers, strict=True):
                one, episode = played[place], episodes[place]
                text = decode(answer.content_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                one.take(answer, text)
                says, earned, is_over = episode.step(text)
                one.earned += earned
                if is_over or one.is_cut or turn == world.max_turns - 1:
                    continue
                heard = episode.heard(says)
                ids = episode.follow(renderer, heard)
                if len(one.token_ids) + len(ids) >= most_tokens:
                    one.is_cut = True
                    continue
                one.hear(heard, ids)
                left.append(place)
            going = left
            if not going:
                break
        return played
    finally:
        for episode in episodes:
            episode.worker.close()


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
