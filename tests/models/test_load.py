"""What can be wrong with a model is said before any weight is loaded."""

from __future__ import annotations

import pytest
import torch

from tunesmith.errors import MachineError
from tunesmith.models.load import load_config, pick_device
from tunesmith.models.settings import ModelSettings


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused_with_the_config() -> None:
    with pytest.raises(MachineError, match="finds no cuda device"):
        load_config(ModelSettings(name="nowhere", device="cuda:1"))


def test_the_processor_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
