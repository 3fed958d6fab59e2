"""Distillation: a student learns a teacher's next-token distributions, on given answers or on its own.

Paper        Hinton et al. 2015, arXiv:1503.02531; of sequences, on what the student writes: Agarwal et al. 2023,
             arXiv:2306.13649 (GKD), eq. 3 with λ = 0 (given) or 1 (sampled), no gradient through the sampling
Maths        loss = Σ over learned tokens of w_t D(teacher, student) at t, divided by Σ w_t over the whole step
Denominator  "tokens" of the step: every learned token weighs the same, however the step is cut
Teacher      another model of the same tokenizer, frozen, beside the student; its hidden states are computed with the
             student's, and its logits chunk by chunk
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tunesmith.adapters.attach import Switch
from tunesmith.adapters.identity import fingerprint
from tunesmith.data.formats import LEARNABLE
from tunesmith.data.pack import micro_batches
from tunesmith.data.render import Renderer
from tunesmith.data.types import Asked, Batch, Example, Prompt, Row, Sampled
from tunesmith.errors import CheckpointError, ModelError, RecipeError
from tunesmith.models.load import load_config, load_model, load_tokenizer, most_tokens
from tunesmith.models.policy import Policy, probe
from tunesmith.models.settings import ModelSettings
from tunesmith.objectives.base import Foreseen, Loss, Stage, Step
from tunesmith.objectives.divergences import Divergence, weighed
from tunesmith.objectives.foreseen import written
from tunesmith.objectives.logprobs import targets_of
from tunesmith.objectives.order import Order
from tunesmith.objectives.samplers import Drawing, InProcess, told_of
from tunesmith.objectives.settings import ObjectiveSettings
from tunesmith.objectives.sft import SFT
from tunesmith.settings import Contradiction


class DistillSettings(ObjectiveSettings):
    kind: Literal["distill"] = "distill"
    """Learns what a teacher would say next, with all its doubt: the whole distribution, not one token."""
    teacher: Annotated[str, Field(min_length=1)]
    """Folder or hub id of the teacher, a causal language model of the same tokenizer."""
    teacher_storage: Literal["auto", "plain", "nf4", "nf4-double", "int8"] = "auto"
    """How the teacher's matrices are held, as model.storage says of the student's."""
    answers: Literal["given", "sampled"] = "given"
    """Where the two are compared: on the rows' answers, or on answers that the student writes to the rows' prompts."""
    divergence: Divergence | None = None
    """forward_kl, reverse_kl, or jsd between them. None: forward_kl of given answers, reverse_kl of sampled ones."""
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of jsd: the teacher's share of the mixture that both are held against. None: a half."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both; sampled answers are drawn at it too."""
    max_completion_length: PositiveInt | None = None
    """Of sampled answers: most new tokens. None: 256."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.beta is not None and self.divergence != "jsd":
            raise Contradiction("beta", "is of jsd alone", "set objective.divergence to jsd, or leave it out")
        if self.max_completion_length is not None and self.answers == "given":
            raise Contradiction("max_completion_length", "is of sampled answers alone", "set objective.answers=sampled")
        return self

    @property
    def compared(self) -> Divergence:
        return self.divergence or ("forward_kl" if self.answers == "given" else "reverse_kl")

    @property
    def most_new(self) -> int:
        return self.max_completion_length or 256

    @property
    def answer_tokens(self) -> int:
        return self.most_new if self.answers == "sampled" else 0


Settings = DistillSettings
LEARNING_RATE = 1e-4


def takes(settings: Settings) -> tuple[type[Row], ...]:
    return LEARNABLE if settings.answers == "given" else (Prompt,)


def needs_reference(settings: Settings) -> bool:
    return False


class Distillation:
    """Rows, or prompts, in a seeded order; what is sampled depends on seed and step alone, and on the weights."""

    head = None

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        settings: DistillSettings,
        *,
        batch_size: int | None,
        seed: int,
        shuffle: bool = True,
        renderer: Renderer | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self._size = batch_size, batch_tokens
        self.train, self.held_out = train, held_out
        self.teacher: Policy | None = None
        self._renderer = renderer
        self._order = Order(
            [None] * len(train),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lengths=[len(row) for row in train],
            batch_tokens=batch_tokens,
        )
        self._now = ""
        """Fingerprint of the teacher."""
        self.steps_per_epoch = self._order.steps_per_epoch

    def begin(self, policy: Policy, *, num_steps: int | None, max_tokens: int, cache: Path, stage: Stage) -> list[str]:
        """Load the teacher."""
        if self.teacher is not None:
            return []
        with stage("loading the teacher"):
            model = self._settings_of(policy)
            loaded = load_model(model, load_tokenizer(model))
            self.teacher, reason = probe(loaded.model, Switch())
            self.teacher.eval()
            self._now = fingerprint(loaded.model)
        most = most_tokens(loaded.model.config)
        longest = max((*map(len, self.train), *self.held_out_lengths()), default=0) + self._written_behind()
        if most is not None and longest > most:
            raise ModelError(
                "the teacher has fewer positions than the rows have tokens",
                found=f"{most:,} positions, rows of up to {longest:,} tokens",
                fix="lower data.max_length, or take a teacher with more",
            )
        numbers = sum(parameter.numel() for parameter in loaded.model.parameters())
        how = "without padding" if self.teacher.flat else f"padded, since {reason}"
        what = f"the teacher: {type(loaded.model).__name__} of {numbers:,} numbers, {how}"
        told = told_of(None, policy) if self.settings.answers == "sampled" else []
        return [*told, f"{what}; {self.settings.compared} on {self.settings.answers} answers"]

    def steps_until(self, tokens: int) -> int | None:
        return self._order.steps_until(tokens) if self.settings.answers == "given" else None

    def foreseen(self, flat: bool) -> Foreseen:
        """The student on rows as long as they can become, the teacher beside it."""
        teacher = (self.settings.teacher, self.settings.teacher_storage)
        batch_size, batch_tokens = self._size
        if self.settings.answers == "sampled" and batch_size is not None:
            stand_in = written(self.train, self._written_behind(), num_each=1, batch_size=batch_size, seed=self.seed)
            return replace(stand_in, teacher=teacher)
        student = SFT(self.train, [], batch_size=batch_size, batch_tokens=batch_tokens, seed=self.seed)
        return Foreseen(student, self.train, teacher=teacher)

    def _settings_of(self, policy: Policy) -> ModelSettings:
        dtype = str(policy.model.dtype).removeprefix("torch.")
        return ModelSettings.model_validate(
            {
                "name": self.settings.teacher,
                "dtype": dtype,
                "device": str(policy.device),
                "storage": self.settings.teacher_storage,
            }
        )

    def steps(self, policy: Policy) -> Iterator[Step]:
        for rows, epoch in self._order.steps():
            examples: Sequence[Example] = [self.train[row] for row in rows]
            metrics: dict[str, float] = {}
            if self.settings.answers == "sampled":
                number = int(np.random.SeedSequence([self.seed, self._order.done]).generate_state(1)[0])
                examples = self._written(policy, examples, self.settings.temperature, number)
                metrics = {"completions/mean_length": sum(example.num_learned for example in examples) / len(examples)}
            tokens = _tokens(examples)
            yield Step(examples, {"loss": tokens, "agreement": tokens}, epoch, metrics)

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        return micro_batches(step.examples, max_tokens)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        teacher = self._known_teacher()
        where, _, weights = targets_of(batch)
        hidden = policy.hidden(batch)[where]
        with torch.no_grad():
            taught = teacher.hidden(batch)[where]
        total, same = weighed(
            hidden,
            policy.head(),
            taught,
            teacher.head(),
            weights,
            kind=self.settings.compared,
            beta=self.settings.beta or 0.5,
            temperature=self.settings.temperature,
        )
        return Loss({"loss": total}, {"agreement": same.detach()})

    @torch.no_grad()
    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """The divergence, and how often both would say the same token, on held-out answers or the likeliest ones."""
        if not self.held_out:
            return {}
        examples = self.held_out
        if self.settings.answers == "sampled":
            examples = self._written(policy, examples, 0.0, 0)
        tokens, totals = _tokens(examples), dict[str, float]()
        for batch in micro_batches(examples, max_tokens):
            found = self.loss(policy, batch.to(policy.device))
            for name, value in (found.sums | found.metrics).items():
                totals[name] = totals.get(name, 0.0) + value.item() / tokens
        return totals

    def held_out_lengths(self) -> list[int]:
        return [len(example) + self._written_behind() for example in self.held_out]

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self._order.done, "teacher": self._now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        then = state.get("teacher", self._now)
        if then != self._now:
            raise CheckpointError(
                "the teacher is not what the run began with",
                found=self._now,
                expected=then,
                fix="put the old one back, or start a run in another folder",
            )
        self._order.done = int(state["steps_done"])

    # ---- inside -------------------------------------------------------------------------------------------------

    def _written_behind(self) -> int:
        """Tokens that the student may write behind a row."""
        return self.settings.answer_tokens

    def _known_teacher(self) -> Policy:
        if self.teacher is None:
            raise ValueError("begin loads the teacher")
        return self.teacher

    def _written(self, policy: Policy, examples: Sequence[Example], temperature: float, seed: int) -> list[Example]:
        """The prompts of `examples` with what the student writes to them, which alone counts."""
        if self._renderer is None:
            raise ValueError("sampling needs the renderer of the tokenizer")
        asked = cast(Sequence[Asked], examples)
        sampler, drawing = InProcess(self._renderer.end_ids), Drawing(temperature, 1.0, None, seed)
        prompts = [one.token_ids.tolist() for one in asked]
        made = sampler.generate(policy, prompts, [self.settings.most_new] * len(asked), drawing)
        return [
            Sampled(
                np.concatenate([one.token_ids, np.array(answer.token_ids, dtype=np.int64)]),
                np.concatenate([np.zeros(len(one)), np.ones(len(answer.token_ids))]).astype(np.float32),
                one.origin,
                number=place,
                prompt_tokens=len(one),
            )
            for place, (one, answer) in enumerate(zip(asked, made, strict=True))
        ]


def _tokens(examples: Sequence[Example]) -> float:
    return float(sum(example.loss_weights[1:].sum() for example in examples))


def build(
    settings: Settings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    batch_size: int | None,
    seed: int,
    shuffle: bool = True,
    renderer: Renderer | None = None,
    batch_tokens: int | None = None,
) -> Distillation:
    """A teacher that is not there, or that reads other tokens, is an error before any weight is loaded."""
    model = ModelSettings(name=settings.teacher)
    load_config(model)
    if renderer is not None:
        own, theirs = renderer.tokenizer.get_vocab(), load_tokenizer(model).get_vocab()
        if own != theirs:
            apart = sorted(own.items() ^ theirs.items(), key=lambda item: item[1])
            raise RecipeError(
                "the teacher reads other tokens than the student",
                where="objective.teacher",
                found=f"{len(own):,} tokens here, {len(theirs):,} there; {apart[0][0]!r} is not the same",
                fix="take a teacher of the same tokenizer; tokens that the recipe adds are unknown to any",
            )
    return Distillation(
        train,
        held_out,
        settings,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        renderer=renderer,
        batch_tokens=batch_tokens,
    )
