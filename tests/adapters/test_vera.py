"""VeRA trains as many numbers as its paper says, and so does LoRA: models of the table's shapes, without their numbers.

Table 1 of arXiv:2310.11454 adapts two square matrices of every block. Its numbers are cut or rounded to the digits
shown; they were taken from two public transcriptions that agree. Two of its entries say something else than
"# trainable parameters", as its own column of bytes shows:

    RoBERTa-large, r = 16    printed 49.5K, but 195 KB: that is 49.9K
    GPT-3, all ranks         the shared pair, 2 d r, is counted in (9.1, 10.5 and 33 MB)
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, RobertaConfig

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import make
from tunesmith.adapters.targets import choose

SHAPES = {
    "roberta-base": (RobertaConfig, 12, 768, ("query", "key")),
    "roberta-large": (RobertaConfig, 24, 1024, ("query", "key")),
    "gpt-3": (OPTConfig, 96, 12288, ("q_proj", "k_proj")),
}
"""Configuration (OPT's largest has GPT-3's shape), blocks, width, the two matrices."""

K, M, KB, MB, GB = 1e3, 1e6, 2**10, 2**20, 2**30
TABLE = [
    # shape, r, LoRA: number and its last digit, bytes and theirs; VeRA: the same; whether the pair is counted
    ("roberta-base", 1, (36.8 * K, 0.1 * K), (144 * KB, KB), (18.4 * K, 0.1 * K), (72 * KB, KB), False),
    ("roberta-base", 16, (589.8 * K, 0.1 * K), (2 * MB, MB), (18.8 * K, 0.1 * K), (74 * KB, KB), False),
    ("roberta-base", 256, (9437.1 * K, 0.1 * K), (36 * MB, MB), (24.5 * K, 0.1 * K), (96 * KB, KB), False),
    ("roberta-large", 1, (98.3 * K, 0.1 * K), (384 * KB, KB), (49.2 * K, 0.1 * K), (192 * KB, KB), False),
    ("roberta-large", 16, (1572.8 * K, 0.1 * K), (6 * MB, MB), None, (195 * KB, KB), False),
    ("roberta-large", 256, (25165.8 * K, 0.1 * K), (96 * MB, MB), (61.4 * K, 0.1 * K), (240 * KB, KB), False),
    ("gpt-3", 1, (4.7 * M, 0.1 * M), (18 * MB, MB), (2.4 * M, 0.1 * M), (9.1 * MB, 0.1 * MB), True),
    ("gpt-3", 16, (75.5 * M, 0.1 * M), (288 * MB, MB), (2.8 * M, 0.1 * M), (10.5 * MB, 0.1 * MB), True),
    ("gpt-3", 256, (1207.9 * M, 0.1 * M), (4.6 * GB, 0.1 * GB), (8.7 * M, 0.1 * M), (33 * MB, MB), True),
]


@pytest.fixture(scope="module")
def models():
    """By name, on torch's meta device: shapes and no numbers."""
    made = {}
    for name, (kind, blocks, width, _) in SHAPES.items():
        sizes = {"num_hidden_layers": blocks, "hidden_size": width, "num_attention_heads": width // 64}
        more = {"ffn_dim": 4 * width} if kind is OPTConfig else {"intermediate_size": 4 * width, "is_decoder": True}
        with torch.device("meta"):
            made[name] = AutoModelForCausalLM.from_config(kind(**sizes, **more))
    return made


def adapter(models, method, name, r):
    model = models[name]
    settings = METHODS[method].Settings(r=r, targets=SHAPES[name][-1])
    made = make(model, settings, name="a", seed=None, targets=choose(model, settings), token_rows={})
    assert len(made.adapters) == 2 * SHAPES[name][1]
    return made


def said(number, printed):
    """Whether the printed number, cut or rounded, is this one."""
    value, last_digit = printed
    return abs(number - value) < last_digit


@pytest.mark.parametrize(("name", "r", "lora", "lora_bytes", "vera", "vera_bytes", "with_pair"), TABLE)
def test_the_papers_table_of_trained_parameters(models, name, r, lora, lora_bytes, vera, vera_bytes, with_pair):
    plain = adapter(models, "lora", name, r).counts().trained
    assert said(plain, lora)
    assert said(4 * plain, lora_bytes)
    ours = adapter(models, "vera", name, r)
    number = ours.counts().trained
    pair = sum(tensor.numel() for tensor in ours.shared.values())
    assert pair == 2 * SHAPES[name][2] * r
    assert number == 2 * SHAPES[name][1] * (SHAPES[name][2] + r)  # the paper's L (d + r)
    told = number + pair if with_pair else number
    if vera is not None:
        assert said(told, vera)
    assert said(4 * told, vera_bytes)


def test_of_roberta_large_at_rank_16_the_papers_number_is_not_its_bytes(models):
    number = adapter(models, "vera", "roberta-large", 16).counts().trained
    assert number == 49_920
    assert not said(number, (49.5 * K, 0.1 * K))
    assert round(4 * number / KB) == 195
