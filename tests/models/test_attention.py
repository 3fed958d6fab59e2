"""Flat attention equals each document alone; a child sees its parent and itself; neighbours never touch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.types import Segment
from tunesmith.models import attention
from tunesmith.models.attention import Layout, flat, flat_reference
from tunesmith.models.tiny import tiny

CPU = torch.device("cpu")


def draw(heads, groups, tokens, dim, value_dim=None, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (heads, tokens, dim), (groups, tokens, dim), (groups, tokens, value_dim or dim)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def segments_of(lengths, parents=None):
    made, start = [], 0
    for index, length in enumerate(lengths):
        made.append(Segment(start, start + length, (parents or {}).get(index)))
        start += length
    return tuple(made)


def by_hand(q, k, v, segments, scale, window=None, softcap=None):
    """Attention of one query at a time, over a list of the keys it may see: no mask, no batch, nothing shared."""
    groups = q.shape[0] // k.shape[0]
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[-1], dtype=q.dtype)
    rows = []
    for segment in segments:
        parent = (
            [] if segment.parent is None else list(range(segments[segment.parent].start, segments[segment.parent].end))
        )
        for t in range(segment.start, segment.end):
            seen = parent + list(range(segment.start, t + 1))
            seen = seen if window is None else seen[-window:]
            rows.append((t, seen))
    pieces = []
    for t, seen in rows:
        heads = []
        for h in range(q.shape[0]):
            scores = (k[h // groups, seen] @ q[h, t]) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            heads.append(torch.softmax(scores, 0) @ v[h // groups, seen])
        pieces.append(torch.stack(heads))
    return out + torch.stack(pieces, dim=1)


def grads(function, q, k, v, *rest):
    leaves = [t.clone().requires_grad_(True) for t in (q, k, v)]
    out = function(*leaves, *rest)
    g = torch.Generator().manual_seed(5)
    out.backward(torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def agree(mine, wanted, tolerance):
    for a, b in zip(mine, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b.double()).abs().max().item() <= tolerance * max(1.0, b.abs().max().item())


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.sampled_from([(4, None), (8, None), (5, None), (4, 6)]),
    window=st.sampled_from([None, 1, 3, 50]),
    softcap=st.sampled_from([None, 0.7]),
    data=st.data(),
)
def test_flat_equals_attention_written_by_hand(lengths, heads, dim, window, softcap, data):
    children = [i for i in range(1, len(lengths)) if data.draw(st.booleans(), label="child")]
    roots = [i for i in range(len(lengths)) if i not in children]
    parents = {i: data.draw(st.sampled_from([r for r in roots if r < i]), label="parent") for i in children}
    segments = segments_of(lengths, parents)
    q, k, v = draw(*heads, sum(lengths), *dim)
    wanted = grads(by_hand, q, k, v, segments, 0.4, window, softcap)
    for form in (flat, flat_reference):
        agree(grads(form, q, k, v, Layout(segments, CPU), 0.4, window, softcap), wanted, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (33, 2, 140), (600, 17)])
def test_flat_equals_its_reference_in_narrow_dtypes(dtype, lengths):
    q, k, v = draw(4, 2, sum(lengths), 16, dtype=dtype)
    layout = Layout(segments_of(lengths), CPU)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    fast = grads(flat, q, k, v, layout, 0.3, None, None)
    assert all(part.dtype == dtype for part in fast)
    wide = [t.double() for t in (q, k, v)]
    agree(fast, grads(flat_reference, *wide, layout, 0.3, None, None), tolerance)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_editing_one_document_leaves_its_neighbours_bit_for_bit(window, dtype):
    layout = Layout(segments_of((7, 9, 5)), CPU)
    q, k, v = draw(4, 2, 21, 8, dtype=dtype)
    before = grads(flat, q, k, v, layout, 0.3, window, None)
    for t in (q, k, v):
        t[:, 7:16] = float("nan")
    after = grads(flat, q, k, v, layout, 0.3, window, None)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :7], b[:, :7])
        assert torch.equal(a[:, 16:], b[:, 16:])
    assert not torch.isfinite(after[0][:, 7:16]).all()


def test_a_layout_hears_what_is_asked():
    q, k, v = draw(2, 2, 3, 4)
    layout = Layout(segments_of((3,)), CPU, asked=[])
    flat(q, k, v, layout, 0.5, 7, 2.0)
    assert layout.asked == [(0.5, 7, 2.0)]


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_what_is_not_understood_is_refused(name):
    q, k, v = (t[None] for t in draw(2, 2, 3, 4))
    for layout in (None, Layout(segments_of((3,)), CPU)):
        with pytest.raises(NotImplementedError, match=name):
            attention.attend(torch.nn.Module(), q, k, v, None, layout=layout, **{name: torch.ones(2)})


@pytest.mark.parametrize(("softcap", "num_new"), [(None, 1), (None, 6), (1.3, 1), (1.3, 3), (1.3, 6)])
def test_without_a_mask_the_call_is_causal(softcap, num_new):
    """transformers leaves a purely causal mask out; a cache puts the queries at the end of the keys."""
    q, k, v = draw(2, 2, 6, 4)
    wanted = by_hand(q, k, v, segments_of((6,)), 0.5, None, softcap)[:, 6 - num_new :]
    got, _ = attention.attend(
        torch.nn.Module(), q[None, :, 6 - num_new :], k[None], v[None], None, scaling=0.5, softcap=softcap
    )
    agree([got[0].transpose(0, 1)], [wanted], 1e-11)


def test_padded_places_stay_finite():
    q, k, v = (t[None] for t in draw(2, 2, 4, 4))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[:, 0] = False  # left padding: the first query sees nothing
    out, _ = attention.attend(torch.nn.Module(), q, k, v, mask[None, None], scaling=0.5, softcap=1.3)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("arch", ["llama", "gemma2", "mistral", "gpt2"])
def test_installed_it_gives_the_models_own_logits(arch):
    attention.register()
    model = tiny(arch)
    ids = torch.randint(3, 90, (2, 30), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    with torch.no_grad():
        wanted = [model(ids).logits, model(ids, attention_mask=mask).logits[mask.bool()]]
        assert attention.install(model)
        got = [model(ids).logits, model(ids, attention_mask=mask).logits[mask.bool()]]
    agree(got, wanted, 1e-5)


def test_a_model_that_has_its_own_attention_keeps_it():
    attention.register()
    model = tiny("bloom")
    assert not attention.install(model)
    assert model.config._attn_implementation == "eager"
