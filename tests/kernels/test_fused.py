"""RMS norm, SwiGLU and rotary in C equal their plain references, values and gradients; without a compiler too."""

from __future__ import annotations

import subprocess

import pytest
import torch

from tunesmith.kernels import fused, native
from tunesmith.kernels.fused import rms_norm, rms_norm_reference, rotary, rotary_reference, swiglu, swiglu_reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(params=["compiled", "plain"])
def kernels(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(fused, "library", lambda: None)
    elif fused.library() is None:
        pytest.skip("no C compiler here")
    return request.param


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def run(function, tensors, learn, *rest):
    leaves = [t.detach().clone().requires_grad_(w) for t, w in zip(tensors, learn, strict=True)]
    y = function(*leaves, *rest)
    if any(learn):
        y.backward(draw(*y.shape, dtype=y.dtype, seed=9))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def agree(fast, plain, dtype):
    for mine, wanted in zip(fast, plain, strict=True):
        assert (mine is None) == (wanted is None)
        if wanted is not None:
            assert mine.dtype == wanted.dtype
            assert mine.shape == wanted.shape
            largest = max(1.0, wanted.abs().max().item())
            assert (mine.double() - wanted.double()).abs().max().item() <= TOLERANCE[dtype] * largest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 33), (40, 64), (1, 257)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("learn_weight", [False, True])
def test_rms_norm(kernels, dtype, shape, offset, learn_weight):
    tensors = draw(*shape, dtype=dtype, scale=3.0), draw(shape[-1], dtype=dtype, seed=1)
    for learn in ((True, learn_weight), (False, learn_weight)):
        agree(
            run(rms_norm, tensors, learn, 1e-6, offset),
            run(rms_norm_reference, tensors, learn, 1e-6, offset),
            dtype,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 33), (130, 129)])
@pytest.mark.parametrize("learn", [(True, True), (True, False), (False, True), (False, False)])
def test_swiglu(kernels, dtype, shape, learn):
    tensors = draw(*shape, dtype=dtype, scale=4.0), draw(*shape, dtype=dtype, seed=1)
    agree(run(swiglu, tensors, learn), run(swiglu_reference, tensors, learn), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_far_out(kernels, dtype):
    gate = torch.tensor([-1e4, -200.0, -90.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 1e4], dtype=dtype)
    tensors = gate, torch.ones_like(gate)
    agree(run(swiglu, tensors, (True, True)), run(swiglu_reference, tensors, (True, True)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (7, 3, 6), (40, 2, 64)])
def test_rotary(kernels, dtype, tokens, heads, dim):
    angle = torch.rand(tokens, dim // 2, generator=torch.Generator().manual_seed(3)).repeat(1, 2) * 6
    rest = angle.cos().to(dtype), angle.sin().to(dtype)
    tensors = (draw(tokens, heads, dim, dtype=dtype),)
    agree(run(rotary, tensors, (True,), *rest), run(rotary_reference, tensors, (True,), *rest), dtype)


def test_rotary_of_other_widths_never_reads_beyond_them(kernels):
    x, half = draw(4, 2, 8), draw(4, 4)
    with pytest.raises(RuntimeError):
        rotary(x, half, half)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(kernels, dtype):
    x = draw(6, 5, dtype=dtype).t()
    weight = draw(6, dtype=dtype)
    agree(
        run(rms_norm, (x, weight), (True, False), 1e-6),
        run(rms_norm_reference, (x, weight), (True, False), 1e-6, 0.0),
        dtype,
    )
    agree(run(swiglu, (x, x * 2), (True, True)), run(swiglu_reference, (x, x * 2), (True, True)), dtype)
    y = draw(2, 5, 4, dtype=dtype).transpose(0, 1)
    angle = torch.rand(5, 2).repeat(1, 2)
    rest = angle.cos().to(dtype), angle.sin().to(dtype)
    agree(run(rotary, (y,), (True,), *rest), run(rotary_reference, (y,), (True,), *rest), dtype)
    ones = torch.ones((), dtype=dtype).expand(5, 6)
    leaf = x.clone().requires_grad_(True)
    rms_norm(leaf, weight, 1e-6).backward(ones)
    other = x.clone().requires_grad_(True)
    rms_norm_reference(other, weight, 1e-6, 0.0).backward(ones)
    agree([leaf.grad], [other.grad], dtype)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_comes_out_not_finite(kernels, bad, dtype):
    for at in (0, 17, 63):
        x = draw(3, 64, dtype=dtype)
        x[1, at] = bad
        ones = torch.ones(64, dtype=dtype)
        outs = run(rms_norm, (x, ones), (True, False), 1e-6)[:2]
        outs += run(swiglu, (x, torch.ones_like(x)), (True, True))[1:] if bad != -float("inf") else []
        outs += run(swiglu, (torch.ones_like(x), x), (True, True))[:2]
        for out in outs:
            assert not torch.isfinite(out[1]).all()
            assert torch.isfinite(out[0]).all()
        angle = torch.rand(3, 16).repeat(1, 2)
        turned = run(rotary, (x.view(3, 2, 32),), (False,), angle.cos().to(dtype), angle.sin().to(dtype))[0]
        assert not torch.isfinite(turned[1]).all()
        assert torch.isfinite(turned[0]).all()


def test_mixed_dtypes_and_doubles_take_the_plain_form(kernels):
    x, weight = draw(3, 8), draw(8, seed=1)
    assert torch.equal(rms_norm(x, weight.bfloat16(), 1e-6), rms_norm_reference(x, weight.bfloat16(), 1e-6, 0.0))
    assert torch.equal(swiglu(x.double(), x.double()), swiglu_reference(x.double(), x.double()))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forget what was compiled, and compile into an empty cache."""
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    native._build.cache_clear()
    native.library.cache_clear()
    yield tmp_path
    native._build.cache_clear()
    native.library.cache_clear()


def test_no_compiler_is_said_and_the_plain_form_runs(fresh, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.library() is None
    assert "no C compiler" in native.why_not()


@pytest.mark.parametrize("compiler", ["/nowhere/cc", "false"])
def test_a_compiler_that_fails_is_said(fresh, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert native.library() is None
    assert native.why_not()


def test_source_that_does_not_compile_leaves_no_object(fresh, monkeypatch, tmp_path):
    if native.shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    broken = tmp_path / "broken.c"
    broken.write_text("int main( {")
    monkeypatch.setattr(native, "SOURCES", (broken,))
    assert native.library() is None
    assert "failed" in native.why_not()
    assert list((fresh / "kernels").iterdir()) == []


def test_a_damaged_object_falls_back(fresh, monkeypatch):
    if native.shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    compiler = native.shutil.which("cc")
    target = native._object_path(compiler)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"not an object")
    monkeypatch.setenv("CC", compiler)
    assert native.library() is None
    assert native.why_not()


def test_compiled_once_and_found_again(fresh, monkeypatch):
    if native.shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    assert native.library() is not None
    made = list((fresh / "kernels").iterdir())
    assert len(made) == 1
    native._build.cache_clear()
    native.library.cache_clear()
    ran = []
    real = subprocess.run
    monkeypatch.setattr(
        native.subprocess, "run", lambda command, **named: ran.append(command) or real(command, **named)
    )
    assert native.library() is not None
    assert all("-O3" not in command for command in ran)
