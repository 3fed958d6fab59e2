"""Of an Axolotl file: batches, budget, rates, and when to evaluate and save."""

from __future__ import annotations

import math
from fractions import Fraction

from tunesmith.dialects.axolotl.objective import prompts_per_step
from tunesmith.dialects.base import Said, instead, left_over, of_one_process, there
from tunesmith.train.every import passes

_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "paged_adamw_32bit"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), "adamw-8bit"),
}
_OF_DEVICES = ("deepspeed", "fsdp", "fsdp_config", "dp_shard_size", "dp_replicate_size")
_WARMED, _MOST_WARMED = 0.03, 100
"""Axolotl's warm-up where nothing is said: a share of the steps, and the most of them."""
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


def steps(said: Said) -> None:
    micro, times = said.count("micro_batch_size", 1), said.count("gradient_accumulation_steps", 1)
    keys = (*there(said, "micro_batch_size"), *there(said, "gradient_accumulation_steps"))
    whole = said.count("batch_size", 1) if said.has("batch_size") else None
    if whole is not None and said.has("gradient_accumulation_steps"):
        said.refuse("batch_size", "stands beside gradient_accumulation_steps", "take one of them out")
    rows = whole if whole is not None and not said.has("gradient_accumulation_steps") else micro * times
    if whole is not None:
        keys = ("batch_size", *keys)
    rows = prompts_per_step(said, rows)
    learns_rows = not said.has("rl") and not said.take("reward_model", bool, False)
    if said.take("sample_packing", bool, False) and learns_rows:
        length = said.take("sequence_len", int, 512)
        said.put("train.batch_tokens", rows * length, *keys, "sample_packing")
        said.note(
            f"rows were packed {length} tokens a piece: a step takes about {rows} x {length} tokens of whole rows"
        )
    else:
        said.put("train.batch_size", rows, *keys)
        if said.has("sample_packing"):
            said.idle("sample_packing", "off, or rows of this objective are never packed")
    of_one_process(said, _OF_DEVICES, ("micro_batch_size", "gradient_accumulation_steps", "batch_size"))
    steps = said.take("max_steps", int)
    if steps is not None and steps > 0:
        said.put("train.steps", steps, "max_steps")
        said.take("num_epochs", float)
        said.idle("num_epochs", "max_steps goes before it")
    else:
        said.put("train.epochs", said.take("num_epochs", float, 1.0), *there(said, "num_epochs"))
    rate = said.take("learning_rate", float)
    if rate is None:
        said.refuse("learning_rate", "is missing", "give it, for LoRA for instance 2e-4", expected="a number")
        rate = 1.0
    said.put("train.learning_rate", rate, "learning_rate")
    schedule = said.take("lr_scheduler", str, "cosine")
    if schedule not in _SCHEDULES:
        fix = instead("lr_scheduler", schedule, _SCHEDULES, "cosine")
        said.refuse("lr_scheduler", f"cannot be {schedule}", fix, expected=", ".join(_SCHEDULES))
    said.put("train.schedule", _SCHEDULES.get(schedule, "cosine"), *there(said, "lr_scheduler"))
    floor = said.take("cosine_min_lr_ratio", float)
    if floor is not None and schedule == "cosine":
        said.put("train.min_learning_rate", floor * rate, "cosine_min_lr_ratio")
    elif floor is not None:
        said.idle("cosine_min_lr_ratio", "the schedule is not cosine")
    _warmup(said, schedule)
    name = said.take("optimizer", str, "adamw_torch_fused")
    if name not in _OPTIMIZERS:
        fix = instead("optimizer", name, _OPTIMIZERS, "adamw_torch")
        said.refuse("optimizer", f"cannot be {name}", fix, expected=", ".join(_OPTIMIZERS))
    said.put("train.optimizer", _OPTIMIZERS.get(name, "adamw"), *there(said, "optimizer"))
    said.put("train.weight_decay", said.take("weight_decay", float, 0.0), *there(said, "weight_decay"))
    if said.has("adam_beta1", "adam_beta2"):
        betas = [said.take("adam_beta1", float, 0.9), said.take("adam_beta2", float, 0.999)]
        said.put("train.betas", betas, *there(said, "adam_beta1"), *there(said, "adam_beta2"))
    for key, setting in (("adam_epsilon", "train.eps"), ("neftune_noise_alpha", "train.neftune_alpha")):
        if said.has(key):
            said.put(setting, said.take(key, float), key)
    if said.has("neftune_noise_alpha"):
        left_over(said, "neftune_noise_alpha goes before it", "noisy_embedding_alpha")
    elif said.has("noisy_embedding_alpha"):
        said.put("train.neftune_alpha", said.take("noisy_embedding_alpha", float), "noisy_embedding_alpha")
    norm = said.take("max_grad_norm", float, 1.0)
    said.put("train.max_grad_norm", norm if norm > 0 else None, *there(said, "max_grad_norm"))
    threshold = said.take("loss_watchdog_threshold", float)
    if threshold is not None:
        said.put("train.stop_above", threshold, "loss_watchdog_threshold")
        patience = said.take("loss_watchdog_patience", int, 3)
        said.put("train.stop_above_steps", patience, *there(said, "loss_watchdog_patience"))
    else:
        said.idle("loss_watchdog_patience", "loss_watchdog_threshold is not given")
    said.put("train.seed", said.take("seed", int, 42), *there(said, "seed"))
    recompute = said.raw("gradient_checkpointing")
    if recompute in ("unsloth", "offload", "offload_disk") or said.take("gradient_checkpointing", bool, False):
        said.put("train.recompute", True, "gradient_checkpointing")


