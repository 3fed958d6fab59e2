"""What becomes of transformers' TrainingArguments, which LLaMA-Factory, TRL and people's own scripts share.

A dialect takes `KEYS` into its table and calls `steps`, `when` and `around`. Of the carried keys these leave to it what
is the trainer's to say: bf16 and fp16 (of the products alone, or of the weights), what is recomputed, what is done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tunesmith.dialects.base import Key, Said, carried, idle, refused, there
from tunesmith.notation import write_inline

ALL_CHECKPOINTS = 1_000_000
"""train.keep_checkpoints where none is ever deleted."""

_OF_LLAMA_FACTORY = ("stage", "finetuning_type", "template", "cutoff_len", "dataset_dir")
_ALSO_OF_LLAMA_FACTORY = ("dataset", "lora_rank", "lora_target", "quantization_bit")
"""Marks too, but in a file with TRL's own `dataset_name` they are slips."""
_ONE_PROCESS = "one process on one device does the work"
_FUSED = "the kernels here are always the fused ones; the numbers are the same"
_KEPT = "every step's numbers are kept"
_PREPARED = "rows are prepared in this process"
_HUB = "nothing is sent anywhere: `hf upload` does it"
_SCORES = "held-out rows are scored by their loss; `tunesmith evaluate` scores answers"
_GONE = "no version of transformers reads it any more"

