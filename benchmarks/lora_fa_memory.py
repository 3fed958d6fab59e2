"""Bytes that a micro-batch leaves for the backward pass: LoRA against LoRA-FA, which need not keep a layer's input.

Counted, not estimated: every tensor that autograd keeps between forward and backward, each storage once, the model's
own weights left out. Ours, and PEFT's LoRA with and without a frozen A (all that its LoRA-FA optimizer changes in the
graph), on all linear layers and on q and v alone, as PEFT's own comparison has it. A process for each contender.

    kept_bytes        in the embedding, the blocks and the last norm; with recomputation: before it
    block_bytes       of these, one block's in the middle: what recomputation makes again, one block at a time
    head_bytes        in the head and the loss
    held_bytes        kept_bytes, and with recomputation one block's beside: the most that is held at once
    peak_bytes        of ours: most memory resident in the process, libraries and weights included, forward and backward

python benchmarks/lora_fa_memory.py
python benchmarks/lora_fa_memory.py --lengths 512 --contenders "lora;lora-fa" --dropout 0.05
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from prepare import REPOSITORY, document_rows, make_model
from result import Result, load_average, warn_if_busy
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tunesmith.train.memory import peak_bytes, reset_peak

CONTENDERS = ("lora", "lora-fa", "peft", "peft, A frozen", "peft q v", "peft q v, A frozen")
"""In pairs: A learns, A does not."""
RANK, ALPHA = 8, 16
CPU = torch.device("cpu")


@dataclass
class Trained:
    """A model with an adapter that learns, and its loss on a row of so many tokens."""

    model: Any
    loss: Callable[[Tensor], Tensor]
    recompute: Callable[[bool], None]
    trained: int


def ours(method: str, folder: Path, dropout: float) -> Trained:
    from tunesmith.adapters import METHODS
    from tunesmith.adapters.adapter_set import add
    from tunesmith.adapters.attach import Switch
    from tunesmith.data.pack import micro_batches
    from tunesmith.data.types import Example, Origin
    from tunesmith.models.load import load_model, load_tokenizer
    from tunesmith.models.policy import probe
    from tunesmith.models.settings import ModelSettings
    from tunesmith.objectives.sft import SFT
    from tunesmith.train.mode import train_mode

    settings, switch = ModelSettings(name=str(folder), dtype="bfloat16"), Switch()
    loaded = load_model(settings, load_tokenizer(settings))
    adapter = METHODS[method].Settings(r=RANK, alpha=ALPHA, dropout=dropout)
    adapter_set = add(loaded.model, switch, adapter, name="trained", seed=0)
    policy, _ = probe(loaded.model, switch)
    switch.name = "trained"

    def loss(ids: Tensor) -> Tensor:
        example = Example(ids.numpy(), torch.ones(len(ids)).numpy(), Origin("rows", 1))
        (batch,) = micro_batches([example], len(ids))
        return SFT([example], (), batch_size=1, seed=0, shuffle=False).loss(policy, batch).sums["loss"] / len(ids)

    def recompute(on: bool) -> None:
        if on:
            loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
        train_mode(policy, on)

    return Trained(loaded.model, loss, recompute, adapter_set.counts().trained)


def pefts(name: str, folder: Path, dropout: float) -> Trained:
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    targets: Any = ["q_proj", "v_proj"] if "q v" in name else "all-linear"
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    model: Any = peft.get_peft_model(base, config)
    model.config.use_cache = False
    for path, parameter in model.named_parameters():
        if "A frozen" in name and "lora_A" in path:
            parameter.requires_grad_(False)

    def recompute(on: bool) -> None:
        if on:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Trained(base, lambda ids: model(input_ids=ids[None], labels=ids[None]).loss, recompute, trained)


def running_text(folder: Path, length: int) -> Tensor:
    """[length] token ids."""
    from transformers import AutoTokenizer

    rows = document_rows(AutoTokenizer.from_pretrained(folder))[2]
    needed = -(-length // len(rows[0]["input_ids"]))
    return torch.tensor([token for row in rows[:needed] for token in row["input_ids"]])[:length]


def kept(one: Trained, ids: Tensor) -> Counter[str | int]:
    """Bytes that autograd keeps, by where they were kept first: a block's number, "between" (blocks), "head"."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*one.model.parameters(), *one.model.buffers())}
    found: dict[int, tuple[str | int, int]] = {}
    place: list[str | int] = ["between"]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found.setdefault(storage.data_ptr(), (place[0], storage.nbytes()))
        return tensor.detach()  # shares the storage, which lives as long as the graph: no address is used twice

    def to(there: str | int) -> Callable[..., None]:
        return lambda *_: place.__setitem__(0, there)

    backbone = one.model.base_model
    handles = [backbone.register_forward_hook(to("head"))]
    blocks: nn.ModuleList = backbone.layers
    for number, block in enumerate(blocks):
        handles += [block.register_forward_pre_hook(to(number)), block.register_forward_hook(to("between"))]
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = one.loss(ids)
    finally:
        for handle in handles:
            handle.remove()
    assert loss.requires_grad
    bytes_at: Counter[str | int] = Counter()
    for where, size in found.values():
        bytes_at[where] += size
    return bytes_at


