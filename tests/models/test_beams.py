"""Beam search finds what transformers' own finds, and with beams enough the most probable answer of all."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_generate import EOS, prompts_of
from transformers import GenerationConfig

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.lora import Settings
from tunesmith.models.generate import generate
from tunesmith.models.tiny import ARCHITECTURES, tiny


def theirs(model, prompt, num_beams, max_new_tokens):
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=num_beams, length_penalty=0.0, early_stopping="never",
        eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    tokens = torch.tensor([prompt])
    made = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)[0, len(prompt) :]
    return made.tolist()


@torch.no_grad()
def score(model, prompt, answer) -> float:
    """log p(answer | prompt), written out."""
    logprobs = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(logprobs[len(prompt) + at - 1, token].item() for at, token in enumerate(answer))


@pytest.fixture
def ends_often():
    """A model whose end token is likely, so that answers of many lengths compete."""

    def made(arch):
        model = tiny(arch)
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda _, inputs, out: out + 4 * (torch.arange(out.shape[-1]) == EOS))
        return model

    return made


@pytest.mark.parametrize("prefix", [0, 18])
@pytest.mark.parametrize("arch", list(ARCHITECTURES))
def test_it_finds_what_transformers_finds(arch, prefix, ends_often):
    """Rows of several prompts together, refilled, with answers that end at different times."""
    model = ends_often(arch)
    found = 0
    prompts = prompts_of(1, 5, prefix=prefix)
    answers = generate(
        model, prompts, max_new_tokens=8, eos_ids=[EOS], num_beams=3, max_rows=7, prefill_tokens=60, want_logprobs=True
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        reference = theirs(model, prompt, 3, 8)
        ours, wanted = score(model, prompt, answer.token_ids), score(model, prompt, reference)
        # theirs passes over an answer that ends outside the best three at some length, and may so miss ours
        assert answer.token_ids == reference or ours > wanted - 1e-3
        found += answer.token_ids == reference
        assert sum(answer.logprobs) == pytest.approx(ours, abs=1e-3)
        assert answer.finish_reason == ("eos" if answer.token_ids[-1] == EOS else "length")
    assert found >= 2


def test_with_beams_enough_it_is_the_most_probable_of_all():
    model = tiny("llama")
    head = model.get_output_embeddings()
    allowed = [EOS, 5, 9, 17]
    closed = torch.full((head.weight.shape[0],), -1e4)
    closed[allowed] = 0
    head.register_forward_hook(lambda _, inputs, out: out + closed)
    for prompt in prompts_of(4, 4):
        answer = generate(model, [prompt], max_new_tokens=3, eos_ids=[EOS], num_beams=40)[0]
        whole = [
            list(tokens)
            for length in (1, 2, 3)
            for tokens in itertools.product(allowed, repeat=length)
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == 3)
        ]
        assert answer.token_ids == max(whole, key=lambda tokens: score(model, prompt, tokens))


def test_it_passes_over_a_likely_beginning_for_a_likelier_answer():
    """Greedy takes 5 (0.4), whose continuations share what it has; 9 (0.3) ends at once with nearly all of its own."""
    model = tiny("llama")
    first, after_5, after_9 = torch.full((3, model.config.vocab_size), -30.0)
    first[[5, 9, 11]] = torch.tensor([0.4, 0.3, 0.3]).log()
    after_5[20:60] = 0.0
    after_9[EOS] = 0.0

    def written(_, inputs, out):
        last = seen["ids"][:, -1]
        logits = torch.where((last == 5)[:, None], after_5, torch.where((last == 9)[:, None], after_9, first))
        return logits[:, None].expand(out.shape)

    seen = {}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.register_forward_hook(lambda _, inputs, out: seen.update(ids=inputs[0]))
    head.register_forward_hook(written)
    greedy = generate(model, [[70, 71]], max_new_tokens=2, eos_ids=[EOS])[0]
    beam = generate(model, [[70, 71]], max_new_tokens=2, eos_ids=[EOS], num_beams=4)[0]
    assert greedy.token_ids[0] == 5
    assert beam.token_ids == [9, EOS]
    assert beam.finish_reason == "eos"


def test_rows_depend_on_neither_their_neighbours_nor_their_adapters():
    model, switch = tiny("llama"), Switch()
    for seed, name in enumerate(("a", "b")):
        adapter_set = add(model, switch, Settings(r=2, alpha=64), name=name, seed=seed)
        for parameter in adapter_set.parameters().values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    prompts, names = prompts_of(2, 6), ["a", None, "b", "a", "b", None]
    options = {"max_new_tokens": 6, "eos_ids": [EOS], "num_beams": 3, "switch": switch}
    together = generate(model, prompts, adapters=names, max_rows=9, **options)
    for prompt, name, answer in zip(prompts, names, together, strict=True):
        alone = generate(model, [prompt], adapters=[name], **options)[0]
        assert answer.token_ids == alone.token_ids


def test_stop_strings_end_a_beam_and_a_stop_of_all_gives_what_is_there():
    model = tiny("llama")
    prompt = prompts_of(3, 1)[0]
    plain = generate(model, [prompt], max_new_tokens=6, eos_ids=[EOS], num_beams=3)[0]
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    stop = str(plain.token_ids[1])
    stopped = generate(
        model, [prompt], max_new_tokens=6, eos_ids=[EOS], num_beams=3, stop_strings=[stop], decode=decode
    )[0]
    assert stopped.finish_reason in ("stop", "length")
    assert score(model, prompt, stopped.token_ids) >= score(model, prompt, plain.token_ids) - 1e-4
    asked = iter([False, False, True, True])
    cut = generate(model, [prompt] * 2, max_new_tokens=6, eos_ids=[EOS], num_beams=3, cancelled=lambda: next(asked))
    assert [answer.finish_reason for answer in cut] == ["cancelled"] * 2
    assert all(len(answer.token_ids) == 2 for answer in cut)


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"num_samples": 2}, {"on_token": print}])
def test_what_cannot_go_with_beams_is_refused(options):
    with pytest.raises(ValueError, match="num_beams"):
        generate(tiny("llama"), [[3, 4]], max_new_tokens=2, eos_ids=[EOS], num_beams=2, **options)
