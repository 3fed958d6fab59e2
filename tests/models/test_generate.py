from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tunesmith.adapters.attach import Switch, attach
from tunesmith.adapters.lora import Settings, build
from tunesmith.errors import AdapterError
from tunesmith.models.generate import Memory, bytes_per_token, generate
from tunesmith.models.rows import Batch, Ending, Row
from tunesmith.models.sampling import Sampling, choose, uniforms
from tunesmith.models.text_stream import TextStream
from tunesmith.models.tiny import ARCHITECTURES, VOCABULARY, randomise, tiny

EOS = 2


def prompts_of(seed, count, shortest=3, longest=40, prefix=0):
    rng = np.random.default_rng(seed)
    before = rng.integers(3, VOCABULARY, prefix).tolist()
    lengths = rng.integers(shortest, longest, count)
    return [before + rng.integers(3, VOCABULARY, n).tolist() for n in lengths]


def ids(answers):
    return [answer.token_ids for answer in answers]


def theirs(model, prompt, max_new_tokens):
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=EOS, pad_token_id=0)
    tokens = torch.tensor([prompt])
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)[0, len(prompt) :]


def same_but_for_ties(model, prompt, ours, reference, gap=1e-4):
    """The same tokens, up to a place where two logits agree to within rounding."""
    for at, (a, b) in enumerate(zip(ours, reference, strict=False)):
        if a != b:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ours[:at]]), use_cache=False).logits[0, -1]
            return abs(float(logits[a] - logits[b])) < gap
    return len(ours) == len(reference)


@pytest.mark.parametrize("prefix", [0, 18])
@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_greedy_equals_transformers(arch, prefix):
    """Padded, refilled (3 rows for 7 prompts), prefilled in pieces, beyond sliding windows, with a shared prefix."""
    model = tiny(arch)
    prompts = prompts_of(1, 7, prefix=prefix)
    answers = generate(model, prompts, max_new_tokens=14, eos_ids=[EOS], max_rows=3, prefill_tokens=50)
    for prompt, answer in zip(prompts, answers, strict=True):
        reference = theirs(model, prompt, 14).tolist()
        assert same_but_for_ties(model, prompt, answer.token_ids, reference)
        assert answer.finish_reason == ("eos" if answer.token_ids[-1] == EOS else "length")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_long_answers_move_the_cache_along(attention):
    """More columns than a block, so that buffers grow, shift and refill."""
    model = tiny("llama", attn_implementation=attention)
    prompts = prompts_of(2, 5, 2, 60)
    answers = generate(model, prompts, max_new_tokens=150, eos_ids=[], max_rows=2)
    alone = [generate(model, [prompt], max_new_tokens=150, eos_ids=[])[0] for prompt in prompts]
    for prompt, a, b in zip(prompts, answers, alone, strict=True):
        assert len(a.token_ids) == 150
        assert same_but_for_ties(model, prompt, a.token_ids, b.token_ids)


def test_a_sampled_row_does_not_depend_on_its_neighbours():
    model = tiny("qwen2")
    prompts = prompts_of(3, 6)
    options = {"max_new_tokens": 20, "eos_ids": [EOS], "temperature": 1.3, "top_p": 0.9, "seed": 5}
    together = generate(model, prompts, **options)
    backwards = generate(model, prompts[::-1], **options, row_ids=[5, 4, 3, 2, 1, 0])
    few = generate(model, prompts, **options, max_rows=2)
    alone = [generate(model, [prompt], **options, row_ids=[i])[0] for i, prompt in enumerate(prompts)]
    assert ids(together) == ids(backwards)[::-1] == ids(few) == ids(alone)
    assert ids(generate(model, prompts, **{**options, "seed": 6})) != ids(together)


