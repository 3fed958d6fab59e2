"""Seconds of a pass over the rows when the last blocks alone learn, with what the frozen ones give stored and without.

python benchmarks/frozen_blocks.py                          LoRA and full, last 1, 2, 4, 8 blocks
python benchmarks/frozen_blocks.py --methods lora --blocks 2,4 --rows 128
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
from tunesmith.adapters.adapter_set import add, unload
from tunesmith.adapters.attach import Switch
from tunesmith.data.types import Example, Origin
from tunesmith.models.frozen import Activations, Blocks, distinct, fill, find
from tunesmith.models.frozen_file import Folder, key
from tunesmith.models.load import Loaded, load_model, load_tokenizer
from tunesmith.models.policy import Policy, probe
from tunesmith.models.settings import ModelSettings
from tunesmith.objectives.sft import SFT
from tunesmith.train.mode import train_mode

MICRO_TOKENS = 1024


def stored_in(folder: Path, blocks: Blocks, examples: list[Example]) -> tuple[Activations, dict[str, float]]:
    """What the frozen blocks give, by way of the disk as a run does it; seconds of making it, and its bytes."""
    begun = time.perf_counter()
    rows, starts = distinct(examples)
    place = Folder(folder, key(blocks, starts, MICRO_TOKENS), (sum(map(len, rows)), blocks.width), blocks.dtype)
    with place.making() as write:
        for _ in fill(blocks, rows, starts, MICRO_TOKENS, write):
            pass
    seconds = time.perf_counter() - begun
    return Activations(blocks, place.table(), starts), {"fill_seconds": seconds, "bytes": place.num_bytes}


def a_pass(policy: Policy, objective: SFT, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """(seconds, mean loss) of one pass over all rows."""
    begun, total, weight = time.perf_counter(), 0.0, 0.0
    steps = objective.steps(policy)
    for _ in range(objective.steps_per_epoch):
        step = next(steps)
        for batch in objective.micro_batches(step, MICRO_TOKENS):
            loss = objective.loss(policy, batch).sums["loss"]
            (loss / step.denominators["loss"]).backward()
            total += loss.item()
        weight += step.denominators["loss"]
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - begun, total / weight


def measure(loaded: Loaded, method: str, last: int, examples: list[Example], batch_size: int, rounds: int) -> Any:
    """First all passes without stored states, then all with; the adapter begins anew for each kind."""
    switch = Switch()
    adapter_set = add(loaded.model, switch, METHODS[method].Settings(last_blocks=last), name="trained", seed=0)
    policy, _ = probe(loaded.model, switch)
    switch.name = "trained"
    train_mode(policy, recompute=False)
    start = {name: tensor.clone() for name, tensor in adapter_set.state().items()}
    blocks = find(policy, adapter_set)
    if isinstance(blocks, str):
        raise SystemExit(blocks)
    found: dict[str, Any] = {"trained": adapter_set.counts().trained, "frozen_blocks": blocks.frozen}
    with tempfile.TemporaryDirectory() as folder:
        states, facts = stored_in(Path(folder), blocks, examples)
        found |= facts
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        losses: dict[str, list[float]] = {"without": [], "with": []}
        kinds = []
        for name, given in (("without", None), ("with", states)):
            objective = SFT(examples, (), batch_size=batch_size, seed=0, shuffle=False)
            optimizer = torch.optim.AdamW(adapter_set.parameters().values(), lr=1e-4 if method == "lora" else 1e-5)
            kinds.append((name, given, objective, optimizer))
        for name, given, objective, optimizer in kinds:
            adapter_set.load_state(start)
            policy.stored = given
            for number in range(rounds + 1):
                spent, loss = a_pass(policy, objective, optimizer)
                losses[name].append(loss)
                if number:  # the first one compiles shapes
                    seconds[name].append(spent)
    unload(loaded.model, "trained")
    return found | {"seconds": seconds, "losses": losses}


def read_rows(model: Path, count: int) -> tuple[list[Example], int]:
    with tempfile.TemporaryDirectory() as folder:
        rows = json.loads(make_rows("alpaca", model, Path(folder)).read_text())
    examples = []
    for number, row in enumerate(rows["rows"][:count], 1):
        weights = (np.array(row["labels"]) != IGNORED).astype(np.float32)
        examples.append(Example(np.array(row["input_ids"], dtype=np.int64), weights, Origin("rows", number)))
    return examples, rows["rows_per_step"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--blocks", default="1,2,4,8", help="how many blocks learn")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2, help="passes that are timed, after one that is not")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    before, model = warn_if_busy(), make_model()
    examples, batch_size = read_rows(model, options.rows)
    settings = ModelSettings(name=str(model))
    loaded = load_model(settings, load_tokenizer(settings))
    found, ratios = {}, {}
    for method in options.methods.split(","):
        for last in map(int, options.blocks.split(",")):
            name = f"{method}, last {last}"
            one = found[name] = measure(loaded, method, last, examples, batch_size, options.rounds)
            without, stored = (median(one["seconds"][kind]) for kind in ("without", "with"))
            ratios[name] = without / stored
            apart = max(abs(a / b - 1) for a, b in zip(one["losses"]["with"], one["losses"]["without"], strict=True))
            print(
                f"{name:14} a pass {without:6.2f} s, stored {stored:6.2f} s: {without / stored:.2f} times as fast; "
                f"filled in {one['fill_seconds']:.2f} s, {one['bytes'] / 1e6:.1f} MB; losses {apart:.1e} apart",
                flush=True,
            )
    result = Result(
        benchmark="frozen-blocks",
        subject="smollm2-135m",
        settings={
            "rows": len(examples),
            "tokens": sum(map(len, examples)),
            "rows_per_step": batch_size,
            "micro_batch_tokens": MICRO_TOKENS,
            "rounds": options.rounds,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
        load_average={"before": before, "after": load_average()},
        contenders=found,
        ratios=ratios,
    )
    if not options.no_write:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
