"""Memory and time of LoRA beside a base in few bits (QLoRA and its like) against LoRA beside a plain one.

Each storage of each model runs in a process of its own: one step to warm up, then the counted ones, 4,096 tokens each
in one micro-step, all of them learned. The sizes: the demo's model, and two random ones, wider and of few blocks.

python benchmarks/storages.py                         all sizes and storages, two rounds of three steps
python benchmarks/storages.py --sizes 135m --rounds 4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from prepare import REPOSITORY, make_model, make_rows
from result import Result, load_average, warn_if_busy

TOKENS = 4096
STORAGES = ("plain", "nf4", "nf4-double", "int8")
WIDE = {"wide-1024": (1024, 2816, 6), "wide-2048": (2048, 5632, 3)}
"""Name -> hidden size, middle of the MLP, blocks of a random Llama."""
SIZES = ("135m", *WIDE)


def model_of(size: str, cache: Path) -> Path:
    """The folder of the model called `size`; a random one borrows the small one's tokenizer."""
    small = make_model()
    if size not in WIDE:
        return small
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hidden, middle, blocks = WIDE[size]
    tokenizer = AutoTokenizer.from_pretrained(small)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    folder = cache / size
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(model: Path, rows: Path, storage: str, steps: int) -> dict[str, Any]:
    """In this process: seconds of each step, and the most memory resident while loading and while training."""
    import torch
    from methods import stepper

    from tunesmith.train.memory import peak_bytes, reset_peak

    device, data = torch.device("cpu"), json.loads(rows.read_text())
    data["rows_per_step"] = TOKENS // len(data["rows"][0]["input_ids"])
    reset_peak(device)
    take = stepper("lora", model, data, storage, TOKENS)
    loading = peak_bytes(device)
    reset_peak(device)
    seconds = [take() for _ in range(steps + 1)][1:]
    return {
        "seconds": seconds,
        "peak_bytes_loading": loading,
        "peak_bytes_training": peak_bytes(device),
        "dtype": take.dtype,
        "matrix_bytes": take.matrix_bytes,
    }


def child(model: Path, rows: Path, storage: str, steps: int) -> dict[str, Any]:
    arguments = ["--child", str(model), str(rows), storage, "--steps", str(steps)]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of one storage: every second, the median, and the largest peaks."""
    seconds = [second for run in runs for second in run["seconds"]]
    peaks = {key: max(run[key] for run in runs) for key in ("peak_bytes_loading", "peak_bytes_training")}
    first = {key: runs[0][key] for key in ("dtype", "matrix_bytes")}
    return {"median_seconds": median(seconds), "fastest": min(seconds), "seconds": seconds, **peaks, **first}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--storages", default=",".join(STORAGES), help="the first is what others are compared with")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "ROWS", "STORAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        model, rows, storage = options.child
        print(json.dumps(measure(Path(model), Path(rows), storage, options.steps)))
        return 0
    before, storages = warn_if_busy(), options.storages.split(",")
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows("documents", make_model(), Path(folder))
        for size in options.sizes.split(","):
            model = model_of(size, Path(folder))
            runs: dict[str, list[dict[str, Any]]] = {storage: [] for storage in storages}
            for _ in range(options.rounds):
                for storage in storages:
                    runs[storage].append(child(model, rows, storage, options.steps))
            contenders = {storage: joined(taken) for storage, taken in runs.items()}
            first = contenders[storages[0]]
            ratios = {name: first["median_seconds"] / one["median_seconds"] for name, one in contenders.items()}
            for name, one in contenders.items():
                print(
                    f"{size:10} {name:11} median {one['median_seconds']:.2f} s, {1 / ratios[name]:.3f} of "
                    f"{storages[0]}'s time, peak in training {one['peak_bytes_training'] / 1e6:,.0f} MB, "
                    f"matrices {one['matrix_bytes'] / 1e6:,.0f} MB, {one['dtype']}",
                    flush=True,
                )
            result = Result(
                benchmark="storages",
                subject=size,
                settings={"tokens": TOKENS, "rounds": options.rounds, "steps": options.steps, "method": "lora"},
                load_average={"before": before, "after": load_average()},
                contenders=contenders,
                ratios=ratios,
            )
            if not options.no_write:
                print(f"written: {result.write().relative_to(REPOSITORY)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