def test_groups_share_one_prefill_and_keep_their_order():
    model = tiny("llama")
    prompts = prompts_of(4, 3)
    passes = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    options = {"max_new_tokens": 6, "eos_ids": [], "temperature": 1.0, "seed": 1}
    groups = generate(model, prompts, num_samples=4, **options)
    handle.remove()
    assert passes[0] == (3, max(map(len, prompts)))
    assert passes[1:] == [(12, 1)] * 5
    assert len({tuple(answer.token_ids) for answer in groups[:4]}) > 1
    for i, prompt in enumerate(prompts):
        for j in range(4):
            alone = generate(model, [prompt], **options, row_ids=[4 * i + j])[0]
            assert alone.token_ids == groups[4 * i + j].token_ids
    split = generate(model, prompts, num_samples=4, max_rows=3, **options)
    assert ids(split) == ids(groups)


def test_a_prompt_that_is_given_several_times_is_computed_once():
    """As the first turn of a group of episodes; each row has its own draws, its own end, and its place."""
    model = tiny("llama")
    a, b, c = prompts_of(4, 3)
    passes = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    options = {"eos_ids": [], "temperature": 1.0, "seed": 1}
    most = [3, 6, 4, 6, 5]
    found = generate(model, [a, b, a, c, a], max_new_tokens=most, **options)
    handle.remove()
    assert passes[0] == (3, max(map(len, (a, b, c))))
    assert [len(answer.token_ids) for answer in found] == most
    for place, prompt in enumerate((a, b, a, c, a)):
        alone = generate(model, [prompt], max_new_tokens=most[place], **options, row_ids=[place])[0]
        assert alone.token_ids == found[place].token_ids


def test_a_shared_prefix_is_computed_once_and_finished_rows_leave():
    model = tiny("llama")
    prompts = prompts_of(5, 6, 2, 9, prefix=30)
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    answers = generate(model, prompts, max_new_tokens=8, eos_ids=range(3, 30))
    handle.remove()
    assert sizes[0] == (1, 30)
    assert sizes[1] == (6, max(map(len, prompts)) - 30)
    alive = [rows for rows, _ in sizes[2:]]
    wanted = [sum(len(a.token_ids) > step for a in answers) for step in range(1, 8)]
    assert alive == [n for n in wanted if n]


