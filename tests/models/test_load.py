"""What can be wrong with a model is said before any weight is loaded."""

from __future__ import annotations

import pytest
import torch
from tiny_session import tiny_session

from tunesmith.data.types import Message
from tunesmith.errors import MachineError, ModelError
from tunesmith.models.load import load_config, most_tokens, pick_device
from tunesmith.models.session import Params
from tunesmith.models.settings import ModelSettings
from tunesmith.models.tiny import ARCHITECTURES, config


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused_with_the_config() -> None:
    with pytest.raises(MachineError, match="finds no cuda device"):
        load_config(ModelSettings(name="nowhere", device="cuda:1"))


def test_the_processor_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_a_table_of_positions_is_told_from_positions_that_are_reckoned() -> None:
    tables = {arch for arch in ARCHITECTURES if most_tokens(config(arch)) is not None}
    assert tables == {"gpt2", "opt"}
    assert most_tokens(config("opt")) == 128


@pytest.mark.parametrize("arch", ["gpt2", "opt", "llama"])
def test_what_no_position_is_left_for_is_not_asked_of_a_model(arch) -> None:
    session = tiny_session(arch)
    params = Params(max_new_tokens=200)
    question = "a" * 100  # and three tokens more: the role, the end of the turn, what opens the answer
    answer = session.generate([session.prompt_ids([Message("user", question)])], params, adapters=[None])[0]
    if arch == "llama":
        assert len(answer.token_ids) > 25 or answer.finish_reason == "stop"
        return
    assert len(answer.token_ids) <= 25
    with pytest.raises(ModelError, match="longer than the model can read"):
        session.stream([Message("user", "a" * 126)], params, print)