def _warmup(said: Said, schedule: str) -> None:
    steps, share = said.take("warmup_steps", float), said.share("warmup_ratio")
    if steps and share:
        said.refuse("warmup_ratio", "stands beside warmup_steps", "take one of them out")
    if schedule == "constant":
        said.put("train.warmup", 0.0)
        for key in ("warmup_steps", "warmup_ratio"):
            said.idle(key, "lr_scheduler constant has no warm-up (constant_with_warmup has)")
    elif share and not steps:
        said.put("train.warmup", share, "warmup_ratio")
        left_over(said, "warmup_ratio says it", "warmup_steps")
    elif steps is not None:
        said.put("train.warmup", steps, "warmup_steps")
        left_over(said, "warmup_steps says it", "warmup_ratio")
    elif share is not None:
        said.put("train.warmup", share, "warmup_ratio")
    else:
        _usual_warmup(said)


def _usual_warmup(said: Said) -> None:
    """A share of the steps, and never more than so many; of one step Axolotl makes two."""
    steps = said.take("max_steps", int)
    if steps is not None and steps > 0:
        count = min(int(_WARMED * steps), _MOST_WARMED)
        said.put("train.warmup", float(2 if count == 1 else count))
        return
    said.put("train.warmup", _WARMED)
    said.note(
        f"a file that says nothing warms up for {_WARMED:.0%} of the steps, in Axolotl for {_MOST_WARMED} at most: "
        f"where a run has more than {_MOST_WARMED / _WARMED:,.0f} steps, set warmup_steps={_MOST_WARMED}"
    )


def when(said: Said) -> None:
    """Evaluations and checkpoints: so many in a pass, every so many steps, or at the end of each."""
    holds_out = said.has("test_datasets") or bool(said.take("val_set_size", float, 0.0))
    evaluates: int | str | None = None
    if holds_out:
        strategies = ("eval_strategy", "evaluation_strategy")
        evaluates = _every(said, "train.evaluate_every", "evals_per_epoch", "eval_steps", strategies)
    else:
        for key in ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy"):
            said.idle(key, "no rows are held out")
    saves = _every(said, "train.save_every", "saves_per_epoch", "save_steps", ("save_strategy",))
    said.put("train.keep_checkpoints", said.take("save_total_limit", int, 4), *there(said, "save_total_limit"))
    patience = said.take("early_stopping_patience", int)
    if patience is not None and holds_out:
        said.put("train.stop_after_no_gain", patience, "early_stopping_patience")
    elif patience is not None:
        said.idle("early_stopping_patience", "no rows are held out")
    wanted = said.take("load_best_model_at_end", bool, False)
    is_best = holds_out and (wanted or patience is not None) and _falls_on(saves, evaluates)
    said.put("train.publish", "best" if is_best else "last", *there(said, "load_best_model_at_end"))
    if wanted and not is_best:
        said.note("load_best_model_at_end: not each checkpoint comes with an evaluation; as in Axolotl the last counts")


def _falls_on(saves: int | str | None, evaluates: int | str | None) -> bool:
    """Whether each checkpoint comes with an evaluation: then Axolotl ends with the best of them."""
    if saves is None or evaluates is None or isinstance(saves, int) is not isinstance(evaluates, int):
        return False
    apart = [Fraction(every) if isinstance(every, int) else passes(every) for every in (saves, evaluates)]
    return bool(apart[0] and apart[1] and (apart[0] / apart[1]).denominator == 1)


def _every(said: Said, setting: str, per_epoch: str, in_steps: str, strategies: tuple[str, ...]) -> int | str | None:
    """How often something is done, put as a setting; 0 counts as nothing said. None: at the end of the run alone."""
    times, every = said.take(per_epoch, int) or None, said.take(in_steps, float) or None
    strategy = next((said.take(key, str) for key in strategies if said.has(key)), None)
    keys = tuple(key for key in strategies if said.has(key))
    made: int | str | None = None
    if times is not None and every is not None:
        said.refuse(in_steps, f"stands beside {per_epoch}", "take one of them out")
    elif (times is not None or every is not None) and strategy not in (None, "steps"):
        counted = in_steps if times is None else per_epoch
        said.refuse(keys[0], f"is {strategy}, beside {counted}", "take one of them out")
    elif times is not None:
        made, keys = "1 epoch" if times == 1 else f"1/{times} epochs", (per_epoch, *keys)
    elif every is not None:
        made, keys = int(every) if every >= 1 else _share(said, every), (in_steps, *keys)
    elif strategy == "no":
        said.idle(keys[0], "at the end of the run it is done all the same")
    elif strategy == "best":
        said.carry(keys[0], "a checkpoint is kept of each best evaluation")
    elif strategy == "steps":
        made = 500
    elif strategy in (None, "epoch"):
        made = "1 epoch"
    else:
        known = ("steps", "epoch", "no", "best")
        fix = instead(keys[0], strategy, known, "epoch")
        said.refuse(keys[0], f"cannot be {strategy}", fix, expected=", ".join(known))
    if made is not None:
        said.put(setting, made, *keys)
    left_over(said, "0 says nothing", per_epoch, in_steps)
    return made


def _passes(share: float) -> str:
    return "1 epoch" if share == 1 else f"{round(share, 12):.12g} epochs"


def _share(said: Said, share: float) -> int | str:
    """A share of the whole run, in steps or passes."""
    steps = said.take("max_steps", int)
    if steps is not None and steps > 0:
        return max(1, math.ceil(share * steps))
    return _passes(share * said.take("num_epochs", float, 1.0))
