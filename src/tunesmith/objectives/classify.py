"""Classification: a head on the model says what each text is. The losses stand in `classify_losses.py`.

Denominator  the rows' weights of the step; of ordered classes, the questions that its rows are part of
Head         transformers' own of sequence classification: of a decoder, a matrix on the state of the last token
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.settings import NONE
from tunesmith.adapters.targets import anatomy
from tunesmith.data.pack import micro_batches
from tunesmith.data.problems import Problems, listed
from tunesmith.data.render import Renderer
from tunesmith.data.types import Batch, Classified, Example, Labelled, Row
from tunesmith.errors import DataError
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Foreseen, Loss, Stage, Step
from tunesmith.objectives.classify_losses import MEANINGS, ClassifySettings, rank
from tunesmith.objectives.features import features_of, fitted, take_over
from tunesmith.objectives.order import Order
from tunesmith.score.classification import at_thresholds, best_thresholds, confusion, decided, measured, too_few
from tunesmith.score.classification_picture import draw

ENOUGH = 10
"""Held-out rows of each of two classes, or with a label and without it, from which on a threshold is looked for."""
Settings = ClassifySettings
LEARNING_RATE = 2e-4


def takes(settings: Settings) -> tuple[type[Row], ...]:
    return (Labelled,)


def adapter_of(objective: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the adapter that a recipe's `way` stands for, where it does not give them."""
    if objective.get("way") not in ("head", "features"):
        return {}
    follows: dict[str, Any] = {} if "method" in adapter else {"method": "full"}
    chooses = any(adapter.get(key) is not None for key in ("last_blocks", "targets"))
    return follows if chooses else {**follows, "targets": NONE}


def needs_reference(settings: Settings) -> bool:
    return False


