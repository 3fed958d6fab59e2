"""How fast this machine multiplies matrices of a model's shapes, and how much of that one token of training needs.

Run as a program (`python products.py MODEL_FOLDER THREADS`) it prints one JSON line of measured rates, FLOP/s.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROWS = 1024
"""Tokens in a measured product: about what one optimizer step feeds through a layer at once."""
HEAD_ROWS = 512
"""Rows of a head product: larger ones run at half the rate on the processors measured, so nobody should use them."""


def block_shapes(config: dict[str, Any]) -> dict[tuple[int, int], int]:
    """(in, out) -> how many such matrices one block of a Llama-shaped model has."""
    d, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[tuple[int, int], int] = {}
    for shape in [(d, q), (d, kv), (d, kv), (q, d), (d, inner), (d, inner), (inner, d)]:
        shapes[shape] = shapes.get(shape, 0) + 1
    return shapes


def useful_flops(config: dict[str, Any], row_lengths: list[int], num_learned: int) -> dict[str, float]:
    """FLOPs that LoRA training cannot do without: 4 N per token (forward 2 N, input gradient 2 N).

    The head counts for learned tokens only. Causal attention counts 2 S d per token and layer forward (scores and
    values over half the square) and 2.5 times that backward. The adapters' own products (2 to 5 %) are left out.
    """
    layers = config["num_hidden_layers"]
    num_tokens = sum(row_lengths)
    matrices = layers * sum(n_in * n_out * count for (n_in, n_out), count in block_shapes(config).items())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    width = config["num_attention_heads"] * head_dim
    return {
        "blocks": 4.0 * matrices * num_tokens,
        "head": 4.0 * config["hidden_size"] * config["vocab_size"] * num_learned,
        "attention": 7.0 * width * layers * sum(length * length for length in row_lengths),
    }


def seconds_per_call(call: Any, at_least: float = 0.25) -> float:
    """Median seconds of one call, over calls that together take `at_least` seconds, after two unmeasured ones."""
    call()
    call()
    times: list[float] = []
    while sum(times) < at_least or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def measured_rates(config: dict[str, Any], threads: int) -> dict[str, Any]:
    """FLOP/s of forward and input-gradient products, each weighted by its share of a training step's products."""
    import torch

    torch.set_num_threads(threads)
    layers = config["num_hidden_layers"]
    products = [(n_in, n_out, ROWS, count * layers) for (n_in, n_out), count in block_shapes(config).items()]
    products.append((config["hidden_size"], config["vocab_size"], HEAD_ROWS, 1))
    rates: dict[str, Any] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        flops = seconds = 0.0
        shapes: dict[str, float] = {}
        for n_in, n_out, rows, count in products:
            weight = torch.randn(n_out, n_in).to(dtype)
            x, gradient = torch.randn(rows, n_in).to(dtype), torch.randn(rows, n_out).to(dtype)
            forward = seconds_per_call(lambda x=x, w=weight: torch.nn.functional.linear(x, w))
            backward = seconds_per_call(lambda g=gradient, w=weight: g @ w)
            work = 4.0 * rows * n_in * n_out
            shapes[f"{rows}x{n_in}x{n_out}"] = work / (forward + backward)
            flops += work * count
            seconds += (forward + backward) * count
        rates[name] = {"flop_per_second": flops / seconds, "by_shape": shapes}
    return rates


if __name__ == "__main__":
    print(json.dumps(measured_rates(json.loads((Path(sys.argv[1]) / "config.json").read_text()), int(sys.argv[2]))))
