"""The forecast of plain transformers and PEFT: against what they hold on the CPU, and figures that people quote."""

from __future__ import annotations

import contextlib
from functools import cache

import pytest
import torch
from held_bytes import Counter
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
)

from tunesmith.plan.plain import OVERHEAD, Shape, block_bytes, forecast, shape_of

LLAMA_3 = {"vocab_size": 128256, "num_key_value_heads": 8, "head_dim": 128}
BIG = {
    "bloom-3b": BloomConfig(hidden_size=2560, n_layer=30, n_head=32, vocab_size=250880),
    "llama-2-7b": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ),
    "llama-3.1-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **LLAMA_3
    ),
    "llama-3.1-70b": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **LLAMA_3
    ),
    "llama-3.2-3b": LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        tie_word_embeddings=True,
        **LLAMA_3,
    ),
}


def on_no_device(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@cache
def shape(name: str) -> Shape:
    return shape_of(on_no_device(BIG[name]))


def peak(name: str, way: str, trained: int | None = None, batch: int = 1, length: int = 512, **how) -> float:
    """In GB of 10^9 bytes."""
    known = shape(name)
    trained = known.parameters if trained is None else trained
    how = {"dtype_bytes": 2, "recompute": True, **how}
    return forecast(known, way=way, trained=trained, batch=batch, length=length, **how)["peak"] / 1e9


# ---------------------------------------------------------------------------------------------- what people quote
QV = {"trained": 4_194_304, "adapted_inputs": 2 * 4096}
"""Llama-2-7B, rank 8 at q and v."""
BLOOM_QKV = {"trained": 30 * 8 * (2560 + 3 * 2560), "adapted_inputs": 2560}
PEFT_SUITE = {"batch": 4, "length": 768, "recompute": False, "autocast": False}
"""PEFT's own comparison of methods: its loop has no autocast and recomputes nothing."""
KEPT = {"recompute": False}
PREPARED = {"dtype_bytes": 4}
"""After prepare_model_for_kbit_training."""
RANK_16 = 40_000_000
RANK_32 = 83_886_080

QUOTED = [
    ("bloom-3b", "full", {"batch": 2, "length": 1024, **KEPT}, 40),
    ("bloom-3b", "full", {"batch": 1, "length": 1024, **KEPT}, 29),
    ("bloom-3b", "lora", {"batch": 1, "length": 1024, **KEPT, **BLOOM_QKV}, 20),
    ("llama-2-7b", "full", {}, 60),
    ("llama-2-7b", "full", {"dtype_bytes": 4, "accumulated": True}, 120),
    ("llama-2-7b", "full", {"length": 2048}, 51.6),
    ("llama-2-7b", "full", {"length": 2048, "optimizer": "adamw-8bit"}, 39.2),
    ("llama-2-7b", "lora", {"batch": 4, **QV}, 16),
    ("llama-2-7b", "lora", {"batch": 4, "trained": RANK_16}, 16),
    ("llama-2-7b", "qlora", {"batch": 2, "trained": RANK_16, **KEPT}, 12.5),
    ("llama-2-7b", "qlora", {"trained": RANK_16, **PREPARED}, 6),
    ("llama-3.2-3b", "lora", {"trained": 9_175_040, "adapted_inputs": 2 * 3072, **PEFT_SUITE}, 22.27),
    ("llama-3.2-3b", "lora", {"trained": 9_461_760, "adapted_inputs": 2 * 3072 + 8192, **PEFT_SUITE}, 24.71),
    ("llama-3.2-3b", "full", {**PEFT_SUITE, "fused": False}, 37.24),
    ("llama-3.2-3b", "full", {**PEFT_SUITE, "length": 210, "fused": False}, 33.10),
    ("llama-3.1-8b", "qlora", {"trained": RANK_32, "length": 932, **PREPARED}, 12),
    ("llama-3.1-8b", "qlora", {"trained": RANK_32, "length": 2551, **PREPARED}, 16),
    ("llama-3.1-8b", "qlora", {"trained": RANK_32, "length": 5789, **PREPARED}, 24),
    ("llama-3.1-8b", "qlora", {"trained": RANK_32, "length": 12264, **PREPARED}, 40),
    ("llama-3.1-8b", "qlora", {"trained": RANK_32, "length": 28454, **PREPARED}, 80),
    ("llama-3.1-70b", "qlora", {"trained": 414_187_520, "length": 6916, **PREPARED}, 80),
    ("llama-2-7b", "lora", {"length": 1300, "autocast": False, **KEPT, **QV}, 21.3),
]
"""Sources: quoted without one (40; LoRA 16; QLoRA 12 to 13), microsoft/LoRA#43 (29, 20), LLaMA-Factory's table (60,
120, 16, 6), torchtune (51.6, 39.2), PEFT's method_comparison/MetaMathQA (22.27 to 33.10, reserved), Unsloth's longest
contexts of HF with FlashAttention-2 (12 to 80), LitGPT's table of October 2023 (21.3)."""


@pytest.mark.parametrize(("name", "way", "how", "quoted"), QUOTED)
def test_figures_that_people_quote_are_met_within_15_percent(name, way, how, quoted) -> None:
    assert peak(name, way, **how) == pytest.approx(quoted, rel=0.15)


NOT_MET = [
    ("bloom-3b", "full", {"dtype_bytes": 4}, 40, 0.20),
    ("llama-2-7b", "qlora", {"batch": 4, "trained": RANK_16, **PREPARED}, 12.5, -0.30),
    ("llama-2-7b", "lora", {"batch": 2, "trained": RANK_16, **KEPT}, 16, 0.30),
    ("llama-3.1-8b", "qlora", {"trained": RANK_32, "length": 28454, **PREPARED}, 80 * 1.0737, -0.15),
    ("llama-2-7b", "qlora", {"length": 1300, "autocast": False, **KEPT, **QV}, 14.14, -0.14),
]
"""Read another way, figures do not follow: by more than the last number's share too high (or, below 0, too low)."""


@pytest.mark.parametrize(("name", "way", "how", "quoted", "off"), NOT_MET)
def test_what_does_not_follow_is_said(name, way, how, quoted, off) -> None:
    found = peak(name, way, **how) / quoted - 1
    assert found > off if off > 0 else found < off


def test_ranges_of_a_table_of_guidance() -> None:
    """Axolotl's, for 7 and 8 billion parameters, here at 1 x 1024 of Llama-3.1-8B."""
    at = {"length": 1024}
    assert 10 <= peak("llama-3.1-8b", "qlora", 41_943_040, **at, dtype_bytes=4) <= 14
    assert 16 <= peak("llama-3.1-8b", "lora", 41_943_040, **at) <= 24
    assert 60 <= peak("llama-3.1-8b", "full", **at) <= 80


# ---------------------------------------------------------------------------------------------- what CPU runs hold
WIDTHS = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 512}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SMALL = {
    "llama": LlamaConfig(intermediate_size=344, **WIDTHS),
    "qwen2": Qwen2Config(intermediate_size=344, num_key_value_heads=2, tie_word_embeddings=True, **WIDTHS),
    "gpt2": GPT2Config(**WIDTHS, **NO_DROPOUT),
    "bloom": BloomConfig(hidden_size=128, n_layer=3, n_head=4, vocab_size=512),
}
BATCH, LENGTH = 2, 128


