"""One small case for preference losses: weights, adapter and rows by formula, the same numbers in every process."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tunesmith.data.types import CHOSEN, REJECTED, Answer, Origin
from tunesmith.models.tiny import tiny

TARGETS = ("q_proj", "down_proj")
PROMPTS = [
    [5, 9, 20, 7, 33, 41, 8, 11, 64, 70, 3, 15, 22, 18, 90, 61, 12],
    [6, 50, 51, 52, 14, 17, 19, 21, 23, 25, 27, 29, 31, 35, 37, 39, 42, 44],
    [77, 8],
]
CHOSEN_ANSWERS = [[40, 41, 42, 2], [60, 13, 2], [30, 31, 32, 33, 34, 2]]
REJECTED_ANSWERS = [[40, 45, 2], [61, 62, 63, 13, 2], [36, 2]]


def wave(shape: torch.Size, place: int, size: float) -> torch.Tensor:
    """Numbers between -size and size that repeat nowhere."""
    count = int(np.prod(shape))
    return torch.from_numpy(size * np.sin(0.7 * np.arange(count) + 1.3 * place + 0.01 * np.arange(count) ** 1.5)).view(
        shape
    )


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    """Every parameter by formula."""
    for place, (name, parameter) in enumerate(sorted(model.named_parameters())):
        gain = 1.0 if "norm" in name else 0.0
        parameter.copy_(gain + wave(parameter.shape, place, 0.25))
    return model


def case_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    return fill(tiny("llama")).to(dtype)


def adapter_tensor(path: str, letter: str, shape: torch.Size) -> torch.Tensor:
    """The adapter's tensor at a layer: no zero in it."""
    return wave(shape, sum(map(ord, path + letter)), 0.3)


def answers(prompts=PROMPTS, chosen=CHOSEN_ANSWERS, rejected=REJECTED_ANSWERS) -> list[Answer]:
    """Pairs, the chosen answer right before the rejected one."""
    made = []
    for row, (prompt, *sides) in enumerate(zip(prompts, chosen, rejected, strict=True), 1):
        for side, own in zip((CHOSEN, REJECTED), sides, strict=True):
            weights = [0.0] * len(prompt) + [1.0] * len(own)
            made.append(
                Answer(np.array(prompt + own), np.array(weights, dtype=np.float32), Origin("pairs", row), side=side)
            )
    return made


# name -> (TRL's name, settings beside beta)
SHARED = {
    "sigmoid": ("sigmoid", {}),
    "sigmoid, forward_kl": ("sigmoid", {"f_divergence": "forward_kl"}),
    "sigmoid, js_divergence": ("sigmoid", {"f_divergence": "js_divergence"}),
    "sigmoid, alpha_divergence": ("sigmoid", {"f_divergence": "alpha_divergence"}),
    "sigmoid_norm": ("sigmoid_norm", {}),
    "robust": ("robust", {"label_smoothing": 0.1}),
    "hinge": ("hinge", {}),
    "ipo_mean": ("ipo", {}),
    "apo_zero": ("apo_zero", {}),
    "apo_down": ("apo_down", {}),
    "exo_pair": ("exo_pair", {"label_smoothing": 0.001}),
    "nca_pair": ("nca_pair", {}),
    "sppo_hard": ("sppo_hard", {}),
    "discopop": ("discopop", {}),
    "kto": ("kto", {"desirable_weight": 1.2, "undesirable_weight": 0.7}),
    "orpo": ("orpo", {"nll_weight": 0.0}),
    "cpo": ("sigmoid", {"label_smoothing": 0.1, "nll_weight": 0.0}),
    "simpo": ("simpo", {"gamma": 0.4}),
    "orpo, nll": ("orpo", {"nll_weight": 1.0}),
    "cpo, nll": ("sigmoid", {"label_smoothing": 0.1, "nll_weight": 0.7}),
    "simpo, nll": ("simpo", {"gamma": 0.4, "nll_weight": 0.7}),
}
BETA = 0.3


def pairs_of(name: str) -> list[Answer]:
    """The rows of one entry of `SHARED`.

    TRL's ORPO counts the prompt in the chosen answers' own loss, ours the answer alone: the two are one where the
    prompt is a single token, which nothing predicts.
    """
    return answers([prompt[:1] for prompt in PROMPTS]) if name == "orpo, nll" else answers()
