"""Faster forms of modules that many architectures share: RMS norm, SwiGLU, attention with rotary positions.

A fused module is a new object of a subclass that shares the old one's state (parameters, children, its place for
adapters) and overrides `forward`; the model's parent points to it, and `unfuse` points back. Nothing is decided by the
name of an architecture: a module is fused when its structure fits and a trial on random input gives the same output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.adapters.attach import replace
from tunesmith.data.types import Segment
from tunesmith.ghost import is_ghost, numbers
from tunesmith.kernels.fused import rms_norm, rotary, swiglu
from tunesmith.kernels.native import library
from tunesmith.models.attention import Layout, flat_of
from tunesmith.quant.dense import like, weight_shape

Forward = Callable[..., Any]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


def _subclass(original: type[nn.Module], forward: Callable[[type[nn.Module]], Forward]) -> type[nn.Module]:
    name = f"Fused{original.__name__}"
    made = type(name, (original,), {"__module__": __name__, "fused_from": original})
    made.forward = forward(original)  # type: ignore[attr-defined]
    return made


def _norm_forward(offset: float) -> Callable[[type[nn.Module]], Forward]:
    def make(original: type[nn.Module]) -> Forward:
        def forward(self: Any, hidden_states: Tensor) -> Tensor:
            return rms_norm(hidden_states, self.weight, _eps(self), offset)

        return forward

    return make


def _mlp_forward(original: type[nn.Module]) -> Forward:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    return forward


def _attention_forward(window_of: Callable[[Any], int | None]) -> Callable[[type[nn.Module]], Forward]:
    def make(original: type[nn.Module]) -> Forward:
        def forward(self: Any, hidden_states: Tensor, *args: Any, layout: Layout | None = None, **kwargs: Any) -> Any:
            position_embeddings = args[0] if args else kwargs.get("position_embeddings")
            if layout is None or position_embeddings is None or kwargs.get("past_key_values") is not None:
                extra = {} if layout is None else {"layout": layout}
                return original.forward(self, hidden_states, *args, **extra, **kwargs)
            cosine, sine = (part[0] for part in position_embeddings)
            heads = (hidden_states.shape[1], -1, self.head_dim)
            query = rotary(self.q_proj(hidden_states)[0].view(heads), cosine, sine).transpose(0, 1)
            key = rotary(self.k_proj(hidden_states)[0].view(heads), cosine, sine).transpose(0, 1)
            value = self.v_proj(hidden_states)[0].view(heads).transpose(0, 1)
            softcap = getattr(self, "attn_logit_softcapping", None)
            out = flat_of(self, query, key, value, layout, self.scaling, window_of(self), softcap)
            return self.o_proj(out.transpose(0, 1).reshape(1, hidden_states.shape[1], -1)), None

        return forward

    return make


def _own_window(module: Any) -> int | None:
    return getattr(module, "sliding_window", None)


def _config_window(module: Any) -> int | None:
    return getattr(module.config, "sliding_window", None)


def _eps(module: Any) -> float:
    return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    known = hasattr(module, "variance_epsilon") or hasattr(module, "eps")
    return type(module).__name__.endswith("RMSNorm") and known and weight is not None and weight.dim() == 1


def _is_mlp(module: nn.Module) -> bool:
    return {name for name, _ in module.named_children()} - {"act_fn"} == {"gate_proj", "up_proj", "down_proj"}


def _is_attention(module: nn.Module) -> bool:
    children = {name for name, _ in module.named_children()}
    wanted = ("head_dim", "scaling", "num_key_value_groups")
    return children == {"q_proj", "k_proj", "v_proj", "o_proj"} and all(hasattr(module, name) for name in wanted)


def _try_norm(module: Any, fused: Any) -> tuple[Any, Any]:
    x = torch.randn(3, len(module.weight), dtype=module.weight.dtype)
    return module(x), fused(x)


def _try_mlp(module: Any, fused: Any) -> tuple[Any, Any]:
    x = torch.randn(1, 3, weight_shape(module.gate_proj)[1], dtype=like(module.gate_proj).dtype)
    return module(x), fused(x)


def _attention_inputs(module: Any) -> dict[str, Any]:
    """Two documents of five tokens for one attention module."""
    width, dtype, device = weight_shape(module.q_proj)[1], like(module.q_proj).dtype, like(module.q_proj).device
    angle = torch.rand(1, 5, module.head_dim // 2).repeat(1, 1, 2)
    return {
        "hidden_states": torch.randn(1, 5, width, dtype=dtype),
        "position_embeddings": (angle.cos().to(dtype), angle.sin().to(dtype)),
        "attention_mask": None,
        "layout": Layout((Segment(0, 2), Segment(2, 5)), device, asked=[]),
    }


def _try_attention(module: Any, fused: Any) -> tuple[Any, Any]:
    """Outputs, and whether both ask for the same scale, window and cap: a window of thousands of tokens, or a cap far
    above these scores, shows in no output."""
    inputs = _attention_inputs(module)
    plain, fast = module(**inputs)[0], fused(**inputs)[0]
    asked, asked_fused = inputs["layout"].asked
    if asked != asked_fused:
        raise ValueError(f"asks for {asked}, fused for {asked_fused}")
    return plain, fast


KINDS: tuple[tuple[Callable[[nn.Module], bool], tuple[Callable[[type[nn.Module]], Forward], ...], Any], ...] = (
    (_is_norm, (_norm_forward(0.0), _norm_forward(1.0)), _try_norm),
    (_is_mlp, (_mlp_forward,), _try_mlp),
    (_is_attention, (_attention_forward(_own_window), _attention_forward(_config_window)), _try_attention),
)
"""(does the structure fit, forms to try, the trial). Layers of one class may differ in their window: attention is tried
layer by layer, the rest once for a class."""


@torch.no_grad()
def fuse(model: nn.Module) -> int:
    """Put faster forms where they fit; returns how many. Nothing happens where the compiled kernels do not run."""
    first = next(model.parameters())
    if first.device.type != "cpu" or first.dtype not in TOLERANCE or library() is None:
        return 0
    chosen: dict[tuple[Any, ...], type[nn.Module] | None] = {}
    count = 0
    for path, module in list(model.named_modules()):
        for number, (fits, forms, trial) in enumerate(KINDS):
            if not path or not fits(module):
                continue
            key = (type(module), number if fits is not _is_attention else (number, path))
            if key not in chosen:
                with numbers(), torch.random.fork_rng(devices=()):
                    chosen[key] = _choose(_twin(module, first.dtype) if is_ghost(first) else module, forms, trial)
            made = chosen[key]
            if made is not None:
                replace(model, path, _share(module, made))
                count += 1
    return count


def _twin(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A small module of the same class and kind whose parameters have numbers, for one whose have none."""
    twin = type(module).__new__(type(module))
    vars(twin).update(vars(module))
    heads = getattr(module, "head_dim", NARROW)
    wide = heads * getattr(module, "num_key_value_groups", 1)
    sizes = {
        "q_proj": (NARROW, wide), "k_proj": (NARROW, heads), "v_proj": (NARROW, heads), "o_proj": (wide, NARROW),
        "gate_proj": (NARROW, heads), "up_proj": (NARROW, heads), "down_proj": (heads, NARROW),
    }  # fmt: skip
    twin._modules = {
        name: nn.Linear(*sizes[name], bias=child.bias is not None, dtype=dtype) if name in sizes else child  # type: ignore[union-attr]
        for name, child in module._modules.items()
    }
    twin._parameters = {name: nn.Parameter(torch.rand(len(old), dtype=dtype)) for name, old in _own(module).items()}  # type: ignore[misc]
    return twin


def _own(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(recurse=False))


NARROW = 32


def _choose(module: nn.Module, forms: Any, trial: Any) -> type[nn.Module] | None:
    """The first form that gives the module's own output on random input."""
    state = torch.random.get_rng_state()
    try:
        for form in forms:
            made = _subclass(type(module), form)
            torch.manual_seed(0)
            try:
                plain, fast = trial(module, _share(module, made))
            except (TypeError, AttributeError, RuntimeError, ValueError):
                continue
            close = TOLERANCE[plain.dtype] * max(1.0, plain.abs().max().item())
            if plain.shape == fast.shape and (plain - fast).abs().max().item() <= close:
                return made
    finally:
        torch.random.set_rng_state(state)
    return None


def _share(module: nn.Module, made: type[nn.Module]) -> nn.Module:
    """An object of class `made` that is `module` in all but its forward."""
    fused = made.__new__(made)
    object.__setattr__(fused, "__dict__", module.__dict__)
    return fused


def unfuse(model: nn.Module) -> None:
    """Every fused module gives its place back to an object of its own class, with the same state."""
    for path, module in list(model.named_modules()):
        original = getattr(type(module), "fused_from", None)
        if original is not None and path:
            replace(model, path, _share(module, original))