class Classification:
    """Rows in a seeded order, `batch_size` to an optimizer step."""

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        settings: ClassifySettings,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        labels: Sequence[str] | None = None,
    ) -> None:
        """`labels`: the classes, where they are known already; else those of the settings, or of `train`."""
        self.settings, self.meaning = settings, MEANINGS[settings.classes]
        self.train, self.held_out = cast(Sequence[Classified], train), cast(Sequence[Classified], held_out)
        self.labels = tuple(labels or settings.labels or _found(self.train, settings.classes == "ordered"))
        self._check(self.train, self.held_out)
        has_turns = bool(self.train) and all(row.has_turns for row in self.train)
        self.weights = self._weights()
        weights = () if settings.class_weights is None else tuple(self.weights.tolist())
        self.head = ClassHead(settings.classes, self.labels, has_turns=has_turns, weights=weights)
        self._order = Order(
            [None] * len(train),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lengths=[len(row) for row in train],
        )
        self.steps_per_epoch = 0 if settings.way == "features" else self._order.steps_per_epoch
        self._seed = seed
        self.kept_seconds = 0.0

    def begin(self, policy: Policy, *, num_steps: int | None, max_tokens: int, cache: Path, stage: Stage) -> list[str]:
        """Of way features: the whole fit."""
        if self.settings.way != "features" or not self.train:
            return []
        with stage(f"what the frozen model says of {len(self.train):,} texts") as told:
            features, seconds = features_of(
                policy, self.train, max_tokens=max_tokens, root=cache / "features", told=told
            )
        with stage(f"fitting the head ({self.settings.fit})"):
            found = fitted(
                features,
                self.truth(self.train),
                self.weights.numpy(),
                several=self.settings.classes == "several",
                has_bias="bias" in policy.last_of_head(),
                how=self.settings.fit,
                strength=self.settings.fit_strength,
                seed=self._seed,
            )
        take_over(policy, found)
        self.kept_seconds = seconds or 0.0
        kept = ["the features were in the cache"] if seconds is not None else []
        fit = "the head was fitted at once: what the train section says of steps and their size has no effect"
        before = anatomy(policy.model).scorer[:-1]
        stays = [f"before the fitted matrix stand {', '.join(before)}, as they were loaded or drawn"] if before else []
        return [*kept, *found.notes, *stays, fit]

    def steps_until(self, tokens: int) -> int:
        return self._order.steps_until(tokens)

    def foreseen(self, flat: bool) -> Foreseen:
        return Foreseen(self, self.train)

    def steps(self, policy: Policy) -> Iterator[Step]:
        for rows, epoch in self._order.steps():
            examples = [self.train[row] for row in rows]
            yield Step(examples, {"loss": self._denominator(examples), "accuracy": len(examples)}, epoch)

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        return micro_batches(step.examples, max_tokens)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        outputs = policy.scores(batch)
        return self._loss(outputs, [cast(Classified, batch.examples[leaf]) for leaf in batch.leaves])

    @torch.no_grad()
    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """Mean loss and the figures of `score/classification.py` over the held-out rows."""
        if not self.held_out:
            return {}
        rows, outputs = self.outputs(policy, self.held_out, max_tokens)
        loss = self._loss(outputs, rows).sums["loss"].item() / self._denominator(rows)
        return {"loss": loss, **self.figures(outputs, rows)}

    @torch.no_grad()
    def detail(self, policy: Policy, max_tokens: int, head: ClassHead | None) -> dict[str, Any]:
        """What one number does not tell of the held-out rows: which class is taken for which; the scores at the
        thresholds that `head` has."""
        rows, outputs = self.outputs(policy, self.held_out, max_tokens)
        probabilities, truth = self.meaning.probabilities(outputs).numpy(), self.truth(rows)
        several = self.settings.classes == "several"
        told: dict[str, Any] = {}
        if head is not None and head.thresholds:
            told = at_thresholds(probabilities, truth, several, head.thresholds)
        if not several:
            told["classes"] = list(self.labels)
            counts = confusion(self._said(probabilities), truth)
            told["rows of each class, by what they are taken for"] = counts.tolist()
        return told

    @torch.no_grad()
    def outputs(self, policy: Policy, examples: Sequence[Example], max_tokens: int) -> tuple[list[Classified], Tensor]:
        """`examples` in another order, and what the head gives each [n, outputs], on the CPU."""
        rows: list[Classified] = []
        found: list[Tensor] = []
        for batch in micro_batches(examples, max_tokens):
            found.append(policy.scores(batch.to(policy.device)).cpu())
            rows += [cast(Classified, batch.examples[leaf]) for leaf in batch.leaves]
        return rows, torch.cat(found)

    def by_row(self, outputs: Tensor, rows: Sequence[Classified], head: ClassHead) -> tuple[list[float], list[float]]:
        """(loss of each row, 1 where it is right and 0 where not, at the thresholds that `head` has)."""
        losses = self.meaning.loss(outputs, self._wanted(rows).to(outputs), torch.ones(len(self.labels)))
        said = self._said(self.meaning.probabilities(outputs).numpy(), head.thresholds)
        return losses.tolist(), (said == self.truth(rows)).all(1).astype(float).tolist()

    def figures(self, outputs: Tensor, rows: Sequence[Classified]) -> dict[str, float]:
        several, ordered = self.settings.classes == "several", self.settings.classes == "ordered"
        probabilities = self.meaning.probabilities(outputs).numpy()
        return measured(probabilities, self.truth(rows), several, ordered)

    def truth(self, rows: Sequence[Classified]) -> np.ndarray:
        """[n, K] 0 or 1."""
        wanted = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for i, row in enumerate(rows):
            wanted[i, [self._index[label] for label in row.labels]] = 1.0
        return wanted

    def held_out_lengths(self) -> list[int]:
        return [len(example) for example in self.held_out]

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        """The thresholds that are best on the held-out rows go into the head; the picture into the folder."""
        if not self.held_out:
            return []
        with policy.answering():
            rows, outputs = self.outputs(policy, self.held_out, max_tokens)
        probabilities, truth = self.meaning.probabilities(outputs).numpy(), self.truth(rows)
        lines = self._choose_thresholds(probabilities, truth)
        picture, classes = folder / "classes.png", self.settings.classes
        draw(
            picture,
            probabilities,
            truth,
            self.labels,
            several=classes == "several",
            ordered=classes == "ordered",
            title=folder.absolute().name,
        )
        return [*lines, f"confusion and calibration on the held-out rows: {picture}"]

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self._order.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.done = int(state["steps_done"])

    # ---- inside -------------------------------------------------------------------------------------------------

    def _choose_thresholds(self, probabilities: np.ndarray, truth: np.ndarray) -> list[str]:
        """Into the head, where it has a use for them; what is said of them."""
        two = self.settings.classes == "one" and len(self.labels) == 2
        if not two and self.settings.classes != "several":
            return []
        kept = slice(1, None) if two else slice(None)
        few = too_few(truth[:, kept], ENOUGH)
        thresholds = best_thresholds(probabilities[:, kept], truth[:, kept], both=two, enough=ENOUGH)
        if not (two and few.all()):
            self.head = replace(self.head, thresholds=thresholds)
        named = list(zip(self.labels[kept], thresholds, few, strict=True))
        lines = []
        if found := [f"{label} {threshold:.2f}" for label, threshold, is_few in named if not is_few]:
            figure = "macro-F1" if two else "F1"
            lines.append(f"thresholds of the highest {figure} on the held-out rows: {', '.join(found)}")
        if left := [label for label, _, is_few in named if is_few]:
            lines.append(
                f"the threshold stays at a half for {listed(left)}: "
                f"fewer than {ENOUGH} held-out rows are of it, or fewer are not"
            )
        return lines

    def _said(self, probabilities: np.ndarray, thresholds: Sequence[float] = ()) -> np.ndarray:
        """[n, K] bool: what is decided."""
        classes = self.settings.classes
        return decided(probabilities, classes == "several", thresholds, ordered=classes == "ordered")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def _wanted(self, rows: Sequence[Classified]) -> Tensor:
        """What the outputs should say [n, outputs], 0 or 1."""
        truth = torch.from_numpy(self.truth(rows))
        if self.settings.classes != "ordered":
            return truth
        return (truth.argmax(1)[:, None] > torch.arange(len(self.labels) - 1)).float()

    def _loss(self, outputs: Tensor, rows: Sequence[Classified]) -> Loss:
        wanted, weights = self._wanted(rows).to(outputs), self.weights.to(outputs)
        losses = self.meaning.loss(outputs, wanted, weights)
        with torch.no_grad():
            probabilities = self.meaning.probabilities(outputs)
            truth = torch.from_numpy(self.truth(rows)).to(outputs)
            if self.settings.classes == "several":
                right = ((probabilities >= 0.5) == truth.bool()).all(1)
            else:
                said = rank(outputs) if self.settings.classes == "ordered" else probabilities.argmax(1)
                right = said == truth.argmax(1)
        return Loss({"loss": losses.sum()}, {"accuracy": right.sum()})

    def _denominator(self, rows: Sequence[Classified]) -> float:
        if self.settings.classes == "several":
            return float(len(rows))
        if self.settings.classes == "ordered":
            questions = len(self.labels) - 1
            return float(sum(min(self._index[row.labels[0]] + 1, questions) for row in rows))
        return float(sum(self.weights[self._index[row.labels[0]]].item() for row in rows))

    def _weights(self) -> Tensor:
        """[K] what a row weighs by its class; of several labels, one that has the label beside one that has not."""
        asked = self.settings.class_weights
        if asked is None:
            return torch.ones(len(self.labels))
        if isinstance(asked, dict):
            if unknown := asked.keys() - set(self.labels):
                raise DataError(
                    f"objective.class_weights names {listed(sorted(unknown))}, which no row is of",
                    expected=", ".join(self.labels),
                )
            return torch.tensor([float(asked.get(label, 1.0)) for label in self.labels])
        counts = Counter(label for row in self.train for label in row.labels)
        there = torch.tensor([float(max(1, counts[label])) for label in self.labels])
        if self.settings.classes == "several":
            return (len(self.train) - there).clamp_min(1.0) / there
        return len(self.train) / (len(self.labels) * there)

    def _check(self, *sides: Sequence[Classified]) -> None:
        """Every row has labels that are known, and as many as it should."""
        problems = Problems("rows have labels that cannot be learned")
        several = self.settings.classes == "several"
        for row in (row for side in sides for row in side):
            unknown = [label for label in row.labels if label not in self._index]
            if unknown:
                what = f"no class is called {listed(unknown)}"
                fix = "mend the row, or name all classes in objective.labels"
                expected = ", ".join(self.labels[:12]) + (" …" if len(self.labels) > 12 else "")
            elif not several and len(row.labels) != 1:
                what = "the row is not of one class"
                fix, expected = "for any number of labels: objective.classes=several", "one label"
            else:
                continue
            found = ", ".join(row.labels) or "none"
            problems.add(DataError(what, where=str(row.origin), found=found, expected=expected, fix=fix))
        problems.raise_if_any()
        counted = Counter(label for row in self.train for label in row.labels)
        if self.train and self.settings.way == "features":
            self._check_apart(counted, several)
        if len(self.labels) < (1 if several else 2):
            found = ", ".join(self.labels) or "none"
            raise DataError(
                "there is nothing to tell apart: the training rows have one class",
                found=found,
                fix="add rows of another class, or look at data.columns: is labels the right one?",
            )

    def _check_apart(self, counted: Mapping[str, int], several: bool) -> None:
        """What is fitted at once needs rows of each class; of each of several labels, some with and some without it."""
        fix = "add rows, leave the class out of objective.labels, or take way head or all"
        if missing := [label for label in self.labels if not counted[label]]:
            raise DataError(
                f"no training row is of class {listed(missing)}: a head that is fitted at once needs rows of each",
                fix=fix,
            )
        if several and (always := [label for label in self.labels if counted[label] == len(self.train)]):
            raise DataError(
                f"every training row has the label {listed(always)}: a head that is fitted at once needs some without",
                fix=fix,
            )


