"""Who runs in the speed benchmark, at which settings, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OURS = "tunesmith"


@dataclass(frozen=True)
class Contender:
    module: str
    """Run as `python -m module job.json` in this folder."""
    rival: str | None
    """Folder under `rivals/` whose environment runs it; None: the interpreter that runs this script."""
    variant: dict[str, Any]
    note: str


_TRL = {"weights": "bfloat16", "autocast": True, "checkpointing": False, "micro_batch_rows": 8}
_TRL_DEFAULTS = {"weights": "float32", "autocast": True, "checkpointing": True, "micro_batch_rows": 8}
CONTENDERS = {
    OURS: Contender("contenders.tunesmith_sft", None, {}, "this project, at its defaults"),
    "peft_trl_padded": Contender("rivals.peft_trl.train", "peft_trl", _TRL, "bf16 weights, no recomputation"),
    "peft_trl_unpadded": Contender(
        "rivals.peft_trl.train", "peft_trl", _TRL | {"micro_batch_rows": 1}, "the same, one row per forward pass"
    ),
    "peft_trl_padded_no_autocast": Contender(
        "rivals.peft_trl.train", "peft_trl", _TRL | {"autocast": False}, "padded, without autocast"
    ),
    "peft_trl_unpadded_no_autocast": Contender(
        "rivals.peft_trl.train",
        "peft_trl",
        _TRL | {"autocast": False, "micro_batch_rows": 1},
        "one row per forward pass, without autocast",
    ),
    "peft_trl_unpadded_fp32": Contender(
        "rivals.peft_trl.train",
        "peft_trl",
        _TRL | {"weights": "float32", "autocast": False, "micro_batch_rows": 1},
        "one row per forward pass, fp32 weights: faster than bf16 on some processors",
    ),
    "peft_trl_defaults": Contender(
        "rivals.peft_trl.train", "peft_trl", _TRL_DEFAULTS, "as TRL ships: fp32 weights, autocast, recomputation"
    ),
    "litgpt_unpadded": Contender(
        "rivals.litgpt.train",
        "litgpt",
        {"precision": "bf16-true", "micro_batch_rows": 1},
        "bf16-true, one row per forward pass as its script ships",
    ),
    "litgpt_padded": Contender(
        "rivals.litgpt.train",
        "litgpt",
        {"precision": "bf16-true", "micro_batch_rows": 8},
        "bf16-true, the step in one padded forward pass",
    ),
}
BEST_OF = {
    "peft_trl_best": (
        "peft_trl_padded",
        "peft_trl_unpadded",
        "peft_trl_padded_no_autocast",
        "peft_trl_unpadded_no_autocast",
    ),
    "peft_trl_fp32": ("peft_trl_unpadded_fp32",),
    "litgpt_best": ("litgpt_unpadded", "litgpt_padded"),
}
"""A claim against a rival is made against whichever of these settings was the fastest in the same run."""
METHODS = ("lora", "dora")
"""What `speed.py --method` can train; LitGPT has LoRA alone."""
DEFAULT_CONTENDERS = {
    "lora": (
        OURS, "peft_trl_padded", "peft_trl_unpadded_no_autocast", "peft_trl_unpadded_fp32", "peft_trl_defaults",
        "litgpt_unpadded",
    ),
    "dora": (OURS, "peft_trl_padded", "peft_trl_unpadded_no_autocast", "peft_trl_unpadded_fp32", "peft_trl_defaults"),
}  # fmt: skip
TARGETS = {
    ("alpaca", "lora"): {"peft_trl_best": 3.0, "litgpt_best": 3.0},
    ("alpaca", "dora"): {"peft_trl_best": 3.8},
    ("documents", "lora"): {"peft_trl_best": 1.6},
}

_TRL_DPO = {
    "weights": "bfloat16",
    "autocast": False,
    "checkpointing": False,
    "micro_batch_pairs": 1,
    "precompute": True,
}
DPO = {
    OURS: Contender("contenders.tunesmith_dpo", None, {}, "this project, at its defaults"),
    "tunesmith_fp32": Contender(
        "contenders.tunesmith_dpo", None, {"dtype": "float32"}, "in fp32, where losses can be held against TRL's"
    ),
    "tunesmith_prompt_twice": Contender(
        "contenders.tunesmith_dpo", None, {"share": False}, "the plain form: the prompt in both rows of a pair"
    ),
    "trl_one_pair": Contender("rivals.peft_trl.dpo", "peft_trl", _TRL_DPO, "bf16, one pair a pass, precomputed"),
    "trl_one_pair_autocast": Contender(
        "rivals.peft_trl.dpo", "peft_trl", _TRL_DPO | {"autocast": True}, "the same with autocast"
    ),
    "trl_one_pair_fp32": Contender(
        "rivals.peft_trl.dpo", "peft_trl", _TRL_DPO | {"weights": "float32"}, "fp32, one pair a pass, precomputed"
    ),
    "trl_defaults": Contender(
        "rivals.peft_trl.dpo",
        "peft_trl",
        {"weights": "float32", "autocast": True, "checkpointing": True, "micro_batch_pairs": 4, "precompute": False},
        "as TRL ships: fp32 weights, autocast, recomputation, the reference in every step",
    ),
}
"""Who runs in the benchmark of preference tuning."""

_TRL_GRPO = {"weights": "bfloat16", "autocast": False, "checkpointing": False, "completions": 32}
GRPO = {
    OURS: Contender("contenders.tunesmith_grpo", None, {}, "this project, at its defaults"),
    "trl_bf16": Contender("rivals.peft_trl.grpo", "peft_trl", _TRL_GRPO, "bf16 weights, the step in one pass"),
    "trl_bf16_by_8": Contender(
        "rivals.peft_trl.grpo", "peft_trl", _TRL_GRPO | {"completions": 8}, "bf16 weights, eight completions a pass"
    ),
    "trl_defaults": Contender(
        "rivals.peft_trl.grpo",
        "peft_trl",
        {"weights": "float32", "autocast": True, "checkpointing": True, "completions": 8},
        "as TRL ships: fp32 weights, autocast, recomputation",
    ),
}
"""Who runs in the benchmark of online learning."""
