"""Attention by document over a flat list of tokens, plugged in through transformers' attention registry.

A forward pass that carries a `layout` runs flat: queries, keys and values of many documents lie in one row [1, H, T, D]
and each document attends to itself alone. Without a `layout` (generation, padded batches) the call goes on to
transformers' own scaled dot product attention.

`flat_reference` is the plain form, one document after the other, differentiated by autograd. On CPU our own kernel
takes all documents at once (kernels/flat_attention.py); where it cannot run, `_FlatCPU` calls torch's flash kernel for
each, in fp32: there it is faster than bf16, forward and backward. On CUDA torch's variable-length kernel takes all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunesmith.adapters.heads import is_classifier
from tunesmith.adapters.virtual import Virtual
from tunesmith.data.types import Segment
from tunesmith.ghost import is_ghost
from tunesmith.kernels.flat_attention import can_run, flat_attention, no_branches

NAME = "tunesmith"
_UNKNOWN = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments that change what attention computes, and that nobody here understands: sinks, biases, chosen keys."""


@dataclass
class Layout:
    """What attention needs to know of a flat batch; made once per batch, used by every layer."""

    segments: tuple[Segment, ...]
    device: torch.device
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    asked: list[tuple[float, int | None, float | None]] | None = None
    """A list here is told the (scale, window, softcap) of each call: how a module asks for attention."""
    virtual: int = 0
    """Virtual tokens in front of the row, which every document begins with; the segments follow them."""
    given: Sequence[tuple[Tensor, Tensor]] | None = None
    """Their keys and values [K, p, D] by layer, where they are not computed and so not in the row."""
    gated: Virtual | None = None
    """What every token reads beside these, in a softmax of its own."""

    @cached_property
    def has_parents(self) -> bool:
        return any(segment.parent is not None for segment in self.segments)

    @cached_property
    def longest(self) -> int:
        return max(len(segment) for segment in self.segments)

    @cached_property
    def edges(self) -> Tensor:
        """[documents + 1] int64 in host memory: where each document starts, and the end; branches are of one."""
        roots = [segment.start for segment in self.segments if segment.parent is None]
        return torch.tensor([*roots, self.segments[-1].end])

    @cached_property
    def see(self) -> Tensor:
        """[3, tokens] int64 in host memory, as kernels/flat_attention.py wants it; branches follow what they share."""
        see = no_branches(self.edges)
        for segment in self.segments:
            if segment.parent is not None:
                parent = self.segments[segment.parent]
                own = slice(segment.start, segment.end)
                see[0, own], see[1, own] = len(parent), segment.start - parent.start
                see[2, own] = segment.end - parent.start
        return see

    @cached_property
    def boundaries(self) -> Tensor:
        """[documents + 1] int32: where each document starts, and the end."""
        return self.edges.to(self.device, torch.int32)

    @cached_property
    def led(self) -> tuple[Layout, Tensor, Tensor]:
        """The layout in which each document has its own copy of the virtual tokens; which token of the row [p + T]
        stands in each of its places; in which of its places each token of the row stands."""
        segments, take, end = [], [], 0
        keep = torch.zeros(self.virtual + self.segments[-1].end, dtype=torch.long)
        keep[: self.virtual] = torch.arange(self.virtual)
        for segment in self.segments:
            before = self.virtual if segment.parent is None else 0
            own = torch.arange(self.virtual + segment.start, self.virtual + segment.end)
            take += [torch.arange(before), own]
            keep[own] = torch.arange(end + before, end + before + len(segment))
            segments.append(Segment(end, end + before + len(segment), segment.parent))
            end = segments[-1].end
        led = Layout(tuple(segments), self.device, asked=self.asked)
        return led, torch.cat(take).to(self.device), keep.to(self.device)

    def mask(self, num_before: int, num_own: int, window: int | None) -> Tensor:
        """[own, before + own] bool: causal, within the window, after `num_before` keys of a parent."""
        key = (num_before, num_own, window)
        if key not in self.masks:
            query = torch.arange(num_before, num_before + num_own, device=self.device)[:, None]
            keys = torch.arange(num_before + num_own, device=self.device)[None, :]
            allowed = keys <= query
            if window is not None:
                allowed &= keys > query - window
            self.masks[key] = allowed
        return self.masks[key]


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Attention written out. q [..., H, Tq, D], k and v [..., K, Tk, D], H a multiple of K; mask bool or additive.

    A query that may see nothing (a padded place) sees everything: finite, and read by nobody.
    """
    groups = q.shape[-3] // k.shape[-3]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    scores = q @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


def flat_reference(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """The plain form. q [H, T, D], k and v [K, T, D] -> [H, T, D]; each segment sees its parent's keys and its own."""
    pieces = []
    for segment in layout.segments:
        own = slice(segment.start, segment.end)
        keys, values, num_before = k[:, own], v[:, own], 0
        if segment.parent is not None:
            parent = layout.segments[segment.parent]
            num_before = len(parent)
            keys = torch.cat([k[:, parent.start : parent.end], keys], dim=1)
            values = torch.cat([v[:, parent.start : parent.end], values], dim=1)
        mask = layout.mask(num_before, len(segment), window)
        pieces.append(plain(q[:, own], keys, values, mask, scale, softcap))
    return torch.cat(pieces, dim=1)