KEYS: dict[str, Key] = {
    **carried("output.folder", "output_dir"),
    **carried("train.batch_size or train.batch_tokens", "per_device_train_batch_size", "gradient_accumulation_steps"),
    **carried("train.epochs", "num_train_epochs"),
    **carried("train.steps", "max_steps"),
    **carried("train.learning_rate", "learning_rate"),
    **carried("train.schedule", "lr_scheduler_type"),
    **carried("train.min_learning_rate", "lr_scheduler_kwargs"),
    **carried("train.warmup", "warmup_steps", "warmup_ratio"),
    **carried("train.optimizer", "optim"),
    **carried("train.weight_decay", "weight_decay"),
    **carried("train.betas", "adam_beta1", "adam_beta2"),
    **carried("train.eps", "adam_epsilon"),
    **carried("train.max_grad_norm", "max_grad_norm"),
    **carried("train.neftune_alpha", "neftune_noise_alpha"),
    **carried("train.evaluate_every", "eval_strategy", "evaluation_strategy", "eval_steps"),
    **carried("train.save_every", "save_strategy", "save_steps"),
    **carried("train.keep_checkpoints", "save_total_limit"),
    **carried("train.publish", "load_best_model_at_end"),
    **carried("train.seed", "seed"),
    **carried("data.shuffle", "train_sampling_strategy"),
    **carried("model.device", "use_cpu", "no_cuda", "use_mps_device"),
    **carried("model.dtype", "bf16", "fp16"),
    **carried("train.recompute", "gradient_checkpointing", "activation_checkpointing"),
    **carried("output.report_to", "report_to"),
    **carried("output.name", "run_name"),
    **carried("output.project", "project"),
    **carried("training is what is asked for", "do_train"),
    **carried("held-out rows are evaluated at the end too", "do_eval"),
    # Without effect here.
    **idle(_KEPT, "logging_strategy", "logging_steps", "logging_first_step", "logging_dir", "log_on_each_node"),
    **idle(_KEPT, "logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm", "skip_memory_metrics"),
    **idle(_KEPT, "include_num_input_tokens_seen", "include_tokens_per_second"),
    **idle("the seed is one for all: train.seed", "data_seed"),
    **idle("a run of one seed is the same run again", "full_determinism"),
    **idle("matrices are multiplied in model.dtype", "tf32", "bf16_full_eval", "fp16_full_eval", "fp16_opt_level"),
    **idle("matrices are multiplied in model.dtype", "fp16_backend", "half_precision_backend"),
    **idle("how recomputation is done is ours to choose", "gradient_checkpointing_kwargs"),
    **idle("how recomputation is done is ours to choose", "activation_checkpointing_kwargs"),
    **idle(_FUSED, "torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo", "use_liger_kernel"),
    **idle(_FUSED, "liger_kernel_config", "use_ipex", "jit_mode_eval"),
    **idle("micro-batches are cut to fit, in evaluation too", "auto_find_batch_size", "per_device_eval_batch_size"),
    **idle("micro-batches are cut to fit, in evaluation too", "torch_empty_cache_steps", "eval_accumulation_steps"),
    **idle("a micro-batch keeps nothing for the next", "use_cache", "past_index"),
    **idle(_SCORES, "prediction_loss_only", "include_for_metrics", "include_inputs_for_metrics", "batch_eval_metrics"),
    **idle(_SCORES, "eval_do_concat_batches", "eval_use_gather_object", "label_names", "generation_config"),
    **idle(_SCORES, "predict_with_generate", "generation_max_length", "generation_num_beams"),
    **idle("`tunesmith generate` writes answers, with the run as its source", "do_predict"),
    **idle("evaluation begins when it first falls due", "eval_on_start", "eval_delay"),
    **idle("the best checkpoint is that of the lowest held-out loss", "metric_for_best_model", "greater_is_better"),
    **idle("a checkpoint holds all that going on needs", "save_only_model", "save_on_each_node", "save_safetensors"),
    **idle("a checkpoint holds all that going on needs", "enable_jit_checkpoint", "ignore_data_skip"),
    **idle("a checkpoint holds all that going on needs", "restore_callback_states_from_checkpoint"),
    **idle("a run is never written over: go on with it by --resume, or give it another folder", "overwrite_output_dir"),
    **idle(_HUB, "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
    **idle(_HUB, "hub_revision", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
    **idle(_HUB, "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    **idle(_PREPARED, "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    **idle(_PREPARED, "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    **idle("every row comes in every pass", "dataloader_drop_last"),
    **idle("rows are not padded", "group_by_length", "length_column_name", "sortish_sampler"),
    **idle("columns that a format does not read are named, and left", "remove_unused_columns"),
    **idle(_ONE_PROCESS, "deepspeed", "fsdp", "fsdp_config", "fsdp_min_num_params", "local_rank", "mp_parameters"),
    **idle(_ONE_PROCESS, "fsdp_transformer_layer_cls_to_wrap", "accelerator_config", "parallelism_config"),
    **idle(_ONE_PROCESS, "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_backend"),
    **idle(_ONE_PROCESS, "ddp_static_graph", "ddp_timeout", "dispatch_batches", "split_batches", "ray_scope"),
    **idle(_ONE_PROCESS, "tpu_num_cores", "tpu_metrics_debug", "average_tokens_across_devices", "xpu_backend"),
    **idle("nothing in a run depends on it", "debug"),
    **idle(_GONE, "use_legacy_prediction_loop"),
    # Refused.
    **refused("go on with a run of ours by --resume", "resume_from_checkpoint"),
    **refused("leave it out: only adamw's own settings are read", "optim_args", "optim_target_modules"),
    **refused("take optim: adamw_torch", "adafactor"),
    **refused("leave it out: the labels of supervised rows are not smoothed", "label_smoothing_factor"),
    **refused("write per_device_train_batch_size", "per_gpu_train_batch_size"),
    **refused("leave it out: micro-batches are cut to fit, in evaluation too", "per_gpu_eval_batch_size"),
}
_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), "adamw-8bit"),
}
_SCHEDULES = {
    **{"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"},
    **{"cosine_with_min_lr": "cosine", "cosine_with_restarts": "cosine", "polynomial": "linear"},
}
_AS_HERE: dict[str, dict[str, float]] = {
    "cosine": {"num_cycles": 0.5},
    "cosine_with_min_lr": {"num_cycles": 0.5},
    "cosine_with_restarts": {"num_cycles": 1},
    "polynomial": {"power": 1},
}
"""Numbers of a schedule's kwargs with which it is the one here."""
_FLOORS = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "polynomial": ("lr_end",)}
_SERVICES = ("wandb", "trackio", "tensorboard", "mlflow")


def is_llama_factorys(values: Mapping[str, Any]) -> bool:
    """Whether a file with TrainingArguments is LLaMA-Factory's, and not TRL's."""
    marks = _OF_LLAMA_FACTORY if "dataset_name" in values else _OF_LLAMA_FACTORY + _ALSO_OF_LLAMA_FACTORY
    return any(key in values for key in marks)