def held(model, *, autocast: bool) -> int:
    """Bytes at the worst moment of a forward and a backward pass, beside what was there before."""
    token_ids = torch.randint(0, 512, (BATCH, LENGTH))
    counter = Counter(floating=False)
    for tensor in (*model.parameters(), *model.buffers()):
        counter.take(tensor.detach())
    before = counter.bytes
    with counter:
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = model(input_ids=token_ids, labels=token_ids, use_cache=False).loss
        loss.backward()
    return counter.peak - before


def counted(parts: dict[str, int]) -> int:
    return parts["gradients"] + parts["activations"] + parts["logits"]


def with_lora(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


def recomputing(model, way: str) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way != "full":
        model.enable_input_require_grads()


MATRIX = [
    pytest.param(
        kind, way, dtype, autocast, id="-".join((kind, way, str(dtype)[6:], "autocast" if autocast else "plain")),
        marks=() if kind in ("llama", "bloom") and autocast == (way == "full") else pytest.mark.slow,
    )
    for kind in SMALL
    for way in ("full", "lora")
    for dtype in (torch.bfloat16, torch.float32)
    for autocast in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("kind", "way", "dtype", "autocast"), MATRIX)
def test_what_transformers_and_peft_hold_on_the_cpu(kind, way, dtype, autocast, recompute) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SMALL[kind]).to(dtype).train()
    known = shape_of(model)
    model = with_lora(model) if way == "lora" else model
    if recompute:
        recomputing(model, way)
    parts = forecast(
        known,
        way=way,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        batch=BATCH,
        length=LENGTH,
        dtype_bytes=dtype.itemsize,
        recompute=recompute,
        autocast=autocast,
    )
    assert counted(parts) == pytest.approx(held(model, autocast=autocast), rel=0.27 if recompute else 0.08)


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "bare"])
@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_what_bitsandbytes_holds_on_the_cpu(kind, prepared, tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    torch.manual_seed(0)
    known = shape_of(AutoModelForCausalLM.from_config(SMALL[kind]))
    AutoModelForCausalLM.from_config(SMALL[kind]).to(torch.bfloat16).save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=nf4, dtype=torch.bfloat16, device_map="cpu"
    )
    if prepared:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = with_lora(model).train()
    stored = sum(p.numel() * p.element_size() for p in model.get_base_model().parameters() if not p.requires_grad)
    parts = forecast(
        known,
        way="qlora",
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        batch=BATCH,
        length=LENGTH,
        dtype_bytes=4 if prepared else 2,
        recompute=False,
    )
    assert counted(parts) == pytest.approx(held(model, autocast=True), rel=0.08)
    assert parts["weights"] == pytest.approx(stored, rel=0.03)  # the scales lie beside the parameters


