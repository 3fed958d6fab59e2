"""Losses of a classification head, and what its numbers mean: pure functions of outputs and classes, one line each in
`MEANINGS`.

one       softmax cross entropy of one class among K
several   a sigmoid for each of K labels, their mean binary cross entropy (torch's multilabel form)
ordered   CORN (Shi, Cao, Raschka 2021, arXiv:2111.08851, eq. 4): output k is P(y > k | y > k - 1), learned from rows
          of class k and above alone; P(y > k) is the product of the first k + 1, and the class is how many of these
          are above a half
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, model_validator
from torch import Tensor

from tunesmith.objectives.settings import ObjectiveSettings
from tunesmith.settings import Contradiction


class ClassifySettings(ObjectiveSettings):
    kind: Literal["classify"] = "classify"
    """Classification by a head on the model: what each text is."""
    way: Literal["all", "head", "features"] = "all"
    """What learns beside the head. all: what the adapter section says; head: nothing, or adapter.last_blocks; features:
    nothing, and the head is fitted to stored features at once, without steps."""
    classes: Literal["one", "several", "ordered"] = "one"
    """What a row is of: one class; any number of labels; one of several classes that have an order (CORN)."""
    labels: tuple[str, ...] | None = None
    """The classes, the lowest first where they have an order. None: those of the training rows; ordered ones are then
    numbers."""
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    """What a row weighs by its class: balanced gives each class the same weight in all, as in scikit-learn. Of several
    labels: of a row that has the label, beside one that has not."""
    fit: Literal["logistic", "svm"] = "logistic"
    """Of way features: logistic regression, or a linear support vector machine."""
    fit_strength: PositiveFloat | None = None
    """Of way features: scikit-learn's C, the inverse of regularisation. None: the best of five by cross-validation."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("fit", "fit_strength"):
            is_default = getattr(self, name) == type(self).model_fields[name].default
            if not is_default and self.way != "features":
                raise Contradiction(name, "is of way features alone", "set objective.way to features, or leave it out")
        if self.labels is not None and len(set(self.labels)) < max(len(self.labels), 2 - (self.classes == "several")):
            raise Contradiction("labels", "names a class twice, or fewer than two", "name each class once")
        if self.classes == "ordered" and self.class_weights is not None:
            raise Contradiction("class_weights", "has no meaning in CORN, which learns from rows of a class and above")
        if self.classes == "ordered" and self.way == "features":
            raise Contradiction("classes", "ordered cannot be fitted at once", "take way head or all")
        return self


def one(outputs: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """outputs [n, K], wanted [n, K] 0 or 1, weights [K] -> [n]: w_y · -log softmax(outputs)_y."""
    return -((wanted * weights) * torch.log_softmax(outputs, dim=-1)).sum(-1)


def several(outputs: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """outputs [n, K], wanted [n, K], weights [K] of what is there -> [n]: the mean of K binary cross entropies."""
    losses = F.binary_cross_entropy_with_logits(outputs, wanted, pos_weight=weights, reduction="none")
    return losses.mean(-1)


def ordered(outputs: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """outputs [n, K - 1], wanted [n, K - 1]: whether the class is above the k-th -> [n], summed over the tasks that the
    row is part of: the first, and each whose predecessor is answered by yes."""
    asked = torch.cat([torch.ones_like(wanted[:, :1]), wanted[:, :-1]], dim=1)
    losses = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return (losses * asked).sum(-1)


def _shares(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs, dim=-1)


def _sigmoids(outputs: Tensor) -> Tensor:
    return torch.sigmoid(outputs)


def _above(outputs: Tensor) -> Tensor:
    """[n, K - 1] P(y > k)."""
    return torch.cumprod(torch.sigmoid(outputs), dim=-1)


def rank(outputs: Tensor) -> Tensor:
    """Of ordered classes, [n, K - 1] -> [n]: the class that is decided for."""
    return (_above(outputs) > 0.5).sum(-1)


def _corn(outputs: Tensor) -> Tensor:
    """[n, K - 1] -> [n, K]: P(y = k) from P(y > k) = Π σ(outputs_j), j ≤ k."""
    above = _above(outputs)
    ones, zeros = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
    return torch.cat([ones, above], dim=-1) - torch.cat([above, zeros], dim=-1)


@dataclass(frozen=True)
class Meaning:
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    """Outputs [n, outputs] -> what each label has [n, K]."""


MEANINGS = {
    "one": Meaning(one, _shares),
    "several": Meaning(several, _sigmoids),
    "ordered": Meaning(ordered, _corn),
}
