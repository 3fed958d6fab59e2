"""Time of a training step of each adapter method beside LoRA's: same rows and targets, steps taken in turn.

python benchmarks/methods.py                    every method at its default rank, eight rounds after one to warm up
python benchmarks/methods.py --methods lora,dora --rounds 20
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from contender import IGNORED
from prepare import REPOSITORY, make_model, make_rows
from result import Result, load_average, warn_if_busy

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.data.types import Example, Origin
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.policy import probe
from tunesmith.models.settings import ModelSettings
from tunesmith.objectives.sft import SFT
from tunesmith.train.mode import train_mode

MICRO_TOKENS = 1024


def stepper(
    method: str, model: Path, rows: dict[str, Any], storage: str = "auto", micro_tokens: int = MICRO_TOKENS
) -> Any:
    """A function that takes one step of `method` on the first rows and returns its seconds."""
    settings = ModelSettings.model_validate({"name": str(model), "storage": storage})
    loaded, switch = load_model(settings, load_tokenizer(settings)), Switch()
    adapter_set = add(loaded.model, switch, METHODS[method].Settings(), name="trained", seed=0)
    policy, _ = probe(loaded.model, switch)
    switch.name = "trained"
    train_mode(policy, recompute=False)
    examples = []
    for number, row in enumerate(rows["rows"][: rows["rows_per_step"]], 1):
        weights = (np.array(row["labels"]) != IGNORED).astype(np.float32)
        examples.append(Example(np.array(row["input_ids"], dtype=np.int64), weights, Origin("rows", number)))
    objective = SFT(examples, (), batch_size=len(examples), seed=0, shuffle=False)
    step = next(objective.steps(policy))
    optimizer = torch.optim.AdamW(adapter_set.parameters().values(), lr=2e-4, foreach=True)

    def take() -> float:
        begun = time.perf_counter()
        for batch in objective.micro_batches(step, micro_tokens):
            (objective.loss(policy, batch).sums["loss"] / step.denominators["loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    take.dtype = str(loaded.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
    matrices = [module for path, module in adapter_set.body.matrices.items() if path in adapter_set.targets.adapted]
    take.matrix_bytes = sum(
        tensor.nbytes for module in matrices for tensor in (*module.parameters(), *module.buffers())
    )
    return take


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="the first is what others are compared with")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    before, model = warn_if_busy(), make_model()
    with tempfile.TemporaryDirectory() as folder:
        rows = json.loads(make_rows("alpaca", model, Path(folder)).read_text())
    steppers = {method: stepper(method, model, rows) for method in options.methods.split(",")}
    seconds: dict[str, list[float]] = {method: [] for method in steppers}
    for number in range(options.rounds + 1):
        for method, take in steppers.items():
            spent = take()
            if number:  # the first one compiles shapes
                seconds[method].append(spent)
    first = next(iter(seconds))
    ratios = {
        name: median(a / b for a, b in zip(taken, seconds[first], strict=True)) for name, taken in seconds.items()
    }
    result = Result(
        benchmark="methods",
        subject=first,
        settings={"rounds": options.rounds, "micro_batch_tokens": MICRO_TOKENS},
        load_average={"before": before, "after": load_average()},
        contenders={
            name: {"median_seconds": median(t), "fastest": min(t), "seconds": t} for name, t in seconds.items()
        },
        ratios=ratios,
        measures={},
    )
    for name, taken in seconds.items():
        print(
            f"{name:10} median {median(taken):.2f} s, fastest {min(taken):.2f} s, {ratios[name]:.2f} of {first}'s time"
        )
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
