"""Preference tuning: answers that are preferred over others. The losses stand in `preference_losses.py`.

Denominator  the pairs of the step (of KTO: its answers); of the chosen answers' own loss, their tokens
Reference    the adapter off, or a frozen copy of the adapter that training goes on from
Prompt       what the answers of a pair share is computed once, where batches run without padding
Rewards      beta times the scores, in the names that TRL gives them
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.pack import micro_batches_of
from tunesmith.data.render import Renderer
from tunesmith.data.types import CHOSEN, REJECTED, Answer, Batch, Example, Judged, Origin, Preference, Row
from tunesmith.errors import RecipeError
from tunesmith.models.policy import Policy
from tunesmith.models.room import by_less
from tunesmith.objectives.base import Foreseen, Loss, Stage, Step
from tunesmith.objectives.cache_keys import row_digest
from tunesmith.objectives.logprobs import RowLogps, row_logps
from tunesmith.objectives.order import Order
from tunesmith.objectives.preference_losses import LOSSES, PreferenceSettings
from tunesmith.objectives.reference import References, fill, precompute

Settings = PreferenceSettings
LEARNING_RATE = 1e-5


def takes(settings: Settings) -> tuple[type[Row], ...]:
    """What it learns from: of kto, pairs are two answers."""
    return (Judged, Preference) if LOSSES[settings.loss].is_single else (Preference,)


class PreferenceTuning:
    """Pairs (of kto: answers) in a seeded order, `batch_size` to an optimizer step."""

    head = None

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        settings: PreferenceSettings,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        share: bool | None = None,
    ) -> None:
        """`train`, `held_out`: `Answer`s, of a pair the chosen one right before the rejected one.

        `share`: what a pair's answers begin with in common is computed once, with the same numbers but for rounding;
        None: where batches run without padding.
        """
        self.settings, self.kind = settings, LOSSES[settings.loss]
        self.train, self.held_out = self._units(train), self._units(held_out)
        self._learns = train is not held_out  # rows that stand on both sides are scored, and nothing is learned
        if self.kind.is_single:
            self._check_single(batch_size)
        self.share, self._may_share = bool(share), share is not False
        self.nll_weight = self.kind.nll_weight if settings.nll_weight is None else settings.nll_weight
        self._order = Order(
            [None] * len(self.train),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lengths=[sum(map(len, unit)) for unit in self.train],
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self._max_tokens = max(map(len, (*train, *held_out)), default=1)
        self._references: References | None = None
        self.kept_seconds = 0.0
        self._kl, self._evaluations = 0.0, 0
        self._counts: dict[str, float] = defaultdict(float)
        """What the sums of the step, or of the evaluation, under way are divided by."""
        self._last: dict[str, float] = {}
        self._before: dict[str, float] = {}
        """Of each side, the mean log-probability of the held-out answers before the first step, where no reference is
        kept that tells it."""
        self._goes_on = False

    def begin(
        self,
        policy: Policy,
        *,
        num_steps: int | None,
        max_tokens: int,
        cache: Path,
        stage: Stage,
    ) -> list[str]:
        """The reference's log-probabilities of all rows that will be visited; where none are kept, how likely the
        held-out answers are before the first step."""
        self.share, self._max_tokens = policy.flat and self._may_share, max_tokens
        notes = []
        if any(answer.margin is not None for unit in self.train for answer in unit):
            notes = ["the rows' margins are not looked at: a reward model learns them (objective.kind=reward)"]
        if self.settings.loss == "robust" and self.settings.label_smoothing == 0:
            notes.append(
                "label_smoothing is 0, and robust is then loss sigmoid: set the share of wrong labels, say 0.1"
            )
        if self.kind.is_single and self._learns:
            notes += self._remarks_on_single(num_steps)
        if not self.kind.has_reference or self.settings.reference == "online":
            if self._learns and self.held_out:
                with stage("how likely the held-out answers are before training") as told:
                    self._before = self._measured(policy, max_tokens, told)
            return notes
        if num_steps is None:
            self._references = References({})
            return [*notes, "the reference's log-probabilities are computed as rows come, since the clock ends the run"]
        units = [*(self.train[row] for row in self._order.first(num_steps)), *self.held_out]
        with stage(f"the reference's log-probabilities of {sum(map(len, units)):,} answers") as told:
            self._references, before = precompute(
                policy, units, max_tokens=max_tokens, share=self.share, root=cache / "reference", told=told
            )
        self.kept_seconds = before or 0.0
        return notes if before is None else [*notes, "they were in the cache"]

    def steps_until(self, tokens: int) -> int:
        return self._order.steps_until(tokens)

    def foreseen(self, flat: bool) -> Foreseen:
        """As if the reference's numbers were there already, where `begin` looks them up: each is 0."""
        made = copy.copy(self)
        made.share = flat and self._may_share
        rows = [answer for unit in self.train for answer in unit]
        if self.kind.has_reference and self.settings.reference != "online":
            made._references = References(defaultdict(float, dict.fromkeys(map(row_digest, rows), 0.0)))
        return Foreseen(made, rows, sides=1 if self.kind.is_single else 2)

    def steps(self, policy: Policy) -> Iterator[Step]:
        for rows, epoch in self._order.steps():
            examples = [example for row in rows for example in self.train[row]]
            self._look_up(policy, [self.train[row] for row in rows], self._max_tokens)
            if self.kind.is_single:
                self._kl = self._mismatched(policy, examples, self._max_tokens)
            self._counts = self._denominators(examples)
            yield Step(examples, self._counts, epoch)

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        return self._cut(self._units(step.examples), max_tokens)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        found = row_logps(policy, batch)
        scores = self._scores(policy, batch, found)
        answers = _answers(batch)
        wanted = torch.tensor([answer.side == CHOSEN for answer in answers], device=scores.device)
        chosen, rejected = scores[wanted], scores[~wanted]
        in_order = chosen > rejected if not self.kind.is_single else _in_order(answers, scores)
        if self.kind.is_single:
            losses = self.kind.function(scores, wanted, self._kl, self.settings)
        else:
            losses = self.kind.function(chosen, rejected, self.settings)
        sums = {"loss": losses.sum()}
        if self.nll_weight:
            sums["nll"] = -self.nll_weight * found.sums[wanted].sum()
        metrics = self._metrics(chosen.detach(), rejected.detach(), found.sums.detach(), wanted)
        return Loss(sums, metrics | {"rewards/accuracies": in_order.sum()})

    @torch.no_grad()
    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """The loss and the metrics of training, over the held-out rows."""
        if not self.held_out:
            return {}
        examples = [answer for unit in self.held_out for answer in unit]
        of_the_step = self._kl, self._counts
        self._look_up(policy, self.held_out, max_tokens)
        if self.kind.is_single:
            self._kl = self._mismatched(policy, examples, max_tokens)
        denominators, totals = self._denominators(examples), dict[str, float]()
        units = self.held_out
        if self.kind.is_single:
            units = _by_row(self.held_out)
            denominators["rewards/accuracies"] = sum(map(_is_pair, units))
        self._counts = denominators
        for batch in self._cut(units, max_tokens):
            found = self.loss(policy, batch.to(policy.device))
            for name, value in (found.sums | found.metrics).items():
                if denominators[name]:
                    totals[name] = totals.get(name, 0.0) + value.item() / denominators[name]
        self._kl, self._counts = of_the_step
        loss = totals.pop("loss") + totals.pop("nll", 0.0)
        self._last, self._evaluations = {"loss": loss, **totals}, self._evaluations + 1
        return self._last

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        """What a person should know of the adapter that is published."""
        held_out = [answer for unit in self.held_out for answer in unit]
        if not any(answer.side == CHOSEN for answer in held_out):
            return ["whether the chosen answers have become less likely is not known: data.held_out has none"]
        if self._evaluations != 1 or self._goes_on:  # the last one may be of another step
            with policy.answering():
                self.evaluate(policy, max_tokens)
        before = self._before
        if self._references is not None:
            before = _by_side((answer, self._references.sums[row_digest(answer)]) for answer in held_out)
        if not before:
            return []
        fell = {side: value - self._last[f"logps/{side}"] for side, value in before.items()}
        if fell[CHOSEN] < max(0.5, 0.01 * abs(before[CHOSEN])):
            return []
        grew = fell.get(REJECTED, -math.inf) > fell[CHOSEN]
        why = ": the margin grew because the rejected ones fell further" if grew else ""
        common, remedy = "That is common with losses of a margin alone; ", "objective.nll_weight"
        if self.kind.is_single:
            remedy = "a lower train.learning_rate"
        elif self.nll_weight:
            common, remedy = "", f"a lower train.learning_rate, or objective.nll_weight above {self.nll_weight:g},"
        return [
            "the chosen answers have become less likely (held out: log p "
            f"{before[CHOSEN]:.1f} before, {self._last[f'logps/{CHOSEN}']:.1f} now){why}. "
            f"{common}{remedy} holds the chosen answers up"
        ]

    def held_out_lengths(self) -> list[int]:
        return [len(example) for unit in self.held_out for example in unit]

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self._order.done, **({"before": self._before} if self._before else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.done = int(state["steps_done"])
        self._goes_on = self._order.done > 0
        self._before = state.get("before", self._before)

    # ---- inside -------------------------------------------------------------------------------------------------

    def _check_single(self, batch_size: int) -> None:
        """Of kto: RecipeError where its settings leave nothing to learn from."""
        if batch_size < 2:
            raise RecipeError(
                "train.batch_size is 1: kto compares each answer with those to the other prompts of its step",
                fix="set train.batch_size to 2 or more",
            )
        weights = {CHOSEN: self.settings.desirable_weight, REJECTED: self.settings.undesirable_weight}
        sides = {answer.side for (answer,) in self.train}
        if self._learns and sides and not any(weights[side] for side in sides):
            raise RecipeError(
                f"nothing can be learned: {_shown(sides)}, which weighs 0",
                expected="objective.desirable_weight above 0 for wanted rows, undesirable_weight for the others",
                fix="raise the weight, or give rows of the other kind",
            )

    def _remarks_on_single(self, num_steps: int | None) -> list[str]:
        """Of kto: what its rows, and the steps that they are cut into, cannot teach."""
        notes, sides = [], {answer.side for (answer,) in self.train}
        if len(sides) == 1:
            notes.append(f"{_shown(sides)}: kto learns from rows of both kinds, and here nothing holds the model back")
        order, looked = copy.copy(self._order), min(self.steps_per_epoch, num_steps or self.steps_per_epoch)
        order.done = 0
        prompts = [_prompt(answer).tobytes() for (answer,) in self.train]
        alone = sum(len({prompts[row] for row in rows}) == 1 for rows, _ in islice(order.steps(), looked))
        if alone:
            fix = "rows of other prompts mend" if len(set(prompts)) == 1 else "another train.batch_size may mend"
            notes.append(
                f"in {alone} of the first {looked} steps all answers are to one prompt: kto's kl is 0 there, for want "
                f"of another prompt to compare with; {fix} it"
            )
        return notes

    @torch.no_grad()
    def _measured(self, policy: Policy, max_tokens: int, told: Callable[[float], None]) -> dict[str, float]:
        """Of each side, the mean log-probability of the held-out answers under the adapter as it is."""
        batches, found = self._cut(self.held_out, max_tokens), list[tuple[Answer, float]]()
        for done, batch in enumerate(batches, 1):
            with policy.answering():
                sums = row_logps(policy, batch.to(policy.device)).sums.tolist()
            found += zip(_answers(batch), sums, strict=True)
            told(done / len(batches))
        return _by_side(found)

    def _units(self, examples: Sequence[Example]) -> list[list[Answer]]:
        """What stays together in a batch: the two sides of a pair, or one answer."""
        answers = cast(Sequence[Answer], examples)
        if self.kind.is_single:
            return [[answer] for answer in answers]
        return [list(pair) for pair in zip(answers[::2], answers[1::2], strict=True)]

    def _cut(self, units: Sequence[Sequence[Answer]], max_tokens: int) -> list[Batch]:
        return micro_batches_of(units, max_tokens, share=self.share)

    def _scores(self, policy: Policy, batch: Batch, found: RowLogps) -> Tensor:
        """[n] in the order of the batch's leaves."""
        sums = found.sums
        if self.kind.has_reference and self._references is not None:
            sums = sums - self._references.of(batch, sums)
        elif self.kind.has_reference:
            with policy.reference():
                reference = row_logps(policy, batch).sums
            sums = sums - reference
        return sums / found.counts if self.kind.is_mean else sums

    def _look_up(self, policy: Policy, units: Sequence[Sequence[Answer]], max_tokens: int) -> None:
        """The reference's numbers of rows whose are not known yet, where they are kept."""
        if self._references is not None:
            fill(self._references.sums, policy, units, max_tokens=max_tokens, share=self.share)

    def _mismatched(self, policy: Policy, answers: Sequence[Answer], max_tokens: int) -> float:
        """KTO's z0: the mean score of each prompt with the next answer to another prompt, at least 0; 0 where all
        prompts are one. A row so made is cut to the longest of the rows that it is made of.
        """
        rows = [row for place in range(len(answers)) if (row := _swapped(answers, place)) is not None]
        if not rows:
            return 0.0

        def summed(most: int) -> float:
            total = 0.0
            for batch in self._cut([[row] for row in rows], most):
                batch = batch.to(policy.device)
                with policy.answering():
                    total += row_logps(policy, batch).sums.sum().item()
                with policy.reference():
                    total -= row_logps(policy, batch).sums.sum().item()
            return total

        return max(0.0, by_less(summed, max_tokens, min(map(len, rows)), policy.device) / len(rows))

    def _denominators(self, examples: Sequence[Example]) -> dict[str, float]:
        answers = cast(Sequence[Answer], examples)
        chosen = [answer for answer in answers if answer.side == CHOSEN]
        num_chosen, num_rejected = len(chosen), len(answers) - len(chosen)
        units = len(answers) if self.kind.is_single else num_chosen
        of_sides = {
            f"{what}/{side}": number
            for what in ("rewards", "logps")
            for side, number in (("chosen", num_chosen), ("rejected", num_rejected))
        }
        margins = units if num_chosen and num_rejected else 0
        return {
            **dict.fromkeys(("loss", "kl"), units),
            **of_sides,
            "rewards/accuracies": 0 if self.kind.is_single else units,
            "rewards/margins": margins,
            "nll": float(sum(answer.loss_weights[1:].sum() for answer in chosen)),
        }

    def _metrics(self, chosen: Tensor, rejected: Tensor, logps: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        beta = self.settings.beta
        metrics = {
            "rewards/chosen": beta * chosen.sum(),
            "rewards/rejected": beta * rejected.sum(),
            "logps/chosen": logps[wanted].sum(),
            "logps/rejected": logps[~wanted].sum(),
        }
        if self.kind.is_single:
            sides = (self._counts[name] for name in ("rewards/chosen", "rewards/rejected"))
            apart = [own.sum() / max(1, number) for own, number in zip((chosen, rejected), sides, strict=True)]
            return metrics | {
                "kl": torch.full_like(logps, self._kl).sum(),
                "rewards/margins": beta * self._counts["rewards/margins"] * (apart[0] - apart[1]),
            }
        return metrics | {"rewards/margins": beta * (chosen - rejected).sum()}


def _answers(batch: Batch) -> list[Answer]:
    """The rows of `batch`, in the order of its leaves."""
    return [cast(Answer, batch.examples[leaf]) for leaf in batch.leaves]


def _by_side(found: Iterable[tuple[Answer, float]]) -> dict[str, float]:
    """The mean value of each side's answers."""
    values: dict[str, list[float]] = defaultdict(list)
    for answer, value in found:
        values[answer.side].append(value)
    return {side: float(np.mean(own)) for side, own in values.items()}


def _shown(sides: Collection[str]) -> str:
    """Of training rows that are all of one side; of both where they are not."""
    kinds = {CHOSEN: "wanted", REJECTED: "unwanted"}
    return f"every training row is {' or '.join(kinds[side] for side in sorted(sides))}"


def _is_pair(unit: Sequence[Answer]) -> bool:
    return len(unit) == 2


def _by_row(units: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """Answers that stand alone, but for two sides of one row, which stand together."""
    made: list[list[Answer]] = []
    for (answer,) in units:
        before = made[-1] if made else []
        if len(before) == 1 and before[0].origin == answer.origin and before[0].side != answer.side:
            before.append(answer)
        else:
            made.append([answer])
    return made


def _in_order(answers: Sequence[Answer], scores: Tensor) -> Tensor:
    """Of each row of which both sides are among `answers`, whether the chosen one scores higher: bool [pairs]."""
    places: dict[Origin, dict[str, int]] = defaultdict(dict)
    for place, answer in enumerate(answers):
        places[answer.origin][answer.side] = place
    pairs = [(sides[CHOSEN], sides[REJECTED]) for sides in places.values() if len(sides) == 2]
    chosen, rejected = torch.tensor(pairs, dtype=torch.long, device=scores.device).reshape(-1, 2).T
    return scores[chosen] > scores[rejected]


def _swapped(answers: Sequence[Answer], place: int) -> Answer | None:
    """The prompt of one answer with the next answer to another prompt; None where there is no other."""
    one, prompt = answers[place], _prompt(answers[place])
    others = (*answers[place + 1 :], *answers[:place])
    other = next((answer for answer in others if not np.array_equal(_prompt(answer), prompt)), None)
    if other is None:
        return None
    start, longest = len(_prompt(other)), max(len(one), len(other))
    return replace(
        one,
        token_ids=np.concatenate([prompt, other.token_ids[start:]])[:longest],
        loss_weights=np.concatenate([np.zeros_like(prompt, np.float32), other.loss_weights[start:]])[:longest],
    )


def _prompt(answer: Answer) -> np.ndarray:
    """What stands before the first learned token."""
    return answer.token_ids[: int(np.argmax(answer.loss_weights[1:] != 0)) + 1]


def needs_reference(settings: Settings) -> bool:
    return LOSSES[settings.loss].has_reference


def build(
    settings: Settings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    renderer: Renderer | None = None,
) -> PreferenceTuning:
    return PreferenceTuning(train, held_out, settings, batch_size=batch_size, seed=seed, shuffle=shuffle)
