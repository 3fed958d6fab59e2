"""What the same fine-tuning takes in plain transformers and PEFT, reckoned from shapes alone.

It stands beside our own forecast as a comparison; nothing here is measured on a GPU. What a block keeps for its
backward pass follows Korthikanti et al. 2022 (arXiv:2205.05198, section 4), adapted: no dropout, 16 or 32 bits, SDPA or
flash attention (nothing of length x length is kept), a gated MLP, and what transformers and PEFT add to it:

- a norm written out in Python makes an fp32 copy of its input, and keeps the normalised values where its weight learns
- PEFT keeps its adapters in fp32 and casts the input of every adapted matrix to that, one copy for each; under autocast
  each copy goes back to 16 bits
- autocast keeps a 16-bit copy of every fp32 matrix that it meets
- the loss has the logits in fp32, their log-softmax and two gradients of them: 12 bytes a logit at most, at once
- nf4 with double quantisation holds 4.127 bits a parameter (Dettmers et al. 2023, arXiv:2305.14314)
- AdamW's moments have the dtype of the weights: training in bf16 takes 8 bytes a parameter, in fp32 16; 8-bit moments
  take 2 (Dettmers et al. 2022, arXiv:2110.02861)

The tests run tiny models on the CPU and count what transformers, PEFT and bitsandbytes hold: at most 8 % off at the
peak, and a quarter where blocks are recomputed, for what passes through a backward pass is only estimated.

Figures that people quote, in GB of 10^9 bytes, and the batch x length at which this forecast meets them within 15 %.
The first four come with neither, so those are a choice.

    BLOOM-3B, full           about 40   42.1 at 2 x 1024: bf16, nothing recomputed
    Llama-2-7B, full       60 and 120   54.7 in bf16, 122.3 in fp32 under autocast, at 1 x 512
    Llama-2-7B, LoRA               16   15.7 at 4 x 512, recomputed: rank 8 at q and v (16.1: 40 million everywhere)
    Llama-2-7B, QLoRA        12 to 13   12.2 at 2 x 512: 40 million trained, nothing recomputed
    BLOOM-3B, full and LoRA 29 and 20   30.4 and 17.5 at 1 x 1024 (microsoft/LoRA, issue 43)
    Llama-2-7B, full    51.6 and 39.2   54.7 with AdamW, 41.4 with 8-bit moments (torchtune)
    Llama-3.2-3B, LoRA           22.3   21.9 at 4 x 768 (PEFT's comparison of methods, measured); at the MLP 24.8 for
                                        24.7; full 36.1 for 37.2 at the longest batch, 32.9 for 33.1 on the average
    Llama-3.1-8B, QLoRA      12 to 80   12.6, 16.0, 22.8, 36.5, 70.7 for cards of 12, 16, 24, 40, 80 GB at the longest
                                        contexts that Unsloth gives for plain transformers; 70B: 78.5 for 80

What does not follow:

- BLOOM-3B in fp32 with AdamW takes 48.8 GB before its first token: the 40 cannot mean that. 16-bit weights beside fp32
  moments, 12 bytes a parameter, are DeepSpeed's way and not plain PyTorch's.
- LoRA's 16 and QLoRA's 12 to 13 cannot be of one batch and length: nf4 alone saves 9.1 GB. Where LoRA takes 15.7,
  QLoRA takes 7.8; where QLoRA takes 12.2, LoRA takes 21.8.
- The 120 need the gradients of an earlier micro-batch in memory; without accumulation it is 108.6.
- If Unsloth's cards are counted in GiB, the two longest contexts come out 15 and 18 % too low: transformers made one
  more fp32 copy of the logits at that time.
- LitGPT is no transformers. Its 21.3 GB of LoRA are 21.7 here at 1,300 tokens, but its 14.1 in nf4 are 12.0, 15 % less.

Left out: dropout's masks, norms of single heads (Qwen3), keys and values copied for grouped heads (where a padding mask
is given), the adapter's rank among the activations, and what torch's allocator holds back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.adapters.targets import Anatomy, anatomy
from tunesmith.quant.dense import weight_shape

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A parameter in 4 bits, an 8-bit scale for each 64 of them, and an fp32 scale for each 256 scales."""
EIGHT_BIT_MOMENTS = 2 * (1 + 4 / 256)
"""Two moments of 8 bits, and an fp32 scale for each 256."""
LOGIT_BYTES = 12
"""log-softmax and two gradients in fp32, all there when the loss goes backward."""
OVERHEAD = 750_000_000
"""The CUDA context with its kernels, and the workspace of cuBLAS. From 0.4 to 1 GB by card and version."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its memory."""

    num_layers: int
    hidden: int
    intermediate: int
    """Width inside the MLP, for the experts that one token meets."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """The head is the embedding."""
    parameters: int
    """All, each once."""
    matrix_parameters: int
    """Those of the blocks' matrices: what nf4 holds."""
    matrix_inputs: int
    """Input widths of one block's matrices, summed."""
    gated_mlp: bool
    activation_keeps: int
    """Tensors of the MLP's width that its activation keeps beside its result."""
    norms: int
    """Norms of the hidden width in one block."""
    fused_norms: bool
    """They are one kernel, which makes no copy."""
    keeps_scores: bool
    """The attention is written out, and keeps length x length for each head (BLOOM)."""