def test_logprobs_are_the_models_own():
    model = tiny("gemma3")
    prompts = prompts_of(6, 4)
    for temperature in (0.0, 0.7):
        answers = generate(
            model, prompts, max_new_tokens=9, eos_ids=[EOS], temperature=temperature, top_k=5, want_logprobs=True
        )
        for prompt, answer in zip(prompts, answers, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
            wanted = (logits / (temperature or 1.0)).log_softmax(-1)
            wanted = wanted.gather(1, torch.tensor(answer.token_ids)[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(answer.logprobs), wanted, atol=1e-4, rtol=1e-4)


def adapted(arch, names):
    model, switch = tiny(arch), Switch()
    paths = [p for p, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in p]
    for path, slot in attach(model, paths, switch).items():
        for seed, name in enumerate(names):
            generator = torch.Generator().manual_seed(1000 * seed + len(path))
            adapter = build(Settings(r=2, alpha=8), slot.base, generator)
            torch.nn.init.normal_(adapter.B, std=0.3, generator=generator)
            slot.adapters[name] = adapter
    return model.eval(), switch


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("prefix", [0, 20])
def test_each_answer_of_a_mixed_batch_is_that_of_its_adapter_alone(arch, prefix):
    model, switch = adapted(arch, ["one", "two"])
    prompts = prompts_of(7, 9, prefix=prefix)
    names = ["one", None, "two"] * 3
    options = {"max_new_tokens": 12, "eos_ids": [EOS], "switch": switch}
    mixed = generate(model, prompts, adapters=names, max_rows=5, **options)
    for prompt, name, answer in zip(prompts, names, mixed, strict=True):
        with switch.set_to(name):
            reference = theirs(model, prompt, 12).tolist()
            assert same_but_for_ties(model, prompt, answer.token_ids, reference)
    assert switch.name is None
    assert switch.rows is None
    alone = [
        generate(model, prompts[:1], adapters=[name], want_logprobs=True, **options)[0] for name in (None, "one", "two")
    ]
    # the adapters do act: the three are not equally sure
    assert len({round(answer.logprobs[0], 3) for answer in alone}) == 3


def test_an_unknown_adapter_is_refused_by_name():
    model, switch = adapted("llama", ["one"])
    with pytest.raises(AdapterError, match="no adapter is called three"):
        generate(model, [[5]], max_new_tokens=1, eos_ids=[], switch=switch, adapters=["three"])


def test_stop_strings_end_a_row_though_they_span_tokens():
    model = tiny("llama")
    prompts = prompts_of(8, 4)

    def decode(tokens):
        return "".join(chr(97 + token % 26) for token in tokens)

    free = generate(model, prompts, max_new_tokens=20, eos_ids=[])
    wanted = decode(free[2].token_ids)[5:8]
    stopped = generate(model, prompts, max_new_tokens=20, eos_ids=[], stop_strings=[wanted], decode=decode)
    assert stopped[2].finish_reason == "stop"
    for a, b in zip(free, stopped, strict=True):
        text = decode(a.token_ids)
        end = text.find(wanted) + 3 if wanted in text else 20
        assert b.token_ids == a.token_ids[:end]


def test_cancelled_between_tokens_gives_back_what_there_is():
    model = tiny("llama")
    prompts = prompts_of(9, 4)
    seen = []
    answers = generate(
        model,
        prompts,
        max_new_tokens=50,
        eos_ids=[],
        max_rows=2,
        on_token=lambda index, token: seen.append((index, token)),
        cancelled=lambda: len(seen) >= 6,
    )
    assert [a.finish_reason for a in answers] == ["cancelled"] * 4
    assert sorted(len(a.token_ids) for a in answers) == [0, 0, 3, 3]
    for index, answer in enumerate(answers):
        assert [token for i, token in seen if i == index] == answer.token_ids


@pytest.mark.parametrize("arch", ["llama", "mistral", "bloom"])
def test_a_conversations_next_turn_computes_its_new_tokens_alone(arch):
    model, memory = tiny(arch), Memory()
    first = prompts_of(10, 1, 20, 21)[0]
    options = {"max_new_tokens": 10, "eos_ids": [EOS], "memory": memory}
    answer = generate(model, [first], **options)[0].token_ids
    second = [*first, *answer, *prompts_of(11, 1, 6, 7)[0]]
    widths = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    ours = generate(model, [second], **options)[0].token_ids
    handle.remove()
    assert widths[0] == len(second) - len(first) - len(answer) + 1
    assert same_but_for_ties(model, second, ours, theirs(model, second, 10).tolist())
    other = [*first[:4], *prompts_of(12, 1, 8, 9)[0]]
    assert same_but_for_ties(
        model, other, generate(model, [other], **options)[0].token_ids, theirs(model, other, 10).tolist()
    )


def test_the_model_comes_back_as_it_was():
    model = tiny("llama", attn_implementation="eager").train()
    generate(model, [[5, 6]], max_new_tokens=2, eos_ids=[])
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert all(p.grad is None for p in model.parameters())


def gemma4():
    """Layers of two widths: the config as a whole has none to ask for."""
    config = AutoConfig.for_model(
        "gemma4_text", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, global_head_dim=16, sliding_window=12,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, num_kv_shared_layers=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"], pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model, 0)
    return model


def test_layers_of_several_widths_answer_as_a_loop_without_a_cache():
    model = gemma4()
    prompts = prompts_of(1, 5)
    made = generate(model, prompts, max_new_tokens=16, eos_ids=[], max_rows=2)
    for prompt, answer in zip(prompts, made, strict=True):
        tokens = list(prompt)
        with torch.no_grad():
            while len(tokens) < len(prompt) + 16:
                tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        assert same_but_for_ties(model, prompt, answer.token_ids, tokens[len(prompt) :])


@pytest.mark.parametrize("model", [tiny("llama"), tiny("gemma3"), gemma4()], ids=["llama", "gemma3", "gemma4"])
def test_what_the_config_says_of_a_token_is_what_the_cache_holds(model):
    batch = Batch(model, 1, None, None, 64)
    with torch.no_grad():
        batch.admit([[Row(0, [5, 6], None, None, Ending(1))]])
    assert bytes_per_token(model.config, model.dtype) == batch.cache.bytes_per_token()


def test_cache_bytes_bounds_the_rows():
    model = tiny("llama")
    rows = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    prompts = [[5] * 10] * 8
    per_token = 2 * 2 * 2 * 8 * 4
    generate(model, prompts, max_new_tokens=6, eos_ids=[], cache_bytes=3 * 16 * per_token)
    handle.remove()
    assert max(rows) == 3


def test_draws_follow_the_cut_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, float("-inf")]])
    p = (logits[0] / 0.5).softmax(-1)
    many = 20_000
    u = torch.from_numpy(uniforms(0, 0, many))
    for sampling, kept in (
        (Sampling(0.5), [0, 1, 2, 3]),
        (Sampling(0.5, top_k=2), [0, 1]),
        (Sampling(0.5, top_p=0.9), [0, 1]),
        (Sampling(0.5, top_p=0.1), [0]),
        (Sampling(0.5, top_k=3, top_p=0.95), [0, 1]),
    ):
        tokens, _ = choose(logits.expand(many, -1), sampling, u, False)
        share = torch.bincount(tokens, minlength=5) / many
        wanted = torch.zeros(5)
        wanted[kept] = p[kept] / p[kept].sum()
        assert (share - wanted).abs().max() < 0.015, sampling
        assert set(tokens.tolist()) <= set(kept)