def measure(name: str, folder: Path, recompute: bool, dropout: float, lengths: list[int]) -> dict[str, Any]:
    """In this process: by length, what is kept and the peak."""
    one = (pefts if name.startswith("peft") else ours)(name, folder, dropout)
    one.recompute(recompute)
    answer: dict[str, Any] = {"trained": one.trained}
    row = running_text(folder, max(lengths))
    for length in sorted(lengths):
        peak: dict[str, int] = {}
        if not name.startswith("peft"):
            gc.collect()
            reset_peak(CPU)
            one.loss(row[:length]).backward()
            peak["peak_bytes"] = peak_bytes(CPU)
        by_place = kept(one, row[:length])
        head, total = by_place["head"], sum(by_place.values())
        middle = by_place[one.model.config.num_hidden_layers // 2]
        answer[str(length)] = {"kept_bytes": total - head, "block_bytes": middle, "head_bytes": head, **peak}
    return answer


def child(name: str, folder: Path, recompute: bool, dropout: float, lengths: str) -> dict[str, Any]:
    arguments = ["--child", name, str(folder), str(int(recompute)), "--dropout", str(dropout), "--lengths", lengths]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def joined(plain: dict[str, Any], recomputed: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
    """Both runs of a contender; with recomputation the most that is held is what is kept and one block's own."""
    found: dict[str, Any] = {"trained": plain["trained"]}
    for length in map(str, lengths):
        again = recomputed[length] | {"block_bytes": plain[length]["block_bytes"]}
        for cell, block in ((plain[length], 0), (again, again["block_bytes"])):
            cell["held_bytes"] = cell["kept_bytes"] + block
        found[length] = {"plain": plain[length], "recompute": again}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="128,512,2048", help="tokens of the one row")
    parser.add_argument("--contenders", default=";".join(CONTENDERS), help="with ; between them")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters' inputs; with it, print only")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--child", nargs=3, metavar=("CONTENDER", "MODEL", "RECOMPUTE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    lengths = [int(word) for word in options.lengths.split(",")]
    if options.child:
        name, folder, recompute = options.child
        print(json.dumps(measure(name, Path(folder), recompute == "1", options.dropout, lengths)))
        return 0
    before, model = warn_if_busy(), make_model()
    found: dict[str, dict[str, Any]] = {}
    for name in options.contenders.split(";"):
        runs = [child(name, model, recompute, options.dropout, options.lengths) for recompute in (False, True)]
        found[name] = joined(runs[0], runs[1], lengths)
        for length in map(str, lengths):
            for kind, cell in found[name][length].items():
                figures = ", ".join(f"{key.removesuffix('_bytes')} {value / 1e6:.1f}" for key, value in cell.items())
                print(f"{name:20} {length:>5} tokens, {kind:9} MB: {figures}", flush=True)
    names = list(found)
    ratios = {
        f"{frozen}, {length}, {kind}": found[learns][length][kind]["held_bytes"] / cell["held_bytes"]
        for learns, frozen in zip(names[::2], names[1::2], strict=False)
        for length in map(str, lengths)
        for kind, cell in found[frozen][length].items()
    }
    result = Result(
        benchmark="lora-fa-memory",
        subject="smollm2-135m",
        settings={
            "lengths": lengths,
            "r": RANK,
            "dtype": "bfloat16",
            "rows": 1,
            "targets": "all-linear, or q v",
            "peft": metadata.version("peft"),
            "transformers": metadata.version("transformers"),
        },
        load_average={"before": before, "after": load_average()},
        contenders=found,
        ratios=ratios,
    )
    if not options.no_write and not options.dropout:
        print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
