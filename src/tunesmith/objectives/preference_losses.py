"""The losses of preference tuning: DPO and its relatives, each a small pure function and one line in `LOSSES`.

A loss is a function of two scores for each pair, c of the chosen answer and r of the rejected one. A score is the sum
over the answer's tokens of log p, or their mean; where the loss has a reference, less the same of the reference.

Papers  sigmoid 2305.18290 (label_smoothing: conservative DPO) · robust 2403.00409 · hinge 2305.10425 · ipo 2310.12036
        f-divergences 2309.16240 · kto 2402.01306 · orpo 2403.07691 · cpo 2401.08417 · simpo 2405.14734
        apo 2408.06266 · exo 2402.00856 · nca 2402.05369 · sppo 2405.00675 · discopop 2406.08414
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from tunesmith.objectives.settings import ObjectiveSettings
from tunesmith.settings import Contradiction

LossName = Literal[
    "sigmoid", "sigmoid_norm", "robust", "hinge", "ipo_sum", "ipo_mean", "apo_zero", "apo_down", "exo_pair",
    "nca_pair", "sppo_hard", "discopop", "kto", "orpo", "cpo", "simpo",
]  # fmt: skip


class PreferenceSettings(ObjectiveSettings):
    """The `objective` section for preference tuning. A setting that the loss does not read is refused."""

    kind: Literal["preference"] = "preference"
    """Answers that are preferred over others: DPO and its relatives."""
    loss: LossName = "sigmoid"
    """sigmoid is DPO; ipo_mean is TRL's ipo (log-ratios by token), ipo_sum the paper's. docs/preference.md has all."""
    beta: PositiveFloat = 0.1
    """How strongly the reference holds; of orpo the weight of its odds ratio."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose labels may be the wrong way round."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Which divergence from the reference is held small."""
    alpha: PositiveFloat = 0.5
    """Of the alpha divergence."""
    gamma: NonNegativeFloat = 0.5
    """The margin that simpo asks for (TRL's simpo_gamma; the paper takes about 0.55 beta)."""
    nll_weight: NonNegativeFloat | None = None
    """Weight of the chosen answers' own loss per token beside the loss (TRL's cpo_alpha, rpo_alpha); null: 1 for orpo
    and cpo, 0 for the others."""
    desirable_weight: NonNegativeFloat = 1.0
    """Of wanted answers in kto."""
    undesirable_weight: NonNegativeFloat = 1.0
    """Of unwanted answers in kto."""
    reference: Literal["precomputed", "online"] = "precomputed"
    """The reference's log-probabilities are computed once for all rows and kept in the cache, or in every step anew."""

    @model_validator(mode="after")
    def _nothing_unread(self) -> Self:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        for name in defaults.keys() - {"kind", "loss", "beta", *LOSSES[self.loss].settings}:
            if getattr(self, name) != defaults[name]:
                read = ", ".join(other for other, kind in LOSSES.items() if name in kind.settings)
                raise Contradiction(name, f"is not read by loss {self.loss}", f"take it out, or choose of: {read}")
        if self.f_divergence != "alpha_divergence" and self.alpha != defaults["alpha"]:
            raise Contradiction("alpha", "is of f_divergence alpha_divergence alone", "take it out")
        if self.loss == "exo_pair" and self.label_smoothing == 0:
            raise Contradiction("label_smoothing", "is 0, and exo_pair takes its log", "set it, say to 0.001")
        return self


# ---- the losses: c, r [n] scores of the chosen and the rejected answers -> [n] ---------------------------------------


def margin(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """beta (f'(u_c) - f'(u_r)) with u = exp(score), the ratio to the reference (2309.16240, eq. 6); constants go.

    reverse KL: f' = log u   forward KL: -1/u   JS: log(2u / (1+u))   alpha: (1 - u^-alpha) / alpha
    """
    match s.f_divergence:
        case "reverse_kl":
            gain = c - r
        case "forward_kl":
            gain = _exp(-r) - _exp(-c)
        case "js_divergence":
            gain = F.logsigmoid(c) - F.logsigmoid(r)
        case "alpha_divergence":
            gain = (_exp(-s.alpha * r) - _exp(-s.alpha * c)) / s.alpha
    return s.beta * gain


def _exp(x: Tensor) -> Tensor:
    """exp, kept below what the type can hold."""
    return torch.exp(x.clamp(max=math.log(torch.finfo(x.dtype).max) - 1))


def sigmoid(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """-(1-e) log sigma(m) - e log sigma(-m)   (2305.18290, eq. 7; with e > 0 conservative DPO)"""
    m, e = margin(c, r, s), s.label_smoothing
    return -(1 - e) * F.logsigmoid(m) - e * F.logsigmoid(-m)


def robust(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """(-(1-e) log sigma(m) + e log sigma(-m)) / (1-2e)   (2403.00409, eq. 9)"""
    m, e = margin(c, r, s), s.label_smoothing
    return (-(1 - e) * F.logsigmoid(m) + e * F.logsigmoid(-m)) / (1 - 2 * e)


def hinge(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """max(0, 1 - m)   (2305.10425, eq. 7, as a loss on DPO's margin: 2309.06657)"""
    return torch.relu(1 - margin(c, r, s))


def ipo(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """(c - r - 1/(2 beta))^2   (2310.12036, eq. 17)"""
    return (c - r - 1 / (2 * s.beta)) ** 2


def apo_zero(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """1 - sigma(beta c) + sigma(beta r)   (2408.06266: chosen up, rejected down)"""
    return 1 - torch.sigmoid(s.beta * c) + torch.sigmoid(s.beta * r)


def apo_down(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """sigma(beta c) + 1 - sigma(beta (c - r))   (2408.06266: both down, rejected further)"""
    return torch.sigmoid(s.beta * c) + 1 - torch.sigmoid(s.beta * (c - r))


def exo_pair(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """KL(sigma(m), sigma(-m) | 1-e, e)   (2402.00856, eq. 16)"""
    m, e = margin(c, r, s), s.label_smoothing
    return torch.sigmoid(m) * (F.logsigmoid(m) - math.log(1 - e)) + torch.sigmoid(-m) * (F.logsigmoid(-m) - math.log(e))


def nca_pair(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """-log sigma(beta c) - (log sigma(-beta c) + log sigma(-beta r)) / 2   (2402.05369)"""
    c, r = s.beta * c, s.beta * r
    return -F.logsigmoid(c) - 0.5 * (F.logsigmoid(-c) + F.logsigmoid(-r))


def sppo_hard(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """(c - 1/(2 beta))^2 + (r + 1/(2 beta))^2   (2405.00675, eq. 4.6, with certain labels)"""
    return (c - 0.5 / s.beta) ** 2 + (r + 0.5 / s.beta) ** 2


def discopop(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """(1-w) (-log sigma(m)) + w exp(-m), w = sigma(m / 0.05)   (2406.08414, eq. 6: log-ratio modulated loss)"""
    m = margin(c, r, s)
    w = torch.sigmoid(m / 0.05)
    return -(1 - w) * F.logsigmoid(m) + w * _exp(-m)


def orpo(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """-beta log sigma(log odds_c - log odds_r), odds = p / (1-p) of mean log-probabilities   (2403.07691, eq. 7)"""

    def log_not(x: Tensor) -> Tensor:
        """log(1 - e^x), finite where x rounds to 0: an answer that is certain."""
        return torch.log(-torch.expm1(x.clamp(max=-1e-7)))

    return -s.beta * F.logsigmoid((c - r) - (log_not(c) - log_not(r)))


def cpo(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """DPO against a uniform reference   (2401.08417, eq. 6)"""
    m, e = s.beta * (c - r), s.label_smoothing
    return -(1 - e) * F.logsigmoid(m) - e * F.logsigmoid(-m)


def simpo(c: Tensor, r: Tensor, s: PreferenceSettings) -> Tensor:
    """-log sigma(beta (c - r) - gamma), with means over tokens   (2405.14734, eq. 6)"""
    m, e = s.beta * (c - r) - s.gamma, s.label_smoothing
    return -(1 - e) * F.logsigmoid(m) - e * F.logsigmoid(-m)


def kto(score: Tensor, wanted: Tensor, kl: float, s: PreferenceSettings) -> Tensor:
    """w_d (1 - sigma(beta (score - kl))) where wanted, w_u (1 - sigma(beta (kl - score))) where not.

    2402.01306, eq. 8. kl is its z0: the mean score of answers to other prompts, at least 0, without gradient.
    """
    up = s.desirable_weight * (1 - torch.sigmoid(s.beta * (score - kl)))
    down = s.undesirable_weight * (1 - torch.sigmoid(s.beta * (kl - score)))
    return torch.where(wanted, up, down)


@dataclass(frozen=True)
class Kind:
    """One loss of the table: its function, and what it is a function of."""

    function: Callable[..., Tensor]
    reads: tuple[str, ...] = ()
    """Settings of its own beside beta."""
    is_mean: bool = False
    """Scores are means over tokens, not sums."""
    has_reference: bool = True
    nll_weight: float = 0.0
    is_single: bool = False
    """Of answers, not of pairs."""

    @property
    def settings(self) -> tuple[str, ...]:
        """All that it reads beside beta."""
        return (
            *self.reads,
            *(() if self.is_single else ("nll_weight",)),
            *(("reference",) if self.has_reference else ()),
        )


_OF_MARGIN = ("f_divergence", "alpha")
LOSSES: dict[str, Kind] = {
    "sigmoid": Kind(sigmoid, ("label_smoothing", *_OF_MARGIN)),
    "sigmoid_norm": Kind(sigmoid, ("label_smoothing",), is_mean=True),
    "robust": Kind(robust, ("label_smoothing", *_OF_MARGIN)),
    "hinge": Kind(hinge, _OF_MARGIN),
    "ipo_sum": Kind(ipo),
    "ipo_mean": Kind(ipo, is_mean=True),
    "apo_zero": Kind(apo_zero),
    "apo_down": Kind(apo_down),
    "exo_pair": Kind(exo_pair, ("label_smoothing", *_OF_MARGIN)),
    "nca_pair": Kind(nca_pair),
    "sppo_hard": Kind(sppo_hard),
    "discopop": Kind(discopop, _OF_MARGIN),
    "kto": Kind(kto, ("desirable_weight", "undesirable_weight"), is_single=True),
    "orpo": Kind(orpo, is_mean=True, has_reference=False, nll_weight=1.0),
    "cpo": Kind(cpo, ("label_smoothing",), has_reference=False, nll_weight=1.0),
    "simpo": Kind(simpo, ("label_smoothing", "gamma"), is_mean=True, has_reference=False),
}
