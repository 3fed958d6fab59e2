"""Hot swap in process: what it costs to answer with another adapter, and proof that the answers are the adapter's own.

swap      set the switch to a loaded adapter: seconds, and bytes of memory added
cold      load an adapter from its folder beside the others: seconds, bytes it holds, bytes read from the disk
equality  a batch that mixes base and two adapters against each of them alone: tokens and log-probabilities

python benchmarks/hotswap.py [--model FOLDER] [--rank 8] [--rows 12] [--no-write]
"""

from __future__ import annotations

import argparse
import gc
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from result import Result, load_average, warn_if_busy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.adapters import store
from tunesmith.adapters.adapter_set import AdapterSet, add, unload
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.identity import identify
from tunesmith.adapters.lora import Settings
from tunesmith.models.generate import generate

QUESTIONS = ("Name a river.", "What is 2 + 2?", "Write a haiku about rain.", "Who was Ada Lovelace?")


def resident_bytes() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_bytes() -> int:
    """What this process has read through system calls so far, cached or not."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar"):
            return int(line.split()[1])
    return 0


def adapters_on_disk(model, switch: Switch, folder: Path, rank: int) -> list[Path]:
    """Two adapters whose every tensor is random, saved and taken out of the model again."""
    paths = []
    for seed, name in enumerate(("one", "two")):
        made: AdapterSet = add(model, switch, Settings(r=rank), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters().values():
                parameter.normal_(std=0.02, generator=generator)
        paths.append(store.save(folder / name, made, identify(model)))
        unload(model, name)
    return paths


def measure_cold(model, switch: Switch, paths: list[Path], repeats: int) -> dict[str, float]:
    seconds, read = [], []
    for _ in range(repeats):
        before, started = read_bytes(), time.perf_counter()
        store.load(paths[1], model, switch, "again")
        seconds.append(time.perf_counter() - started)
        read.append(read_bytes() - before)
        unload(model, "again")
    return {
        "seconds": median(seconds),
        "bytes_read": median(read),
        "folder_bytes": sum(file.stat().st_size for file in paths[1].iterdir()),
    }


def measure_swap(switch: Switch, repeats: int = 10_000) -> dict[str, float]:
    before, started = resident_bytes(), time.perf_counter()
    for turn in range(repeats):
        with switch.set_to("one" if turn % 2 else "two"):
            pass
    seconds = (time.perf_counter() - started) / repeats
    return {"seconds": seconds, "bytes": resident_bytes() - before}


def measure_equality(model, switch: Switch, prompts: list[list[int]], eos_ids: list[int]) -> dict[str, float]:
    names = [("one", None, "two")[i % 3] for i in range(len(prompts))]
    options = {"max_new_tokens": 24, "eos_ids": eos_ids, "switch": switch, "want_logprobs": True}
    mixed = generate(model, prompts, adapters=names, **options)
    alone = [generate(model, [p], adapters=[n], **options)[0] for p, n in zip(prompts, names, strict=True)]
    gaps = []
    for ours, own in zip(mixed, alone, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(ours.token_ids, own.token_ids, strict=False)) if a != b), None)
        pairs = list(zip(ours.logprobs, own.logprobs, strict=False))[:same]
        gaps += [abs(a - b) for a, b in pairs]
    return {
        "rows": len(prompts),
        "rows_with_equal_tokens": sum(m.token_ids == o.token_ids for m, o in zip(mixed, alone, strict=True)),
        "largest_logprob_gap": max(gaps),
        "different_answers_of_the_first_three": len({tuple(o.token_ids) for o in alone[:3]}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; the demo's model if not given")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7, help="cold loads")
    parser.add_argument("--no-write", action="store_true", help="print alone")
    given = parser.parse_args()
    if given.model is None:
        from tunesmith.demo.small_model import small_model_folder

        given.model = str(small_model_folder(print))
    busy = {"before": warn_if_busy()}
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    turns = [[{"role": "user", "content": f"{QUESTIONS[i % 4]} ({i})"}] for i in range(given.rows)]
    prompts = [
        tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"] for turn in turns
    ]
    switch = Switch()
    with tempfile.TemporaryDirectory() as folder:
        paths = adapters_on_disk(model, switch, Path(folder), given.rank)
        loaded = [store.load(path, model, switch, path.name) for path in paths]
        held = sum(parameter.nbytes for parameter in loaded[0].parameters().values())
        cold = measure_cold(model, switch, paths, given.repeats) | {"tensor_bytes": held}
    measures = {
        "swap": measure_swap(switch),
        "cold": cold,
        "equality": measure_equality(model, switch, prompts, [tokenizer.eos_token_id]),
    }
    for name, values in measures.items():
        print(f"{name:<9}", ", ".join(f"{key} {value:.3g}" for key, value in values.items()))
    busy["after"] = load_average()
    settings = {"model": Path(given.model).name, "rank": given.rank, "dtype": "float32", "rows": given.rows}
    result = Result("hotswap", "", settings, busy, {"tunesmith": measures}, {}, measures)
    if not given.no_write:
        print(result.write())


if __name__ == "__main__":
    main()