def steps(said: Said, *, learning_rate: float = 5e-5, packed: int | None = None) -> None:
    """The batch, the budget and the optimizer. `learning_rate`: the trainer's default. `packed`: rows are packed, so
    many tokens a piece."""
    rows = said.count("per_device_train_batch_size", 8) * said.count("gradient_accumulation_steps", 1)
    keys = (*there(said, "per_device_train_batch_size"), *there(said, "gradient_accumulation_steps"))
    if packed is None:
        said.put("train.batch_size", rows, *keys)
    else:
        said.put("train.batch_tokens", rows * packed, *keys)
        said.note(
            f"rows were packed {packed} tokens a piece: a step takes about {rows} x {packed} tokens of whole rows"
        )
    count = _max_steps(said)
    if count is not None:
        said.put("train.steps", count, "max_steps")
        said.take("num_train_epochs", float)
        said.idle("num_train_epochs", "max_steps goes before it")
    else:
        said.put("train.epochs", said.take("num_train_epochs", float, 3.0), *there(said, "num_train_epochs"))
        said.idle("max_steps", "num_train_epochs is the budget")
    rate = said.take("learning_rate", float, learning_rate)
    said.put("train.learning_rate", rate, *there(said, "learning_rate"))
    _schedule(said, rate)
    name = said.choose("optim", tuple(_OPTIMIZERS), "adamw_torch_fused")
    said.put("train.optimizer", _OPTIMIZERS[name], *there(said, "optim"))
    said.put("train.weight_decay", said.take("weight_decay", float, 0.0), *there(said, "weight_decay"))
    if said.has("adam_beta1", "adam_beta2"):
        betas = [said.take("adam_beta1", float, 0.9), said.take("adam_beta2", float, 0.999)]
        said.put("train.betas", betas, *there(said, "adam_beta1"), *there(said, "adam_beta2"))
    if said.has("adam_epsilon"):
        said.put("train.eps", said.take("adam_epsilon", float), "adam_epsilon")
    norm = said.take("max_grad_norm", float, 1.0)
    said.put("train.max_grad_norm", norm if norm > 0 else None, *there(said, "max_grad_norm"))
    noise = said.take("neftune_noise_alpha", float)
    if noise is not None and noise > 0:
        said.put("train.neftune_alpha", noise, "neftune_noise_alpha")
    at_rest(said, {"label_smoothing_factor": 0})


def at_rest(said: Said, values: Mapping[str, float]) -> None:
    """Keys that are refused but for the number with which they do nothing."""
    for key, nothing in values.items():
        if said.has(key) and said.values[key] is not False and said.take(key, float) == nothing:
            said.idle(key, "off")


def _max_steps(said: Said) -> int | None:
    count = said.take("max_steps", int)
    return count if count is not None and count > 0 else None


def _schedule(said: Said, rate: float) -> None:
    name = said.choose("lr_scheduler_type", tuple(_SCHEDULES), "linear")
    said.put("train.schedule", _SCHEDULES[name], *there(said, "lr_scheduler_type"))
    given = mapping(said, "lr_scheduler_kwargs")
    floors, as_here = _FLOORS.get(name, ()), _AS_HERE.get(name, {})
    odd = [key for key, value in given.items() if key not in floors and value is not None and as_here.get(key) != value]
    if odd:
        expected = ", ".join([*floors, *(f"{key}: {value:g}" for key, value in as_here.items())]) or "nothing"
        said.refuse("lr_scheduler_kwargs", f"holds {', '.join(odd)} beside {name}", "take it out", expected=expected)
    if name == "polynomial":
        floor = given.get("lr_end", 1e-7)
    else:
        floor = given["min_lr_rate"] * rate if given.get("min_lr_rate") is not None else given.get("min_lr")
    if name in _FLOORS and floor is None and not odd:
        said.refuse("lr_scheduler_type", f"is {name}", "give lr_scheduler_kwargs: {min_lr_rate: 0.1}")
    elif name in _FLOORS and floor is not None:
        said.put("train.min_learning_rate", floor, *there(said, "lr_scheduler_kwargs"))
    _warmup(said, name)


