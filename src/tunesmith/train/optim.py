"""Optimizers over an adapter's trained tensors."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import MachineError
from tunesmith.train.settings import TrainSettings


def check_optimizer(settings: TrainSettings) -> None:
    """That what the optimizer needs is installed: asked before a model is loaded."""
    if settings.optimizer == "adamw-8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            "the 8-bit optimizer needs bitsandbytes",
            fix="pip install 'tunesmith[bitsandbytes]', or train.optimizer=adamw",
        )


def make_optimizer(
    settings: TrainSettings, parameters: Mapping[str, nn.Parameter], multipliers: Mapping[str, float]
) -> torch.optim.Optimizer:
    """One group per learning-rate multiplier; each group remembers its multiplier under `rate`."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_rate.setdefault(multipliers.get(name, 1.0), []).append(parameter)
    groups = [{"params": members, "rate": rate} for rate, members in sorted(by_rate.items())]
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw-8bit":
        check_optimizer(settings)
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **options)
    return torch.optim.AdamW(groups, foreach=True, **options)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


@torch.no_grad()
def reset_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], kept: float = 0.0) -> None:
    """Forget what the optimizer knows of `parameters`; or all but the share `kept` with the largest first moments.

    What is kept is kept of both moments: one left without the other would be divided by nearly nothing. Pruning leaves
    the count of steps, and with it the correction of bias, as it is.
    """
    for parameter in parameters:
        if not kept:
            optimizer.state.pop(parameter, None)
        elif parameter in optimizer.state:
            first, second = (optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq"))
            largest = first.abs().flatten().topk(math.ceil(kept * first.numel())).indices
            mask = torch.zeros_like(first).flatten().index_fill_(0, largest, 1.0).view_as(first)
            first.mul_(mask)
            second.mul_(mask)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients, a scalar; never NaN-filtered."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, by `parameter name/state name`. `names` maps id(parameter) to its name."""
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{names[id(parameter)]}/{key}"] = value
    return tensors


def optimizer_numbers(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, float]:
    """What the optimizer's state keeps besides tensors (8-bit AdamW counts its steps in integers)."""
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, int | float)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, float],
) -> None:
    """Put saved state back, bit for bit."""
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        device = torch.device("cpu") if slot == "step" else parameter.device
        optimizer.state[parameter][slot] = value.to(device).clone()
    for key, number in numbers.items():
        name, _, slot = key.rpartition("/")
        optimizer.state[parameters[name]][slot] = number
