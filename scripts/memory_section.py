"""What LoRA-FA leaves out of memory, for its page: table and prose out of what benchmarks/lora_fa_memory.py found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from page_parts import grid, read

LLAMA_3B = {"hidden": 3072, "blocks": 28}
PEFTS_ROWS, PEFTS_TOKENS = 4, 768
PEFTS_2025 = (22_273_851_392, 20_187_185_152)
"""`cuda_memory_max` of LoRA and of LoRA-FA, rank 32 on q and v: method_comparison/MetaMathQA/results of PEFT's
repository, lora--llama-3.2-3B-rank32.json and …-lorafa.json, runs of 2025-06-19 on one kind of card."""


def memory_section() -> str:
    results = read("*-lora-fa-memory-*.json")
    if not results:
        return ""
    file, result = next(reversed(results.items()))
    contenders, lengths = result["contenders"], sorted(result["settings"]["lengths"])
    longest = str(lengths[-1])
    lora, frozen = contenders["lora"], contenders["lora-fa"]
    kept, process = (saved(lora[longest]["plain"], frozen[longest]["plain"], key) for key in ("held", "peak"))
    again, process_again = (
        saved(lora[longest]["recompute"], frozen[longest]["recompute"], key) for key in ("held", "peak")
    )
    rows = [
        [
            f"{length:,} tokens{', recomputed' * (kind == 'recompute')}",
            *(mega(one[str(length)][kind]["held_bytes"]) for one in (lora, frozen)),
            f"{saved(lora[str(length)][kind], frozen[str(length)][kind], 'held')} %",
            *(mega(one[str(length)][kind]["peak_bytes"]) for one in (lora, frozen)),
        ]
        for length in lengths
        for kind in ("plain", "recompute")
    ]
    pefts = [
        [name, *(mega(contenders[one][longest]["plain"]["held_bytes"]) for one in (first, second))]
        for name, first, second in (
            ("here, all linear layers", "lora", "lora-fa"),
            ("PEFT, all linear layers", "peft", "peft, A frozen"),
            ("PEFT, q and v", "peft q v", "peft q v, A frozen"),
        )
    ]
    learned = contenders["lora"]["trained"] - contenders["lora-fa"]["trained"]
    per_token = 2 * 4 * LLAMA_3B["hidden"] * LLAMA_3B["blocks"]
    tokens = PEFTS_ROWS * PEFTS_TOKENS
    return f"""## What it saves

Bytes that autograd keeps in the blocks from the forward for the backward pass, every tensor counted once, the weights
left out (the head and the loss keep the same with both); with recomputation the inputs of the blocks and one block's
own. SmolLM2-135M in {result["settings"]["dtype"]}, all linear layers, rank {result["settings"]["r"]}, one row
(`benchmarks/lora_fa_memory.py`, {result["date"][:10]}, [raw](../benchmarks/results/{file})). The process is all that
was resident at the peak, libraries and weights too, in one run each: some tens of MB of it are noise.

{grid(["", "LoRA keeps", "LoRA-FA keeps", "saved", "process, LoRA", "process, LoRA-FA"], rows)}
**About a third of the activations, much less of the whole.** At {int(longest):,} tokens {kept} % of what is kept is
{process} % of the process; with recomputation it is {again} % and {process_again} %. The gain grows with the tokens and
with nothing else. LoRA keeps three inputs of a block that nobody else needs: that of q, k and v, that of gate and up,
and that of the MLP's last matrix. The input of attention's output projection is kept by attention anyway, and what
norms, SwiGLU and attention keep no frozen A spares. Beside that, A's gradient and moments go: {learned:,} numbers here,
{mega(12 * learned)}.

**With dropout the same bytes are kept**, by both methods: a mask is a function of its seed, and the backward pass draws
it again (`--dropout 0.05` counts it). So LoRA-FA saves as much with dropout as without.

**Two public results against the paper, and each other.** The paper says up to 1.4 times less memory in all. PEFT's
comparison (Llama-3.2-3B, q and v, {PEFTS_ROWS} rows of at most {PEFTS_TOKENS} tokens) said in June 2025
{PEFTS_2025[1] / 1e9:.1f} against LoRA's {PEFTS_2025[0] / 1e9:.1f} GB, and in July 2026 22.2 against 22.3 GB: no saving.
A step took it about 1.2 times LoRA's time in both. The same count for PEFT {result["settings"]["peft"]} at
{int(longest):,} tokens:

{grid(["", "A learns", "A frozen"], pefts)}
- **The paper is right that the input need not be kept**, and PEFT's graph lets it go. PEFT's LoRA casts the input to
  fp32 for every matrix and keeps each copy. On Llama-3.2-3B that makes {per_token:,} bytes a token for q and v,
  {per_token * tokens / 1e9:.2f} GB for the largest batch there can be. In June 2025 it saved
  {(PEFTS_2025[0] - PEFTS_2025[1]) / 1e9:.2f} GB.
- **How much it saves is how wasteful LoRA was.** Ours keeps each input once, in the activations' own dtype: on all
  linear layers {mega(contenders["lora"][longest]["plain"]["held_bytes"])}, where PEFT's LoRA keeps
  {mega(contenders["peft"][longest]["plain"]["held_bytes"])} and its LoRA-FA
  {mega(contenders["peft, A frozen"][longest]["plain"]["held_bytes"])}. A factor of 1.4 in all is what a LoRA without
  recomputation can lose where activations are most of the memory.
- **The run of July 2026** is not explained by what autograd keeps. What set its peak we do not know.
- **The time** is PEFT's own: its LoRA-FA is an optimizer that inverts a matrix for every layer, one after the other in
  Python. Ours takes LoRA's time ([methods](methods.md)).

So: take it when long rows do not fit and recomputation is too slow. With recomputation on, it saves next to nothing.
"""


def saved(plain: Mapping[str, Any], frozen: Mapping[str, Any], key: str) -> str:
    """Percent."""
    return f"{100 * (1 - frozen[f'{key}_bytes'] / plain[f'{key}_bytes']):.0f}"


def mega(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