def mapping(said: Said, key: str) -> dict[str, Any]:
    """A mapping, also one that is written as JSON text."""
    value = said.raw(key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = said.raw(key)
    if value is not None and not isinstance(value, dict):
        fix = f"write it so: {key}: {{name: value}}; or take it out"
        said.refuse(key, f"cannot be {write_inline(value)}", fix, expected="a mapping")
        return {}
    return value or {}


def _warmup(said: Said, schedule: str) -> None:
    count, share = said.take("warmup_steps", float, 0.0), said.share("warmup_ratio") or 0.0
    if schedule == "constant":
        said.put("train.warmup", 0.0)
        for key in ("warmup_steps", "warmup_ratio"):
            said.idle(key, "lr_scheduler_type constant has no warm-up (constant_with_warmup has)")
    elif count > 0:
        said.put("train.warmup", count, "warmup_steps")
        said.idle("warmup_ratio", "warmup_steps goes before it")
    else:
        keys = tuple(key for key in ("warmup_ratio", "warmup_steps") if said.has(key))
        said.put("train.warmup", share, *keys)


def when(said: Said, *, holds_out: bool, logging_steps: int = 500) -> None:
    """Evaluations and checkpoints. `logging_steps`: the trainer's default, by which evaluations come where `eval_steps`
    says nothing."""
    evaluation = ("eval_strategy", "evaluation_strategy")
    if holds_out:
        every = ("eval_steps",) if said.has("eval_steps") else there(said, "logging_steps")
        _every(said, "train.evaluate_every", evaluation, every, "no", float(logging_steps))
    else:
        for key in (*evaluation, "eval_steps"):
            said.take(key, str)
            said.idle(key, "no rows are held out")
    _every(said, "train.save_every", ("save_strategy",), there(said, "save_steps"), "steps", 500.0)
    kept = said.take("save_total_limit", int, 0)
    said.put("train.keep_checkpoints", kept if kept > 0 else ALL_CHECKPOINTS, *there(said, "save_total_limit"))
    best = said.take("load_best_model_at_end", bool, False)
    said.put("train.publish", "best" if best else "last", *there(said, "load_best_model_at_end"))
    metric = said.take("metric_for_best_model", str, "loss")
    if best and metric.removeprefix("eval_") != "loss":
        fix = "take it out: the best checkpoint is that of the lowest held-out loss"
        said.refuse("metric_for_best_model", f"is {metric}", fix)
    if best and said.has("eval_delay") and said.take("eval_delay", float, 0.0) > 0:
        said.refuse("eval_delay", "would leave out the first evaluations, of which one may be the best", "take it out")


def _every(
    said: Said, setting: str, strategies: tuple[str, ...], every: tuple[str, ...], default: str, count: float
) -> None:
    """`every`: the key that counts steps, where there is one; else they are `count`."""
    keys = tuple(key for key in strategies if said.has(key))
    choices = ("no", "steps", "epoch", *(("best",) if setting == "train.save_every" else ()))
    strategy = said.choose(keys[0], choices, default) if keys else default
    steps = said.take(every[0], float, count) if every else count
    if strategy == "steps":
        said.put(setting, int(steps) if steps >= 1 else _share(said, steps), *keys, *every)
        return
    if every and every[0] != "logging_steps":
        said.idle(every[0], f"{strategies[0]} is {strategy}")
    if strategy == "best":
        said.carry(keys[0], "a checkpoint is kept of each best evaluation")
    else:
        said.put(setting, "1 epoch" if strategy == "epoch" else _share(said, 1.0), *keys)


def _share(said: Said, share: float) -> int | str:
    """A share of the whole run, in steps or passes."""
    count = _max_steps(said)
    if count is not None:
        return max(1, math.ceil(share * count))
    passes = share * said.take("num_train_epochs", float, 3.0)
    return "1 epoch" if passes == 1 else f"{round(passes, 12):.12g} epochs"


def around(said: Said) -> None:
    """The seed, the order of the rows, the device, the run folder and who else gets the numbers."""
    said.put("train.seed", said.take("seed", int, 42), *there(said, "seed"))
    order = said.choose("train_sampling_strategy", ("random", "sequential", "group_by_length"), "random")
    if order == "sequential":
        said.put("data.shuffle", False, "train_sampling_strategy")
    elif order == "group_by_length":
        said.idle("train_sampling_strategy", "rows are not padded")
    for key, device in (("use_cpu", "cpu"), ("no_cuda", "cpu"), ("use_mps_device", "mps")):
        if said.take(key, bool, False):
            said.put("model.device", device, key)
    if said.has("output_dir"):
        said.put("output.folder", said.take("output_dir", str), "output_dir")
    services = [name for name in said.items("report_to", str) if name != "none"]
    odd = [name for name in services if name not in _SERVICES]
    if odd:
        fix = f"take {', '.join(odd)} out: every step's numbers are kept in the run folder in any case"
        said.refuse("report_to", f"names {', '.join(odd)}", fix, expected=f"none, or of {', '.join(_SERVICES)}")
    elif said.has("report_to"):
        said.put("output.report_to", services, "report_to")
    if said.has("run_name"):
        said.put("output.name", said.take("run_name", str), "run_name")
    project = said.take("project", str)
    if project is not None and "trackio" in services:
        said.put("output.project", project, "project")
    else:
        said.idle("project", "trackio is not among report_to")
