"""A model to talk with: weights, tokenizer, template and the adapters that are loaded, answers as text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedModel

from tunesmith.adapters.attach import Switch, virtuals
from tunesmith.data.types import Message
from tunesmith.errors import ModelError
from tunesmith.models.alone import told_alone
from tunesmith.models.generate import Generated, Memory, generate
from tunesmith.models.load import made_for, most_tokens
from tunesmith.models.sampling import Sampling
from tunesmith.models.text_stream import TextStream


class Prompting(Protocol):
    """What a session asks of `data.render.Renderer`."""

    @property
    def end_ids(self) -> tuple[int, ...]: ...

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]: ...


@dataclass(frozen=True)
class Params:
    """How to answer."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    num_beams: int = 1
    """Above 1: the most probable whole answer, by beam search."""

    def check(self) -> None:
        """ValueError with the reason where a value cannot be."""
        Sampling(self.temperature, self.top_p, self.top_k, self.seed)
        if self.max_new_tokens < 1:
            raise ValueError("max_new_tokens is at least 1")
        if self.num_beams < 1:
            raise ValueError("num_beams is at least 1")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams looks for the most probable answer: temperature is 0 with it")


@dataclass(frozen=True)
class Words:
    """What an adapter reads and writes, where it was trained with a template or tokens of its own."""

    tokenizer: Any
    renderer: Prompting


@dataclass
class Session:
    """`adapters` are the names loaded on `model`; None stands for the base everywhere.

    `words` holds what adapters read and write otherwise than `tokenizer` and `renderer` do. `say` gets what one should
    know of an answer.
    """

    model: PreTrainedModel
    tokenizer: Any
    renderer: Prompting
    switch: Switch = field(default_factory=Switch)
    adapters: list[str] = field(default_factory=list)
    words: dict[str | None, Words] = field(default_factory=dict)
    say: Callable[[str], object] = warnings.warn
    _told_of_length: bool = False
    _told_of_pace: bool = False

    def words_of(self, adapter: str | None) -> Words:
        return self.words.get(adapter) or Words(self.tokenizer, self.renderer)

    def decoder(self, adapter: str | None) -> Callable[[list[int]], str]:
        tokenizer = self.words_of(adapter).tokenizer

        def decode(token_ids: list[int]) -> str:
            text: str = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return text

        return decode

    def text(self, answer: Generated, params: Params, adapter: str | None = None) -> str:
        """The answer of `adapter` without its end token, cut before the first stop string."""
        text = self.decoder(adapter)(answer.content_ids)
        return text[: min((at for s in params.stop_strings if (at := text.find(s)) >= 0), default=len(text))]

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), adapter: str | None = None
    ) -> list[int]:
        """The prompt as `adapter` reads it."""
        return self.words_of(adapter).renderer.prompt_ids(messages, tools)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Params, *, adapters: Sequence[str | None], **options: Any
    ) -> list[Generated]:
        """Answers to token ids; `options` as in `models.generate.generate`."""
        self._tell_of_length(map(len, prompts))
        self._tell_of_pace()
        made = generate(
            self.model,
            prompts,
            max_new_tokens=self._room(prompts, params.max_new_tokens, adapters),
            eos_ids=[self.words_of(name).renderer.end_ids for name in adapters],
            num_beams=params.num_beams,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=params.seed,
            stop_strings=params.stop_strings,
            decode=[self.decoder(name) for name in adapters],
            switch=self.switch,
            adapters=adapters,
            **options,
        )
        each = options.get("num_samples", 1)
        self._tell_of_length(len(prompts[i // each]) + len(answer.token_ids) for i, answer in enumerate(made))
        return made

    def _room(self, prompts: Sequence[Sequence[int]], wanted: int, adapters: Sequence[str | None]) -> list[int]:
        """New tokens that the model has positions for behind each prompt: `wanted`, or what is left."""
        leads = virtuals(self.model, adapters, self.switch)
        lengths = [len(p) + (lead.num_tokens if lead else 0) for p, lead in zip(prompts, leads, strict=True)]
        most, longest = most_tokens(self.model.config), max(lengths, default=0)
        if most is None:
            return [wanted] * len(prompts)
        if longest >= most:
            raise ModelError(
                "the prompt is longer than the model can read",
                found=f"{longest:,} tokens",
                expected=f"at most {most - 1:,}, the model's positions but for one to answer",
            )
        return [min(wanted, most - length) for length in lengths]

    def positions(self, adapter: str | None) -> int | None:
        """Tokens of a row that the model has positions for behind what `adapter` puts before it; None: no limit."""
        most, lead = most_tokens(self.model.config), virtuals(self.model, [adapter], self.switch)[0]
        return most if most is None or lead is None else max(1, most - lead.num_tokens)

    def _tell_of_length(self, lengths: Iterable[int]) -> None:
        """Once: a text went past the positions that the model was made for. It is answered all the same."""
        known = made_for(self.model.config)
        if self._told_of_length or known is None:
            return
        if (longest := max(lengths, default=0)) > known:
            self._told_of_length = True
            self.say(
                f"a text of {longest:,} tokens: the model was made for {known:,}, and may answer worse beyond them"
            )

    def _tell_of_pace(self) -> None:
        """Once: this model answers one prompt after another."""
        if not self._told_of_pace and (line := told_alone(self.model, self.switch)):
            self.say(line)
        self._told_of_pace = True

    def stream(
        self,
        messages: Sequence[Message],
        params: Params,
        write: Callable[[str], object],
        *,
        adapter: str | None = None,
        cancelled: Callable[[], bool] | None = None,
        memory: Memory | None = None,
    ) -> Generated:
        """One answer, its text handed to `write` piece by piece, whole characters only."""
        text, ends = TextStream(self.decoder(adapter)), frozenset(self.words_of(adapter).renderer.end_ids)

        def show(_: int, token_id: int) -> None:
            if token_id not in ends and (piece := text.push(token_id)):
                write(piece)

        answer = self.generate(
            [self.prompt_ids(messages, adapter=adapter)],
            params,
            adapters=[adapter],
            on_token=show,
            cancelled=cancelled,
            memory=memory,
        )[0]
        if piece := text.rest():
            write(piece)
        return answer