_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _FlatCPU(torch.autograd.Function):
    """q [H, T, D], k and v [K, T, D] -> [H, T, D], by torch's CPU flash kernel, document by document, in fp32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], scale: float) -> Tensor:
        ctx.dtype = q.dtype
        q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
        heads, tokens, dim = q.shape
        # Memory order [T, H, D]: what the output projection reads next.
        out = torch.empty(tokens, heads, dim, dtype=q.dtype, device=q.device).transpose(0, 1)
        sums = []
        for segment in segments:
            own = slice(segment.start, segment.end)
            piece, log_sum = _cpu_forward(q[None, :, own], k[None, :, own], v[None, :, own], 0.0, True, scale=scale)
            out[:, own] = piece[0]
            sums.append(log_sum)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.segments, ctx.scale = segments, scale
        return out.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *sums = ctx.saved_tensors
        grad = grads[0].to(q.dtype)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for segment, log_sum in zip(ctx.segments, sums, strict=True):
            own = slice(segment.start, segment.end)
            parts = _cpu_backward(
                grad[None, :, own], q[None, :, own], k[None, :, own], v[None, :, own],
                out[None, :, own], log_sum, 0.0, True, scale=ctx.scale,
            )  # fmt: skip
            for whole, part in zip((dq, dk, dv), parts, strict=True):
                whole[:, own] = part[0]
        return dq.to(ctx.dtype), dk.to(ctx.dtype), dv.to(ctx.dtype), None, None


def _flat_cuda(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    """q [H, T, D], k and v [K, T, D] -> [H, T, D], by torch's variable-length kernel (half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    edges, longest, causal = layout.boundaries, layout.longest, (-1, 0)
    grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, edges, edges, longest, longest, scale=scale, window_size=causal, enable_gqa=grouped)
    assert isinstance(out, Tensor)  # a tuple only where more was asked for
    return out.transpose(0, 1)


