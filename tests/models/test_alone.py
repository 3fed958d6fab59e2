"""Models whose layers keep a state answer one prompt at a time, as a loop without a cache does."""

from __future__ import annotations

import pytest
import torch
from test_generate import ids, prompts_of
from tiny_session import tiny_session
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings
from tunesmith.models.alone import Alone, told_alone, why_alone
from tunesmith.models.generate import Memory, generate
from tunesmith.models.policy import Policy
from tunesmith.models.session import Params
from tunesmith.models.tiny import VOCABULARY, randomise, tiny
from tunesmith.objectives.samplers import told_of

pytestmark = pytest.mark.filterwarnings("ignore")

_SIZES = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}  # fmt: skip
_DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
STATEFUL = {
    "qwen3_next": {**_SIZES, **_EXPERTS, **_DELTA},
    "qwen3_5_text": {**_SIZES, **_DELTA},
    "lfm2": {**_SIZES, "layer_types": ["conv", "full_attention"]},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32, "state_size": 4},
    "mamba2": {
        "num_hidden_layers": 2, "hidden_size": 32, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1,
        "chunk_size": 8,
    },
    "jamba": {
        **_SIZES, **_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "rwkv": {"num_hidden_layers": 2, "hidden_size": 32, "attention_hidden_size": 32, "context_length": 256},
    "minimax": {**_SIZES, **_EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
    "bamba": {
        **_SIZES, "mamba_n_heads": 8, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 8, "attn_layer_indices": [1],
    },
}  # fmt: skip
FORGETFUL = {
    # Without a layer of attention, whose length transformers asks for; and without a cache.
    "recurrent_gemma": {**_SIZES, "lru_width": 32, "attention_window_size": 16},
    "openai-gpt": {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 256},
}  # fmt: skip
ALL = {**STATEFUL, **FORGETFUL}


def build(kind):
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, **ALL[kind]
    )
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model, 0)
    return model


@torch.no_grad()
def greedy(model, prompt, count):
    """The likeliest token each time, the whole text computed anew."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ALL)
def test_answers_are_those_of_a_loop_without_a_cache(kind):
    model = build(kind)
    prompts = prompts_of(1, 4)
    made = generate(model, prompts, max_new_tokens=12, eos_ids=[])
    assert ids(made) == [greedy(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_state_that_can_be_carried_on_is(kind):
    """One token a pass behind the prompt, and that is said in one line with the reason."""
    model = build(kind)
    assert Alone(model, None).keeps
    line = told_alone(model, None)
    assert line.startswith("answers are made one at a time, since ")
    assert "\n" not in line
    assert "without a cache" not in line
    widths = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    generate(model, [[5, 6, 7, 8]], max_new_tokens=4, eos_ids=[])
    handle.remove()
    assert widths[-4:] == [(1, 4), (1, 1), (1, 1), (1, 1)]


def test_a_state_that_lies_is_not_used():
    """A model that answers otherwise behind its state than to the whole text computes the whole text each time."""
    model = build("mamba")
    forward = model.forward

    def spoilt(input_ids=None, cache_params=None, **kwargs):
        output = forward(input_ids=input_ids, cache_params=cache_params, **kwargs)
        if cache_params is not None:
            output.logits = output.logits.flip(-1)
        return output

    model.forward = spoilt
    assert not Alone(model, None).keeps
    assert "whole text again" in told_alone(model, None)
    assert ids(generate(model, [[5, 6, 7]], max_new_tokens=8, eos_ids=[])) == [greedy(model, [5, 6, 7], 8)]


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "mamba"])
def test_each_prompt_is_answered_with_its_adapter(kind):
    model, switch = build(kind), Switch()
    for seed, name in enumerate(("one", "two")):
        adapter_set = add(model, switch, Settings(r=2, alpha=8), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter_set.parameters().values():
                parameter += 0.4 * torch.empty(parameter.shape).normal_(generator=generator)
    prompts = [[5, 6, 7, 8]] * 3
    made = generate(model, prompts, max_new_tokens=10, eos_ids=[], switch=switch, adapters=["one", None, "two"])
    wanted = []
    for name in ("one", None, "two"):
        with switch.set_to(name):
            wanted.append(greedy(model, [5, 6, 7, 8], 10))
    assert ids(made) == wanted
    assert len({tuple(answer) for answer in wanted}) == 3


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Makes models that could answer in batches answer alone."""
    return lambda: monkeypatch.setattr("tunesmith.models.generate.why_alone", lambda model: "asked to")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.2, "top_p": 0.9, "num_samples": 3, "seed": 4},
        {"num_beams": 3},
        {"stop_strings": ["7"], "decode": lambda tokens: " ".join(map(str, tokens))},
        {"num_samples": 4, "max_rows": 2},
    ],
    ids=["greedy", "sampled", "beams", "stop", "split"],
)
def test_alone_is_as_in_a_batch(one_at_a_time, options):
    """Whatever is asked for: draws, end tokens, log-probabilities and order are the same."""
    model = tiny("llama")
    prompts = prompts_of(3, 5)
    options = {"max_new_tokens": 12, "eos_ids": [*range(3, 20)], "want_logprobs": True, **options}
    together = generate(model, prompts, **options)
    one_at_a_time()
    alone = generate(model, prompts, **options)
    assert ids(alone) == ids(together)
    assert [a.finish_reason for a in alone] == [b.finish_reason for b in together]
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=1e-4)


def test_a_conversation_and_a_call_that_is_cut_short(one_at_a_time):
    one_at_a_time()
    model, memory = tiny("llama"), Memory()
    first = generate(model, [[5, 6]], max_new_tokens=4, eos_ids=[], memory=memory)[0].token_ids
    longer = [5, 6, *first, 9]
    assert ids(generate(model, [longer], max_new_tokens=4, eos_ids=[], memory=memory)) == [greedy(model, longer, 4)]
    asked = iter([False, False, True, True])
    cut = generate(model, [[5, 6], [7]], max_new_tokens=9, eos_ids=[], cancelled=lambda: next(asked))
    assert [answer.finish_reason for answer in cut] == ["cancelled", "cancelled"]
    assert sorted(len(answer.token_ids) for answer in cut) == [0, 2]


def test_a_session_says_once_that_it_answers_one_at_a_time():
    session, said = tiny_session(), []
    session.say = said.append
    for _ in range(2):
        session.generate([[5, 6]], Params(max_new_tokens=2), adapters=[None])
    assert not said
    session = tiny_session()
    session.model, session.say = build("lfm2"), said.append
    for _ in range(2):
        session.generate([[5, 6], [7]], Params(max_new_tokens=2), adapters=[None, None])
    assert said == ["answers are made one at a time, since " + why_alone(session.model)]


@pytest.mark.parametrize(("kind", "lines"), [("mamba", 1), ("llama", 0)])
def test_a_run_that_writes_says_at_its_begin_that_it_writes_one_at_a_time(kind, lines):
    model = build(kind) if kind in ALL else tiny(kind)
    told = told_of(None, Policy(model, Switch(), flat=False))
    assert len(told) == lines
    assert all("one at a time" in line for line in told)
    assert "http://there" in told_of("http://there", Policy(model, Switch(), flat=False))[0]
