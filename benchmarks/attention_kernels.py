"""Attention of many documents, ours against torch's flash kernel called for each; and what a new shape costs in bf16.

    python benchmarks/attention_kernels.py          best of 40 calls each, about half a minute

Times are milliseconds of forward and backward together, in one process, the kernels taking turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from result import Result, load_average, num_cores, warn_if_busy
from torch import Tensor

from tunesmith.data.types import Segment
from tunesmith.kernels import native
from tunesmith.kernels.flat_attention import flat_attention
from tunesmith.models.attention import _FlatCPU

CASES = {
    "eight documents of 60 to 400": [60, 110, 160, 210, 250, 300, 350, 400],
    "two of 512": [512, 512],
    "400": [400],
}
HEADS, GROUPS, DIM = 9, 3, 64


def once(attend: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(attend(*inputs), inputs, grad)
    return 1e3 * (time.perf_counter() - start)


def attention(lengths: list[int], calls: int) -> dict[str, float]:
    """Best milliseconds by kernel."""
    tokens, bounds = sum(lengths), torch.tensor([0, *lengths]).cumsum(0)
    edges = bounds.tolist()
    segments = tuple(Segment(start, end) for start, end in itertools.pairwise(edges))
    scale = DIM**-0.5
    best: dict[str, float] = {}
    for dtype, word in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        inputs = [torch.randn(tokens, heads, DIM).to(dtype).requires_grad_() for heads in (HEADS, GROUPS, GROUPS)]
        grad = torch.randn(tokens, HEADS, DIM).to(dtype)
        turned = [x.detach().transpose(0, 1).requires_grad_() for x in inputs]
        for _ in range(calls):
            ours = once(lambda q, k, v: flat_attention(q, k, v, bounds, scale), inputs, grad)
            flash = once(lambda q, k, v: _FlatCPU.apply(q, k, v, segments, scale), turned, grad.transpose(0, 1))
            for name, spent in ((f"ours, {word}", ours), (f"torch flash by document, {word}", flash)):
                best[name] = min(best.get(name, spent), spent)
    return best


def new_shape(repeats: int = 8) -> dict[str, float]:
    """Median milliseconds of a product [n, 576] x [576, 1536] when n is new, and when it was seen before."""
    weight = torch.randn(1536, 576).bfloat16()
    seen: list[float] = []
    new: list[float] = []
    for n in range(901, 901 + repeats):
        x = torch.randn(n, 576).bfloat16()
        for spent in (new, seen, seen, seen):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            spent.append(1e3 * (time.perf_counter() - start))
    return {"new shape": statistics.median(new), "shape seen before": statistics.median(seen)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    before = warn_if_busy()
    table = {name: attention(lengths, options.calls) for name, lengths in CASES.items()}
    table["bf16 product, 1.6 GFLOP"] = new_shape()
    for case, row in table.items():
        print(case, *(f"  {name}: {spent:.2f} ms" for name, spent in row.items()), sep="\n")
    result = Result(
        benchmark="kernels",
        subject="",
        settings={"heads": HEADS, "groups": GROUPS, "dim": DIM, "calls": options.calls, "threads": num_cores()},
        load_average={"before": before, "after": load_average()},
        contenders=table,
        ratios={
            f"torch flash by document, {word} ({case})": row[f"torch flash by document, {word}"] / row[f"ours, {word}"]
            for case, row in table.items()
            for word in ("fp32", "bf16")
            if f"ours, {word}" in row
        },
        measures={"matrix tiles": native.has_tiles(), "compiled kernels": native.why_not() or "yes"},
    )
    if not options.no_write:
        print(f"written: {result.write().name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
