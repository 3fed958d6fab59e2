"""What can be wrong with a model is said before any weight is loaded."""

from __future__ import annotations

import pytest
import torch
from tiny_session import tiny_session

from tunesmith.data.types import Message
from tunesmith.errors import MachineError, ModelError
from tunesmith.models.load import load_config, made_for, most_tokens, pick_device
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
    assert {arch for arch in ARCHITECTURES if made_for(config(arch)) is None} == {"gpt2", "opt", "bloom"}
    assert made_for(config("llama")) == 128


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


@pytest.mark.parametrize("arch", ["gpt2", "opt"])
def test_a_long_prompt_does_not_shorten_the_answers_beside_it(arch) -> None:
    session = tiny_session(arch)
    session.renderer.end_ids = ()
    prompts = [[7] * 120, [8] * 5, [9] * 90]
    made = session.generate(prompts, Params(max_new_tokens=40), adapters=[None] * 3)
    assert [len(answer.token_ids) for answer in made] == [8, 40, 38]
    alone = [session.generate([prompt], Params(max_new_tokens=40), adapters=[None])[0] for prompt in prompts]
    assert [answer.token_ids for answer in made] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize(
    ("arch", "length", "told"), [("llama", 126, 1), ("llama", 140, 1), ("llama", 100, 0), ("gpt2", 126, 0)]
)
def test_a_text_past_what_the_model_was_made_for_is_told_of_once(arch, length, told) -> None:
    session, said = tiny_session(arch), []
    session.renderer.end_ids, session.say = (), said.append
    for _ in range(2):
        session.generate([[7] * 20, [8] * length], Params(max_new_tokens=5), adapters=[None, None])
    assert len(said) == told
    if told:
        assert f"{length if length > 128 else length + 5} tokens: the model was made for 128" in said[0]


def test_without_the_hub_what_is_unpacked_here_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr("tunesmith.models.load.hub_answers", lambda: False)
    for folder in ("demo", "gguf/own", "unfinished"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("demo", "gguf/own"):
        (tmp_path / folder / "complete.json").touch()
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        load_config(ModelSettings(name="nobody/nothing"))
    told = str(caught.value)
    assert f"model.name={tmp_path}/demo" in told
    assert f"model.name={tmp_path}/gguf/own" in told
    assert "unfinished" not in told
