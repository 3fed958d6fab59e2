"""The optimizer's state goes to a file and back bit for bit, in 8 bits too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.train.checkpoint import _apart
from tunesmith.train.optim import load_optimizer, make_optimizer, optimizer_numbers, optimizer_tensors
from tunesmith.train.settings import TrainSettings

SHAPES = {"large.A": (96, 64), "large.B": (64, 128), "small": (8, 4)}
"""bitsandbytes keeps the moments of 4,096 numbers and fewer in fp32: both kinds are here."""


def made(kind, values=None):
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    parameters = {name: nn.Parameter(value.clone()) for name, value in (values or drawn).items()}
    settings = TrainSettings(steps=9, learning_rate=1e-2, optimizer=kind, weight_decay=0.1)
    return parameters, make_optimizer(settings, parameters, {"large.B": 4.0})


def learn(parameters, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "adamw-8bit"])
def test_state_put_back_goes_on_bit_for_bit(kind):
    if kind == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    whole, optimizer = made(kind)
    learn(whole, optimizer, range(4))
    names = {id(parameter): name for name, parameter in whole.items()}
    tensors = {key: value.clone() for key, value in _apart(optimizer_tensors(optimizer, names)).items()}
    numbers = optimizer_numbers(optimizer, names)
    again, other = made(kind, {name: parameter.detach() for name, parameter in whole.items()})
    load_optimizer(other, again, tensors, numbers)
    learn(whole, optimizer, range(4, 8))
    learn(again, other, range(4, 8))
    assert all(torch.equal(whole[name], again[name]) for name in SHAPES)


def test_the_8_bit_optimizer_holds_8_bits_of_what_is_large():
    pytest.importorskip("bitsandbytes")
    parameters, optimizer = made("adamw-8bit")
    learn(parameters, optimizer, range(2))
    plain, exact = made("adamw")
    learn(plain, exact, range(2))
    moments = {name: optimizer.state[parameter]["state1"] for name, parameter in parameters.items()}
    assert {name: value.dtype for name, value in moments.items()} == {
        "large.A": torch.uint8,
        "large.B": torch.uint8,
        "small": torch.float32,
    }
    for name in SHAPES:
        gap = (parameters[name] - plain[name]).abs().max()
        assert gap < 2e-2, name  # the rate of large.B is 0.04, and two steps go no further than 0.08
    assert not torch.equal(parameters["large.A"], plain["large.A"])