def test_top_p_is_exact_beyond_the_first_candidates():
    """A flat distribution over 1,000 tokens: 0.5 keeps exactly 500."""
    logits = torch.linspace(0, 1e-3, 1000)[None]
    tokens, _ = choose(logits.expand(5000, -1), Sampling(1.0, top_p=0.5), torch.rand(5000), False)
    assert tokens.min() >= 499
    assert len(tokens.unique()) > 480


def test_a_draw_of_nearly_one_stays_on_a_possible_token():
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    tokens, _ = choose(logits, Sampling(1.0), torch.tensor([1 - 2**-53], dtype=torch.float64), False)
    assert tokens.tolist() == [1]


def test_text_stream_never_splits_a_character():
    data = "né 🙂 done".encode()

    def decode(tokens):
        return bytes(tokens).decode("utf-8", errors="replace")

    stream = TextStream(decode)
    pieces = [stream.push(byte) for byte in data]
    assert "".join(pieces) + stream.rest() == "né 🙂 done"
    assert not any("�" in piece for piece in pieces)
    cut = TextStream(decode)
    assert "".join(cut.push(byte) for byte in "a🙂".encode()[:-1]) == "a"
    assert cut.rest() == "�"


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_k": 0}, {"max_new_tokens": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        generate(tiny("llama"), [[5]], **{"max_new_tokens": 1, "eos_ids": [], **bad})
    with pytest.raises(ValueError, match="empty"):
        generate(tiny("llama"), [[]], max_new_tokens=1, eos_ids=[])


def test_each_prompt_may_end_in_its_own_way():
    model = tiny("llama")
    prompts = prompts_of(8, 4)
    free = generate(model, prompts, max_new_tokens=12, eos_ids=[])
    ends = [[answer.token_ids[i]] for i, answer in enumerate(free)]
    made = generate(model, prompts, max_new_tokens=[3, 12, 12, 12], eos_ids=[[], *ends[1:]], max_rows=2)
    for i, (answer, whole) in enumerate(zip(made, free, strict=True)):
        at = 3 if i == 0 else whole.token_ids.index(ends[i][0]) + 1
        assert answer.token_ids == whole.token_ids[:at]
        assert answer.finish_reason == ("length" if i == 0 else "eos")
    stopped = generate(
        model, prompts[:2], max_new_tokens=12, eos_ids=[], stop_strings=["x"], decode=[lambda _: "x", lambda _: "o"]
    )
    assert [len(answer.token_ids) for answer in stopped] == [1, 12]
    with pytest.raises(ValueError, match="one for each"):
        generate(model, prompts, max_new_tokens=[1, 2], eos_ids=[])