def flat(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Each document attends to itself (and its parent). q [H, T, D], k and v [K, T, D] -> [H, T, D]."""
    if layout.asked is not None:
        layout.asked.append((scale, window, softcap))
    if window is not None and layout.longest <= window and not layout.has_parents:
        window = None
    if softcap is None and not (layout.has_parents and window is not None) and can_run(q, k, v):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return flat_attention(q, k, v, layout.edges, scale, window or 0, layout.see).transpose(0, 1)
    simple = window is None and softcap is None and not layout.has_parents and q.shape[-1] == v.shape[-1]
    if simple and q.device.type == "cpu":
        return _FlatCPU.apply(q, k, v, layout.segments, scale)
    if simple and q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16):
        return _flat_cuda(q, k, v, layout, scale)
    return flat_reference(q, k, v, layout, scale, window, softcap)


def gated_part(module: nn.Module, q: Tensor, lead: Virtual, scale: float) -> Tensor | None:
    """g softmax(s q K^T) V of the learned keys and values that `lead` has for `module`, if any. q [..., H, T, D]."""
    found = lead.gated(module)
    if found is None:
        return None
    keys, values, gate = found
    return plain(q, keys.to(q.dtype), values.to(q.dtype), None, scale, None) * gate.to(q.dtype)


def flat_of(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`flat` for one attention module, each document behind the virtual tokens that it begins with."""
    if layout.gated is not None:
        out, part = flat(q, k, v, layout, scale, window, softcap), gated_part(module, q, layout.gated, scale)
        return out if part is None else out + part
    if not layout.virtual:
        return flat(q, k, v, layout, scale, window, softcap)
    led, take, keep = layout.led
    if layout.given is not None:
        keys, values = layout.given[module.layer_idx]
        k, v = torch.cat([keys.to(k.dtype), k], dim=1), torch.cat([values.to(v.dtype), v], dim=1)
        q, keep = torch.cat([q.new_zeros(q.shape[0], layout.virtual, q.shape[2]), q], dim=1), keep[layout.virtual :]
    q, k, v = (x.transpose(0, 1).index_select(0, take).transpose(0, 1) for x in (q, k, v))
    out = flat(q, k, v, led, scale, window, softcap)
    return out.transpose(0, 1).index_select(0, keep).transpose(0, 1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    gated: Sequence[tuple[list[int], Virtual]] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls. query [B, H, T, D] -> output [B, T, H, D].

    `gated`: rows, and what each reads beside its own keys and values.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    if layout is not None:
        if dropout > 0:
            raise NotImplementedError("attention dropout is not applied to flat batches")
        out = flat_of(module, query[0], key[0], value[0], layout, scale, sliding_window, softcap)
        return out.transpose(0, 1)[None], None
    if softcap is not None:
        if attention_mask is None:  # transformers leaves out a mask that is causal and nothing else
            num_before = key.shape[-2] - query.shape[-2]
            attention_mask = Layout((), query.device).mask(0, key.shape[-2], None)[num_before:]
        out = plain(query, key, value, attention_mask, scale, softcap).transpose(1, 2)
    else:
        more = {"dropout": dropout, "scaling": scaling, **kwargs}
        out = sdpa_attention_forward(module, query, key, value, attention_mask, **more)[0]
    for rows, lead in gated:
        part = gated_part(module, query[rows], lead, scale)
        if part is not None:
            out = out.index_add(0, torch.tensor(rows, device=out.device), part.transpose(1, 2))
    return out, None


def register() -> None:
    """Make `attn_implementation="tunesmith"` known to transformers."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def same_logits(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> float:
    """How far two computations of one document's logits [T, V] are apart; at most 1 means the same but for rounding.

    In fp32 and wider every logit counts. In half precision a deep model throws single tokens far off by rounding
    alone, while what is computed wrongly shows in nearly every row: the middle one of the later rows counts (those
    that reach beyond a window), by its mean square.
    """
    found, wanted = found.float(), wanted.float()
    spread = wanted.std().item() or 1.0
    if dtype not in (torch.bfloat16, torch.float16):
        return (found - wanted).abs().max().item() / spread / 1e-3
    rows = (found - wanted)[len(wanted) // 2 :].pow(2).mean(-1).sqrt()
    return rows.median().item() / spread / 0.1 if torch.isfinite(rows).all() else float("inf")


def _answered(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [T, V]; of a model that does not end in words, its hidden states [T, d]."""
    if is_classifier(model):
        hidden: Tensor = model.base_model(input_ids=ids).last_hidden_state[0]
        return hidden
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


@torch.no_grad()
def install(model: PreTrainedModel) -> bool:
    """Let `model` attend through `attend`, if it gives the logits of transformers' own plain form; else leave it."""
    if not model._supports_attention_backend:
        return False
    own = model.config._attn_implementation
    if is_ghost(next(model.parameters())):  # which has no logits to compare
        model.set_attn_implementation(NAME)
        return True
    ids = torch.arange(1, 12, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        model.set_attn_implementation("eager")
        wanted = _answered(model, ids)
        model.set_attn_implementation(NAME)
        if same_logits(_answered(model, ids), wanted, model.dtype) <= 1:
            return True
    except (NotImplementedError, ValueError, TypeError):
        pass
    model.set_attn_implementation(own)
    return False