def _found(rows: Sequence[Classified], ordered: bool) -> list[str]:
    """The labels of `rows`, sorted; numbers by their size."""
    labels = sorted({label for row in rows for label in row.labels})
    try:
        found = sorted(labels, key=float)
    except ValueError:
        if not ordered:
            return labels
        raise DataError(
            "the classes have an order that their names do not tell",
            found=listed(labels),
            fix="name them in objective.labels, the lowest first",
        ) from None
    if ordered:
        _refuse_one_number_twice(found)
    return found


def _refuse_one_number_twice(labels: Sequence[str]) -> None:
    twice = [f"{a!r} and {b!r}" for a, b in pairwise(labels) if float(a) == float(b)]
    if twice:
        raise DataError(
            "one number is written in two ways: as ordered classes they would be two",
            found=listed(twice),
            fix="write it in one way in the rows, or name the classes in objective.labels",
        )


def build(
    settings: Settings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    renderer: Renderer | None = None,
) -> Classification:
    learns = bool(train) and train is not held_out
    if learns and settings.classes == "several" and not any(row.labels for row in cast(Sequence[Classified], train)):
        raise DataError(
            "no training row has a label: there is nothing to tell apart",
            found=f"{len(train):,} rows, each without labels",
            expected="rows with labels, and rows without",
            fix="name the labels of each row in its column labels",
        )
    return Classification(train, held_out, settings, batch_size=batch_size, seed=seed, shuffle=shuffle)