def shape_of(model: PreTrainedModel) -> Shape:
    """Read off the modules of `model`, which may stand on the meta device, and its config where they do not tell."""
    body, config = anatomy(model), model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    first = {path: module for path, module in body.modules.items() if body.block_of(path) == 0}
    matrices = {path: weight_shape(module) for path, module in body.matrices.items() if path in first}
    norms = [module for module in first.values() if _is_norm(module, hidden)]
    intermediate, gated = _mlp(body, matrices, config)
    kv_heads = getattr(config, "num_key_value_heads", None)
    if kv_heads is None:
        before = [p for p in matrices if body.kind(p) == "attention" and not body.is_of(p, "outputs")]
        kv_heads = (sum(matrices[p][0] for p in before) // head_dim - heads) // 2
    return Shape(
        num_layers=len(body.blocks),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads if 0 < kv_heads <= heads else heads,
        head_dim=head_dim,
        vocabulary=body.rows(body.head or body.embedding),
        tied=body.tied,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrix_parameters=sum(
            out * in_
            for path, module in body.matrices.items()
            if body.block_of(path) is not None
            for out, in_ in (weight_shape(module),)
        ),
        matrix_inputs=sum(in_ for _, in_ in matrices.values()),
        gated_mlp=gated,
        activation_keeps=_activation_keeps(body, first),
        norms=len(norms),
        fused_norms=all(isinstance(norm, nn.LayerNorm | nn.RMSNorm) for norm in norms),
        keeps_scores=not getattr(model, "_supports_sdpa", False),
    )


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    named = "norm" in type(module).__name__.lower()
    return named and isinstance(weight, Tensor) and tuple(weight.shape) == (width,)


def _mlp(body: Anatomy, matrices: dict[str, tuple[int, int]], config: Any) -> tuple[int, bool]:
    """Width inside the MLP, and whether it is gated. Experts are stacks, whose width the config tells."""
    downs = [path for path in matrices if body.is_of(path, "mlp-down")]
    ups = [path for path in matrices if body.kind(path) == "mlp" and path not in downs]
    width = sum(matrices[path][1] for path in downs)
    gated = not width or sum(matrices[path][0] for path in ups) >= 2 * width
    per_token = getattr(config, "num_experts_per_tok", None)
    if per_token and any(body.block_of(path) == 0 for path in body.stacks):
        width += per_token * (getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    return width or getattr(config, "intermediate_size", 4 * config.hidden_size), gated


def _activation_keeps(body: Anatomy, block: dict[str, nn.Module]) -> int:
    """Found by running the activation on no device: SiLU keeps one tensor, GPT-2's GELU, written out, four."""
    for path, module in block.items():
        bare = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
        if bare and body.kind(path) == "mlp" and not isinstance(module, nn.Dropout | nn.Identity):
            kept: dict[int, Tensor] = {}

            def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
                kept[tensor.untyped_storage()._cdata] = tensor
                return tensor

            x = torch.empty(4, device="meta", requires_grad=True)
            try:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    result = module(x)
            except (RuntimeError, TypeError, NotImplementedError):
                continue
            return len(kept.keys() - {result.untyped_storage()._cdata})
    return 1


def forecast(
    shape: Shape,
    *,
    way: Literal["full", "lora", "qlora"],
    trained: int,
    batch: int,
    length: int,
    dtype_bytes: int,
    recompute: bool,
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw",
    autocast: bool = True,
    adapted_inputs: int | None = None,
    accumulated: bool = False,
    fused: bool = True,
) -> dict[str, int]:
    """Bytes by part at the worst moment of a step, and their sum, `peak`.

    trained         parameters trained: the adapter's, or all
    dtype_bytes     2 or 4: of the weights as loaded; with qlora of what nf4 does not hold, which
                    `prepare_model_for_kbit_training` makes 4
    autocast        `bf16=True` of the Trainer
    adapted_inputs  input widths of one block's adapted matrices, summed; None: every matrix has an adapter
    accumulated     gradients of an earlier micro-batch are there during the forward pass
    fused           AdamW in one kernel, the Trainer's default from torch 2.8 on; before, it made a copy of a moment
    """
    tokens, trained_bytes = batch * length, dtype_bytes if way == "full" else 4
    rest = shape.parameters - shape.matrix_parameters
    held = NF4_BYTES if way == "qlora" else dtype_bytes
    always = {
        "weights": round(held * shape.matrix_parameters + dtype_bytes * rest),
        "adapter": 0 if way == "full" else 4 * trained,
        "optimizer": round(trained * (2 * trained_bytes if optimizer == "adamw" else EIGHT_BIT_MOMENTS)),
        "overhead": OVERHEAD,
    }
    gradients = trained_bytes * trained
    earlier = gradients if accumulated else 0
    block, passing, at_border = block_bytes(
        shape, way=way, length=length, dtype_bytes=dtype_bytes, autocast=autocast, adapted_inputs=adapted_inputs
    )
    casts = 2 * shape.matrix_parameters if autocast and dtype_bytes == 4 and way != "qlora" else 0
    one = tokens * block + casts // shape.num_layers
    kept = shape.num_layers * tokens * at_border if recompute else shape.num_layers * one
    kept += tokens * (4 + 2 * dtype_bytes) * shape.hidden  # the last norm and what the head reads
    cached = casts if recompute and way == "full" else 0
    logits = LOGIT_BYTES * tokens * shape.vocabulary
    logits += 2 * shape.vocabulary * shape.hidden if autocast and dtype_bytes == 4 else 0
    deepest = (one if recompute else 0) + tokens * passing
    deepest += 2 * shape.hidden * shape.intermediate if way == "qlora" else 0  # one matrix in 16 bits
    head = trained_bytes * shape.vocabulary * shape.hidden if way == "full" else 0
    before_last = max(0, gradients - trained_bytes * shape.matrix_parameters // shape.num_layers - head)
    scratch = 0 if fused or optimizer == "adamw-8bit" else trained_bytes * trained
    moments: list[dict[str, int]] = [
        {"gradients": earlier, "activations": kept + cached, "logits": logits},
        {"gradients": max(earlier, head), "activations": kept + deepest, "logits": 0},
        {"gradients": max(earlier, before_last), "activations": one + tokens * passing, "logits": 0},
        {"gradients": gradients, "activations": 0, "logits": 0, "optimizer": always["optimizer"] + scratch},
    ]
    worst = max(({**always, **moment} for moment in moments), key=lambda parts: sum(parts.values()))
    return {**worst, "peak": sum(worst.values())}


def block_bytes(
    shape: Shape,
    *,
    way: Literal["full", "lora", "qlora"],
    length: int,
    dtype_bytes: int,
    autocast: bool,
    adapted_inputs: int | None = None,
) -> tuple[int, int, int]:
    """For one token in one block: bytes kept for the backward pass, the most beside them in it, bytes at its border.

    Widths are h (hidden), i (inside the MLP), q (queries), k (keys, and values). Korthikanti's 34 h, for 16 bits and
    i = 4 h without a gate and without dropout, is 32 h here: norms 8 h, q, k, v 6 h, their result 2 h, MLP 16 h.
    """
    h, i = shape.hidden, shape.intermediate
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    stream = dtype_bytes
    product = 2 if autocast else stream
    inner = stream if way == "qlora" else product  # bitsandbytes gives back the dtype that it was given
    learns = way == "full"
    norms = (
        shape.norms * h * ((stream if shape.fused_norms else 4) + (stream if learns and not shape.fused_norms else 0))
    )
    attention = product * (q + 2 * k)
    attention += shape.heads * length * (4 + (2 if product == 2 else 0)) if shape.keeps_scores else product * q
    result = product * q if shape.keeps_scores else 0  # of the attention, where only the next matrix keeps it
    mlp = inner * i * (shape.activation_keeps + (2 if shape.gated_mlp else 0))
    shared = stream * (shape.norms * h + i) + result  # one input for all matrices that read it
    wide = shape.matrix_inputs if adapted_inputs is None else adapted_inputs
    if learns:
        inputs = shared if stream == product else product * (shape.matrix_inputs - q) + result
    elif autocast:
        inputs = 2 * wide
    else:
        inputs = min(shared, 4 * wide) if stream == 4 else 4 * wide
    widest = max((2 if shape.gated_mlp else 4) * inner, 0 if learns else 8) * i
    passing = 4 * h + max(widest, 12 * shape.heads * length if shape.keeps_scores else 0)
    return norms + attention + mlp + inputs, passing, stream * h