# ---------------------------------------------------------------------------------------------------------- shapes
def test_shapes_of_models_whose_numbers_are_known() -> None:
    llama = shape("llama-2-7b")
    assert (llama.num_layers, llama.hidden, llama.intermediate, llama.heads, llama.kv_heads) == (
        32,
        4096,
        11008,
        32,
        32,
    )
    assert (llama.parameters, llama.matrix_parameters) == (6_738_415_616, 32 * (4 * 4096**2 + 3 * 4096 * 11008))
    assert (llama.gated_mlp, llama.tied, llama.fused_norms, llama.keeps_scores) == (True, False, False, False)
    assert llama.matrix_inputs == 6 * 4096 + 11008
    bloom = shape("bloom-3b")
    assert (bloom.num_layers, bloom.hidden, bloom.intermediate, bloom.vocabulary) == (30, 2560, 10240, 250880)
    assert bloom.parameters == 3_002_557_440
    assert (bloom.gated_mlp, bloom.tied, bloom.fused_norms, bloom.keeps_scores) == (False, True, True, True)
    assert (bloom.heads, bloom.kv_heads, bloom.head_dim, bloom.norms) == (32, 32, 80, 2)


def test_a_fused_gate_and_a_matrix_of_gpt2_are_seen() -> None:
    phi = shape_of(on_no_device(Phi3Config(intermediate_size=344, num_key_value_heads=2, pad_token_id=0, **WIDTHS)))
    assert (phi.intermediate, phi.gated_mlp, phi.kv_heads, phi.matrix_inputs) == (344, True, 2, 3 * 128 + 344)
    gpt2 = shape_of(on_no_device(GPT2Config()))
    assert (gpt2.intermediate, gpt2.gated_mlp, gpt2.tied, gpt2.parameters) == (3072, False, True, 124_439_808)
    opt = shape_of(on_no_device(OPTConfig(ffn_dim=512, word_embed_proj_dim=128, **WIDTHS)))
    assert (opt.intermediate, opt.gated_mlp, opt.norms) == (512, False, 2)


def test_a_mixture_counts_the_experts_that_a_token_meets_and_nf4_leaves_them_alone() -> None:
    config = Qwen2MoeConfig(
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=96, **WIDTHS
    )
    mixture = shape_of(on_no_device(config))
    assert mixture.intermediate == 2 * 64 + 96
    assert mixture.matrix_parameters < mixture.parameters - mixture.num_layers * 8 * 3 * 64 * 128


# ------------------------------------------------------------------------------------------------------------ laws
@pytest.mark.parametrize("way", ["full", "lora", "qlora"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", BIG)
def test_parts_add_up_and_more_tokens_never_take_less(name, way, recompute) -> None:
    trained = shape(name).parameters if way == "full" else 10_000_000
    before = 0
    for length in (128, 1024, 8192):
        parts = forecast(
            shape(name), way=way, trained=trained, batch=2, length=length, dtype_bytes=2, recompute=recompute
        )
        assert parts["peak"] == sum(size for part, size in parts.items() if part != "peak")
        assert parts["overhead"] == OVERHEAD
        assert all(isinstance(size, int) and size >= 0 for size in parts.values())
        assert parts["peak"] >= before
        before = parts["peak"]


@pytest.mark.parametrize("name", BIG)
def test_what_is_cheaper_is_forecast_so(name) -> None:
    at = {"batch": 2, "length": 512}
    small = 10_000_000
    assert peak(name, "qlora", small, **at) < peak(name, "lora", small, **at) < peak(name, "full", **at)
    assert peak(name, "lora", small, **at) < peak(name, "lora", small, **at, recompute=False)
    assert peak(name, "full", **at, optimizer="adamw-8bit") < peak(name, "full", **at)
    assert peak(name, "full", **at) <= peak(name, "full", **at, fused=False)
    attended = {"adapted_inputs": shape(name).hidden, "recompute": False}
    assert peak(name, "lora", small, **at, **attended) < peak(name, "lora", small, **at, recompute=False)


def test_korthikanti_without_dropout_and_scores() -> None:
    """34 h less 2 h of dropout's masks: norms 4 + 4, q k v 6, result 2, MLP 8 + 8."""
    plain = shape_of(on_no_device(GPT2Config(activation_function="gelu")))
    kept, _, border = block_bytes(plain, way="full", length=1024, dtype_bytes=2, autocast=False)
    assert kept == 32 * plain.hidden
    assert border == 2 * plain.hidden
